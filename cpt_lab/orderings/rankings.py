"""The spec of an order, from a criterion and what is chosen for it; and how it is built."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast

from cpt_lab import spectra
from cpt_lab.architecture import ATTENTION_ROLES, ROLES, roles
from cpt_lab.names import unknown
from cpt_lab.orderings import files, greedy
from cpt_lab.orderings.criteria import CRITERIA, DELTA_MEASURES, Criterion, Scores, Table
from cpt_lab.specs import Checkpoint, ModelShape, Probe, Protocol, Ranking, Spectra, Unit, UnitKind, identity
from cpt_lab.store import Workspace

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["ascending", "descending"]
DIRECTIONS: tuple[Direction, ...] = ("ascending", "descending")
UNITS: tuple[UnitKind, ...] = ("head", "matrix", "layer")
PART_COLUMN = {"head": "head", "matrix": "role"}  # of scores.parquet, beside the layer


class Settings(TypedDict, total=False):
    """What may be chosen for a criterion; each takes its own (`Criterion.settings`), None says nothing."""

    unit: str | None
    roles: Sequence[str] | None  # of a head: what its score looks at; of matrices: which ones are ranked
    seed: int | None
    column: str | None  # a spectral measure
    of: str | None  # whose: delta, tuned, base
    file: str | None
    protocol: Protocol | None
    metric: str | None
    kv: str | None


def ranking(
    criterion: str,
    direction: str,
    *,
    tuned: Checkpoint,
    base: Checkpoint,
    reference: Checkpoint | None = None,
    **settings: Unpack[Settings],
) -> Ranking:
    """The ranking with the tables or evaluations its criterion reads and no others; ValueError for an unknown name or something missing."""
    if criterion not in CRITERIA:
        raise ValueError(unknown("criterion", criterion, CRITERIA))
    if direction not in DIRECTIONS:
        raise ValueError(unknown("direction", direction, DIRECTIONS))
    rule, given = CRITERIA[criterion], cast("dict[str, Any]", settings)
    _check_settings(criterion, rule, given)
    unit = given.get("unit") or "head"
    if unit not in UNITS:
        raise ValueError(unknown("unit", unit, UNITS))
    if unit not in rule.units:
        raise ValueError(f"criterion {criterion} ranks a {' or a '.join(rule.units)} and no {unit}: set criterion.unit={rule.units[0]}")
    checkpoints = {"tuned": tuned, "base": base, "reference": reference}
    tables = tuple(_table(criterion, table, unit, checkpoints) for table in _read(rule, given))
    made = Ranking(
        criterion=criterion,
        direction=direction,
        unit=cast(UnitKind, unit),
        shape=tuned.shape,
        spectra=tables,
        roles=_roles(criterion, unit, given.get("roles"), tuned.shape, read=bool(tables)),
        seed=given.get("seed"),
        column=given.get("column"),
        probe=_probe(given, tuned, base if "kv" in rule.options else None) if "protocol" in rule.settings else None,
    )
    return made if given.get("file") is None else made.but(file=files.scores_file(given["file"], made))


def order(scores: Scores, direction: str) -> list[tuple[int, int]]:
    """Places (row, column) by their scores; equal scores by (row, column) in both directions, scores that are nan last."""
    import numpy as np

    rows, columns = np.indices(scores.shape).reshape(2, -1)
    values = scores.ravel() if direction == "ascending" else -scores.ravel()
    ranked = np.lexsort((columns, rows, values))  # the last key counts first; nan sorts behind every number
    return [(int(rows[index]), int(columns[index])) for index in ranked]


def build_ranking(spec: Ranking, products: Sequence[Path], work: Workspace) -> None:
    """Write ranking.json {criterion, direction, unit, shape, order: [[layer, head], ...]} and scores.parquet (layer, head, score).

    Of matrices the second of a pair is the role (so is the column), of layers "all" (and there is no column). Greedy orders have their
    `reliability` in ranking.json and the paired standard error of every score beside it. `products` are those of `spec.needs()` in order.
    """
    ranked: dict[str, Any] = {"criterion": spec.criterion, "direction": spec.direction, "unit": spec.unit, "shape": identity(spec.shape)}
    columns: dict[str, Scores] = {}
    if spec.probe is not None:
        outcomes = greedy.read_outcomes(spec, products)
        columns = {"score": CRITERIA[spec.criterion].score(spec, outcomes), "stderr": greedy.standard_errors(spec, outcomes)}
        ranked["reliability"] = greedy.reliability(outcomes.differences)
    else:
        import pandas as pd

        tables = (pd.read_parquet(product / "table.parquet") for product in products)
        columns["score"] = _of_units(spec, CRITERIA[spec.criterion].score(spec, *tables))
    _check_scores(spec, columns["score"])
    ranked["order"] = [[row, spec.parts[column]] for row, column in order(columns["score"], spec.direction)]
    (work.product / "ranking.json").write_text(json.dumps(ranked))
    _frame(spec, columns).to_parquet(work.product / "scores.parquet", index=False)


# -------------------------------------------------------------------------------------------------------------- choosing


def _check_settings(criterion: str, rule: Criterion, given: Mapping[str, Any]) -> None:
    """ValueError if a setting is missing, or given to a criterion that takes none of it."""
    for name in rule.settings:
        if given.get(name) is None:
            raise ValueError(f"criterion {criterion} needs a {name}: set criterion.{name}=VALUE")
    for name in ("seed", "column", "of", "file", "protocol", "metric", "kv"):
        if given.get(name) is not None and name not in (*rule.settings, *rule.options):
            raise ValueError(f"criterion {criterion} takes no {name}, got {given[name]}: leave criterion.{name} at null")


def _read(rule: Criterion, given: Mapping[str, Any]) -> tuple[Table, ...]:
    """The tables that a criterion reads; of one that takes any measure, where that stands."""
    column = given.get("column")
    if column is None:
        return rule.reads
    if column not in spectra.NAMES:
        raise ValueError(unknown("spectral measure", column, spectra.NAMES))
    shared = DELTA_MEASURES if column in DELTA_MEASURES else (column,)
    choices = {"delta": Table("tuned", True, shared), "tuned": Table("tuned", False, (column,)), "base": Table("base", False, (column,))}
    if given["of"] not in choices:
        raise ValueError(unknown("place of a spectral measure", given["of"], choices))
    if spectra.FAMILY_OF[column] in spectra.PAIR_FAMILIES and given["of"] != "delta":
        raise ValueError(f"{column} compares tuned with the base and is not of {given['of']}: set criterion.of=delta")
    return (choices[given["of"]],)


def _table(criterion: str, table: Table, unit: str, checkpoints: Mapping[str, Checkpoint | None]) -> Spectra:
    checkpoint = checkpoints[table.of]
    if checkpoint is None:
        raise ValueError(
            f"criterion {criterion} compares with a {table.of} checkpoint and there is none: set {table.of}, or choose another criterion"
        )
    against = checkpoints["base"] if table.against_base else None
    return Spectra(checkpoint=checkpoint, against=against, measures=table.measures, blocks="matrices" if unit == "matrix" else "heads")


def _roles(criterion: str, unit: str, wanted: Sequence[str] | None, shape: ModelShape, *, read: bool) -> tuple[Any, ...]:
    """The roles in their usual order: one set, one key. Where nothing looks at them they are all, whatever was said."""
    present = roles(shape) if unit == "matrix" else ATTENTION_ROLES
    known = ROLES if unit == "matrix" else ATTENTION_ROLES
    for role in wanted or ():
        if role not in known:
            raise ValueError(unknown(f"role of a {'matrix' if unit == 'matrix' else 'head'}", role, known))
        if role not in present:
            raise ValueError(f"{shape.family} models have no {role}: choose criterion.roles from {', '.join(present)}")
    if wanted is not None and not wanted:
        raise ValueError(f"criterion {criterion} has no roles to look at: choose some of {', '.join(present)}")
    if wanted is None or not (read or unit == "matrix"):
        return tuple(present)
    return tuple(role for role in present if role in wanted)


def _probe(given: Mapping[str, Any], tuned: Checkpoint, base: Checkpoint | None) -> Probe:
    protocol: Protocol = given["protocol"]
    metric = given.get("metric")
    if metric is not None:
        protocol.check_metric(metric)
    if any(mean.full_name == (metric or protocol.primary) for mean in protocol.means):
        tasks = ", ".join(dict.fromkeys(name for mean in protocol.means for name in mean.of))
        raise ValueError(
            f"{metric or protocol.primary} is a mean over tasks and has no documents of its own: give criterion.metric as one of {tasks}"
        )
    return Probe(tuned=tuned, base=base, protocol=protocol, metric=metric, kv=given.get("kv") or "when_group_complete")


# -------------------------------------------------------------------------------------------------------------- building


def _of_units(spec: Ranking, scores: Scores) -> Scores:
    """A layer's score is the mean over its heads, where a criterion looks at heads."""
    return scores.mean(axis=1, keepdims=True) if spec.unit == "layer" and scores.shape[1] > 1 else scores


def _check_scores(spec: Ranking, scores: Scores) -> None:
    import numpy as np

    assert scores.shape == (spec.shape.num_layers, len(spec.parts)), "a criterion gives every unit a score"
    if np.isnan(scores).all():
        raise ValueError(
            f"{spec.label()} has no score for any {spec.unit}: its blocks have too few singular values for this measure, choose another one"
        )


def _frame(spec: Ranking, columns: Mapping[str, Scores]) -> pd.DataFrame:
    import pandas as pd

    units: tuple[Unit, ...] = spec.units
    data: dict[str, Any] = {"layer": [layer for layer, _ in units]}
    if spec.unit in PART_COLUMN:
        data[PART_COLUMN[spec.unit]] = [part for _, part in units]
    frame = pd.DataFrame({**data, **{name: values.ravel() for name, values in columns.items()}})
    frame.attrs = {"shape": identity(spec.shape)}  # goes into the file: who reads it can tell whose scores these are
    return frame
