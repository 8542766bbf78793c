"""The functions of trajectories find what was planted: waves, gradients and their reversal, exponents, asymmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compositions import points, refused
from cpt_lab import lifecycle
from cpt_lab.lifecycle import lines
from cpt_lab.specs import TrainedCheckpoint, Watch, canonical_json
from cpt_lab.spectra import MEASURES
from long_tables import rest_slow
from trajectory_cases import LAYERS, RANK, ROLES, STEPS, exponents, sigmoid, trajectory, travelling

# ---------------------------------------------------------------------------------------------------------------- waves


@given(st.floats(20, 400), st.floats(500, 3000))
@settings(max_examples=10, deadline=None)
def test_a_planted_wave_has_its_velocity_and_its_beginning(steps_per_layer: float, start: float) -> None:
    found = lifecycle.wave(trajectory(travelling(steps_per_layer=steps_per_layer, start=start)))
    assert found.steps_per_layer == pytest.approx(steps_per_layer, rel=0.01)
    assert found.velocity == pytest.approx(1 / steps_per_layer, rel=0.01)
    assert found.first == pytest.approx(start, abs=5)
    assert found.travels


def test_a_wave_from_late_to_early_layers_has_a_negative_velocity() -> None:
    found = lifecycle.wave(trajectory(travelling(steps_per_layer=-150, start=4000)))
    assert found.velocity == pytest.approx(-1 / 150, rel=0.01)
    assert found.travels


def test_layers_that_compress_together_are_no_wave() -> None:
    found = [lifecycle.wave(trajectory(travelling(steps_per_layer=0, noise=0.01, seed=seed)), window=5) for seed in range(40)]
    assert sum(one.travels for one in found) <= 6  # 2 by chance: the interval is one of 95 %
    assert all(abs(one.steps_per_layer) < 3 for one in found)


def test_a_wave_is_found_through_noise_and_its_true_slowness_lies_within_the_interval() -> None:
    found = [lifecycle.wave(trajectory(travelling(noise=0.02, seed=seed)), window=7) for seed in range(20)]
    inside = sum(one.low <= 150 <= one.high for one in found)
    assert inside >= 16
    assert all(one.steps_per_layer == pytest.approx(150, rel=0.1) for one in found)


def test_a_layer_without_compression_has_no_arrival_and_does_not_move_the_line() -> None:
    ranks = travelling()
    ranks[:, 5] = RANK
    found = lifecycle.wave(trajectory(ranks))
    assert math.isnan(found.arrivals[5])
    assert found.steps_per_layer == pytest.approx(150, rel=0.01)


def test_matrices_that_never_change_have_no_wave() -> None:
    found = lifecycle.wave(trajectory(np.full((len(STEPS), LAYERS), RANK)))
    assert np.isnan(found.arrivals).all()
    assert math.isnan(found.velocity)
    assert not found.travels


def test_compression_is_the_share_of_the_first_stable_rank_that_is_lost() -> None:
    lost = lifecycle.compression(trajectory(travelling(early=0.5, late=0.8)))
    assert lost[0] == pytest.approx(0)
    assert lost[-1] == pytest.approx(np.linspace(0.5, 0.8, LAYERS), abs=1e-3)


@pytest.mark.parametrize("level", [0, 1, 1.5])
def test_a_level_that_is_no_share_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="give a share between 0 and 1"):
        lifecycle.wave(trajectory(travelling()), level=level)


# ------------------------------------------------------------------------------------------------------------ gradients


def test_a_gradient_dips_while_the_wave_is_early_and_reverses_when_late_layers_are_compressed_further() -> None:
    start, slowness, width = 1000.0, 150.0, 80.0
    found = lifecycle.compression_gradient(trajectory(travelling(steps_per_layer=slowness, start=start, width=width)))
    first, last = (RANK * share * sigmoid((STEPS - at) / width) for share, at in ((0.5, start), (0.8, start + 11 * slowness)))
    assert found.gradient == pytest.approx((last - last[0]) - (first - first[0]))  # ranks fall by these
    assert found.extreme == pytest.approx(-RANK * 0.5, rel=0.01)
    assert start < found.extreme_step < start + 11 * slowness
    assert found.reverses
    crossing = start + 11 * slowness + width * math.log((0.5 / 0.8) / (1 - 0.5 / 0.8))  # where 0.8 sigmoid is 0.5
    assert found.reversal_step == pytest.approx(crossing, abs=2)
    assert found.final == pytest.approx(RANK * 0.3, rel=0.01)
    assert found.slope[-1] == pytest.approx(0.3, abs=1e-3)


def test_a_gradient_that_fades_without_late_layers_overtaking_does_not_reverse() -> None:
    found = lifecycle.compression_gradient(trajectory(travelling(early=0.8, late=0.5)))
    assert not found.reverses
    assert found.final < 0


def test_short_returns_of_a_noisy_gradient_are_no_reversal() -> None:
    ranks = travelling(early=0.5, late=0.8)
    ranks[80, 0] += 2 * RANK  # a blip early layers come back from
    found = lifecycle.compression_gradient(trajectory(ranks))
    calm = lifecycle.compression_gradient(trajectory(travelling(early=0.5, late=0.8)))
    assert found.reversal_step == calm.reversal_step


def test_what_initialisation_has_of_a_gradient_is_taken_off() -> None:
    ranks = travelling()
    found = lifecycle.compression_gradient(trajectory(ranks + np.linspace(0, 30, LAYERS)))
    assert found.gradient == pytest.approx(lifecycle.compression_gradient(trajectory(ranks)).gradient)


@pytest.mark.parametrize("ends", [0, 7])
def test_more_ends_than_half_of_the_layers_are_refused(ends: int) -> None:
    with pytest.raises(ValueError, match="give 1 to 6"):
        lifecycle.compression_gradient(trajectory(travelling()), ends=ends)


# --------------------------------------------------------------------------------------------------------------- alphas


@given(st.floats(0.15, 0.85), st.floats(0.05, 1.0))
@settings(max_examples=25, deadline=None)
def test_a_planted_inverted_u_has_its_peak_and_its_height(peak: float, delta: float) -> None:
    values = exponents(peak=peak, delta=delta)
    found = lifecycle.alpha_gradient(trajectory(values, measure="rank_decay_alpha"))
    assert found.peak_depth == pytest.approx(peak, abs=0.005)
    assert found.peak_layer == round(peak * (LAYERS - 1)) or abs(found.peak_depth - peak) < 0.005
    assert found.is_inverted_u
    assert found.delta == pytest.approx(np.ptp(values[-2]))
    assert found.strengthening == pytest.approx(1)
    assert found.curvature == pytest.approx(-delta * (1 - math.exp(-STEPS[-2] / 2000)) / max(peak, 1 - peak) ** 2, rel=1e-6)


def test_a_profile_that_only_rises_has_its_peak_at_the_end_and_is_no_inverted_u() -> None:
    rising = np.linspace(0.2, 0.5, LAYERS) * np.ones((len(STEPS), 1))
    found = lifecycle.alpha_gradient(trajectory(rising))
    assert (found.peak_layer, found.peak_depth, found.is_inverted_u) == (LAYERS - 1, 1.0, False)
    assert found.slope == pytest.approx(0.3)
    assert math.isnan(found.strengthening)  # it does not change


def test_a_layer_without_a_fit_is_left_out_of_a_profile() -> None:
    values = exponents(peak=0.5)
    values[:, 0] = math.nan
    found = lifecycle.alpha_gradient(trajectory(values))
    assert found.peak_depth == pytest.approx(0.5, abs=0.01)
    assert found.delta == pytest.approx(np.ptp(values[-2, 1:]))


def test_a_run_in_which_no_exponent_could_be_fitted_is_refused_by_the_measure() -> None:
    with pytest.raises(ValueError, match="pl_alpha could be fitted in no layer"):
        lifecycle.alpha_gradient(trajectory(np.full((len(STEPS), LAYERS), math.nan), measure="pl_alpha"))


@given(st.floats(0.05, 2.0), st.floats(0.01, 10.0))
@settings(max_examples=25, deadline=None)
def test_the_exponent_of_delta_alpha_over_depth_is_recovered(exponent: float, prefactor: float) -> None:
    depths = (8, 12, 16, 24)
    last = 1 - math.exp(-STEPS[-2] / 2000)
    gradients = []
    for layers in depths:
        values = exponents(delta=1.0, peak=0.0, layers=layers)  # its span is 1 x what has grown
        gradients.append(lifecycle.alpha_gradient(trajectory(0.2 + (values - 0.2) * prefactor * layers**exponent / last)))
    found = lifecycle.depth_scaling(gradients)
    assert found.exponent == pytest.approx(exponent, rel=1e-6)
    assert found.prefactor == pytest.approx(prefactor, rel=1e-6)
    assert found.r_squared == pytest.approx(1)
    assert found.x.tolist() == list(depths)
    assert found.at(np.array([32.0])) == pytest.approx(prefactor * 32**exponent, rel=1e-6)


def test_the_interval_of_an_exponent_covers_it_as_often_as_it_says() -> None:
    generator, depths = np.random.default_rng(0), np.array([8.0, 12, 16, 24, 36])
    fits = [lifecycle.power_law(depths, 0.1 * depths**0.26 * np.exp(0.05 * generator.standard_normal(5))) for _ in range(400)]
    assert np.mean([fit.low <= 0.26 <= fit.high for fit in fits]) == pytest.approx(0.95, abs=0.03)


def test_two_points_have_an_exponent_and_no_error() -> None:
    found = lifecycle.power_law(np.array([2.0, 8.0]), np.array([1.0, 2.0]))
    assert found.exponent == pytest.approx(0.5)
    assert math.isnan(found.stderr)


@pytest.mark.parametrize(("x", "y"), [([8.0], [1.0]), ([8.0, 8.0], [1.0, 2.0]), ([8.0, 12.0], [1.0, 0.0]), ([8.0, 12.0], [1.0, math.nan])])
def test_points_without_a_power_law_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="a power law takes"):
        lifecycle.power_law(np.array(x), np.array(y))


# ------------------------------------------------------------------------------------------- asymmetry and dissociation


def of_roles(**planted: float) -> lifecycle.Trajectory:
    """Stable ranks whose final compression differs over the layers by so much, role by role."""
    values = np.stack([travelling(early=0.6 - half, late=0.6 + half, steps_per_layer=0) for half in planted.values()], axis=2)
    return trajectory(values, roles=tuple(planted))


def test_the_asymmetry_is_the_ratio_of_the_planted_spreads() -> None:
    found = lifecycle.asymmetry(of_roles(q=0.3, k=0.2, v=0.05, o=0.05), relative=True)
    assert found.final == pytest.approx(0.25 / 0.05, rel=0.01)
    assert found.roles == ROLES
    assert found.spread[-1] == pytest.approx([half * np.linspace(-1, 1, LAYERS).std() for half in (0.3, 0.2, 0.05, 0.05)], rel=0.01)


def test_roles_that_are_uniform_leave_no_ratio() -> None:
    found = lifecycle.asymmetry(of_roles(q=0.3, k=0.2, v=0.0, o=0.0))
    assert math.isnan(found.ratio[-1])
    assert found.carriers[-1] > 0


def test_an_asymmetry_of_a_run_without_a_role_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="no role o: it has q, k, v"):
        lifecycle.asymmetry(of_roles(q=0.3, k=0.2, v=0.1))


def test_compression_becomes_alike_while_exponents_go_apart() -> None:
    ranks = trajectory(travelling(early=0.7, late=0.7))
    found = lifecycle.dissociation(ranks, trajectory(exponents(), measure="rank_decay_alpha"))
    passing = int(np.argmin(found.compression_slope))
    assert found.compression_slope[passing] < -0.5
    assert abs(found.compression_slope[-1]) < 1e-3
    assert found.compression_spread[-1] < 1e-3 < found.compression_spread[passing]
    assert found.alpha_spread[-1] > found.alpha_spread[passing]


def test_trajectories_of_different_runs_are_not_compared() -> None:
    with pytest.raises(ValueError, match="read both from one run"):
        lifecycle.dissociation(trajectory(travelling()), trajectory(travelling(layers=8)))


# ----------------------------------------------------------------------------------------------------------- importance


def test_layers_at_the_ends_do_not_count_for_importance() -> None:
    alpha = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.1])
    loss = np.array([9.0, 0.1, 0.2, 0.5, 0.7, 9.0])
    found = lifecycle.importance(alpha, loss)
    assert found.rho == pytest.approx(1)
    assert found.core.tolist() == [False, True, True, True, True, False]
    assert found.p == pytest.approx(2 / math.factorial(4))  # this order and its reverse
    assert found.rho_of_all < 1


def test_the_p_of_many_layers_is_uniform_where_nothing_is_related() -> None:
    generator = np.random.default_rng(0)
    found = [lifecycle.importance(generator.standard_normal(14), generator.standard_normal(14), seed=seed).p for seed in range(60)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.12)
    assert min(found) > 1e-4


def test_an_importance_of_too_few_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than three"):
        lifecycle.importance([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])


# ---------------------------------------------------------------------------------------------------------------- lines


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=3, max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_line_is_that_of_numpy(points: list[tuple[float, float]]) -> None:
    x, y = np.array(points).T
    if np.ptp(x) < 1e-3:
        return
    found = lines.line(x, y)
    slope, intercept = np.polyfit(x, y, 1)
    assert found.slope == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert found.intercept == pytest.approx(intercept, rel=1e-6, abs=1e-5)
    assert found.low <= found.slope <= found.high


def test_slopes_are_those_of_each_row_without_what_is_not_finite() -> None:
    x, y = np.linspace(0, 1, 6), np.random.default_rng(0).standard_normal((5, 6))
    y[1, 2], y[2, :5], y[3] = math.nan, math.nan, math.nan
    assert lines.slopes(x, y) == pytest.approx(np.array([lines.line(x, row).slope for row in y]), nan_ok=True)


def test_a_running_median_drops_a_single_outlier_and_keeps_the_ends() -> None:
    assert lines.smoothed(np.array([1.0, 9.0, 2.0, 3.0, 4.0]), 3).tolist() == [5.0, 2.0, 3.0, 3.0, 3.5]
    assert lines.smoothed(np.array([1.0, 9.0, 2.0]), 1).tolist() == [1.0, 9.0, 2.0]
    with pytest.raises(ValueError, match="odd number"):
        lines.smoothed(np.array([1.0]), 2)


def test_a_level_is_crossed_between_two_times_by_a_straight_line() -> None:
    times, values = np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 3.0])
    assert lines.crossing(times, values, 2.0) == 15.0
    assert lines.crossing(times, values, -1.0) == 0.0
    assert math.isnan(lines.crossing(times, values, 4.0))


# --------------------------------------------------------------------------------------------------------- trajectories


def test_a_trajectory_whose_steps_do_not_rise_is_refused() -> None:
    with pytest.raises(ValueError, match="must rise"):
        trajectory(np.ones((2, 3)), steps=np.array([5, 5]))


def test_a_role_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(KeyError, match="gate"):
        trajectory(travelling()).of("gate")


def test_a_part_of_a_trajectory_has_the_steps_between_both() -> None:
    part = trajectory(travelling()).between(1000, 1100)
    assert part.steps.tolist() == [1000, 1025, 1050, 1075, 1100]
    with pytest.raises(ValueError, match="the steps go from 0 to 10000"):
        trajectory(travelling()).between(20_000, 30_000)


# -------------------------------------------------------------------------------------------------------------- a study


def test_pretraining_and_continual_pretraining_are_watched_by_one_setting() -> None:
    (point,) = points("target=train", "watch.every=7", "watch.measures=[norms,pl_alpha]", "watch.heads=true")
    tuned = point.spec
    assert isinstance(tuned, TrainedCheckpoint)
    assert isinstance(tuned.start, TrainedCheckpoint)
    assert tuned.watch == tuned.start.watch == Watch(every=7, measures=(*MEASURES["norms"], "pl_alpha"), heads=True)


def test_without_the_setting_nothing_is_watched_and_keys_are_what_they_were() -> None:
    (point,) = points("target=train")
    assert isinstance(point.spec, TrainedCheckpoint)
    assert point.spec.watch is None
    assert '"watch"' not in canonical_json(point.spec)


@pytest.mark.parametrize(
    ("setting", "said"),
    rest_slow(
        [
            ("watch.measures=svsm", "unknown measure of a run that trains 'svsm_mean'"),
            ("watch.measures=tails", "unknown measure of a run that trains 'pl_p_value'"),
            ("watch.measures=stable_runk", "stable_rank"),
            ("watch.every=0", "watch.every: input should be greater than 0"),
            ("execution.spectra_share=1", "execution.spectra_share: input should be less than 1"),
            ("pretrain.start=warm", "pretrain.start: input should be 'random' or 'spectral_warmup'"),
            ("pretrain.spectral_warmup.scale=0", "pretrain.spectral_warmup.scale: input should be greater than 0"),
        ],
        fast=2,
    ),
)
def test_a_setting_that_cannot_be_is_refused_in_one_sentence(setting: str, said: str) -> None:
    assert said in refused("target=train", "watch.every=5", setting)


def test_a_warm_up_from_a_checkpoint_that_is_not_there_names_those_that_are() -> None:
    said = refused("target=train", "pretrain.start=spectral_warmup", "pretrain.spectral_warmup.reference=teacher")
    assert "teacher" in said
    assert "base, reference, tuned" in said
