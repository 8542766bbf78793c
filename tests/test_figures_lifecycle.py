"""The figures of the spectral lifecycle: what they draw is what numpy says of the stored trajectories, outcomes and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import training_cases
from analysis import figures, watched
from analysis.drawing import Dots, Heat, Line
from analysis.papers.beside import beside
from analysis.papers.measured import QUANTITIES
from analysis.results import Results
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.specs import Checkpoint, Spec, SpectralWarmup, TrainedCheckpoint, Watch
from cpt_lab.store import Store
from lifecycle_cases import lines, one, panel, sheet, study
from spectral_studies import Array, matrix, values, weights

STEPS = np.arange(0, 201, 10)
ROLES = ("q", "k", "v", "o")
MEASURES = ("stable_rank", "rank_decay_alpha")
DEPTHS = (4, 6, 9)
BATCH = training_cases.RECIPE.batch_tokens


def spec(layers: int, seed: int = 0, start: Checkpoint | None = None) -> TrainedCheckpoint:
    """A watched run of so many layers."""
    shape = training_cases.SHAPE.but(num_layers=layers)
    recipe = training_cases.RECIPE.but(seed=seed)
    mixture = training_cases.MIXTURE.but(parts=(training_cases.MIXTURE.parts[0].but(tokens=200 * BATCH),))
    watch = Watch(every=10, measures=MEASURES)
    return training_cases.SPEC.but(shape=shape, recipe=recipe, mixture=mixture, start=start, watch=watch)


def planted(layers: int, seed: int, *, warm: bool = False) -> dict[str, Array]:
    """Measure -> (steps, layers, roles): a front through the layers, exponents that go apart, more so in q and k, with noise."""
    draw = np.random.default_rng([layers, seed, warm])
    depth, layer = np.linspace(0, 1, layers), np.arange(layers)
    front = 1 / (1 + np.exp(-(STEPS[:, None] - 60 - 8 * layer) / 6))
    share = np.array([1.0, 0.9, 0.2, 0.15])  # of the dependence on depth
    lost = front[:, :, None] * (0.6 + 0.2 * depth[None, :, None] * share)
    rank = 20 * (1 - lost) + (0 if warm else 0.05) * draw.standard_normal((len(STEPS), layers, 4))
    shape = 1 - ((depth - 0.4) / 0.6) ** 2
    grown = 1 - np.exp(-STEPS / 60)
    alpha = 0.3 + 0.05 * layers**0.5 * grown[:, None, None] * shape[None, :, None] * share
    return {"stable_rank": rank, "rank_decay_alpha": alpha + 0.002 * draw.standard_normal(alpha.shape)}


def losses(seed: int, warm: bool) -> Array:
    """Of each of 200 steps."""
    noise = 0.02 * np.random.default_rng([seed, warm]).standard_normal(200)
    return np.asarray((3.0 if warm else 4.0) + 2 * np.exp(-np.arange(200) / 50) + noise)


def left(store: Store, run: TrainedCheckpoint, found: dict[str, Array], logged: Array, *, every: int = 1) -> None:
    """The product of a run that left these tables."""
    cubes = {name: values[::every] for name, values in found.items()}
    times, layers, roles = np.indices(cubes["stable_rank"].shape)
    columns = {"step": STEPS[::every][times.ravel()], "layer": layers.ravel(), "role": np.array(ROLES)[roles.ravel()], "head": -1}
    table = pd.DataFrame({**columns, **{name: values.ravel() for name, values in cubes.items()}})
    table.insert(1, "tokens", table["step"] * BATCH)
    lease = store.claim(run)
    assert lease is not None
    with store.building(run, lease) as work:
        table.to_parquet(work.product / "spectra.parquet", index=False)
        lines = [json.dumps({"step": step + 1, "loss": loss}) for step, loss in enumerate(logged)]
        (work.product / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Runs of three depths and two seeds, and of the shallowest a warm-up."""
    store = Store(tmp_path_factory.mktemp("lifecycle") / "results")
    specs: dict[str, Spec] = {}
    for layers in DEPTHS:
        for seed in (0, 1):
            run = spec(layers, seed)
            left(store, run, planted(layers, seed), losses(seed, warm=False))
            specs[f"{layers} {seed}"] = run
    warm = spec(4, start=SpectralWarmup(reference=spec(4)))
    left(store, warm, planted(4, 0, warm=True), losses(0, warm=True))
    return study(store, {**specs, "warm": warm})


def role(layers: int, seed: int, measure: str, name: str = "q") -> Array:
    """(steps, layers)"""
    return planted(layers, seed)[measure][:, :, ROLES.index(name)]


# ----------------------------------------------------------------------------------------------------------- trajectories


def test_a_wave_is_drawn_as_the_share_of_the_first_stable_rank_that_is_lost(scene: Results) -> None:
    (heat,) = panel(one("compression_waves", scene), "6 layers, seed 0: W Q").marks
    assert isinstance(heat, Heat)
    rank = role(6, 0, "stable_rank")
    assert heat.cells == pytest.approx(100 * (1 - rank / rank[0]).T)
    assert heat.columns == tuple(str(step) for step in STEPS)


def test_a_front_arrives_where_half_of_a_layers_compression_is_reached_and_its_line_is_that_of_least_squares(scene: Results) -> None:
    drawing = one("compression_waves", scene, window=1, roles=["q"])
    dots, line = panel(drawing, "9 layers, seed 0: arrival of the front").marks
    assert isinstance(dots, Dots)
    assert isinstance(line, Line)
    rank = role(9, 0, "stable_rank")
    lost = 1 - rank / rank[0]
    for layer, own in enumerate(lost.T):
        after = next(at for at, value in enumerate(own) if value >= own.max() / 2)
        assert dots.y[layer] == pytest.approx(np.interp(own.max() / 2, own[after - 1 : after + 1], STEPS[after - 1 : after + 1]))
    slope, first = np.polyfit(np.arange(9), dots.y, 1)
    assert line.y == pytest.approx(first + slope * np.arange(9))
    assert slope == pytest.approx(8, abs=1)
    assert f"9 layers, seed 0, W Q: {slope:.3g} steps per layer" in drawing.caption


def test_the_compression_gradient_is_the_mean_over_seeds_with_their_deviation(scene: Results) -> None:
    ranks = [role(6, seed, "stable_rank") for seed in (0, 1)]
    expected = np.stack([(rank[:, 0] - rank[:, -1]) - (rank[0, 0] - rank[0, -1]) for rank in ranks])
    drawing = one("compression_gradient", scene, window=1)
    line = lines(panel(drawing, "ends of the model"))["6 layers"]
    assert line.y == pytest.approx(expected.mean(axis=0))
    assert line.band == pytest.approx(expected.std(axis=0, ddof=1))
    slopes = [np.polyfit(np.linspace(0, 1, 6), 100 * (1 - rank / rank[0]).T, 1)[0] for rank in ranks]
    assert lines(panel(drawing, "slope over the depth"))["6 layers"].y == pytest.approx(np.mean(slopes, axis=0), abs=1e-9)
    warm = lines(panel(drawing, "ends of the model"))["4 layers, spectral warm-up"]
    assert warm.band is None
    assert "none where there is one seed" in drawing.caption


def test_trajectories_have_a_line_per_layer_from_blue_to_red(scene: Results) -> None:
    found = lines(panel(one("layer_trajectories", scene), "4 layers, seed 0: rank decay alpha"))
    assert list(found) == [f"layer {layer}" for layer in range(4)]
    for layer, line in enumerate(found.values()):
        assert line.y == pytest.approx(role(4, 0, "rank_decay_alpha")[:, layer])
    assert (found["layer 0"].look.colour, found["layer 3"].look.colour) == ("#214FC6", "#C6212B")


def test_profiles_are_the_median_of_the_last_measurements_over_percent_of_the_depth(scene: Results) -> None:
    (found,) = one("alpha_profiles", scene).panels
    profiles = [np.median(role(9, seed, "rank_decay_alpha")[-3:], axis=0) for seed in (0, 1)]
    line = lines(found)["9 layers"]
    assert line.x == pytest.approx(100 * np.arange(9) / 8)
    assert line.y == pytest.approx(np.mean(profiles, axis=0))
    assert found.x.text == "depth [%]"
    (peak,) = [mark for mark in found.marks if isinstance(mark, Dots) and mark.label == "9 layers"]
    assert (peak.x[0], peak.y[0]) == (line.x[line.y.argmax()], line.y.max())


def test_a_dissociation_stands_relative_to_the_mean_of_the_layers_and_spans_are_over_time(scene: Results) -> None:
    drawing = one("dissociation", scene, window=1)
    rank, alpha = role(6, 0, "stable_rank"), role(6, 0, "rank_decay_alpha")
    lost = 1 - rank[-1] / rank[0]
    both = lines(panel(drawing, "6 layers, seed 0: at the end"))
    assert both["compression"].y == pytest.approx(100 * lost / lost.mean())
    assert both["rank decay alpha"].y == pytest.approx(100 * alpha[-1] / alpha[-1].mean())
    spans = [np.ptp(role(6, seed, "rank_decay_alpha"), axis=1) for seed in (0, 1)]
    (span,) = lines(panel(drawing, "6 layers: span of the exponent")).values()
    assert span.y == pytest.approx(np.mean(spans, axis=0))


def test_the_asymmetry_is_the_ratio_of_deviations_over_the_layers(scene: Results) -> None:
    drawing = one("matrix_asymmetry", scene)
    cubes = [planted(6, seed)["rank_decay_alpha"] for seed in (0, 1)]
    ratios = [cube[:, :, :2].std(axis=1).mean(axis=1) / cube[:, :, 2:].std(axis=1).mean(axis=1) for cube in cubes]
    found = lines(panel(drawing, "6 layers: Q and K / V and O"))
    assert found["spread of exponent, Q K / V O"].y == pytest.approx(np.mean(ratios, axis=0))
    assert np.isnan(found["spread of compression, Q K / V O"].y[0])  # nothing is compressed before the first step
    final = lines(panel(drawing, "6 layers, seed 0: at the end"))
    ranks = planted(6, 0)["stable_rank"][:, :, 2]
    assert final["W V"].y == pytest.approx(100 * (1 - ranks[-1] / ranks[0]))
    assert lines(panel(drawing, "6 layers, seed 0: layer 0"))["W V"].y == pytest.approx(ranks[:, 0])


def test_the_scaling_law_is_the_line_of_logarithms_over_all_runs_from_random_weights(scene: Results) -> None:
    drawing = one("scaling_laws", scene, window=1)
    depths = np.repeat(DEPTHS, 2).astype(float)
    profiles = [np.median(role(layers, seed, "rank_decay_alpha")[-3:], axis=0) for layers in DEPTHS for seed in (0, 1)]
    spans = np.array([np.ptp(profile) for profile in profiles])
    dots, fit = panel(drawing, "range of the exponent").marks
    assert isinstance(dots, Dots)
    assert isinstance(fit, Line)
    assert dots.y == pytest.approx(spans)
    told = stats.linregress(np.log(depths), np.log(spans))
    assert np.polyfit(np.log(fit.x), np.log(fit.y), 1)[0] == pytest.approx(told.slope)
    half = told.stderr * stats.t.ppf(0.975, len(spans) - 2)
    assert fit.label == f"L^{told.slope:.2g} (95 % {told.slope - half:.2g} to {told.slope + half:.2g}), R2 = {told.rvalue**2:.2f}"
    assert fit.low is not None
    assert fit.low[-1] == pytest.approx(fit.y[-1] * (9 / np.exp(np.log(depths).mean())) ** -half)
    largest, smallest = (mark for mark in panel(drawing, "extremes").marks if isinstance(mark, Dots))
    assert largest.y - smallest.y == pytest.approx(spans)
    assert "warm-up" not in drawing.caption


def test_the_exponent_of_the_scaling_law_and_its_fit_stand_beside_those_of_the_paper(scene: Results) -> None:
    spans = [np.ptp(np.median(role(layers, seed, "rank_decay_alpha")[-3:], axis=0)) for layers in DEPTHS for seed in (0, 1)]
    told = stats.linregress(np.log(np.repeat(DEPTHS, 2)), np.log(spans))
    ours = {match.theirs.quantity: match for match in beside(scene)}
    assert set(ours) == {"alpha_depth_exponent", "alpha_depth_r_squared"}
    exponent, fit = ours["alpha_depth_exponent"], ours["alpha_depth_r_squared"]
    assert (exponent.theirs.value, exponent.ours.n) == (0.26, 6)
    assert (exponent.ours.value, exponent.ours.error) == (pytest.approx(told.slope, rel=0.1), pytest.approx(told.stderr, rel=0.3))
    assert exponent.difference == exponent.ours.value - 0.26
    assert (fit.ours.value, fit.ours.error) == (pytest.approx(told.rvalue**2, abs=0.02), None)


def test_further_training_of_a_watched_run_changes_nothing_of_the_scaling_law(tmp_path: Path) -> None:
    store = Store(tmp_path)
    bases: dict[str, Spec] = {f"{layers} base": spec(layers) for layers in DEPTHS}
    further = {f"{layers} further": spec(layers, 1, spec(layers)) for layers in DEPTHS}
    for layers in DEPTHS:
        left(store, spec(layers), planted(layers, 0), losses(0, warm=False))
        left(store, further[f"{layers} further"], planted(layers, 1), losses(1, warm=False))
    alone, both = (QUANTITIES["alpha_depth"](study(store, points)) for points in (bases, bases | further))
    assert [(one.value, one.n) for one in both] == [(one.value, 3) for one in alone]


def test_the_exponent_stands_against_the_mean_loss_since_the_measurement_before(scene: Results) -> None:
    drawing = one("alpha_loss", scene)
    (found,) = drawing.panels
    first = next(mark for mark in found.marks if isinstance(mark, Line) and mark.label == "4 layers")
    assert first.x == pytest.approx(role(4, 0, "rank_decay_alpha")[1:].mean(axis=1))
    assert first.y == pytest.approx(losses(0, warm=False).reshape(20, 10).mean(axis=1))
    assert f"4 layers, seed 0 {stats.spearmanr(first.x, first.y).statistic:.2f}" in drawing.caption


def test_a_warm_up_stands_beside_the_run_whose_spectra_it_has(scene: Results) -> None:
    drawing = one("spectral_warmup", scene, batches=10)
    assert [one.title for one in drawing.panels] == ["4 layers: loss", "4 layers: rank decay alpha", "4 layers: stable rank"]
    curve = next(mark for mark in drawing.panels[0].marks if isinstance(mark, Line) and mark.label == "spectral warm-up")
    logged = losses(0, warm=True)
    assert curve.y == pytest.approx([logged[max(0, at - 9) : at + 1].mean() for at in range(200)])
    own = np.mean([losses(seed, warm=False)[-10:].mean() for seed in (0, 1)])
    reached = 1 + int(np.flatnonzero(curve.y <= own)[0])
    assert (
        f"{own:.3f} at the end from chance, {logged[-10:].mean():.3f} from the warm-up, which reached that at step {reached}"
        in drawing.caption
    )
    ranks = lines(drawing.panels[2])
    assert ranks["random start"].y == pytest.approx(np.mean([role(4, seed, "stable_rank").mean(axis=1) for seed in (0, 1)], axis=0))


def test_the_table_of_the_lifecycle_has_a_row_per_run(scene: Results) -> None:
    table = sheet("lifecycle_table", scene)
    assert [name for name, _ in table.rows][:3] == ["4 layers, seed 0", "4 layers, seed 1", "4 layers, spectral warm-up, seed 0"]
    cells = dict(zip(table.columns[1:], dict(table.rows)["9 layers, seed 1"], strict=True))
    assert cells["final loss"].value == pytest.approx(losses(1, warm=False)[-10:].mean())
    assert cells["travels"].value == "yes"
    assert cells["steps per layer"].value == pytest.approx(8, abs=1)
    assert cells["inverted U"].value == "yes"
    cube = planted(9, 1)["rank_decay_alpha"][-3:]
    ratio = cube[:, :, :2].std(axis=1).mean(axis=1) / cube[:, :, 2:].std(axis=1).mean(axis=1)
    assert cells["QK/VO of alpha"].value == pytest.approx(np.median(ratio))


def test_seeds_that_were_measured_at_other_steps_share_those_of_both(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed, every in ((0, 1), (1, 2)):
        left(store, spec(4, seed), planted(4, seed), losses(seed, warm=False), every=every)
    (group,) = watched.groups(study(store, {"one": spec(4, 0), "other": spec(4, 1)}))
    assert [run.label for run in group.runs] == ["seed 0", "seed 1"]
    assert all(table.steps.tolist() == STEPS[::2].tolist() for table in group.read("stable_rank"))


def test_further_training_of_two_seeds_is_one_kind_of_run_and_the_runs_it_starts_from_another(tmp_path: Path) -> None:
    store = Store(tmp_path)
    runs = {f"{kind} {seed}": run for seed in (0, 1) for kind, run in (("base", spec(4, seed)), ("tuned", spec(4, seed, spec(4, seed))))}
    for run in runs.values():
        left(store, run, planted(4, run.recipe.seed), losses(run.recipe.seed, warm=False))
    tuned = {name: run for name, run in runs.items() if name.startswith("tuned")}
    found = watched.groups(study(store, {**tuned}))  # the bases are no points, but what the points are made from
    assert sorted((group.label, len(group.runs)) for group in found) == [("CPT", 2), ("random start", 2)]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("compression_waves", {"roles": ["gate"]}, "these runs have the roles q, k, v, o, not gate"),
        ("matrix_asymmetry", {"layer": 4}, "layer=4 is not in every model: give 0 to 3"),
        ("alpha_profiles", {"measure": "spectral_gap"}, "was watched without spectral_gap"),
        ("alpha_profiles", {"measure": "alhpa"}, "unknown spectral measure"),
        ("layer_trajectories", {"measures": ["pl_alpha"]}, "was watched without pl_alpha"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_there_is(scene: Results, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures.build(name, scene, changes)


def test_a_study_that_lacks_what_a_figure_needs_is_told_what_to_run(scene: Results) -> None:
    whole = scene.studies[0]

    def only(*names: str) -> Results:
        return Results(scene.store, [whole.model_copy(update={"points": tuple(one for one in whole.points if one.name in names)})])

    with pytest.raises(ValueError, match=r"watched runs from random weights of 1 depth: .*lifecycle_d8 lifecycle_d12"):
        figures.build("scaling_laws", only("4 0", "4 1"))
    with pytest.raises(ValueError, match="no spectral warm-up beside the run that it is from"):
        figures.build("spectral_warmup", only("6 0"))
    with pytest.raises(ValueError, match=r"no finished correlation with the importance of layers: .*importance_MODEL"):
        figures.build("layer_importance", only("4 0"))


# ------------------------------------------------------------------------------------------------------------ a real run


@pytest.mark.slow
def test_a_real_run_is_drawn_as_its_weights_are(tmp_path: Path) -> None:
    run = training_cases.SPEC.but(watch=Watch(every=5, measures=MEASURES))
    store = Store(tmp_path)
    product = ensure(Workshop(store, Execution(device="cpu", threads=1, validations=0, spectra_share=0.999)), run)
    results = study(store, {"run": run}, "real")
    titles = [one.title for one in one("layer_trajectories", results).panels]
    found = lines(panel(one("layer_trajectories", results), titles[0]))
    singular = [values(matrix(weights(product), layer, "q")) for layer in range(2)]
    assert [line.y[-1] for line in found.values()] == pytest.approx([float((own**2).sum() / own[0] ** 2) for own in singular], rel=1e-4)
    (first, *_) = found.values()
    assert first.x.tolist() == [0, 5, 10, 15, 20]
    (heat,) = one("compression_waves", results).panels[0].marks
    assert isinstance(heat, Heat)
    curves = np.stack([line.y for line in found.values()])
    assert heat.cells == pytest.approx(100 * (1 - curves / curves[:, :1]))
    for name in ("compression_gradient", "dissociation", "matrix_asymmetry", "alpha_profiles", "alpha_loss", "lifecycle_table"):
        assert figures.build(name, results)
