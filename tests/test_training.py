"""Training runs: what comes out is what the spec says, bit for bit, however often it was interrupted."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cpt_lab.architecture import shape_from_config
from cpt_lab.data import builtin, tokenizer, tokens
from cpt_lab.execution import Execution
from cpt_lab.specs import BpeTokenizer, BuiltinCorpus, Mixture, ModelShape, Part, Recipe, Tokens, TrainedCheckpoint
from cpt_lab.store import Workspace
from cpt_lab.training import engine
from cpt_lab.training.run import Inputs, train
from cpt_lab.training.saving import save_checkpoint

CORPUS = BuiltinCorpus(name="math", documents=600, held_out=20)
TOKENIZER = BpeTokenizer(corpora=(CORPUS,), vocab_size=320)
SHAPE = ModelShape(
    name="smallest",
    family="olmo2",
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=48,
    vocab_size=320,
    context=48,
    rope_theta=10000.0,
)
RECIPE = Recipe(
    sequence_length=32, batch_sequences=4, lr=1e-2, schedule="cosine", lr_final_share=0.1, warmup_tokens=640, precision="fp32", seed=1
)
STEPS = 20
MIXTURE = Mixture(name="math", parts=(Part(corpus=CORPUS, tokens=STEPS * RECIPE.batch_tokens),))
SPEC = TrainedCheckpoint(shape=SHAPE, tokenizer=TOKENIZER, mixture=MIXTURE, recipe=RECIPE)
ON_CPU = Execution(device="cpu", threads=1)

# olmo_core's own imports: a deprecated use of torch's distributed package.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

Trainer = Callable[..., Path]


class TestWorkspace(Workspace):
    """A workspace whose progress a test can listen to."""

    __test__ = False
    listener: Callable[[float], None] | None = None

    def progress(self, done: float, total: float, unit: str) -> None:
        assert 0 <= done <= total
        assert unit == "tokens"
        if self.listener is not None:
            self.listener(done)


def workspace(folder: Path) -> TestWorkspace:
    (folder / "product").mkdir(parents=True, exist_ok=True)
    return TestWorkspace(folder, folder / "product")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = workspace(tmp_path_factory.mktemp("tokenizer"))
    tokenizer.build_tokenizer(TOKENIZER, [corpus_folder(tmp_path_factory)], work)
    return work.product


def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = workspace(tmp_path_factory.mktemp("corpus"))
    builtin.build_corpus(CORPUS, work)
    return work.product


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "product").mkdir()
    work = Workspace(folder, folder / "product")
    tokens.build_tokens(Tokens(corpus=CORPUS, tokenizer=TOKENIZER), corpus_folder(tmp_path_factory), tokenizer_folder, work)
    return work.product


@pytest.fixture
def trained(tokenizer_folder: Path, token_file: Path) -> Trainer:
    """(workspace or folder, spec, how, start, more inputs) -> the folder of the trained checkpoint."""

    def run(where: Path | TestWorkspace, spec: TrainedCheckpoint = SPEC, *, how: Execution = ON_CPU, start: Path | None = None, **more: Any) -> Path:
        work = where if isinstance(where, TestWorkspace) else workspace(where)
        train(spec, work, inputs=Inputs((token_file,), tokenizer_folder, start, **more), how=how)
        return work.product

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, token_file: Path) -> Path:
    """The checkpoint of SPEC."""
    work = workspace(tmp_path_factory.mktemp("base"))
    train(SPEC, work, inputs=Inputs((token_file,), tokenizer_folder), how=ON_CPU)
    return work.product


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def same_bits(left: Path, right: Path) -> bool:
    first, second = weights(left), weights(right)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def random_module(recipe: Recipe = RECIPE, *, start: Path | None = None) -> Any:
    return engine.build_train_module(SHAPE, recipe, start=start, device="cpu", how=ON_CPU)


@pytest.mark.slow
def test_the_saved_folder_gives_the_logits_of_the_trained_model(tmp_path: Path, tokenizer_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = random_module().model.eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones tell no norm from another
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    save_checkpoint(model, SHAPE, tokenizer=tokenizer_folder, folder=tmp_path)
    ids = torch.randint(0, SHAPE.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids)
        logits = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_saved_configuration_agrees_with_the_shape(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    assert shape_from_config(config).but(name=SHAPE.name) == SHAPE
    assert json.loads((base / "generation_config.json").read_text())["do_sample"] is False


def test_the_folder_holds_the_tokenizer(base: Path, tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    text = "Question: what is 12 + 7?"
    assert AutoTokenizer.from_pretrained(base).encode(text) == AutoTokenizer.from_pretrained(tokenizer_folder).encode(text)


@pytest.mark.slow
def test_a_second_run_in_the_same_process_gives_the_same_bits(base: Path, tmp_path: Path, trained: Trainer) -> None:
    assert same_bits(base, trained(tmp_path))


def test_another_seed_gives_other_weights(base: Path, tmp_path: Path, trained: Trainer) -> None:
    assert not same_bits(base, trained(tmp_path, SPEC.but(recipe=RECIPE.but(seed=2))))


def test_continuing_with_a_vanishing_learning_rate_gives_the_start_bit_for_bit(base: Path, tmp_path: Path, trained: Trainer) -> None:
    still = RECIPE.but(lr=1e-30, warmup_tokens=0, schedule="linear", lr_final_share=0.0, weight_decay=0.0)
    assert same_bits(base, trained(tmp_path, SPEC.but(start=SPEC, recipe=still), start=base))


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


def test_the_summary_counts_tokens_steps_and_epochs(base: Path, token_file: Path) -> None:
    facts = json.loads((base / "training.json").read_text())
    assert (facts["steps"], facts["tokens"]) == (STEPS, MIXTURE.tokens)
    assert facts["tokens_per_second"] == pytest.approx(facts["tokens"] / facts["seconds"])
    assert facts["epochs"] == {"math": MIXTURE.tokens / tokens.available_tokens(token_file)}


@pytest.mark.parametrize(
    "number", [signal.SIGUSR2, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM))]
)
def test_an_interrupted_run_goes_on_to_the_same_bits(number: signal.Signals, base: Path, tmp_path: Path, trained: Trainer) -> None:
    received = []
    before = signal.signal(number, lambda *_: received.append(number))
    work = workspace(tmp_path)
    work.listener = lambda done: signal.raise_signal(number) if done == 6 * RECIPE.batch_tokens else None
    try:
        with pytest.raises(InterruptedError, match=r"at step 10 .* goes on from there"):
            trained(work)
    finally:
        signal.signal(number, before)
    assert received == [number]  # the caller's handler heard of it, once
    assert not (work.product / "model.safetensors").exists()
    resumed: list[float] = []
    work.listener = resumed.append
    assert same_bits(base, trained(work))
    assert min(resumed) > 6 * RECIPE.batch_tokens
    assert [line["step"] for line in metrics(work.product)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_run_that_dies_without_a_word_goes_on_from_its_last_state(base: Path, tmp_path: Path, trained: Trainer) -> None:
    def die(done: float) -> None:
        if done == 12 * RECIPE.batch_tokens:
            raise MemoryError

    work = workspace(tmp_path)
    work.listener = die
    always = ON_CPU.model_copy(update={"checkpoint_minutes": 1e-9})
    with pytest.raises(MemoryError):
        trained(work, how=always)
    assert [path.parent.name for path in (work.scratch / "states").glob("step*/.metadata.json")] == ["step12"]
    with (work.scratch / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')  # it died in the middle of a line
    resumed: list[float] = []
    work.listener = resumed.append
    assert same_bits(base, trained(work, how=ON_CPU))
    assert min(resumed) == 13 * RECIPE.batch_tokens
    assert [line["step"] for line in metrics(work.product)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_run_draws_nothing_on_the_terminal(tmp_path: Path, trained: Trainer, capfd: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["tiny_pretrain", "tiny_math", "tiny_text", "tiny_code", "tiny_inst"])
def test_the_tiny_mixtures_are_whole_batches(name: str) -> None:
    folder = Path(__file__).parents[1] / "conf"
    recipe = Recipe(**yaml.safe_load((folder / "training" / "tiny_cpt.yaml").read_text()))
    parts = yaml.safe_load((folder / "mixture" / f"{name}.yaml").read_text())["parts"]
    assert sum(part["tokens"] for part in parts) % recipe.batch_tokens == 0


@pytest.mark.slow
def test_micro_batches_change_speed_and_not_what_is_learnt(base: Path, tmp_path: Path, trained: Trainer) -> None:
    folder = trained(tmp_path, how=ON_CPU.model_copy(update={"micro_batch_sequences": 2}))
    assert [line["loss"] for line in metrics(folder)] == pytest.approx([line["loss"] for line in metrics(base)], rel=1e-3)


@pytest.mark.slow
def test_bf16_follows_fp32_closely_and_saves_float32(base: Path, tmp_path: Path, trained: Trainer) -> None:
    folder = trained(tmp_path, SPEC.but(recipe=RECIPE.but(precision="bf16")))
    assert metrics(folder)[-1]["loss"] == pytest.approx(metrics(base)[-1]["loss"], rel=0.05)
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, trained: Trainer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(ValueError, match=r"training diverged: the loss of step \d+ is no number: lower training.lr .* held documents \d+") as raised:
        trained(tmp_path, SPEC.but(recipe=RECIPE.but(lr=1e38, warmup_tokens=0)))
    numbers = json.loads((tmp_path / "scratch" / "diverged.json").read_text())["math"]
    assert f"held documents {', '.join(map(str, numbers[:10]))}" in str(raised.value)


def test_weight_decay_leaves_the_embeddings_alone() -> None:
    module = random_module()
    decays = {id(parameter): group["weight_decay"] for group in module.optim.param_groups for parameter in group["params"]}
    named = {name: decays[id(parameter)] for name, parameter in module.model.named_parameters()}
    assert {name for name, decay in named.items() if decay == 0} == {"embeddings.weight"}
    assert {decay for name, decay in named.items() if name != "embeddings.weight"} == {RECIPE.weight_decay}


def test_threads_and_signal_handlers_are_given_back(tmp_path: Path, trained: Trainer) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = torch.get_num_threads(), [signal.getsignal(number) for number in numbers]
    trained(tmp_path, how=ON_CPU.model_copy(update={"threads": 2}))
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


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path, trained: Trainer) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 320 tokens, but model smallest has 310 embeddings"):
        trained(tmp_path, SPEC.but(shape=SHAPE.but(vocab_size=310)))


def test_a_start_of_another_shape_is_refused_by_its_first_parameter(base: Path, tmp_path: Path, trained: Trainer) -> None:
    spec = SPEC.but(shape=SHAPE.but(mlp_size=64))
    with pytest.raises(ValueError, match=r"feed_forward.w1.weight has shape \(48, 32\), but the model's has \(64, 32\)"):
        trained(tmp_path, spec, start=base)


@pytest.mark.slow
def test_two_processes_see_the_same_documents_and_learn_the_same(base: Path, tmp_path: Path, trained: Trainer) -> None:
    folder = trained(tmp_path, how=ON_CPU.model_copy(update={"ranks": 2}))
    losses, alone = ([line["loss"] for line in metrics(place)] for place in (folder, base))
    assert losses == pytest.approx(alone, rel=1e-4)
    assert [line["grad_norm"] for line in metrics(folder)] == pytest.approx([line["grad_norm"] for line in metrics(base)], rel=1e-2)
    for name, tensor in weights(base).items():
        torch.testing.assert_close(weights(folder)[name], tensor, rtol=0, atol=5e-3)
