"""Figures of truncated, merged and transplanted models, and of budgets and mixes, against sums by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import made_up_points as made
from analysis import runs
from analysis.results import Results
from cpt_lab.architecture import Role
from cpt_lab.interventions.truncate import Truncate
from cpt_lab.specs import Evaluation, TrainedCheckpoint
from cpt_lab.study import resolved
from figure_cases import LONG, MATH, OTHER, dots, drawn, lines, mean, references, shown

# ------------------------------------------------------------------------------------------------------------ truncation


def test_truncation_shows_values_and_shares_of_the_whole_delta_with_paired_bands(tmp_path: Path) -> None:
    percents = (0, 20, 60)
    results = shown(tmp_path, made.evaluation(MATH), *(made.truncated(MATH, percent) for percent in percents))
    absolute, relative = drawn("truncation", results).panels
    ((_, line),) = lines(absolute).items()
    whole = mean(made.evaluation(MATH))
    specs = [made.truncated(MATH, percent) for percent in percents]
    assert list(line.x) == [0, 20, 60, 100]
    assert list(line.y) == pytest.approx([*(100 * mean(spec) for spec in specs), 100 * whole])
    assert line.band is not None
    assert list(line.band) == pytest.approx([*(100 * made.paired_error(spec, made.evaluation(MATH), made.SUMS) for spec in specs), 0])
    ((_, share),) = lines(relative).items()
    assert list(share.y) == pytest.approx([*(100 * mean(spec) / whole for spec in specs), 100])


def test_keeping_everything_is_the_unedited_model_and_runs_of_two_budgets_are_two_lines(tmp_path: Path) -> None:
    results = shown(tmp_path, *(made.truncated(each, percent) for each in (MATH, LONG) for percent in (50, 100)))
    found = lines(drawn("truncation", results).panels[0])
    assert list(found) == ["pre-train 320", "pre-train 640"]
    assert found["pre-train 640"].y[1] == pytest.approx(100 * mean(made.evaluation(LONG)))
    assert found["pre-train 320"].look.colour != found["pre-train 640"].look.colour


def test_without_the_whole_delta_there_is_no_relative_curve_and_the_caption_says_so(tmp_path: Path) -> None:
    drawing = drawn("truncation", shown(tmp_path, made.truncated(MATH, 20), made.truncated(MATH, 40)))
    assert len(drawing.panels) == 1
    assert "No relative curve without the point of 100 %" in drawing.caption


# --------------------------------------------------------------------------------------------------------- interpolation


def test_soups_run_between_the_ends_with_the_chord_and_their_distance_to_it(tmp_path: Path) -> None:
    weights = (0.0, 0.3, 0.7, 1.0)
    results = shown(tmp_path, *(made.soup(MATH, OTHER, weight) for weight in weights))
    plane, *beside = drawn("interpolation", results, y=made.ADDING).panels
    ends = made.evaluation(MATH), made.soup(MATH, OTHER, 1.0)
    found = dots(plane)["math_320 with code_320"]
    settled = list(results.resolved.values())
    assert list(found.x) == pytest.approx([100 * mean(spec) for spec in settled])
    assert list(found.y) == pytest.approx([100 * mean(spec, made.ADDING) for spec in settled])
    (chord,) = references(plane)
    assert chord.chord == (
        pytest.approx((100 * mean(ends[0]), 100 * mean(ends[0], made.ADDING))),
        pytest.approx((found.x[-1], found.y[-1])),
    )
    line = lines(beside[0])["math_320 with code_320"]
    outcome = [made.of(made.outcomes(spec), made.SUMS) for spec in settled]
    distances = [one - ((1 - weight) * outcome[0] + weight * outcome[-1]) for one, weight in zip(outcome, weights, strict=True)]
    assert list(line.y) == pytest.approx([100 * each.mean() for each in distances])
    assert line.band is not None
    assert list(line.band) == pytest.approx([100 * each.std(ddof=1) / np.sqrt(made.DOCUMENTS) for each in distances])


def test_a_model_trained_on_a_mixture_is_marked_beside_the_soups(tmp_path: Path) -> None:
    both = made.tuned(None, "both_320", math=160, code=160)
    results = shown(tmp_path, *(made.soup(MATH, OTHER, weight) for weight in (0.0, 0.5, 1.0)), made.evaluation(both))
    drawing = drawn("interpolation", results)
    marker = dots(drawing.panels[0])["trained on both_320"]
    assert list(marker.x) == pytest.approx([100 * mean(made.evaluation(both))])
    assert marker.look.marker == "p"
    assert drawing.panels[0].y.label == "language: accuracy"  # what P draws against math
    alone = drawn("interpolation", shown(tmp_path / "alone", made.soup(MATH, OTHER, 0.5)))
    assert len(alone.panels) == 1  # no ends, no chord
    assert "No model trained on a mixture" in alone.caption


def test_the_partner_of_a_soup_is_no_mixture_whether_its_own_point_is_an_end_or_not(tmp_path: Path) -> None:
    drawing = drawn("interpolation", shown(tmp_path, made.soup(MATH, OTHER, 0.5), made.evaluation(OTHER), made.evaluation(MATH)))
    assert not [label for label in dots(drawing.panels[0]) if label.startswith("trained on")]


def test_soups_of_one_task_are_drawn_over_their_weight(tmp_path: Path) -> None:
    only = made.PROTOCOL.but(tasks=made.PROTOCOL.tasks[:1], means=())
    ends = [each.but(protocol=only) for each in (made.soup(MATH, OTHER, 0.0), made.soup(MATH, OTHER, 1.0))]
    asked = made.study(ends)
    store = made.finished(tmp_path, asked)
    for spec in resolved(store, asked.points).values():
        file = store.product(spec) / "results.json"
        known = json.loads(file.read_text())
        file.write_text(json.dumps({**known, "metrics": {made.SUMS: known["metrics"][made.SUMS]}}))
    drawing = drawn("interpolation", Results(store, [asked]))
    assert "One task only: no plane" in drawing.caption
    (line,) = lines(drawing.panels[0]).values()
    assert (list(line.x), drawing.panels[0].x.label) == ([0, 1], "Weight of the other model")


# ------------------------------------------------------------------------------------- transplantation, budgets and mixes


def test_a_transplanted_model_stands_above_its_own_place_with_a_paired_bar(tmp_path: Path) -> None:
    specs = [made.evaluation(MATH), made.transplanted(MATH), made.evaluation(LONG), made.transplanted(LONG)]
    (panel, _) = drawn("transplantation", shown(tmp_path, *specs)).panels
    assert [name for _, name in panel.x.ticks] == ["pre-train 320", "pre-train 640"]
    own, moved = dots(panel)["tuned"], dots(panel)["with transplanted singular values"]
    assert (list(own.x), list(moved.x)) == ([0, 1], [0, 1])
    assert list(moved.y) == pytest.approx([100 * mean(specs[1]), 100 * mean(specs[3])])
    assert moved.y_bars is not None
    assert list(moved.y_bars) == pytest.approx([100 * made.paired_error(specs[place + 1], specs[place], made.SUMS) for place in (0, 2)])


def test_the_trade_off_has_room_for_the_words_beside_its_last_dot(tmp_path: Path) -> None:
    points = made.evaluation(made.pretrained()), made.evaluation(MATH), made.evaluation(OTHER)
    panel = drawn("trade_off", shown(tmp_path, *points), y=made.PROSE).panels[0]
    across = [100 * mean(spec) for spec in points]
    assert panel.x.limits == (None, pytest.approx(max(across) + 0.2 * (max(across) - min(across))))


def test_the_trade_off_has_hollow_dots_before_and_larger_ones_after_more_cpt(tmp_path: Path) -> None:
    base, short, long = made.pretrained(), made.tuned(None, "short", math=320), made.tuned(None, "long", math=640)
    panel = drawn("trade_off", shown(tmp_path, *map(made.evaluation, (base, short, long))), y=made.PROSE).panels[0]
    found = {label.rpartition(", ")[2]: mark for label, mark in dots(panel).items()}
    before = next(mark for label, mark in dots(panel).items() if "CPT" not in label)
    assert not before.look.filled
    assert found["CPT 320"].look.filled
    assert found["CPT 640"].size > found["CPT 320"].size
    assert before.look.colour == found["CPT 640"].look.colour  # one pre-trained model, one colour
    assert (before.x[0], before.y[0]) == (
        pytest.approx(100 * mean(made.evaluation(base))),
        pytest.approx(mean(made.evaluation(base), made.PROSE)),
    )


def test_quality_against_the_share_of_math_is_a_line_per_budget_and_a_column_per_start(tmp_path: Path) -> None:
    mixes = {f"m{share}": {"math": share, "text": 400 - share} for share in (100, 300)}
    starts = (made.pretrained(), made.pretrained(640))
    specs = [made.evaluation(made.tuned(start, name, **tokens)) for start in starts for name, tokens in mixes.items()]
    drawing = drawn("math_share", shown(tmp_path, *specs, made.evaluation(starts[0])), metrics=[made.SUMS])
    assert [panel.title for panel in drawing.panels] == ["pre-train 320", "pre-train 640"]
    for panel, pair in zip(drawing.panels, (specs[:2], specs[2:]), strict=True):
        line = lines(panel)["CPT 400"]
        assert list(line.x) == [25, 75]
        assert list(line.y) == pytest.approx([100 * mean(spec) for spec in pair])
    assert [mark.label for mark in references(drawing.panels[0])] == ["before CPT"]
    assert references(drawing.panels[1]) == []


# ------------------------------------------------------------------------------------------------- what one line stands for


def seeded(checkpoint: TrainedCheckpoint, seed: int) -> TrainedCheckpoint:
    return checkpoint.but(recipe=checkpoint.recipe.but(seed=seed))


def test_truncating_other_matrices_is_another_line_with_its_own_values_and_the_unedited_model_ends_both(tmp_path: Path) -> None:
    attention = [truncated_in(("q", "k", "v", "o"), percent) for percent in (20, 60)]
    every = [made.truncated(MATH, percent) for percent in (20, 60)]
    found = lines(drawn("truncation", shown(tmp_path, made.evaluation(MATH), *attention, *every)).panels[0])
    assert set(found) == {"attention", "all matrices"}
    for name, specs in (("attention", attention), ("all matrices", every)):
        assert list(found[name].x) == [20, 60, 100]
        assert list(found[name].y) == pytest.approx([100 * mean(spec) for spec in (*specs, made.evaluation(MATH))])


def truncated_in(roles: tuple[Role, ...], percent: int) -> Evaluation:
    return made.evaluation(MATH, Truncate(base=made.pretrained(), percent=percent, roles=roles))


def test_two_seeds_of_one_training_are_two_lines_with_their_own_values(tmp_path: Path) -> None:
    seeds = [MATH, seeded(MATH, 7)]
    found = lines(drawn("truncation", shown(tmp_path, *(made.truncated(one, percent) for one in seeds for percent in (20, 60)))).panels[0])
    assert list(found) == ["seed 0", "seeds 0, 7"]
    for line, one in zip(found.values(), seeds, strict=True):
        assert list(line.y) == pytest.approx([100 * mean(made.truncated(one, percent)) for percent in (20, 60)])


def test_soups_with_two_seeds_of_one_partner_are_two_paths(tmp_path: Path) -> None:
    partners = [OTHER, seeded(OTHER, 7)]
    results = shown(tmp_path, made.evaluation(MATH), *(made.soup(MATH, one, weight) for one in partners for weight in (0.3, 0.6)))
    found = dots(drawn("interpolation", results, y=made.ADDING).panels[0])
    assert set(found) == {"with code_320 of seed 0", "with code_320 of seeds 0, 7"}
    assert list(found["with code_320 of seeds 0, 7"].x) == pytest.approx(
        [100 * mean(spec) for spec in (made.evaluation(MATH), *(made.soup(MATH, partners[1], weight) for weight in (0.3, 0.6)))]
    )


def test_soups_with_two_partners_of_one_name_and_seed_are_two_numbered_paths(tmp_path: Path) -> None:
    partners = [OTHER, OTHER.but(recipe=OTHER.recipe.but(lr=2 * OTHER.recipe.lr))]
    results = shown(tmp_path, made.evaluation(MATH), *(made.soup(MATH, one, weight) for one in partners for weight in (0.3, 0.6)))
    found = dots(drawn("interpolation", results, y=made.ADDING).panels[0])
    assert list(found) == [f"math_320 with code_320 of seed 0 ({number})" for number in (1, 2)]
    for path, partner in zip(found.values(), partners, strict=True):
        ours = (made.evaluation(MATH), *(made.soup(MATH, partner, weight) for weight in (0.3, 0.6)))
        assert list(path.x) == pytest.approx([100 * mean(spec) for spec in ours])


def test_the_first_end_belongs_to_the_soups_with_every_partner_without_a_point_of_its_own(tmp_path: Path) -> None:
    partners = [OTHER, seeded(OTHER, 7)]
    results = shown(tmp_path, *(made.soup(MATH, one, weight) for one in partners for weight in (0.0, 0.5, 1.0)))
    plane = drawn("interpolation", results, y=made.ADDING).panels[0]
    found = dots(plane)
    assert set(found) == {"with code_320 of seed 0", "with code_320 of seeds 0, 7"}
    assert [path.x[0] for path in found.values()] == pytest.approx([100 * mean(made.evaluation(MATH))] * 2)
    assert [len(path.x) for path in found.values()] == [3, 3]
    assert len(references(plane)) == 2  # a chord each


def test_two_folders_of_one_model_are_two_runs_by_their_names_and_by_number_where_these_are_the_same() -> None:
    table = pd.DataFrame({"tuned": ["one", "two"], "which": ["final", "final"], **dict.fromkeys(runs.WORDS, "7B")})
    assert [run.label for run in runs.runs(table)] == ["final (1)", "final (2)"]
    named = runs.runs(table.assign(which=["first", "second"]))
    assert [(run.label, list(run.points["tuned"])) for run in named] == [("first", ["one"]), ("second", ["two"])]
