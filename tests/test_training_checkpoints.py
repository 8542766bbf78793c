"""Weights on the way of a run, and runs that start from what OLMo-core itself wrote."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from compositions import points, refused
from cpt_lab import checkpoints
from cpt_lab.build import Workshop, ensure
from cpt_lab.disk import kept_steps
from cpt_lab.execution import Execution
from cpt_lab.specs import Intermediate, Mixture, OlmoCoreCheckpoint, Part, key
from cpt_lab.store import Store
from cpt_lab.training import checks, engine, saving
from training_cases import CORPUS, OLD_IMPORTS, ON_CPU, RECIPE, SHAPE, SPEC, STEPS, TOKENIZER, Made, same_bits, weights, workspace

BATCH = RECIPE.batch_tokens
DIVERGES = SPEC.but(recipe=RECIPE.but(lr=1e38, warmup_tokens=0))
pytestmark = OLD_IMPORTS


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Path:
    """The checkpoint of SPEC, which kept its weights after 6 and 12 steps."""
    return made.train(tmp_path_factory.mktemp("base"), keep=(6 * BATCH, 12 * BATCH))


@pytest.fixture(scope="module")
def olmo_core(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Path:
    """What OLMo-core's trainer saved after 12 steps of SPEC."""

    def die(done: float) -> None:
        if done == 12 * BATCH:
            raise MemoryError

    work = workspace(tmp_path_factory.mktemp("dies"))
    work.listener = die
    with pytest.raises(MemoryError):
        made.train(work, how=ON_CPU.model_copy(update={"checkpoint_minutes": 1e-9}))
    return work.scratch / "states" / "step12"


def adopted(folder: Path, olmo_core: Path, made: Made, **changes: object) -> Path:
    """The product of an OLMo-core checkpoint."""
    path, contents = checkpoints.olmo_core_folder(olmo_core)
    spec = OlmoCoreCheckpoint(path=str(path), contents_digest=contents, shape=SHAPE, tokenizer=TOKENIZER).but(**changes)
    work = workspace(folder)
    saving.adopt_olmo_core(spec, work, tokenizer=made.tokenizer)
    return work.product


def test_a_run_keeps_the_weights_that_are_wanted_as_folders_like_its_last(base: Path) -> None:
    kept = sorted(int(path.name) for path in (base / "intermediates").iterdir())
    assert kept == [6 * BATCH, 12 * BATCH]
    names = {path.name for path in base.iterdir()} - {"intermediates", "metrics.jsonl", "training.json"}
    assert all({path.name for path in (base / "intermediates" / str(tokens)).iterdir()} == names for tokens in kept)
    assert not same_bits(base, base / "intermediates" / str(12 * BATCH))


@pytest.mark.slow
def test_keeping_weights_on_the_way_does_not_change_the_last(base: Path, tmp_path: Path, made: Made) -> None:
    assert same_bits(base, made.train(tmp_path))


@pytest.mark.slow
def test_a_run_made_up_to_a_place_for_its_weights_has_those_that_the_whole_run_kept(base: Path, tmp_path: Path, made: Made) -> None:
    work = workspace(tmp_path)
    made.train(work, keep=(6 * BATCH,), until=6 * BATCH)
    assert list(work.product.iterdir()) == []
    saving.take_intermediate(Intermediate(of=SPEC, tokens=6 * BATCH), work)
    assert same_bits(work.product, base / "intermediates" / str(6 * BATCH))


@pytest.mark.slow
def test_an_interrupted_run_still_has_the_weights_that_it_had_kept(base: Path, tmp_path: Path, made: Made) -> None:
    def die(done: float) -> None:
        if done == 8 * BATCH:
            raise MemoryError

    work = workspace(tmp_path)
    work.listener = die
    keep = (6 * BATCH, 12 * BATCH)
    with pytest.raises(MemoryError):
        made.train(work, how=ON_CPU.model_copy(update={"checkpoint_minutes": 1e-9}), keep=keep)
    written = (work.scratch / "intermediates" / str(6 * BATCH) / "model.safetensors").stat().st_mtime_ns
    work.listener = None
    made.train(work, keep=keep)
    assert all(same_bits(work.product / "intermediates" / str(tokens), base / "intermediates" / str(tokens)) for tokens in keep)
    assert (work.product / "intermediates" / str(6 * BATCH) / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("how", "keep", "steps"),
    [
        ({"keep_every": 5 * BATCH}, (), {5, 10, 15}),
        ({"keep_at": (3 * BATCH, 7 * BATCH + 1)}, (), {3, 7}),
        ({"keep_every": 8 * BATCH}, (2 * BATCH,), {2, 8, 16}),
        ({"keep_at": (STEPS * BATCH,)}, (), set()),  # the last weights are the run's own
        ({}, (), set()),
    ],
)
def test_what_is_kept_is_what_somebody_wants_and_every_so_many_tokens(
    how: dict[str, object], keep: tuple[int, ...], steps: set[int]
) -> None:
    assert kept_steps(SPEC, Execution(**how), keep) == steps


def test_a_run_that_is_made_up_to_a_place_keeps_what_is_wanted_up_to_there_alone() -> None:
    how = Execution(keep_every=2 * BATCH, keep_at=(3 * BATCH,))
    assert kept_steps(SPEC, how, (4 * BATCH, 6 * BATCH, 12 * BATCH), until=6 * BATCH) == {4, 6}


def test_a_run_that_is_made_up_to_a_place_writes_and_asks_room_for_its_weights_there_alone(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []
    monkeypatch.setattr(checks, "check_room", lambda *_, **needed: asked.append(needed))
    often = ON_CPU.model_copy(update={"keep_every": BATCH})
    made.train(tmp_path, how=often, keep=(3 * BATCH,), until=3 * BATCH)
    assert [path.name for path in (tmp_path / "scratch" / "intermediates").iterdir()] == [str(3 * BATCH)]
    assert [needed["folders"] for needed in asked] == [1, 1]  # before it begins, and before it writes them


@pytest.mark.parametrize(
    ("keep", "until", "message"),
    [
        ((2 * BATCH,), None, "the loss of step 2 is no number"),  # step 2 is none whose metrics are collected
        ((1 * BATCH,), 1 * BATCH, "the weights after step 1 are no numbers"),  # no further step would tell
    ],
)
def test_weights_of_a_run_that_diverged_are_not_kept(
    keep: tuple[int, ...], until: int | None, message: str, tmp_path: Path, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(ValueError, match=rf"training diverged: {message}: lower training.lr .* held documents \d+"):
        made.train(tmp_path, DIVERGES, keep=keep, until=until)
    assert not (tmp_path / "scratch" / "intermediates").exists()


def test_the_last_weights_of_a_run_that_diverged_are_no_product(tmp_path: Path, made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    one = Mixture(name="one", parts=(Part(corpus=CORPUS, tokens=BATCH),))
    with pytest.raises(ValueError, match="training diverged: the weights after step 1 are no numbers"):
        made.train(tmp_path, DIVERGES.but(mixture=one, recipe=DIVERGES.recipe.but(lr_final_share=1.0)))
    assert list((tmp_path / "product").iterdir()) == []


def test_a_state_of_a_run_that_diverged_is_not_kept(tmp_path: Path, made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(ValueError, match="training diverged: the weights after step 1 are no numbers"):
        made.train(tmp_path, DIVERGES, how=ON_CPU.model_copy(update={"checkpoint_minutes": 1e-9}))
    assert list((tmp_path / "scratch" / "states").glob("step*")) == []


@pytest.mark.slow
def test_a_launch_that_wants_weights_on_the_way_trains_once_and_links_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cpt_lab.training import run

    trained, train = [], run.train
    monkeypatch.setattr(run, "train", lambda spec, *rest, **more: (trained.append(key(spec)), train(spec, *rest, **more)))
    wanted = Intermediate(of=SPEC, tokens=6 * BATCH)
    workshop = Workshop(Store(tmp_path), ON_CPU, wanted=(SPEC, wanted))
    product = ensure(workshop, wanted)
    assert trained == [key(SPEC)]
    assert (product / "model.safetensors").resolve().is_relative_to(workshop.product(SPEC) / "intermediates")
    later = ensure(workshop, Intermediate(of=SPEC, tokens=3 * BATCH))  # which the run was not asked for
    assert trained == [key(SPEC), key(SPEC)]
    assert weights(later).keys() == weights(product).keys()
    assert not same_bits(later, product)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(STEPS * BATCH, "ends after 2,560 tokens"), (BATCH + 1, "no whole number of batches of 128: the nearest are 128 or 256")],
)
def test_weights_that_no_step_leaves_are_refused(tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Intermediate(of=SPEC, tokens=tokens)


def test_a_checkpoint_of_olmo_core_becomes_the_folder_of_the_same_weights(base: Path, olmo_core: Path, tmp_path: Path, made: Made) -> None:
    product = adopted(tmp_path, olmo_core, made)
    assert same_bits(product, base / "intermediates" / str(12 * BATCH))
    assert (product / "olmo_core").resolve() == olmo_core


@pytest.mark.slow
def test_a_run_from_a_checkpoint_of_olmo_core_goes_on_with_its_moments_and_its_own_rates(
    olmo_core: Path, tmp_path: Path, made: Made
) -> None:
    product = adopted(tmp_path / "adopted", olmo_core, made)
    recipe = RECIPE.but(lr=3e-4, weight_decay=0.01, betas=(0.8, 0.9))
    module = engine.build_train_module(SHAPE, recipe, start=product, device="cpu", how=ON_CPU, scratch=tmp_path)
    groups = module.optim.param_groups
    assert {(group["lr"], group["betas"]) for group in groups} == {(3e-4, (0.8, 0.9))}
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.01]
    assert all("initial_lr" not in group or group["initial_lr"] == 3e-4 for group in groups)
    states = [module.optim.state[parameter] for parameter in module.model.parameters()]
    assert all(float(state["step"]) == 12 and state["exp_avg"].abs().sum() > 0 for state in states)
    fresh = engine.build_train_module(SHAPE, recipe, start=None, device="cpu", how=ON_CPU)
    assert not fresh.optim.state or all(state["exp_avg"].abs().sum() == 0 for state in fresh.optim.state.values())


@pytest.mark.slow
def test_continuing_from_olmo_core_s_checkpoint_with_a_vanishing_rate_gives_its_weights(
    base: Path, olmo_core: Path, tmp_path: Path, made: Made
) -> None:
    product = adopted(tmp_path / "adopted", olmo_core, made)
    still = RECIPE.but(lr=1e-30, warmup_tokens=0, schedule="linear", lr_final_share=0.0, weight_decay=0.0)
    folder = made.train(tmp_path / "run", SPEC.but(recipe=still), start=product)
    assert same_bits(folder, base / "intermediates" / str(12 * BATCH))


def test_an_olmo_core_checkpoint_of_another_shape_is_refused_by_its_first_parameter(olmo_core: Path, tmp_path: Path, made: Made) -> None:
    with pytest.raises(ValueError, match=r"feed_forward.w1.weight of shape \(64, 32\) and .* has it with shape \(48, 32\)"):
        adopted(tmp_path, olmo_core, made, shape=SHAPE.but(mlp_size=64))


def test_a_folder_that_olmo_core_did_not_write_is_refused_with_the_checkpoints_in_it(olmo_core: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"give one of its checkpoints, like {olmo_core}"):
        checkpoints.olmo_core_folder(olmo_core.parent)
    with pytest.raises(ValueError, match="give the folder of a step"):
        checkpoints.olmo_core_folder(tmp_path)


def test_an_olmo_core_checkpoint_that_changed_since_it_was_planned_with_is_refused(olmo_core: Path, tmp_path: Path, made: Made) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(olmo_core, copy)
    _, contents = checkpoints.olmo_core_folder(copy)
    file = next((copy / "model_and_optim").glob("*.distcp"))
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(ValueError, match="changed since the study was planned"):
        adopted(tmp_path / "adopted", copy, made, contents_digest=contents)


def test_at_means_the_nearest_whole_batch_of_the_run() -> None:
    (point,) = points("target=train", "tuned.at=0.5M")
    assert isinstance(point.spec, Intermediate)
    assert point.spec.of == points("target=train")[0].spec
    assert point.spec.tokens == round(500_000 / point.spec.of.recipe.batch_tokens) * point.spec.of.recipe.batch_tokens


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=olmo2_1b", "base.from=hub", "base.at=5B"), "base.at=5000000000 is for what is trained here, and base.from is hub"),
        (("base.from=olmo_core",), "base.from=olmo_core needs a checkpoint's folder as OLMo-core writes it"),
        (("tuned.at=5X",), "tuned.at: input should be a valid integer"),
        (("tuned.at=900B",), "the run ends after 1,024,000 tokens, so that it has no weights after"),
    ],
)
def test_a_place_that_no_run_has_is_refused(words: tuple[str, ...], message: str) -> None:
    assert message in refused("target=train", *words)
