"""Which tables of spectra a figure is made of, what they are called beside each other, and which of their rows it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analysis import palette
from analysis.drawing import Axis, Look, Values
from analysis.lineage import called, origin, tokens_text
from analysis.runs import numbered
from cpt_lab.architecture import ATTENTION_ROLES, ROLES, Role
from cpt_lab.names import unknown
from cpt_lab.specs import (
    Checkpoint,
    HubCheckpoint,
    Intermediate,
    ModelShape,
    Spec,
    Spectra,
    SpectralWarmup,
    TrainedCheckpoint,
    key,
)
from cpt_lab.spectra import NAMES
from cpt_lab.spectra.blocks import WHOLE

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results, SpectraOf

Kind = Literal["weights", "deltas", "any"]

GOLDEN = 0.6180339887498949  # steps of it fall evenly into [0, 1)
WORDS = {  # of measures, where the name without its underscores is no word
    "frobenius_norm": "Frobenius norm",
    "pl_alpha": "power-law exponent",
    "pl_ks": "distance to the power law",
    "mp_ks": "distance to Marchenko-Pastur, bulk",
    "mp_ks_full": "distance to Marchenko-Pastur",
    "mp_outliers": "values beyond the Marchenko-Pastur edge",
    "svsm_mean": "scaling of singular values, mean",
    "svsm_std": "scaling of singular values, deviation",
    "rotation_nf": "NF",
    "agreement_residual_max": "agreement, residual side",
    "agreement_head_max": "agreement, head side",
    "agreement_residual_diagonal": "agreement at the same place, residual side",
    "agreement_head_diagonal": "agreement at the same place, head side",
}
MOST_TICKS = 10  # of layers on an axis
UNITS = {"spectral_entropy": "nats"}


@dataclass(frozen=True)
class Named:
    """A finished table of spectra, what it is called beside the others, and its look."""

    label: str
    look: Look
    spec: Spectra
    table: Callable[[], pd.DataFrame]
    indices: Callable[[], pd.DataFrame]

    @property
    def shape(self) -> ModelShape:
        return self.spec.checkpoint.shape


def tables(results: Results, *, kind: Kind, measures: Sequence[str] = (), indices: bool = False, needs: str) -> list[Named]:
    """The finished tables with these measures, least pre-training first, each comparison once.

    `weights` are tables of one checkpoint, `deltas` those of a checkpoint against another. Tables of heads alone, as rankings read them,
    stand where there is none of all matrices. ValueError, with `needs`, if there is no table.
    """
    for name in measures:
        if name not in NAMES:
            raise ValueError(unknown("spectral measure", name, NAMES))
    found = [one for one in results.tables if _fits(one.spec, kind, measures, indices=indices)]
    if not found:
        raise ValueError(f"study {results.name!r} has no finished table of spectra for this figure: it needs {needs}")
    whole = {_pair(one.spec) for one in found if one.spec.blocks == "all"}
    once: dict[tuple[str, ...], SpectraOf] = {}
    for one in found:
        if one.spec.blocks == "all" or _pair(one.spec) not in whole:
            once.setdefault((*_pair(one.spec), one.spec.blocks), one)
    return named(sorted(once.values(), key=lambda one: _turn(one.spec)))


def named(found: Sequence[SpectraOf]) -> list[Named]:
    """Tables with labels of what they do not have in common; looks are of their domains where these tell them apart."""
    labels = distinguished([_facets(one.spec) for one in found])
    domains = [_domain(one.spec.checkpoint) for one in found]
    known = {label: palette.DOMAINS[domain] for label, domain in zip(labels, domains, strict=True) if domain and domains.count(domain) == 1}
    looks = palette.series(labels, known)
    return [Named(label, looks[label], one.spec, one.table, one.indices) for label, one in zip(labels, found, strict=True)]


def distinguished(facets: Sequence[Mapping[str, str]]) -> list[str]:
    """A label for each of several things by the facets in which they differ; numbered where these do not tell them apart."""
    names = list(dict.fromkeys(name for one in facets for name in one))
    varying = [name for name in names if len({one.get(name, "") for one in facets}) > 1] or names[:1]
    labels = [", ".join(one[name] for name in varying if one.get(name)) or "the only one" for one in facets]
    return numbered(labels)


def facets_of(checkpoint: Checkpoint) -> dict[str, str]:
    """What a checkpoint is in words: model, tokens of pre-training, mixture and tokens of CPT."""
    if isinstance(checkpoint, Intermediate):
        whole = facets_of(checkpoint.of)
        last = "mixture" if "mixture" in whole else "pretrain"
        return {**whole, last: f"{tokens_text(checkpoint.tokens)} of {whole[last]}"}
    if isinstance(checkpoint, TrainedCheckpoint) and checkpoint.start is not None and not isinstance(checkpoint.start, SpectralWarmup):
        return {**facets_of(checkpoint.start), "mixture": f"CPT {checkpoint.mixture.name}"}
    if isinstance(checkpoint, TrainedCheckpoint):
        seed = f"base of seed {checkpoint.recipe.seed}" if checkpoint.recipe.seed else ""
        return {"model": checkpoint.shape.name, "pretrain": f"{tokens_text(checkpoint.mixture.tokens)} tokens", "seed": seed}
    if not isinstance(checkpoint, HubCheckpoint):
        return {"model": called(checkpoint)}
    seen = pretrain_tokens(checkpoint)
    revision = "" if checkpoint.revision == "main" else checkpoint.revision
    return {"model": checkpoint.id.split("/")[-1], "pretrain": f"{tokens_text(seen)} tokens" if seen else revision}


def pretrain_tokens(checkpoint: Checkpoint) -> int | None:
    """Tokens of pre-training, as far as the recipe or the name of the revision tells."""
    found = origin(checkpoint).get("pretrain_tokens")
    return None if found is None else int(found)


def measure_text(measure: str) -> str:
    """A measure in words."""
    return WORDS.get(measure, measure.replace("_", " "))


def role_text(role: str) -> str:
    """A matrix as the papers write it, in plain letters."""
    return f"W {role.upper() if role in ATTENTION_ROLES else role}"


def chosen_roles(asked: Iterable[str] | None, found: Sequence[Named]) -> list[Role]:
    """The asked roles that all tables have; ValueError naming what they have if none is left."""
    sets = [set(one.spec.roles or ROLES) for one in found]
    sets = [roles & set(one.table()["role"]) for roles, one in zip(sets, found, strict=True)]
    present = [role for role in ROLES if all(role in roles for roles in sets)]
    kept = [role for role in present if asked is None or role in set(asked)]
    if not kept:
        raise ValueError(f"none of the roles {', '.join(asked or ())} is in all tables: choose some of {', '.join(present) or 'no role'}")
    return kept


def of_role(rows: pd.DataFrame, role: str) -> pd.DataFrame:
    """The rows of a role: its heads where there are any, else the whole matrix."""
    found = rows[rows["role"] == role]
    heads = found[found["head"] != WHOLE]
    return found if heads.empty else heads


def whole(rows: pd.DataFrame, role: str) -> pd.DataFrame:
    """The rows of a role's whole matrix; ValueError if the table has only heads."""
    found = rows[(rows["role"] == role) & (rows["head"] == WHOLE)]
    if found.empty:
        raise ValueError(f"the table has no whole matrix of {role}: run the study with spectra.blocks=matrices or all")
    return found


def layer_axis(found: Sequence[ModelShape]) -> Axis:
    """Layers by number; percent of the depth where models differ in it."""
    depths = {shape.num_layers for shape in found}
    if len(depths) > 1:
        return Axis("depth", "%")
    (count,) = depths
    step = -(-count // MOST_TICKS)
    return Axis("layer", ticks=tuple((float(layer), str(layer)) for layer in range(0, count, step)))


def places(layers: Values, depth: int, axis: Axis) -> Values:
    """Where layers stand on a `layer_axis`."""
    return np.asarray(100 * layers / max(1, depth - 1), dtype=np.float64) if axis.unit else layers


def jitter(at: float, count: int, width: float) -> Values:
    """Places beside each other around one, evenly spread and always the same."""
    return np.asarray(at + width * ((np.arange(count) * GOLDEN) % 1.0 - 0.5), dtype=np.float64)


def thinned(count: int, most: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """The places of at most so many of `count` things, the first and the last among them."""
    return np.arange(count) if count <= most else np.unique(np.linspace(0, count - 1, most).round().astype(np.intp))


def sources(found: Iterable[Named]) -> str:
    """The tables by label and the start of their hash, for a caption."""
    return "; ".join(f"{one.label} ({short_key(one.spec)})" for one in found)


def short_key(spec: Spec) -> str:
    """The start of a spec's hash."""
    return key(spec).rsplit("-", 1)[-1][:8]


def _fits(spec: Spectra, kind: Kind, measures: Sequence[str], *, indices: bool) -> bool:
    right = kind == "any" or (spec.against is None) == (kind == "weights")
    return right and set(measures) <= set(spec.measures) and (spec.indices or not indices)


def _pair(spec: Spectra) -> tuple[str, str]:
    """What is compared with what."""
    return key(spec.checkpoint), "" if spec.against is None else key(spec.against)


def _facets(spec: Spectra) -> dict[str, str]:
    against = "" if spec.against is None else " ".join(filter(None, facets_of(spec.against).values()))
    if spec.against is not None and spec.against == getattr(spec.checkpoint, "start", None):
        against = "its base"
    of = {"of": "weights" if spec.against is None else "delta", "against": against and f"against {against}"}
    return {**facets_of(spec.checkpoint), **of, "blocks": spec.blocks}


def _domain(checkpoint: Checkpoint) -> str | None:
    """What a checkpoint was continually pre-trained on, if that has a colour of its own."""
    found = origin(checkpoint)
    return found["domain"] if found["role"] == "tuned" and found.get("domain") in palette.DOMAINS else None


def _turn(spec: Spectra) -> tuple[int, float]:
    """By size, then by how much was read in pre-training; what does not say comes last."""
    seen = pretrain_tokens(spec.checkpoint)
    return spec.checkpoint.shape.parameters, float("inf") if seen is None else float(seen)
