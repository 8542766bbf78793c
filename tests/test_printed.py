"""Drawings on paper: every mark is drawn as it says, text stays text, the same drawing gives the same bytes."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from analysis import printed
from analysis.drawing import Drawing, Heat, Line, Look, Panel, values
from render_cases import CELLS, DOTS, EVERYTHING, HEAT, LINES, SPREADS


def only(panel: Panel) -> Drawing:
    return Drawing("one", "One", "", ((panel,),))


def test_lines_have_their_values_gaps_dashes_markers_and_bands() -> None:
    axes = printed.figure(only(LINES)).axes[0]
    banded, barred = (line for line in axes.get_lines() if len(line.get_xdata()) == 3 and line.get_linestyle() != "None")  # type: ignore[arg-type]
    assert np.isnan(np.asarray(banded.get_ydata())[1])
    assert (to_hex(str(banded.get_color())), banded.get_marker()) == ("#0072b2", "o")
    assert (barred.get_linestyle(), str(barred.get_markerfacecolor())) == ("--", "white")
    (band,) = [each for each in axes.collections if type(each).__name__ == "FillBetweenPolyCollection"]
    assert band.get_datalim(axes.transData).y1 == pytest.approx(3.2)
    assert {text.get_text() for text in axes.texts} == {"level", "edge", "chord"}
    assert axes.get_ylim()[0] == 0


def test_coloured_dots_have_a_bar_and_the_axis_is_as_asked() -> None:
    axes, bar = printed.figure(only(DOTS)).axes
    assert (axes.get_xscale(), [label.get_text() for label in axes.get_xticklabels()]) == ("log", ["1", "100"])
    assert (bar.get_ylabel(), axes.get_xlabel()) == ("agreement", "Tokens [B tokens]")
    assert {text.get_text() for text in axes.texts} == {"one", "two"}
    assert [len(each.get_offsets()) for each in axes.collections if len(each.get_offsets()) in (2, 3)] == [2, 3]


def test_a_heat_has_its_cells_zero_in_the_middle_and_names() -> None:
    axes, bar = printed.figure(only(HEAT)).axes
    image = axes.images[0]
    drawn = np.ma.filled(np.ma.asarray(image.get_array()), np.nan)
    np.testing.assert_array_equal(drawn, CELLS)
    assert (image.get_clim(), image.get_cmap().name, image.origin) == ((-2, 2), "RdBu_r", "lower")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["q", "k", "v"]
    assert len(axes.texts) == 5  # the unknown cell has no number
    assert bar.get_ylabel() == "change [points]"
    (heat,) = HEAT.marks
    assert isinstance(heat, Heat)
    assert printed.figure(only(Panel((replace(heat, diverging=False),)))).axes[0].images[0].get_clim() == (-2, 1.5)


def test_samples_that_have_no_density_are_drawn_without_one() -> None:
    axes = printed.figure(only(SPREADS)).axes[0]
    assert len([each for each in axes.collections if type(each).__name__ == "FillBetweenPolyCollection"]) == 1  # the violin that has one


def test_title_caption_and_legend_stand_on_the_page_once() -> None:
    figure = printed.figure(EVERYTHING)
    assert [text.get_text() for text in figure.texts] == ["Every mark <once>", "Seen & drawn, with n = 3."]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["banded", "barred", "plain", "coloured", "bars"]
    assert printed.figure(replace(EVERYTHING, legend=False)).legends == []


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.text("abc ", min_size=1, max_size=300),
    st.lists(st.text("xyz", min_size=1, max_size=40), unique=True, max_size=9),
)
def test_nothing_leaves_the_page_whatever_the_size(rows: int, columns: int, words: str, labels: list[str]) -> None:
    panel = Panel(tuple(Line(label, values([0]), values([0])) for label in labels), title="t")
    layout = printed.laid_out(Drawing("one", words, words, tuple(tuple(panel for _ in range(columns)) for _ in range(rows))))
    places = [layout.place(row, column) for row in range(rows) for column in range(columns)]
    assert all(left > 0 and bottom > 0 and left + width < 1 and bottom + height < 1 for left, bottom, width, height in places)
    assert min(bottom for _, bottom, _, _ in places) * layout.height > printed.SMALL_LINE * len(layout.note)
    assert (1 - max(bottom + height for _, bottom, _, height in places)) * layout.height > printed.LINE * (
        len(layout.heading) + layout.legend[1]
    )


@pytest.mark.slow
def test_files_are_a_picture_and_a_pdf_whose_text_is_text_the_same_every_time() -> None:
    first, second = printed.files(EVERYTHING), printed.files(EVERYTHING)
    assert first == second
    assert first["png"].startswith(b"\x89PNG")
    assert b"/Type3" not in first["pdf"]
    streams = [zlib.decompress(found) for found in re.findall(rb"stream\r?\n(.*?)endstream", first["pdf"], re.S) if found[:1] == b"x"]
    assert any(b" Tj" in stream or b" TJ" in stream for stream in streams)


def test_looks_reach_the_legend() -> None:
    panel = Panel((Line("a", values([0]), values([0]), Look("#0072B2", "dotted")), Line("b", values([0]), values([0]))))
    handles = printed.figure(only(panel)).legends[0].legend_handles
    assert to_hex(handles[0].get_color()) == "#0072b2"  # type: ignore[union-attr]
