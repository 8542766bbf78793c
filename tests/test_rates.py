"""What steps cost: FLOPs and bytes by formula, seconds as earlier results of the store took."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab import rates
from cpt_lab.rates import DEVICES, H100, Rate, Rates
from cpt_lab.specs import Evaluation, Mixture, Part, Spec, SpectralPart
from cpt_lab.store import Store
from spec_cases import BASE, EVALUATION, HARNESS, MATH, PROTOCOL, SHAPE, SPECTRA, SUMS, TUNED, rewound_heads

RATES = Rates(Rate(flops=1e12, bytes_per_second=float("inf"), train_share=0.5, read_share=0.25, spectra_share=0.01))


def hours(spec: Spec) -> float:
    return RATES.seconds(spec) / 3600


def part(scope: Literal["heads", "attention", "mlp"]) -> SpectralPart:
    return SpectralPart(checkpoint=TUNED, against=BASE, layer=0, scope=scope, of="values")


def write_result(
    store: Store,
    spec: Spec,
    *,
    seconds: float,
    gpu: str = "",
    device: str = "auto",
    name: str = "",
    training: dict[str, int] | None = None,
) -> None:
    folder = store.folder(spec).with_name(name or store.folder(spec).name)
    folder.mkdir(parents=True)
    facts = {"seconds": seconds, "gpu": gpu, "execution": {"device": device}, "work": asdict(rates.work(spec))}
    (folder / "provenance.json").write_text(json.dumps(facts))
    if training is not None:
        (folder / "product").mkdir()
        (folder / "product" / "training.json").write_text(json.dumps(training))


# ---------------------------------------------------------------------------------------------------------------- formulas


def test_training_costs_six_flops_per_weight_and_token() -> None:
    tokens = 10_000_000
    trained = TUNED.but(mixture=Mixture(name="m", parts=(Part(corpus=MATH, tokens=tokens),)))
    assert hours(trained) == pytest.approx(6 * SHAPE.parameters * tokens / (0.5 * 1e12) / 3600)


@given(st.integers(256, 10**12), st.integers(2, 100))
def test_training_cost_is_proportional_to_tokens(tokens: int, factor: int) -> None:
    def cost(budget: int) -> float:
        return hours(TUNED.but(mixture=Mixture(name="m", parts=(Part(corpus=MATH, tokens=budget),))))

    assert cost(tokens) > 0
    assert cost(factor * tokens) == pytest.approx(factor * cost(tokens))


def test_evaluation_cost_is_proportional_to_the_items_and_the_same_for_a_patched_model() -> None:
    def cost(items: int, *, patched: bool = False) -> float:
        protocol = PROTOCOL.but(tasks=(SUMS.but(items=items), HARNESS.but(limit=items)))
        return hours(Evaluation(checkpoint=rewound_heads((0, 0)) if patched else TUNED, protocol=protocol))

    assert cost(3) > 0
    assert cost(300) == pytest.approx(100 * cost(3))
    assert cost(3, patched=True) == cost(3)


def test_a_decomposition_costs_its_gram_matrices_and_their_eigenvalues() -> None:
    heads = (2 * 32 * 8**2 + 4 / 3 * 8**3) * 16  # q, k, v and o of four heads, 32 x 8
    mlp = (2 * 48 * 32**2 + 4 / 3 * 32**3) * 3  # 48 x 32
    assert hours(part("heads")) == pytest.approx(heads / (0.01 * 1e12) / 3600)
    assert hours(part("mlp")) == pytest.approx(mlp / (0.01 * 1e12) / 3600)
    assert hours(part("mlp").but(of="null", seed=0)) == hours(part("mlp"))
    assert hours(part("mlp").but(of="pair")) > 3 * hours(part("mlp"))


def test_writing_answers_reads_all_weights_once_for_every_step_of_the_rows_side_by_side() -> None:
    only = PROTOCOL.but(tasks=(SUMS.but(items=640, max_new_tokens=50),), dtype="bfloat16")
    assert rates.work(Evaluation(checkpoint=TUNED, protocol=only)).bytes == 10 * 50 * 2 * SHAPE.parameters
    assert rates.work(Evaluation(checkpoint=TUNED, protocol=only.but(tasks=(HARNESS.but(limit=640),)))).bytes == 0


def test_memory_is_the_limit_of_a_slow_memory_and_arithmetic_of_slow_arithmetic() -> None:
    done = rates.work(EVALUATION)
    assert rates.estimate(done, Rate(flops=float("inf"), bytes_per_second=2.0)) == done.bytes / 2
    assert rates.estimate(done, Rate(flops=4.0, bytes_per_second=float("inf"), read_share=0.5)) == done.flops / 2


def test_what_reads_no_weights_takes_no_time_until_its_like_was_measured() -> None:
    assert RATES.seconds(SPECTRA) == RATES.seconds(MATH) == 0.0
    assert not RATES.is_measured(MATH)


def test_a_worker_holds_the_weights_in_the_precision_of_the_protocol() -> None:
    assert rates.loaded(EVALUATION) == 4 * SHAPE.parameters
    assert rates.loaded(EVALUATION.but(protocol=PROTOCOL.but(dtype="bfloat16"))) == 2 * SHAPE.parameters
    assert rates.loaded(TUNED) == 0


# ---------------------------------------------------------------------------------------------------------------- measured


def test_without_results_the_rates_are_the_devices(tmp_path: Path) -> None:
    assert rates.known(Store(tmp_path), "H100") == H100


def test_the_same_work_takes_the_median_of_what_it_took_here(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for index, seconds in enumerate((10.0, 30.0, 500.0)):
        write_result(store, EVALUATION, seconds=seconds, name=f"point-{index}")
    known = rates.known(store, "cpu")
    other = Evaluation(checkpoint=rewound_heads((1, 3)), protocol=PROTOCOL)
    assert known.seconds(EVALUATION) == known.seconds(other) == 30.0
    assert known.is_measured(other)


def test_other_work_of_the_kind_is_scaled_by_its_flops_and_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    once, twice = (EVALUATION.but(protocol=PROTOCOL.but(tasks=(SUMS.but(items=items),))) for items in (3, 6))
    write_result(store, once, seconds=40.0)
    known = rates.known(store, "cpu")
    assert known.seconds(twice) == pytest.approx(80.0)
    assert known.seconds(TUNED) == Rates(DEVICES["cpu"]).seconds(TUNED)


def test_a_training_run_of_several_devices_takes_one_device_as_many_times_as_long(tmp_path: Path) -> None:
    write_result(Store(tmp_path), TUNED, seconds=6.0, training={"ranks": 4})
    assert rates.known(Store(tmp_path), "cpu").seconds(TUNED) == 24.0


def test_a_given_speed_of_training_wins_over_what_was_measured_and_over_flops(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_result(store, TUNED, seconds=6.0)
    measured, given = rates.known(store, "cpu"), rates.known(store, "cpu", 50.0)
    assert (given.seconds(TUNED), measured.seconds(TUNED)) == (TUNED.mixture.tokens / 50, 6.0)
    assert [known.source(TUNED) for known in (given, measured, Rates())] == ["given", "measured", "FLOPs"]
    assert given.seconds(EVALUATION) == measured.seconds(EVALUATION)
    assert given.source(EVALUATION) == "FLOPs"


def test_a_speed_given_for_a_model_is_for_that_model_alone() -> None:
    other = TUNED.but(shape=SHAPE.but(name="other"))
    assert Rates(given={"tiny": 50.0}).seconds(TUNED) == TUNED.mixture.tokens / 50
    assert Rates(given={"tiny": 50.0}).seconds(other) == H100.seconds(other)
    assert Rates(given={"tiny": 50.0}).source(other) == "FLOPs"


@pytest.mark.parametrize(
    ("gpu", "device", "counts"),
    [("NVIDIA H100 80GB HBM3", "auto", True), ("NVIDIA A100-SXM4-80GB", "auto", False), ("", "auto", False), ("NVIDIA H100", "cpu", False)],
)
def test_only_results_of_the_same_device_count(tmp_path: Path, gpu: str, device: str, counts: bool) -> None:
    store = Store(tmp_path)
    write_result(store, EVALUATION, seconds=12.0, gpu=gpu, device=device)
    assert rates.known(store, "H100").is_measured(EVALUATION) is counts


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"seconds": 3}', '{"seconds": 3, "work": {"kind": "evaluation"}}', '{"seconds": 3, "work": 5}']
)
def test_provenance_of_another_version_or_half_written_counts_for_nothing(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "evaluations" / "point"
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text(text)
    assert rates.known(Store(tmp_path), "cpu") == Rates(DEVICES["cpu"])


def test_the_newest_results_are_looked_at_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "LOOKED_AT", 5)
    read: list[Path] = []
    monkeypatch.setattr(rates, "read_json", lambda path: read.append(path) or {})
    for index in range(20):
        write_result(Store(tmp_path), EVALUATION, seconds=1.0, name=f"point-{index}")
    rates.known(Store(tmp_path), "cpu")
    assert len(read) == 5


@pytest.mark.parametrize("name", ["H100", "h100", "NVIDIA H100 80GB HBM3"])
def test_a_device_is_known_by_its_name_or_nvidias_longer_one(name: str) -> None:
    assert rates.device_rate(name) is DEVICES["H100"]


def test_an_unknown_device_is_refused_with_those_there_are() -> None:
    with pytest.raises(KeyError, match=r"A100, A40, .*set site.gpu to the nearest"):
        rates.device_rate("TPU")
