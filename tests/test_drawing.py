"""A drawing's own table of what is drawn, and how panels fall into rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from analysis.drawing import Axis, Bars, Dots, Drawing, Heat, Line, Mark, Panel, Reference, Spread, grid, values
from analysis.palette import CRITERIA, DOMAINS, MATRICES, OTHERS, ROLES, layer_colour, series


def table(*marks: Mark) -> pd.DataFrame:
    return Drawing("one", "One", "", ((Panel(marks, title="a"), None),)).data()


def test_a_band_is_written_as_its_ends_and_bars_as_errors() -> None:
    found = table(Line("l", values([1, 2]), values([3, None]), band=values([0.5, 1]), bars=values([0.1, 0.2])))
    assert found["low"].iloc[0] == 2.5
    assert found["high"].iloc[0] == 3.5
    assert list(found["error"]) == [0.1, 0.2]
    assert np.isnan(found["y"].iloc[1])
    assert set(found["panel"]) == {"a"}


def test_every_mark_writes_all_its_numbers() -> None:
    heat = Heat(np.array([[1.0, 2.0]]), rows=("r",), columns=("x", "y"), label="h")
    chord = Reference("c", chord=((0.0, 1.0), (2.0, 3.0)))
    found = table(
        Dots("d", values([1]), values([2]), by=values([3])),
        Spread("s", 4.0, values([5, 6])),
        Bars("b", values([1]), values([7])),
        heat,
        chord,
    )
    assert list(found["mark"]) == ["dots", "spread", "spread", "bars", "heat", "heat", "reference", "reference"]
    assert list(found["y"]) == [2, 5, 6, 7, 1, 2, 1, 3]
    assert list(found.loc[found["mark"] == "heat", "column"]) == ["x", "y"]
    assert found["by"].iloc[0] == 3


@given(st.integers(1, 20), st.integers(1, 6))
def test_panels_keep_their_order_in_full_rows(count: int, columns: int) -> None:
    rows = grid([Panel((), title=str(place)) for place in range(count)], columns)
    assert {len(row) for row in rows} == {columns}
    assert [panel.title for row in rows for panel in row if panel is not None] == list(map(str, range(count)))


def test_a_unit_stands_in_brackets_behind_the_label() -> None:
    assert (Axis("Accuracy", "%").text, Axis("Rank").text) == ("Accuracy [%]", "Rank")


def luminance(colour: str) -> float:
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@given(st.integers(2, 80))
def test_layers_go_from_blue_to_red_and_are_all_dark_enough_for_white_paper(num_layers: int) -> None:
    colours = [layer_colour(layer, num_layers) for layer in range(num_layers)]
    reds, blues = ([int(colour[start : start + 2], 16) for colour in colours] for start in (1, 5))
    assert reds == sorted(reds)
    assert blues == sorted(blues, reverse=True)
    assert max(map(luminance, colours)) < 0.5


def test_looks_of_one_kind_differ_in_colour_and_in_grey() -> None:
    for looks in (CRITERIA, ROLES, DOMAINS, MATRICES):
        assert len({look.colour for look in looks.values()}) == len(looks)
        assert len({(look.dash, look.marker) for look in looks.values()}) == len(looks)


@given(st.lists(st.sampled_from(["greedy", "random", *"abcdefghijklmnopqrs"]), unique=True))
def test_a_series_gives_every_name_a_look_and_known_names_their_own(names: list[str]) -> None:
    looks = series(names, CRITERIA)
    assert set(looks) == set(names)
    for name in names:
        if name in CRITERIA:
            assert looks[name] == CRITERIA[name]
    if len(names) <= len(OTHERS) - 2:
        assert len({(look.colour, look.marker) for look in looks.values()}) == len(names)
