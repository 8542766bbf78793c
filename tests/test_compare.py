"""`compare A B`: studies beside each other, of one store or of two, on paper too."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

import made_up_study as made
import paper_studies as theirs
from analysis import compare as within
from analysis import sheets
from analysis.across import Side, across
from analysis.drawing import Sheet
from analysis.paired import holm, p_value
from analysis.results import Results
from cpt_lab.commands import compare
from cpt_lab.store import Store
from cpt_lab.study import Study, save

FIRST, SECOND = (100, 60), (110, 40)


def study(folder: Path, name: str, counts: tuple[int, int]) -> tuple[Store, Study]:
    points = [theirs.truncated(100), theirs.truncated(50)]
    right = {point.name: np.arange(200) < count for point, count in zip(points, counts, strict=True)}
    return theirs.finished(folder, points, right, name=name)


@pytest.fixture
def sides(tmp_path: Path) -> list[Side]:
    """The same points in two stores that scored them differently."""
    return [
        Side(name, Results(store, [of]))
        for name, counts in (("a", FIRST), ("b", SECOND))
        for store, of in [study(tmp_path / name, name, counts)]
    ]


def rows(sheet: Sheet) -> dict[str, list[object]]:
    return {name: [cell.value for cell in cells] for name, cells in sheet.rows}


def test_points_of_one_name_are_paired_over_documents_across_stores(sides: list[Side]) -> None:
    found = rows(across(sides))
    right = [[np.arange(200) < count for count in counts] for counts in (FIRST, SECOND)]
    p_values = holm([p_value(np.asarray(right[1][place], float), np.asarray(right[0][place], float)) for place in (0, 1)])
    for place, name in enumerate(("percent=100", "percent=50")):
        metric, first, second, difference, p = found[name]
        assert [metric, first, second] == [theirs.GSM8K, pytest.approx(FIRST[place] / 2), pytest.approx(SECOND[place] / 2)]
        assert difference == pytest.approx((SECOND[place] - FIRST[place]) / 2)
        assert p in (f"{p_values[place]:.2g}", "< 0.001")


def test_words_choose_points_and_single_points_are_paired_whatever_they_are_called(sides: list[Side]) -> None:
    assert list(rows(across(sides, ["percent=50"]))) == ["percent=50"]
    one = sides[1].results.studies[0]
    renamed = one.model_copy(update={"points": (one.points[1].model_copy(update={"name": "half percent=50"}),)})
    found = rows(across([sides[0], Side("b", Results(sides[1].results.store, [renamed]))], ["percent=50"]))
    assert list(found) == ["percent=50 / half percent=50"]


def test_studies_without_a_common_point_are_refused_with_what_they_have(sides: list[Side]) -> None:
    one = sides[1].results.studies[0]
    renamed = one.model_copy(update={"points": tuple(point.model_copy(update={"name": f"x {point.name}"}) for point in one.points)})
    with pytest.raises(ValueError, match=r"share no point .*a: percent=100, percent=50; b: x percent=100"):
        across([sides[0], Side("b", Results(sides[1].results.store, [renamed]))])


def test_points_of_different_protocols_are_shown_and_not_paired(tmp_path: Path, sides: list[Side]) -> None:
    store, of = study(tmp_path / "other", "other", FIRST)
    spec = of.points[0].spec
    assert isinstance(spec, made.Evaluation)
    reseeded = spec.but(protocol=spec.protocol.but(seed=7))
    theirs.score(store, reseeded.but(checkpoint=theirs.TUNED), np.arange(200) < 120)
    changed = of.model_copy(update={"points": (of.points[0].model_copy(update={"spec": reseeded}),)})
    sheet = across([sides[0], Side("other", Results(store, [changed]))], ["percent=100"])
    assert rows(sheet)["percent=100"] == [theirs.GSM8K, 50.0, 60.0, None, None]
    assert "The protocols differ" in sheet.caption


def test_every_format_has_every_number(sides: list[Side]) -> None:
    sheet = across(sides)
    (head, *lines) = list(csv.reader(io.StringIO(sheets.csv(sheet))))
    assert head[:4] == ["point", "metric", "a", "error of a"]
    assert [line[0] for line in lines] == ["percent=100", "percent=50"]
    assert sheets.markdown(sheet).count("\n| percent=") == 2
    assert sheets.latex(sheet).count(r"percent=") == 2
    assert "percent=50   gsm8k/exact_match" in sheets.text(sheet)


def test_points_of_one_study_can_be_written_as_a_table_of_latex(tmp_path: Path) -> None:
    store, of = made.make(tmp_path, fractions=(0.5,))
    made.finish(store, of)
    written = within.latex(within.compare(store, of.points[:2]))
    assert written.count(r" \\") == 1 + len(within.text(within.compare(store, of.points[:2])).splitlines()) - 1
    assert r"tiny\_math/exact\_match\_strict & 0.7000 $\pm$ 0.1051" in written


# ------------------------------------------------------------------------------------------------------------ what is typed


def test_a_folder_behind_a_study_says_which_store_it_is_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, _ = study(tmp_path / "here", "soup", FIRST)
    study(tmp_path / "there", "soup", SECOND)
    assert compare.run(["soup", f"soup@{tmp_path / 'there'}", "percent=50", "format=csv"], store) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.startswith("point,metric,soup,error of soup,")
    assert line.startswith("percent=50,gsm8k/exact_match,30.0,")


def test_the_name_of_another_study_of_the_store_is_a_study_and_other_words_choose_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, first = study(tmp_path, "first", FIRST)
    save(store, first.model_copy(update={"name": "second"}))
    compare.run(["first", "second", "--format=markdown"], store)
    assert "| point | metric | first | second | second - first |" in capsys.readouterr().out
    compare.run(["first", "percent=100", "percent=50"], store)
    assert "difference to the first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["soup", "soop@{}"], KeyError, r"no study 'soop' in .* \(did you mean soup\?\)"),
        (["soup", "format=word"], KeyError, "unknown format 'word'; there are csv, latex, markdown, text"),
        (["soup", "nothing"], ValueError, "compare needs two points or more, and 0 of study soup have"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path, words: list[str], error: type[Exception], said: str) -> None:
    store, _ = study(tmp_path, "soup", FIRST)
    with pytest.raises(error, match=said):
        compare.run([word.format(tmp_path) for word in words], store)
