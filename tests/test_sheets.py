"""Tables as CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from analysis import output, sheets
from analysis.drawing import Cell, Sheet

SHEET = Sheet(
    "areas",
    "Areas & more",
    "n = 3, 50 % of them.",
    ("criterion", "1B", "7B"),
    (
        ("greedy", (Cell(19.123456, 0.5, best=True), Cell(5.0))),
        ("a|b_c", (Cell(None), Cell("words"))),
    ),
    groups=((1, "others"),),
)


def test_cells_have_their_digits_errors_and_words() -> None:
    given = (Cell(1.26), Cell(1.26, 0.04, digits=2), Cell(None), Cell(float("nan")), Cell("x"), Cell(""), Cell(1.0, float("nan")))
    assert [sheets.shown(cell) for cell in given] == ["1.3", "1.26 ± 0.04", "-", "-", "x", "-", "1.0"]


def test_csv_has_every_number_in_full_and_errors_in_columns_of_their_own() -> None:
    rows = list(csv.reader(io.StringIO(sheets.csv(SHEET))))
    assert rows == [["criterion", "1B", "error of 1B", "7B"], ["greedy", "19.123456", "0.5", "5.0"], ["a|b_c", "", "", "words"]]


@given(st.floats(allow_nan=True, allow_infinity=False))
def test_csv_gives_back_the_number_that_went_in(number: float) -> None:
    sheet = Sheet("s", "", "", ("a", "b"), (("row", (Cell(number),)),))
    (_, (_, text)) = csv.reader(io.StringIO(sheets.csv(sheet)))
    assert text == "" if math.isnan(number) else float(text) == number


def test_markdown_escapes_pipes_and_sets_the_best_in_bold() -> None:
    lines = sheets.markdown(SHEET).splitlines()
    assert "| greedy | **19.1 ± 0.5** | 5.0 |" in lines
    assert "| a\\|b_c | - | words |" in lines
    assert "| *others* |  |  |" in lines


def test_latex_has_booktabs_rules_and_escapes_what_it_must() -> None:
    text = sheets.latex(SHEET)
    assert r"greedy & \textbf{19.1 $\pm$ 0.5} & 5.0 \\" in text
    assert r"a|b\_c & - & words \\" in text
    assert r"\caption{Areas \& more. n = 3, 50 \% of them.}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\multicolumn{3}{l}{\emph{others}} \\" in text


def test_html_has_headings_for_rows_and_columns_and_escapes_words() -> None:
    text = sheets.html(SHEET)
    assert '<th scope="row">greedy</th><td><strong>19.1 ± 0.5</strong></td><td>5.0</td>' in text
    assert "<caption>Areas &amp; more</caption>" in text
    assert sheets.page(SHEET).startswith("<!doctype html>")


def test_a_sheet_is_written_as_four_files_and_nothing_else(tmp_path: Path) -> None:
    files = output.write([SHEET], tmp_path / "figures")
    assert [path.name for path in files] == ["areas.csv", "areas.md", "areas.tex", "areas.html"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in files)
