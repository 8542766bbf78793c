"""Drawings on a page: the same numbers as on paper, names escaped, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import interactive, output, printed
from analysis.drawing import Drawing, Panel
from render_cases import CELLS, DOTS, EVERYTHING, HEAT, LINES, SPREADS


def only(panel: Panel) -> Drawing:
    return Drawing("one", "One", "", ((panel,),))


def test_lines_have_their_values_bands_bars_and_dashes() -> None:
    figure = interactive.figure(only(LINES))
    band, banded, barred = figure.data
    assert list(banded.y) == pytest.approx([1, np.nan, 3], nan_ok=True)
    assert list(band.y) == pytest.approx([1.1, 3.2, 2.8, 0.9])  # where both ends are known, up and back
    assert (barred.line.dash, barred.marker.symbol, list(barred.error_y.array)) == ("dash", "square-open", [0.3, 0.2, 0.1])
    assert banded.legendgroup == band.legendgroup != barred.legendgroup
    assert len(figure.layout.shapes) == 3  # two levels and the chord
    assert figure.layout.yaxis.title.text == "Accuracy &lt;b&gt; [%]"


def test_a_heat_and_coloured_dots_have_a_bar_each_beside_their_panel() -> None:
    figure = interactive.figure(Drawing("one", "One", "", ((DOTS, HEAT),)))
    heat = next(trace for trace in figure.data if trace.type == "heatmap")
    np.testing.assert_array_equal(np.asarray(heat.z), CELLS)
    assert heat.coloraxis == "coloraxis2"
    assert (figure.layout.coloraxis2.cmin, figure.layout.coloraxis2.cmax) == (-2, 2)
    dots = next(trace for trace in figure.data if trace.name == "coloured")
    assert (dots.marker.coloraxis, figure.layout.coloraxis.colorbar.title.text) == ("coloraxis", "agreement")
    assert figure.layout.coloraxis.colorbar.x < figure.layout.coloraxis2.colorbar.x
    assert heat.text[0][1] == "low, k"


def test_samples_keep_their_place_and_unknown_ones_are_left_out() -> None:
    box, violin, _, empty, bars = interactive.figure(only(SPREADS)).data
    assert (box.type, violin.type, bars.type) == ("box", "violin", "bar")
    assert set(box.x) == {0.0}
    assert len(box.y) == 50
    assert len(empty.y) == 0
    assert list(bars.error_y.array) == [0.2, 0.3]


def test_the_legend_names_every_label_once() -> None:
    traces = [trace.name for trace in interactive.figure(EVERYTHING).data if trace.showlegend]
    assert sorted(traces) == ["banded", "barred", "bars", "coloured", "plain"]
    assert not interactive.figure(replace(EVERYTHING, legend=False)).layout.showlegend


def test_a_fragment_has_the_plot_and_the_caption_without_the_library() -> None:
    text = interactive.fragment(EVERYTHING)
    assert len(text) < 100_000
    assert "Seen &amp; drawn, with n = 3." in text
    assert 'aria-label="Every mark &lt;once&gt;"' in text
    assert 'id="plot-everything"' in text


def test_a_page_loads_nothing_but_the_library_beside_it() -> None:
    text = interactive.page(EVERYTHING)
    assert text == interactive.page(EVERYTHING)
    assert re.findall(r"<(?:script|link|img)[^>]+(?:src|href)\s*=\s*\"([^\"]*)", text) == [interactive.LIBRARY]
    assert len(text) < 100_000
    assert "<title>Every mark &lt;once&gt;</title>" in text
    assert '<html lang="en">' in text


@pytest.mark.parametrize("panel", [LINES, HEAT], ids=["lines", "heat"])
def test_what_stands_between_panels_has_room_where_the_page_is_narrowest(panel: Panel) -> None:
    layout = interactive.figure(Drawing("pair", "Pair", "", ((panel, panel),))).layout
    narrowest = 2 * interactive.LEAST_WIDTH - layout.margin.l - layout.margin.r
    gap = layout.xaxis2.domain[0] - layout.xaxis.domain[1]
    needed = interactive.LEFT + (interactive.BAR if panel is HEAT else 0)
    assert gap * narrowest == pytest.approx(needed)
    assert f"min-width:{2 * interactive.LEAST_WIDTH}px" in interactive.fragment(Drawing("pair", "Pair", "", ((panel, panel),)))


def test_the_pages_of_a_folder_share_one_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed, "files", lambda _: {})  # pages alone
    one = only(LINES)
    twin = replace(one, name="twin")
    written = output.write([one, twin], tmp_path)
    libraries = sorted(tmp_path.glob("*.js"))
    assert [path.name for path in libraries] == [interactive.LIBRARY]
    assert libraries[0] not in written
    made = libraries[0].stat().st_mtime_ns
    output.write([twin], tmp_path)
    assert libraries[0].stat().st_mtime_ns == made
    libraries[0].write_text("of another version")
    output.write([twin], tmp_path)
    assert "plotly" in libraries[0].read_text()[:500]
