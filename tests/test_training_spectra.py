"""Spectra while training: what is measured is the weights of that step, once, under sharding too, and it is there after a resume."""

from __future__ import annotations

import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import training_cases as cases
from cpt_lab import lifecycle, spectra
from cpt_lab.lifecycle.spectral_warmup import build_warmup
from cpt_lab.specs import ModelShape, SpectralWarmup, Watch
from cpt_lab.training import engine, spectra_callback
from cpt_lab.training.spectra_callback import SpectraCallback, collect, measured

SHAPE = ModelShape(
    name="grouped",
    family="olmo2",
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=48,
    vocab_size=64,
    context=16,
)
MEASURES = ("stable_rank", "pl_alpha", "spectral_gap", "spectral_entropy", "mp_edge")
WATCH = Watch(every=2, measures=MEASURES, heads=True)
STEPS = 12

pytestmark = cases.OLD_IMPORTS


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    built = engine.model_config(SHAPE, seed=0).build(init_device="cpu")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_()
    return built


def expected(model: Any) -> Iterator[tuple[int, str, int, float, float, float]]:
    """layer, role, head, stable rank, gap, entropy, by numpy and by OLMo-core's names written out."""
    names = {"q": "attention.w_q", "k": "attention.w_k", "v": "attention.w_v", "o": "attention.w_out"}
    names |= {"gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2"}
    weights = {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}
    for layer in range(SHAPE.num_layers):
        for role, name in names.items():
            whole = weights[f"blocks.{layer}.{name}.weight"]
            heads = {"q": 4, "k": 2, "v": 2, "o": 4}.get(role, 0)
            blocks = np.split(whole, heads, axis=1 if role == "o" else 0) if heads else []
            for head, block in [*enumerate(blocks), (-1, whole)]:
                s = np.linalg.svd(block, compute_uv=False)
                p = s / s.sum()
                yield layer, role, head, (s**2).sum() / s[0] ** 2, s[0] / s[1], -(p * np.log(p)).sum()


def run(model: Any, folder: Path, *, first: int = 0, last: int = STEPS, watch: Watch = WATCH, **options: Any) -> SpectraCallback:
    """The callback in the hands of a trainer that goes from one step to another and changes the weights at each."""
    state = options.pop("state", None)
    callback = SpectraCallback(folder=folder, shape=SHAPE, watch=watch, steps=STEPS, **{"share": 0.9, "clock": Clock(1.0), **options})
    if state is not None:
        callback.load_state_dict(state)
    trainer = types.SimpleNamespace(global_step=first, global_batch_size=100, train_module=types.SimpleNamespace(model=model))
    callback.trainer = trainer
    callback.pre_train()
    for step in range(first + 1, last + 1):
        trainer.global_step = step
        callback.post_train_batch()
    callback.post_train()
    return callback


class Clock:
    """A clock that goes on by so much whenever it is asked: a step takes as long as a measurement."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


# ------------------------------------------------------------------------------------------------------------- one step


def test_every_matrix_and_every_head_is_measured_as_numpy_measures_it(model: Any) -> None:
    rows = measured(model, SHAPE, WATCH)
    assert rows is not None
    oracle = list(expected(model))
    assert [tuple(place) for place in rows[["layer", "role", "head"]].itertuples(index=False)] == [row[:3] for row in oracle]
    found = rows[["stable_rank", "spectral_gap", "spectral_entropy"]].to_numpy()
    assert found == pytest.approx(np.array([row[3:] for row in oracle]), rel=1e-9)
    assert list(rows.columns) == ["layer", "role", "head", *MEASURES]


def test_without_heads_there_is_a_row_per_matrix(model: Any) -> None:
    rows = measured(model, SHAPE, Watch(measures=MEASURES))
    assert rows is not None
    assert len(rows) == SHAPE.num_layers * 7
    assert set(rows["head"]) == {-1}


def test_what_is_measured_does_not_depend_on_threads_or_on_how_much_is_held_at_a_time(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = measured(model, SHAPE, WATCH)
    monkeypatch.setattr(spectra_callback, "MOST_ELEMENTS", 1)
    assert alone is not None
    pd.testing.assert_frame_equal(alone, measured(model, SHAPE, WATCH, threads=2), check_exact=True)


def test_names_that_checkpointing_and_compiling_add_are_seen_through(model: Any) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    plain = measured(model, SHAPE, WATCH)
    model.blocks["1"] = checkpoint_wrapper(model.blocks["1"])
    assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_parameters())
    pd.testing.assert_frame_equal(plain, measured(model, SHAPE, WATCH))


def test_measuring_changes_no_weight_and_no_gradient(model: Any) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    measured(model, SHAPE, WATCH)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["agreement_residual_max", "svsm_mean", "pl_p_value", "rotation_nf"])
def test_a_measure_that_takes_two_checkpoints_or_a_bootstrap_is_no_measure_of_a_run(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown measure of a run that trains '{name}'"):
        Watch(measures=(name,))


# ------------------------------------------------------------------------------------------------------------ many steps


def test_the_first_weights_each_interval_and_the_last_are_measured_once(model: Any, tmp_path: Path) -> None:
    run(model, tmp_path / "rows", watch=Watch(every=5, measures=MEASURES))
    collect(tmp_path / "rows", tmp_path)
    table = pd.read_parquet(tmp_path / "spectra.parquet")
    assert list(dict.fromkeys(table["step"])) == [0, 5, 10, 12]
    assert (table["tokens"] == 100 * table["step"]).all()
    assert not table.duplicated(["step", "layer", "role", "head"]).any()
    assert list(table.columns) == ["step", "tokens", "layer", "role", "head", *MEASURES]


def test_a_table_is_read_back_as_the_arrays_that_were_measured(model: Any, tmp_path: Path) -> None:
    run(model, tmp_path / "spectra")
    while_training = lifecycle.read(tmp_path, "stable_rank")
    collect(tmp_path / "spectra", tmp_path)
    found = lifecycle.read(tmp_path, "stable_rank")
    assert found.steps.tolist() == list(range(0, STEPS + 1, 2))
    assert found.tokens.tolist() == [100 * step for step in found.steps]
    assert found.roles == ("q", "k", "v", "o", "gate", "up", "down")
    for layer, role, head, stable_rank, *_ in expected(model):
        if head < 0:
            assert found.of(role)[:, layer] == pytest.approx(stable_rank, rel=1e-9)
    assert np.array_equal(found.values, while_training.values)
    heads = lifecycle.read_heads(tmp_path, "stable_rank", role="k")
    assert heads.values.shape == (len(found.steps), SHAPE.num_layers, 2)
    oracle = {row[:3]: row[3] for row in expected(model)}
    assert heads.values[0, 2, 1] == pytest.approx(oracle[2, "k", 1], rel=1e-9)
    assert lifecycle.measures(tmp_path) == MEASURES


def test_reading_says_what_there_is_not(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no spectra of its training: train with watch.every=25"):
        lifecycle.read(tmp_path, "stable_rank")
    run(model, tmp_path / "spectra", watch=Watch(every=5, measures=("stable_rank",)))
    with pytest.raises(KeyError, match="pl_alpha"):
        lifecycle.read(tmp_path, "pl_alpha")
    with pytest.raises(ValueError, match=r"watch.heads=true"):
        lifecycle.read_heads(tmp_path, "stable_rank", role="q")


def test_a_run_that_goes_on_from_an_earlier_state_has_no_row_twice(model: Any, tmp_path: Path) -> None:
    first = run(model, tmp_path / "rows", last=4)
    state = first.state_dict()
    run(model, tmp_path / "rows", first=4, last=9, state=state)  # it dies, and its last state is that of step 4
    (tmp_path / "rows" / ".10").write_bytes(b"half a tab")
    with torch.no_grad():
        model.blocks["0"].attention.w_q.weight.mul_(2)  # the second attempt finds other weights: its rows count
    run(model, tmp_path / "rows", first=4, state=state)
    assert sorted(int(file.stem) for file in (tmp_path / "rows").iterdir()) == list(range(0, STEPS + 1, 2))
    norms = lifecycle.read(tmp_path / "rows", "mp_edge").of("q")[:, 0]
    assert norms[:3] == pytest.approx(norms[0])
    assert norms[3:] == pytest.approx(4 * norms[0])


def test_a_state_keeps_what_measuring_cost_before(model: Any, tmp_path: Path) -> None:
    first = run(model, tmp_path / "rows", last=4, clock=Clock(1.0))
    again = run(model, tmp_path / "rows", first=4, state=first.state_dict(), clock=Clock(1.0))
    assert again.pace.measuring == (1 + STEPS / 2) * 1.0
    assert again.pace.trained == 3 + 7  # of both attempts without their first steps


def test_an_interval_that_costs_too_much_is_stretched_and_says_so(model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run(model, tmp_path / "rows", clock=Clock(1.0), share=0.2)  # measuring takes as long as a step: at least 4 steps between two
    assert sorted(int(file.stem) for file in (tmp_path / "rows").iterdir()) == [0, 2, 4, 8, 12]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == (
        "spectra take 1 s: from here on they are measured every 4 steps; every 2 are asked for, and may take 20 % of the run's time "
        "(execution.spectra_share)"
    )
    assert "of the time of training and measuring" in caplog.text


def test_a_run_that_was_not_watched_leaves_no_table(tmp_path: Path) -> None:
    collect(tmp_path / "rows", tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ real runs


WATCHED = cases.SPEC.but(watch=Watch(every=5, measures=("stable_rank", "rank_decay_alpha", "pl_alpha", "mp_edge"), heads=True))
CHEAP = cases.ON_CPU.model_copy(update={"spectra_share": 0.999})  # so that the machine's load has no say in which steps are measured


@pytest.fixture(scope="module")
def watched(made: cases.Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.train(tmp_path_factory.mktemp("watched"), WATCHED, how=CHEAP)


@pytest.mark.slow
def test_a_watched_run_ends_in_the_weights_of_a_run_that_is_not(made: cases.Made, watched: Path, tmp_path: Path) -> None:
    assert cases.same_bits(watched, made.train(tmp_path))
    assert not (tmp_path / "product" / "spectra.parquet").exists()


@pytest.mark.slow
def test_the_last_rows_are_the_table_of_the_checkpoint(watched: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(watched / "spectra.parquet")
    assert list(dict.fromkeys(rows["step"])) == [0, 5, 10, 15, 20]
    assert list(dict.fromkeys(rows["tokens"])) == [step * cases.RECIPE.batch_tokens for step in (0, 5, 10, 15, 20)]
    assert WATCHED.watch is not None
    table = spectra.table(watched, measures=WATCHED.watch.measures, results=tmp_path, device="cpu", threads=1)
    last = rows[rows["step"] == 20].drop(columns=["step", "tokens"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(last, table[list(last.columns)], rtol=1e-12, check_dtype=False)


@pytest.mark.slow
def test_a_run_that_diverged_says_so_before_its_spectra_are_taken(
    made: cases.Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    diverges = WATCHED.but(recipe=cases.RECIPE.but(lr=1e38, warmup_tokens=0), watch=WATCHED.watch.but(every=1))
    with pytest.raises(ValueError, match="training diverged: the weights after step 1 are no numbers"):
        made.train(tmp_path, diverges, how=CHEAP)


@pytest.mark.slow
def test_the_lifecycle_of_a_real_run_can_be_read_and_said(watched: Path) -> None:
    rank, alpha = (lifecycle.read(watched, name) for name in ("stable_rank", "rank_decay_alpha"))
    assert rank.values.shape == (5, 2, 7)
    assert np.isfinite(rank.values).all()
    assert lifecycle.compression(rank, "q").shape == (5, 2)
    assert lifecycle.compression_gradient(rank, "q").gradient[0] == 0
    assert lifecycle.alpha_gradient(alpha, "q").delta > 0
    assert lifecycle.asymmetry(rank, relative=True).final > 0
    assert lifecycle.dissociation(rank, alpha).alpha_spread.shape == (5,)


@pytest.mark.slow
def test_an_interrupted_run_has_the_rows_of_one_that_was_not(made: cases.Made, watched: Path, tmp_path: Path) -> None:
    def die(done: float) -> None:
        if done == 12 * cases.RECIPE.batch_tokens:
            raise MemoryError

    work = cases.workspace(tmp_path)
    work.listener = die
    with pytest.raises(MemoryError):
        made.train(work, WATCHED, how=CHEAP.model_copy(update={"checkpoint_minutes": 1e-9}))
    assert sorted(int(file.stem) for file in (work.scratch / "spectra").iterdir()) == [0, 5, 10]
    work.listener = None
    again = made.train(work, WATCHED, how=CHEAP)
    whole, resumed = (pd.read_parquet(folder / "spectra.parquet") for folder in (watched, again))
    pd.testing.assert_frame_equal(whole, resumed, check_exact=True)


@pytest.mark.slow
def test_a_run_starts_from_a_spectral_warm_up_whose_spectra_are_its_first_rows(made: cases.Made, watched: Path, tmp_path: Path) -> None:
    spec = WATCHED.but(start=SpectralWarmup(reference=WATCHED, seed=1))
    assert isinstance(spec.start, SpectralWarmup)
    work = cases.workspace(tmp_path / "start")
    build_warmup(spec.start, watched, work)
    folder = made.train(tmp_path / "run", spec, how=CHEAP, start=work.product)
    ours, theirs = (pd.read_parquet(one / "spectra.parquet") for one in (folder, watched))
    whole = ours["head"] == -1  # heads are other rows of other singular vectors
    first, last = ours[whole & (ours["step"] == 0)], theirs[whole & (theirs["step"] == 20)]
    assert first["stable_rank"].to_numpy() == pytest.approx(last["stable_rank"].to_numpy(), rel=1e-4)
    assert first["rank_decay_alpha"].to_numpy() == pytest.approx(last["rank_decay_alpha"].to_numpy(), rel=1e-3)


# -------------------------------------------------------------------------------------------------------------- sharding


@pytest.mark.slow
def test_two_ranks_of_a_sharded_model_measure_what_one_process_does(model: Any, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.multiprocessing.spawn(measure_sharded, args=(tmp_path,), nprocs=2)
    alone = measured(model, SHAPE, WATCH)
    assert alone is not None
    sharded = pd.read_parquet(tmp_path / "0.parquet")
    pd.testing.assert_frame_equal(alone, sharded, check_exact=True)
    assert not (tmp_path / "1.parquet").exists()  # the first rank has all rows
    assert sorted(int(file.stem) for file in (tmp_path / "rows").iterdir()) == [0, 2, 4, 8, 12]  # the clock of the first rank counts
    assert (tmp_path / "interval0").read_text() == (tmp_path / "interval1").read_text() == "4"


def measure_sharded(rank: int, folder: Path) -> None:
    """One of two processes."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = engine.model_config(SHAPE, seed=0).build(init_device="cpu")
    model.load_state_dict(torch.load(folder / "weights.pt"))
    model.apply_fsdp(dp_mesh=init_device_mesh("cpu", (2,)))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    rows = measured(model, SHAPE, WATCH)
    if rows is not None:
        rows.to_parquet(folder / f"{rank}.parquet")
    callback = run(model, folder / "rows", clock=Clock(1.0 - rank), share=0.2)
    (folder / f"interval{rank}").write_text(str(callback.pace.interval))
    dist.barrier()
    dist.destroy_process_group()
