"""Orders that somebody else made: scores or an order of the units, from a JSON or parquet file.

JSON: {"order": [[layer, head], ...]} or {"scores": [[score, ...], ...]} with a row per layer. Parquet: columns layer, head (or role) and
score. Our own ranking.json and scores.parquet are such files, and say which model they are of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.specs import Ranking, ScoresFile, Unit, identity

if TYPE_CHECKING:
    import numpy as np

    Grid = np.ndarray[tuple[int, int], np.dtype[np.float64]]

SUFFIXES = (".json", ".parquet")
FORMS = 'JSON with "order" or "scores", or parquet with layer, head and score'


def scores_file(path: str, ranking: Ranking) -> ScoresFile:
    """A file by its contents; ValueError, in one sentence, unless it ranks all units of this ranking and no others."""
    file = Path(path).expanduser().absolute()
    if file.suffix not in SUFFIXES or not file.is_file():
        raise ValueError(f"criterion.file is {path}, which is no file that can be read: give {FORMS}")
    _read(file, ranking)
    return ScoresFile(path=str(file), contents_digest=_digest(file))


def scores(ranking: Ranking) -> Grid:
    """The file's scores. An order gives its first unit the highest: descending goes through it as it stands.

    ValueError if the file changed since the study was planned.
    """
    assert ranking.file is not None
    file = Path(ranking.file.path)
    if not file.is_file() or _digest(file) != ranking.file.contents_digest:
        raise ValueError(f"{file} changed since the study was planned: run the command again to plan with what it says now")
    return _read(file, ranking)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(file: Path, ranking: Ranking) -> Grid:
    import numpy as np

    found = _of_parquet(file, ranking) if file.suffix == ".parquet" else _of_json(file, ranking)
    missing = [unit for unit in ranking.units if unit not in found]
    others = [unit for unit in found if unit not in set(ranking.units)]
    if missing or others:
        what = f"has no {_name(ranking, missing[0])}" if missing else f"ranks a {_name(ranking, others[0])}"
        raise ValueError(
            f"{file} {what}, and the model has {ranking.shape.num_layers} layers of {len(ranking.parts)} {ranking.unit} units: "
            "give a ranking of this model"
        )
    values = np.array([found[unit] for unit in ranking.units], dtype=np.float64)
    return values.reshape(ranking.shape.num_layers, len(ranking.parts))


def _of_json(file: Path, ranking: Ranking) -> dict[Unit, float]:
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): give {FORMS}") from None
    if not isinstance(data, dict) or not {"order", "scores"} & set(data):
        raise ValueError(f'{file} has neither "order" nor "scores": give {FORMS}')
    _check_shape(file, data.get("shape"), ranking)
    if "order" in data:
        units = [_unit(file, pair) for pair in data["order"]]
        return _once(file, [(unit, len(units) - place) for place, unit in enumerate(units)])
    rows = [(layer, part, score) for layer, row in enumerate(data["scores"]) for part, score in enumerate(row)]
    parts = dict(enumerate(ranking.parts))
    return _once(file, [((layer, parts.get(part, part)), _number(file, score)) for layer, part, score in rows])


def _of_parquet(file: Path, ranking: Ranking) -> dict[Unit, float]:
    import pandas as pd

    table = pd.read_parquet(file)
    _check_shape(file, table.attrs.get("shape"), ranking)
    columns = {"head": ["layer", "head", "score"], "matrix": ["layer", "role", "score"], "layer": ["layer", "score"]}[ranking.unit]
    if not set(columns) <= set(table.columns):
        raise ValueError(f"{file} has the columns {', '.join(map(str, table.columns))}: give {', '.join(columns)}")
    rows = table[columns].to_dict(orient="split")["data"]
    return _once(file, [(_unit(file, row[:-1]), _number(file, row[-1])) for row in rows])


def _unit(file: Path, pair: Any) -> Unit:
    """A unit from [layer, head], [layer, role] or [layer]."""
    try:
        layer, part = (*pair, "all")[:2]
        return int(layer), part if isinstance(part, str) else int(part)
    except (TypeError, ValueError):
        raise ValueError(f"{file} names a unit {pair!r}: give [layer, head] pairs, and [layer, role] for matrices") from None


def _number(file: Path, score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError):
        raise ValueError(f"{file} has the score {score!r}: give numbers") from None


def _once(file: Path, scored: Sequence[tuple[Unit, float]]) -> dict[Unit, float]:
    found = dict(scored)
    if len(found) != len(scored):
        twice = next(unit for place, (unit, _) in enumerate(scored) if unit in dict(scored[:place]))
        raise ValueError(f"{file} ranks {list(twice)} twice: give every unit one place")
    return found


def _check_shape(file: Path, shape: Any, ranking: Ranking) -> None:
    """ValueError if the file says that it is of a model of another shape."""
    for name, value in identity(ranking.shape).items():
        if shape is not None and shape.get(name) != value:
            raise ValueError(
                f"{file} is a ranking of another model: its {name} is {shape.get(name)} and here {value}: give a ranking of this model"
            )


def _name(ranking: Ranking, unit: Unit) -> str:
    return f"layer {unit[0]}" if ranking.unit == "layer" else f"{ranking.unit} {list(unit)}"
