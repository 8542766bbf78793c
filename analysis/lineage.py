"""Where a point's checkpoint comes from, in columns of plain words: model, role, data, budgets, and what was done to the weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from cpt_lab.architecture import ATTENTION_ROLES, ROLES, Role
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
    Patched,
    Spec,
    SpectralWarmup,
    TrainedCheckpoint,
    key,
)

COLUMNS = (
    *("model", "size", "parameters", "role", "mixture", "domain", "cpt_tokens", "math_tokens", "pretrain_tokens"),
    *("which", "tuned", "unedited", "protocol_key"),
    *("intervention", "percent", "matrices", "weight", "partner", "partner_which", "partner_key", "partner_domain", "source"),
)
DOMAIN_OF = {  # P table 1: what a source of data is for; all others are a domain by their own name
    **{"math": "math", "dolmino_math": "math"},
    **{"text": "text", "dclm": "text", "dclm_sample": "text"},
    **{"inst": "inst", "flan": "inst", "stackexchange": "inst"},
    **{"code": "code", "starcoder": "code"},
}
MOSTLY = 0.75  # a mixture with so much of one domain is of this domain: P's text mix of 50B has 17 % of instructions


def columns(spec: Spec, known: dict[tuple[str, str], str] | None = None) -> dict[str, Any]:
    """The COLUMNS of a point, None where one does not apply.

    role: base, tuned, soup or edited. Tokens are numbers of tokens; of a hub checkpoint as its revision says. `which` is what tells
    checkpoints of the same model and data apart: the seed of a training, a folder. `tuned` is the key of the checkpoint that is edited,
    `unedited` that of its own evaluation under the same protocol: what a point is paired with; `known` keeps it by protocol and
    checkpoint for the next point.
    """
    given: Checkpoint | Patched | None = getattr(spec, "checkpoint", spec if isinstance(spec, Patched) else None)
    if not isinstance(given, HubCheckpoint | FolderCheckpoint | TrainedCheckpoint | Intermediate | Patched):
        return dict.fromkeys(COLUMNS)
    start = given.tuned if isinstance(given, Patched) else given
    found = {**dict.fromkeys(COLUMNS), **origin(start), "which": which(start), "tuned": key(start), **_done_to(given)}
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
    if isinstance(checkpoint, TrainedCheckpoint):
        return _trained(checkpoint, checkpoint.mixture.tokens, found)
    return _trained(checkpoint.of, checkpoint.tokens, found) if isinstance(checkpoint, Intermediate) else found


def _trained(run: TrainedCheckpoint, seen: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a training run has become after so many of its tokens."""
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


def tokens_text(count: float) -> str:
    """`4T`, `20B`, `1.02M` tokens: three digits at most; what rounds to a thousand of a unit is one of the next."""
    for unit, scale in (("", 1.0), ("k", 1e3), ("M", 1e6), ("B", 1e9)):
        text = f"{count / scale:.3g}"
        if float(text) < 1000:
            return f"{text}{unit}"
    return f"{count / 1e12:.3g}T"


def size(name: str, parameters: int) -> str:
    """`7B`: as the model is called, or as it is."""
    called = re.search(r"(?:^|[_-])(\d+(?:[._]\d+)?)([bm])(?=$|[_-])", name.lower())
    if called:
        return f"{called.group(1).replace('_', '.')}{called.group(2).upper()}"
    unit, scale = ("B", 1e9) if parameters >= 1e9 else ("M", 1e6)
    return f"{parameters / scale:.2g}{unit}" if parameters < 10 * scale else f"{parameters / scale:.0f}{unit}"


def called(checkpoint: Checkpoint) -> str:
    """What people call a checkpoint: its training mixture, its hub id and revision, its folder."""
    if isinstance(checkpoint, TrainedCheckpoint):
        return checkpoint.mixture.name
    if isinstance(checkpoint, Intermediate):
        return f"{called(checkpoint.of)} at {checkpoint.tokens:,}"
    if isinstance(checkpoint, SpectralWarmup):
        return f"warm-up like {called(checkpoint.reference)}"
    if isinstance(checkpoint, HubCheckpoint):
        return f"{checkpoint.id.split('/')[-1]} {checkpoint.revision}"
    return checkpoint.path.rstrip("/").rsplit("/", 1)[-1]


def which(checkpoint: Checkpoint) -> str:
    """`seed 1` of a training, `seeds 0, 1` where that of what it starts from is another one; what all others are called."""
    run = checkpoint.of if isinstance(checkpoint, Intermediate) else checkpoint
    if not isinstance(run, TrainedCheckpoint):
        return called(checkpoint)
    seeds = _seeds(run)
    return f"seed {seeds[0]}" if len(set(seeds)) == 1 else f"seeds {', '.join(map(str, seeds))}"


def exact(checkpoint: Checkpoint) -> str:
    """A checkpoint for a caption: what it is called and the start of its hash."""
    return f"{called(checkpoint)} ({key(checkpoint).rsplit('-', 1)[-1][:8]})"


def _seeds(run: TrainedCheckpoint) -> list[int]:
    """Of a training and all those before it, the first one first."""
    start = run.start.of if isinstance(run.start, Intermediate) else run.start
    return [*(_seeds(start) if isinstance(start, TrainedCheckpoint) else []), run.recipe.seed]


def _matrices(roles: Collection[Role]) -> str:
    """`all matrices`, `attention`, `MLP`, or the matrices by name."""
    for name, these in (("all matrices", ROLES), ("attention", ATTENTION_ROLES), ("MLP", set(ROLES) - set(ATTENTION_ROLES))):
        if set(roles) == set(these):
            return name
    return ", ".join(role for role in ROLES if role in roles)


def _data(mixture: Mixture) -> dict[str, Any]:
    return {"mixture": mixture.name, "domain": domain(mixture)}


def _done_to(checkpoint: Checkpoint | Patched) -> dict[str, Any]:
    """The interventions, with the settings that figures draw against."""
    if not isinstance(checkpoint, Patched):
        return {"intervention": "none"}
    found: dict[str, Any] = {"role": "edited", "intervention": "+".join(change.kind for change in checkpoint.interventions)}
    for change in checkpoint.interventions:
        if isinstance(change, Truncate):
            found |= {"percent": change.percent, "matrices": _matrices(change.roles)}
        elif isinstance(change, Transplant):
            found |= {"source": called(change.source)}
        elif isinstance(change, Soup):
            found |= {"role": "soup", **_soup(change)}
    return found


def _soup(change: Soup) -> Mapping[str, Any]:
    """The weight, the name and the key of the one other member; nothing of a soup of more."""
    others = [part for part in change.members if part.checkpoint is not None]
    if len(others) != 1 or change.roles:
        return {}
    (other,) = others
    assert other.checkpoint is not None
    partner = other.checkpoint
    found = {
        "partner": called(partner),
        "partner_which": f"{called(partner)} of {which(partner)}",
        "partner_key": key(partner),
        "partner_domain": origin(partner).get("domain"),
    }
    return {"weight": other.weight, **found}
