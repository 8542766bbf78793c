"""Orders that come from files: what they may look like, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cpt_lab.orderings import build_ranking, order, ranking
from cpt_lab.orderings.files import scores
from cpt_lab.specs import Ranking, key
from factory import folder_spec, tiny_shape, workspace

SHAPE = tiny_shape(num_heads=2)
UNITS = [[1, 1], [0, 0], [1, 0], [0, 1]]


def ranked(file: Path, direction: str = "descending", **settings: Any) -> Ranking:
    tuned, base = (folder_spec(Path(name), SHAPE) for name in ("tuned", "base"))
    return ranking("from_file", direction, tuned=tuned, base=base, file=str(file), **settings)


def written(file: Path, content: Any) -> Path:
    file.write_text(json.dumps(content))
    return file


def heads(spec: Ranking) -> list[list[int]]:
    return [list(head) for head in order(scores(spec), spec.direction)]


def test_descending_goes_through_an_order_as_it_stands_and_ascending_backwards(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.json", {"order": UNITS})
    assert heads(ranked(file)) == UNITS
    assert heads(ranked(file, "ascending")) == UNITS[::-1]


def test_scores_stand_in_a_row_per_layer_or_in_the_columns_of_a_table(tmp_path: Path) -> None:
    grid = written(tmp_path / "grid.json", {"scores": [[3, 1], [2, 4.5]]})
    table = pd.DataFrame({"head": [1, 0, 1, 0], "layer": [1, 1, 0, 0], "score": [4.5, 2, 1, 3], "stderr": 0.0})
    table.to_parquet(tmp_path / "table.parquet")
    assert scores(ranked(grid)).tolist() == scores(ranked(tmp_path / "table.parquet")).tolist() == [[3, 1], [2, 4.5]]


def test_the_key_is_of_the_contents_and_not_of_the_place(tmp_path: Path) -> None:
    one, same = (written(tmp_path / name, {"order": UNITS}) for name in ("one.json", "same.json"))
    other = written(tmp_path / "other.json", {"order": UNITS[::-1]})
    assert key(ranked(one)) == key(ranked(same)) != key(ranked(other))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"order": UNITS[:3]}, r"has no head \[0, 1\], and the model has 2 layers of 2 head units: give a ranking of this model"),
        ({"order": [*UNITS, [2, 0]]}, r"ranks a head \[2, 0\]"),
        ({"order": [*UNITS, [1, 1]]}, r"ranks \[1, 1\] twice"),
        ({"order": [[0, "q"], *UNITS]}, r"ranks a head \[0, 'q'\]"),
        ({"order": [3]}, "names a unit 3"),
        ({"scores": [[1, 2]]}, r"has no head \[1, 0\]"),
        ({"scores": [[1, 2], [3, 4, 5]]}, r"ranks a head \[1, 2\]"),
        ({"scores": [[1, "high"], [3, 4]]}, "has the score 'high'"),
        ({"heads": []}, 'neither "order" nor "scores"'),
        ({"order": UNITS, "shape": {"family": "llama"}}, "is a ranking of another model: its family is llama and here olmo2"),
    ],
)
def test_a_ranking_of_another_model_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranked(written(tmp_path / "mine.json", content))


def test_a_stored_ranking_of_a_model_of_the_same_layers_and_heads_is_refused(tmp_path: Path) -> None:
    tuned, base = (folder_spec(Path(name), SHAPE.but(mlp_size=64)) for name in ("tuned", "base"))
    work = workspace(tmp_path / "work")
    build_ranking(ranking("random", "ascending", tuned=tuned, base=base, seed=0), [], work)
    for name in ("ranking.json", "scores.parquet"):
        with pytest.raises(ValueError, match="another model: its mlp_size is 64 and here 48"):
            ranked(work.product / name)


def test_files_that_are_none_of_these_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("1, 2")
    pd.DataFrame({"layer": [0], "score": [1.0]}).to_parquet(tmp_path / "mine.parquet")
    (tmp_path / "mine.txt").touch()
    for name, message in (("json", "is no JSON"), ("parquet", "has the columns layer, score: give layer, head, score"), ("txt", "no file")):
        with pytest.raises(ValueError, match=message):
            ranked(tmp_path / f"mine.{name}")


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.json", {"order": UNITS})
    spec = ranked(file)
    written(file, {"order": UNITS[::-1]})
    with pytest.raises(ValueError, match="changed since the study was planned"):
        scores(spec)
