"""The graph that specs are: what they need, in order, and their simplest forms."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from cpt_lab.specs.base import Spec, key
from cpt_lab.specs.checkpoints import FolderCheckpoint, HubCheckpoint, Intermediate, OlmoCoreCheckpoint, SpectralWarmup, TrainedCheckpoint
from cpt_lab.specs.corpora import BpeTokenizer, BuiltinCorpus, FilesCorpus, HubCorpus, HubTokenizer, TokenFilesCorpus
from cpt_lab.specs.evaluations import Evaluation
from cpt_lab.specs.fingerprints import Fingerprint
from cpt_lab.specs.internals import AttentionEntropy, AttentionMaps, LayerSimilarity
from cpt_lab.specs.mixtures import Contamination, Tokens
from cpt_lab.specs.patched import Patched
from cpt_lab.specs.protocols import Protocol
from cpt_lab.specs.rankings import Correlation, Ranking, Unit
from cpt_lab.specs.rotations import Rotations
from cpt_lab.specs.spectra import Spectra, SpectralColumns, SpectralPart

STORED: tuple[type[Spec], ...] = (
    *(BuiltinCorpus, FilesCorpus, HubCorpus, TokenFilesCorpus, BpeTokenizer, HubTokenizer, Tokens, Contamination),
    *(HubCheckpoint, FolderCheckpoint, OlmoCoreCheckpoint, TrainedCheckpoint, Intermediate, SpectralWarmup),
    *(SpectralPart, SpectralColumns, Spectra),
    *(Fingerprint, Rotations, Ranking, Correlation, Patched, Protocol, Evaluation),
    *(AttentionEntropy, AttentionMaps, LayerSimilarity),
)


KINDS: dict[str, type[Spec]] = {cls.model_fields["kind"].default: cls for cls in STORED}


def parse(data: dict[str, Any]) -> Spec:
    """The spec that `model_dump` wrote, by its `kind`; ValueError if this version does not know the kind."""
    if data.get("kind") not in KINDS:
        raise ValueError(f"unknown kind of spec {data.get('kind')!r}; this version knows {', '.join(sorted(KINDS))}")
    return KINDS[data["kind"]].model_validate(data)


AnySpec = Annotated[SerializeAsAny[Spec], BeforeValidator(lambda value: parse(value) if isinstance(value, dict) else value)]


def closure(specs: tuple[Spec, ...] | list[Spec]) -> list[Spec]:
    """All specs that these need, and these, each once, needs before what needs them."""
    found: dict[str, Spec] = {}

    def visit(spec: Spec) -> None:
        name = key(spec)
        if name in found:
            return
        for need in spec.needs():
            visit(need)
        found[name] = spec

    for spec in specs:
        visit(spec)
    return list(found.values())


def rankings_of(spec: Spec) -> Iterator[Ranking]:
    """The rankings that a point waits for before its weights are known."""
    for checkpoint in (spec, *(getattr(spec, name) for name in _checkpoints(spec))):
        if isinstance(checkpoint, Patched):
            for change in checkpoint.interventions:
                yield from change.rankings()


def settled(spec: Spec, orders: dict[str, tuple[Unit, ...]] | None = None) -> Spec:
    """The simplest spec of the same weights: rankings whose order is known (by key) become explicit units, idle changes go.

    Points of different criteria that select the same heads become one value, and so one result: all curves share their ends.
    """
    if fields := _checkpoints(spec):
        simplest = {name: settled(getattr(spec, name), orders) for name in fields}
        return spec if all(simplest[name] is getattr(spec, name) for name in fields) else spec.replaced(**simplest)
    if not isinstance(spec, Patched):
        return spec
    changes = []
    for change in spec.interventions:
        for ranking in change.rankings():
            if orders and key(ranking) in orders:
                change = change.with_ranking(orders[key(ranking)])
        simpler = change.settled()
        if simpler is not None:
            changes.append(simpler)
    if len(changes) == len(spec.interventions) and all(map(operator.is_, changes, spec.interventions)):
        return spec
    return spec.replaced(interventions=tuple(changes)) if changes else spec.tuned


def _checkpoints(spec: Spec) -> tuple[str, ...]:
    """The fields of a point that may be a patched checkpoint."""
    if isinstance(spec, LayerSimilarity):
        return ("checkpoint", "against")
    return ("checkpoint",) if isinstance(spec, Evaluation | AttentionEntropy | AttentionMaps) else ()
