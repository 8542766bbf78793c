"""Where a point's checkpoint comes from, in columns of plain words: model, role, data, budgets, and what was done to the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cpt_lab.interventions.soup import Soup
from cpt_lab.interventions.transplant import Transplant
from cpt_lab.interventions.truncate import Truncate
from cpt_lab.specs import (
    Checkpoint,
    Evaluation,
    FolderCheckpoint,
    HubCheckpoint,
    Intermediate,
    Mixture,
    OlmoCoreCheckpoint,
    Patched,
    Spec,
    SpectralWarmup,
    TrainedCheckpoint,
    key,
)

COLUMNS = (
    *("model", "size", "parameters", "role", "mixture", "domain", "cpt_tokens", "math_tokens", "pretrain_tokens"),
    *("intervention", "percent", "weight", "partner", "partner_domain", "source", "tuned", "unedited", "protocol_key"),
)
DOMAIN_OF = {  # P table 1: what a source of data is for; all others are a domain by their own name
    **{"math": "math", "dolmino_math": "math"},
    **{"text": "text", "dclm": "text", "dclm_sample": "text"},
    **{"inst": "inst", "flan": "inst", "stackexchange": "inst"},
    **{"code": "code", "starcoder": "code"},
}
CHECKPOINTS = (HubCheckpoint, FolderCheckpoint, TrainedCheckpoint, Intermediate, OlmoCoreCheckpoint, SpectralWarmup)
MOSTLY = 0.75  # a mixture with so much of one domain is of this domain: P's text mix of 50B has 17 % of instructions


def columns(spec: Spec, known: dict[tuple[str, str], str] | None = None) -> dict[str, Any]:
    """The COLUMNS of a point, None where one does not apply.

    role: base, tuned, soup or edited. Tokens are numbers of tokens; of a hub checkpoint as its revision says. `tuned` is the key of the
    checkpoint that is edited, `unedited` that of its own evaluation under the same protocol: what a point is paired with; `known` keeps
    it by protocol and checkpoint for the next point.
    """
    given: Checkpoint | Patched | None = getattr(spec, "checkpoint", spec if isinstance(spec, Patched) else None)
    if not isinstance(given, (*CHECKPOINTS, Patched)):
        return dict.fromkeys(COLUMNS)
    start = given.tuned if isinstance(given, Patched) else given
    found = {**dict.fromkeys(COLUMNS), **origin(start), "tuned": key(start), **_done_to(given)}
    if isinstance(spec, Evaluation):
        found["protocol_key"] = key(spec.protocol)
        pair = (key(spec.protocol), key(start))
        known = {} if known is None else known
        found["unedited"] = known[pair] = known.get(pair) or key(spec.but(checkpoint=start))
    return found


def origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """Model, size, role, data and budgets of a checkpoint that nothing was done to."""
    shape = checkpoint.shape
    found = {"model": shape.name, "size": size(shape.name, shape.parameters), "parameters": shape.parameters, "role": "base"}
    if isinstance(checkpoint, HubCheckpoint):
        return {**found, "pretrain_tokens": tokens_of_revision(checkpoint.revision)}
    if isinstance(checkpoint, FolderCheckpoint | OlmoCoreCheckpoint | SpectralWarmup):
        return found
    run = checkpoint.of if isinstance(checkpoint, Intermediate) else checkpoint
    seen = checkpoint.tokens if isinstance(checkpoint, Intermediate) else run.mixture.tokens
    if run.start is None or isinstance(run.start, SpectralWarmup):
        return {**found, **_data(run.mixture), "pretrain_tokens": seen}
    before = origin(run.start)
    math = sum(part.tokens for part in run.mixture.parts if DOMAIN_OF.get(part.corpus.name) == "math") * seen // run.mixture.tokens
    of_cpt = {"cpt_tokens": (before.get("cpt_tokens") or 0) + seen, "math_tokens": (before.get("math_tokens") or 0) + math}
    return {**before, "role": "tuned", **_data(run.mixture), **of_cpt}


def domain(mixture: Mixture) -> str:
    """The domain that most of a mixture is of, or all of them, the largest first: `math+text`."""
    shares: dict[str, int] = {}
    for part in mixture.parts:
        name = DOMAIN_OF.get(part.corpus.name, part.corpus.name)
        shares[name] = shares.get(name, 0) + part.tokens
    first, *others = sorted(shares, key=lambda name: -shares[name])
    return first if shares[first] >= MOSTLY * mixture.tokens else "+".join([first, *others])


def tokens_of_revision(revision: str) -> int | None:
    """The tokens that OLMo's revisions name: `stage1-step1907359-tokens4001B`; None of others."""
    found = re.search(r"tokens(\d+)B", revision)
    return int(found.group(1)) * 10**9 if found else None


def size(name: str, parameters: int) -> str:
    """`7B`: as the model is called, or as it is."""
    called = re.search(r"(?:^|[_-])(\d+(?:[._]\d+)?)([bm])(?=$|[_-])", name.lower())
    if called:
        return f"{called.group(1).replace('_', '.')}{called.group(2).upper()}"
    unit, scale = ("B", 1e9) if parameters >= 1e9 else ("M", 1e6)
    return f"{parameters / scale:.2g}{unit}" if parameters < 10 * scale else f"{parameters / scale:.0f}{unit}"


def called(checkpoint: Checkpoint) -> str:
    """What people call a checkpoint: its mixture, its hub id and revision, its folder."""
    if isinstance(checkpoint, Intermediate):
        return f"{called(checkpoint.of)} after {checkpoint.tokens:,} tokens"
    if isinstance(checkpoint, SpectralWarmup):
        return f"spectral warm-up of {called(checkpoint.reference)}"
    if isinstance(checkpoint, TrainedCheckpoint):
        return checkpoint.mixture.name
    if isinstance(checkpoint, HubCheckpoint):
        return f"{checkpoint.id.split('/')[-1]} {checkpoint.revision}"
    return checkpoint.path.rstrip("/").rsplit("/", 1)[-1]


def exact(checkpoint: Checkpoint) -> str:
    """A checkpoint for a caption: what it is called and the start of its hash."""
    return f"{called(checkpoint)} ({key(checkpoint).rsplit('-', 1)[-1][:8]})"


def _data(mixture: Mixture) -> dict[str, Any]:
    return {"mixture": mixture.name, "domain": domain(mixture)}


def _done_to(checkpoint: Checkpoint | Patched) -> dict[str, Any]:
    """The interventions, with the settings that figures draw against."""
    if not isinstance(checkpoint, Patched):
        return {"intervention": "none"}
    found: dict[str, Any] = {"role": "edited", "intervention": "+".join(change.kind for change in checkpoint.interventions)}
    for change in checkpoint.interventions:
        if isinstance(change, Truncate):
            found |= {"percent": change.percent}
        elif isinstance(change, Transplant):
            found |= {"source": called(change.source)}
        elif isinstance(change, Soup):
            found |= {"role": "soup", **_soup(change)}
    return found


def _soup(change: Soup) -> Mapping[str, Any]:
    """The weight and the name of the one other member; nothing of a soup of more."""
    others = [part for part in change.members if part.checkpoint is not None]
    if len(others) != 1 or change.roles:
        return {}
    (other,) = others
    assert other.checkpoint is not None
    return {"weight": other.weight, "partner": called(other.checkpoint), "partner_domain": origin(other.checkpoint).get("domain")}
