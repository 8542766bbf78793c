"""Training runs: what comes out is what the spec says, bit for bit, however often it was interrupted."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from cpt_lab import failures
from cpt_lab.architecture import shape_from_config
from cpt_lab.data import tokens
from cpt_lab.execution import Execution
from cpt_lab.specs import Recipe
from cpt_lab.training import checks, engine, mixing, saving
from cpt_lab.training.run import MIXED, check_room
from cpt_lab.training.validation import held_out
from training_cases import MIXTURE, OLD_IMPORTS, ON_CPU, RECIPE, SHAPE, SPEC, STEPS, Made, metrics, same_bits, weights, workspace

pytestmark = OLD_IMPORTS


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Path:
    """The checkpoint of SPEC."""
    return made.train(tmp_path_factory.mktemp("base"))


def random_module(recipe: Recipe = RECIPE, *, start: Path | None = None) -> Any:
    return engine.build_train_module(SHAPE, recipe, start=start, device="cpu", how=ON_CPU)


@pytest.mark.slow
def test_the_saved_folder_gives_the_logits_of_the_trained_model(tmp_path: Path, made: Made) -> None:
    from transformers import AutoModelForCausalLM

    model = random_module().model.eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones tell no norm from another
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    saving.save_checkpoint(model, SHAPE, tokenizer=made.tokenizer, folder=tmp_path)
    ids = torch.randint(0, SHAPE.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids)
        logits = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_saved_configuration_agrees_with_the_shape(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    assert shape_from_config(config).but(name=SHAPE.name) == SHAPE
    assert json.loads((base / "generation_config.json").read_text())["do_sample"] is False


def test_the_folder_holds_the_tokenizer(base: Path, made: Made) -> None:
    from transformers import AutoTokenizer

    text = "Question: what is 12 + 7?"
    assert AutoTokenizer.from_pretrained(base).encode(text) == AutoTokenizer.from_pretrained(made.tokenizer).encode(text)


@pytest.mark.slow
def test_a_second_run_in_the_same_process_gives_the_same_bits(base: Path, tmp_path: Path, made: Made) -> None:
    assert same_bits(base, made.train(tmp_path))


def test_another_seed_gives_other_weights(base: Path, tmp_path: Path, made: Made) -> None:
    assert not same_bits(base, made.train(tmp_path, SPEC.but(recipe=RECIPE.but(seed=2))))


def test_continuing_with_a_vanishing_learning_rate_gives_the_start_bit_for_bit(base: Path, tmp_path: Path, made: Made) -> None:
    still = RECIPE.but(lr=1e-30, warmup_tokens=0, schedule="linear", lr_final_share=0.0, weight_decay=0.0)
    assert same_bits(base, made.train(tmp_path, SPEC.but(start=SPEC, recipe=still), start=base))


def test_training_lowers_the_loss_and_starts_near_that_of_chance(base: Path) -> None:
    losses = [line["loss"] for line in metrics(base)]
    assert losses[0] == pytest.approx(torch.tensor(320.0).log().item(), abs=0.3)
    assert losses[-1] < losses[0] - 1


def test_the_learning_rate_warms_up_linearly_and_ends_at_its_final_share(base: Path) -> None:
    rates = [line["lr"] for line in metrics(base)]
    assert len(rates) == STEPS
    assert rates[4] == pytest.approx(RECIPE.lr)  # 640 tokens of warm-up are five batches of 128
    assert rates[1] == pytest.approx(RECIPE.lr * 2 / 5)
    assert rates[-1] == pytest.approx(RECIPE.lr * RECIPE.lr_final_share)


def test_metrics_tell_steps_tokens_speed_and_the_machine(base: Path) -> None:
    last = metrics(base)[-1]
    assert last["step"] == STEPS
    assert last["tokens"] == MIXTURE.tokens
    assert last["tokens_per_second"] > 0
    assert last["z_loss"] > 0
    assert last["grad_norm"] > 0
    assert 0 < last["system/system_memory_usage_percentage"] <= 100
    assert 0 <= last["system/cpu_utilization_percentage"] <= 100


def test_the_summary_counts_tokens_steps_and_epochs(base: Path, made: Made) -> None:
    facts = json.loads((base / "training.json").read_text())
    assert (facts["steps"], facts["tokens"]) == (STEPS, MIXTURE.tokens)
    assert facts["tokens_per_second"] == pytest.approx(facts["tokens"] / facts["seconds"])
    assert facts["ranks"] == 1
    assert facts["epochs"] == {"math": MIXTURE.tokens / tokens.available_tokens(made.tokens)}


@pytest.mark.parametrize(
    "number", [signal.SIGUSR2, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM))]
)
def test_an_interrupted_run_goes_on_to_the_same_bits(number: signal.Signals, base: Path, tmp_path: Path, made: Made) -> None:
    received = []
    before = signal.signal(number, lambda *_: received.append(number))
    work = workspace(tmp_path)
    work.listener = lambda done: signal.raise_signal(number) if done == 6 * RECIPE.batch_tokens else None
    try:
        with pytest.raises(InterruptedError, match=r"at step 10 .* goes on from there"):
            made.train(work)
    finally:
        signal.signal(number, before)
    assert received == [number]  # the caller's handler heard of it, once
    assert not (work.product / "model.safetensors").exists()
    resumed: list[float] = []
    work.listener = resumed.append
    assert same_bits(base, made.train(work))
    assert min(resumed) > 6 * RECIPE.batch_tokens
    assert [line["step"] for line in metrics(work.product)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_runs_that_are_interrupted_again_and_again_keep_no_more_states(tmp_path: Path, made: Made) -> None:
    before, work = signal.signal(signal.SIGUSR2, lambda *_: None), workspace(tmp_path)
    (work.scratch / "states" / "step3-tmp").mkdir(parents=True)  # as a kill leaves it in the middle of saving
    work.listener = lambda done: signal.raise_signal(signal.SIGUSR2) if done in (3 * RECIPE.batch_tokens, 8 * RECIPE.batch_tokens) else None
    try:
        for _ in range(2):
            with pytest.raises(InterruptedError):
                made.train(work)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert [path.name for path in (work.scratch / "states").iterdir()] == ["step10"]


@pytest.mark.slow
def test_a_run_that_dies_without_a_word_goes_on_from_its_last_state(base: Path, tmp_path: Path, made: Made) -> None:
    def die(done: float) -> None:
        if done == 12 * RECIPE.batch_tokens:
            raise MemoryError

    work = workspace(tmp_path)
    work.listener = die
    always = ON_CPU.model_copy(update={"checkpoint_minutes": 1e-9})
    with pytest.raises(MemoryError):
        made.train(work, how=always)
    assert [path.parent.name for path in (work.scratch / "states").glob("step*/.metadata.json")] == ["step12"]
    with (work.scratch / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')  # it died in the middle of a line
    resumed: list[float] = []
    work.listener = resumed.append
    assert same_bits(base, made.train(work, how=ON_CPU))
    assert min(resumed) == 13 * RECIPE.batch_tokens
    assert [line["step"] for line in metrics(work.product)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_run_draws_nothing_on_the_terminal(tmp_path: Path, made: Made, capfd: pytest.CaptureFixture[str]) -> None:
    made.train(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["tiny_pretrain", "tiny_math", "tiny_text", "tiny_code", "tiny_inst"])
def test_the_tiny_mixtures_are_whole_batches(name: str) -> None:
    folder = Path(__file__).parents[1] / "conf"
    recipe = Recipe(**yaml.safe_load((folder / "training" / "tiny_cpt.yaml").read_text()))
    parts = yaml.safe_load((folder / "mixture" / f"{name}.yaml").read_text())["parts"]
    assert sum(part["tokens"] for part in parts) % recipe.batch_tokens == 0


@pytest.mark.slow
def test_micro_batches_change_speed_and_not_what_is_learnt(base: Path, tmp_path: Path, made: Made) -> None:
    folder = made.train(tmp_path, how=ON_CPU.model_copy(update={"micro_batch_sequences": 2}))
    assert [line["loss"] for line in metrics(folder)] == pytest.approx([line["loss"] for line in metrics(base)], rel=1e-3)


@pytest.mark.slow
def test_bf16_follows_fp32_closely_and_saves_float32(base: Path, tmp_path: Path, made: Made) -> None:
    folder = made.train(tmp_path, SPEC.but(recipe=RECIPE.but(precision="bf16")))
    assert metrics(folder)[-1]["loss"] == pytest.approx(metrics(base)[-1]["loss"], rel=0.05)
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(
        ValueError, match=r"training diverged: the loss of step \d+ is no number: lower training.lr .* held documents \d+"
    ) as raised:
        made.train(tmp_path, SPEC.but(recipe=RECIPE.but(lr=1e38, warmup_tokens=0)))
    numbers = json.loads((tmp_path / "scratch" / "diverged.json").read_text())["math"]
    assert f"held documents {', '.join(map(str, numbers[:10]))}" in str(raised.value)


def test_weight_decay_leaves_the_embeddings_alone() -> None:
    module = random_module()
    decays = {id(parameter): group["weight_decay"] for group in module.optim.param_groups for parameter in group["params"]}
    named = {name: decays[id(parameter)] for name, parameter in module.model.named_parameters()}
    assert {name for name, decay in named.items() if decay == 0} == {"embeddings.weight"}
    assert {decay for name, decay in named.items() if name != "embeddings.weight"} == {RECIPE.weight_decay}


def test_threads_and_signal_handlers_are_given_back(tmp_path: Path, made: Made) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = torch.get_num_threads(), [signal.getsignal(number) for number in numbers]
    made.train(tmp_path, how=ON_CPU.model_copy(update={"threads": 2}))
    assert before == (torch.get_num_threads(), [signal.getsignal(number) for number in numbers])


def test_micro_batches_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="micro-batches of 3 sequences do not divide a batch of 4"):
        engine.build_train_module(SHAPE, RECIPE, start=None, device="cpu", how=Execution(micro_batch_sequences=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"family": "gpt2"}, "of family gpt2, but only olmo2 can be trained"), ({"hidden_size": 40}, "needs num_heads x head_dim")],
)
def test_a_model_that_olmo2_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.model_config(SHAPE.but(**changes), seed=0)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path, made: Made) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 320 tokens, but model smallest has 310 embeddings"):
        made.train(tmp_path, SPEC.but(shape=SHAPE.but(vocab_size=310)))


def test_a_start_of_another_shape_is_refused_by_its_first_parameter(base: Path, tmp_path: Path, made: Made) -> None:
    spec = SPEC.but(shape=SHAPE.but(mlp_size=64))
    with pytest.raises(ValueError, match=r"feed_forward.w1.weight has shape \(48, 32\), but the model's has \(64, 32\)"):
        made.train(tmp_path, spec, start=base)


@pytest.mark.parametrize("schedule", ["cosine", pytest.param("linear", marks=pytest.mark.slow)])
def test_the_learning_rate_of_every_step_is_that_of_the_closed_form(schedule: str, tmp_path: Path, made: Made) -> None:
    recipe = RECIPE.but(schedule=schedule)
    rates = [line["lr"] for line in metrics(made.train(tmp_path, SPEC.but(recipe=recipe)))]
    warm, whole, least = recipe.warmup_tokens, MIXTURE.tokens, recipe.lr * recipe.lr_final_share
    for step, rate in enumerate(rates, start=1):
        tokens_seen = step * recipe.batch_tokens
        gone = (tokens_seen - warm) / (whole - warm)
        shape = (1 + math.cos(math.pi * gone)) / 2 if schedule == "cosine" else 1 - gone
        expected = recipe.lr * tokens_seen / warm if tokens_seen <= warm else least + (recipe.lr - least) * shape
        assert rate == pytest.approx(expected, rel=1e-6), step


def test_every_weight_is_updated_by_the_formula_of_adamw_with_the_decay_of_its_group() -> None:
    module = random_module(RECIPE.but(weight_decay=0.1))
    beta1, beta2 = RECIPE.betas
    parameters = dict(module.model.named_parameters())
    for name, decay in (("embeddings.weight", 0.0), ("blocks.0.attention.w_q.weight", 0.1), ("blocks.1.feed_forward_norm.weight", 0.1)):
        expected = parameters[name].detach().double().clone()
        first, second = torch.zeros_like(expected), torch.zeros_like(expected)
        for step in (1, 2, 3):
            generator = torch.Generator().manual_seed(step)
            gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
            parameters[name].grad = gradient.float()
            first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
            update = first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + RECIPE.eps)
            expected = expected * (1 - RECIPE.lr * decay) - RECIPE.lr * update
            module.optim.step()
        torch.testing.assert_close(parameters[name].detach().double(), expected, rtol=1e-4, atol=1e-6)
        parameters[name].grad = None


def test_the_z_loss_is_its_factor_times_the_mean_square_of_the_log_partition() -> None:
    ids = torch.randint(0, SHAPE.vocab_size, (3, 16), generator=torch.Generator().manual_seed(0))
    model = random_module().model
    out = model(ids, labels=ids.roll(-1, 1), loss_reduction="mean", z_loss_multiplier=1e-3, return_logits=True)
    partition = out.logits.double().logsumexp(-1)
    assert out.z_loss.item() == pytest.approx(1e-3 * partition.square().mean().item(), rel=1e-5)
    losses = partition - out.logits.double().gather(-1, ids.roll(-1, 1)[..., None])[..., 0]
    assert out.ce_loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)
    assert out.loss.item() == pytest.approx(out.ce_loss.item() + out.z_loss.item(), rel=1e-5)


def test_gradients_are_clipped_to_the_norm_that_the_recipe_says() -> None:
    module = random_module(RECIPE.but(max_grad_norm=0.5))
    for parameter in module.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = module._clip_grad_norm(module.max_grad_norm)
    after = torch.stack([parameter.grad.norm() for parameter in module.model.parameters()]).norm()
    assert before.item() == pytest.approx(sum(parameter.numel() for parameter in module.model.parameters()) ** 0.5, rel=1e-4)
    assert after.item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.slow
def test_validation_is_the_loss_of_the_final_weights_on_held_out_documents_and_changes_nothing(
    base: Path, tmp_path: Path, made: Made
) -> None:
    from transformers import AutoModelForCausalLM

    folder = made.train(tmp_path, how=ON_CPU.model_copy(update={"validations": 4}), held_out={"math": made.corpus})
    assert same_bits(folder, base)
    seen = {line["step"]: line for line in metrics(folder) if "validation/math/loss" in line}
    assert sorted(seen) == [5, 10, 15, 20]
    assert seen[20]["validation/math/loss"] < seen[5]["validation/math/loss"]
    assert seen[20]["validation/math/perplexity"] == pytest.approx(math.exp(seen[20]["validation/math/loss"]))
    rows = held_out({"math": made.corpus}, tokenizer=made.tokenizer, length=RECIPE.sequence_length)["math"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder).eval()(rows).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, SHAPE.vocab_size), rows[:, 1:].reshape(-1))
    assert seen[20]["validation/math/loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["half", "full"])
def test_recomputed_activations_give_the_same_bits(mode: str, base: Path, tmp_path: Path, made: Made) -> None:
    assert same_bits(base, made.train(tmp_path, how=ON_CPU.model_copy(update={"activation_checkpointing": mode})))


@pytest.mark.slow
@pytest.mark.parametrize("how", [Execution(keep_states=1), Execution(keep_states=2)], ids=["one", "two"])
def test_the_last_states_are_kept_and_older_ones_go_even_those_of_an_earlier_attempt(how: Execution, tmp_path: Path, made: Made) -> None:
    often = how.model_copy(update={"device": "cpu", "checkpoint_minutes": 1e-9, "validations": 0})

    def states_after(step: int) -> list[str]:
        def die(done: float) -> None:
            if done == step * RECIPE.batch_tokens:
                raise MemoryError

        work.listener = die
        with pytest.raises(MemoryError):
            made.train(work, how=often)
        return sorted(path.parent.name for path in (work.scratch / "states").glob("step*/.metadata.json"))

    work = workspace(tmp_path)
    assert states_after(6) == [f"step{step}" for step in range(7 - how.keep_states, 7)]
    assert states_after(8) == [f"step{step}" for step in range(9 - how.keep_states, 9)]


def test_the_disk_is_looked_at_before_a_run_begins(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(
        OSError,
        match=r"training smallest needs 0.07 GB for 2 states to resume from \(.*, 1 folders of weights \(.*, the mixed tokens \(.* free:",
    ) as raised:
        made.train(tmp_path)
    assert failures.is_not_writable(raised.value)


def test_mixed_tokens_and_weights_that_an_earlier_attempt_left_need_no_room(tmp_path: Path, made: Made) -> None:
    def room(**given: Any) -> int:
        asked: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checks, "check_room", lambda *_, **parts: asked.append(parts["mixed"]))
            check_room(SPEC, work, inputs=replace(made.inputs, **given), how=ON_CPU)
        return asked[0]

    work = workspace(tmp_path)
    work.scratch.mkdir()
    assert room() == 2 * MIXTURE.tokens
    mixing.mix(MIXTURE, made.inputs.tokens, work.scratch / MIXED, tokenizer=made.tokenizer)
    assert room() == 0


def test_what_an_earlier_attempt_left_half_written_is_gone_before_the_disk_is_looked_at(tmp_path: Path, made: Made) -> None:
    work = workspace(tmp_path)
    state, tokens = work.scratch / "states" / "step3-tmp", work.scratch / "mixture.part"
    state.mkdir(parents=True)
    tokens.touch()
    seen: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "check_room", lambda *_, **__: seen.extend((state.exists(), tokens.exists())))
        check_room(SPEC, work, inputs=made.inputs, how=ON_CPU)
    assert seen == [False, False]


def test_the_disk_is_looked_at_again_before_each_state(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10**12, 10**12])
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free, 0)))
    often = ON_CPU.model_copy(update={"checkpoint_minutes": 1e-9})
    with pytest.raises(OSError, match=r"needs 0.07 GB for 1 states to resume from \(0.00 GB\) and a reserve"):
        made.train(tmp_path, how=often)
    assert [path.parent.name for path in (tmp_path / "scratch" / "states").glob("step*/.metadata.json")] == ["step1"]


def test_a_start_with_another_tokenizer_is_refused(base: Path, tmp_path: Path, made: Made) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    data = json.loads((other / "tokenizer.json").read_text())
    data["model"]["vocab"] = {token: (index + 1) % len(data["model"]["vocab"]) for token, index in data["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"training starts from a checkpoint with another tokenizer: .* tokens have not the same id"):
        made.train(tmp_path / "run", SPEC.but(start=SPEC), start=other)


@pytest.mark.parametrize("halvings", [0, 2])  # several sequences at a time, and one
@pytest.mark.parametrize(
    ("module", "name", "what"),
    [
        (mixing, "read_tokens", "the token files of the mixture"),
        (engine, "build_loader", "the order of the mixture's sequences"),
        (saving, "save_checkpoint", "the weights while they are written"),
    ],
)
def test_memory_that_does_not_hold_something_else_is_not_said_to_be_the_batchs(
    halvings: int, module: Any, name: str, what: str, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 7.45 GiB for an array")

    monkeypatch.setattr(module, name, full)
    with pytest.raises(ValueError, match=f"memory does not hold {what}: .*memory_gb on SLURM"):
        made.train(tmp_path, how=ON_CPU.model_copy(update={"halvings": halvings}))


def test_memory_that_holds_no_single_sequence_names_what_can_be_changed(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engine, "build_trainer", full)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):  # which is tried again with half the micro-batch
        made.train(tmp_path)
    with pytest.raises(ValueError, match=r"one sequence of 32 tokens .* execution.activation_checkpointing=full.*site.stages.STAGE.gpus"):
        made.train(tmp_path, how=ON_CPU.model_copy(update={"halvings": 2}))
