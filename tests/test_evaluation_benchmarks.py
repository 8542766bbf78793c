"""Benchmarks from task file to score: what is asked, how several answers and several tasks are summed up, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import torch

from benchmark_cases import ROWS, benchmarks, build, chat_task, chat_tokenizer, olmes_task, write_files
from cpt_lab.evaluation.forms import FUNCTION, form
from cpt_lab.evaluation.scores import Metric
from cpt_lab.evaluation.scoring import means_of, score_outputs
from cpt_lab.evaluation.session import EvalSession
from cpt_lab.evaluation.task_files import read_task_file, write_task_file
from cpt_lab.evaluation.tasks import LoadedTask, load_tasks
from cpt_lab.execution import Execution
from cpt_lab.specs import ChatTask, Mean, OlmesTask, Protocol
from cpt_lab.specs.benchmarks import CHAT, OLMES
from factory import tiny_model, tiny_shape, tiny_tokenizer

LANGUAGE = Mean(name="language", metric="accuracy", of=("arc_easy/acc_per_char", "hellaswag/acc_per_char", "winogrande/acc_raw"))
FORMS = {  # what every version of a task's form stands for: a changed form needs a new version
    "gsm8k 1": "196b849e6e4c",
    "drop 1": "a3602cd93d69",
    "humaneval 1": "fe162fd31cb5",
    "arc_easy 1": "845109f508be",
    "hellaswag 1": "ed545e9315fc",
    "winogrande 1": "5bcb6290ec91",
    "chat gsm8k 1": "cd9eac4dbb9a",
    "chat math500 1": "fef7accb3623",
    "chat mmlu 1": "a1cbf90759e9",
    "chat gpqa 1": "a1cbf90759e9",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


def loaded(spec: Protocol, root: Path, tokenizer: Any | None = None) -> dict[str, LoadedTask]:
    return {task.name: task for task in load_tasks(build(spec, root), spec, tokenizer or tiny_tokenizer())}


def asked(task: LoadedTask) -> list[tuple[str, Any]]:
    return [request.args for request in task.requests]


def test_a_form_has_a_version_and_a_changed_form_another() -> None:
    tasks = {f"{name} {facts.version}": OlmesTask(name=name) for name, facts in OLMES.items()}
    chats = {f"chat {name} {facts.version}": ChatTask(name=name) for name, facts in CHAT.items()}
    found = {name: hashlib.sha256(json.dumps(form(task, ["shot"])).encode()).hexdigest()[:12] for name, task in {**tasks, **chats}.items()}
    assert found == FORMS


def test_prompts_are_solved_examples_and_the_question_in_the_tasks_form(tmp_path: Path, folder: Path) -> None:
    names = ("gsm8k", "drop", "arc_easy", "hellaswag", "winogrande")
    tasks = loaded(benchmarks(*(olmes_task(name, folder) for name in names)), tmp_path)
    five = "q0 a\n\nq1 a\n\nq2 a\n\nq3 a\n\nq4 a\n\n"
    assert asked(tasks["gsm8k"])[0][0] == f"{five}q5 a\n\nq6 a\n\nq7 a\n\nQuestion: What is 3 and 4?\nAnswer:"
    assert asked(tasks["drop"])[1][0].endswith(f"reason over them.\n\n{five}Passage: It was May 1.\nQuestion: Which day?\nAnswer:")
    assert asked(tasks["arc_easy"])[:2] == [(f"{five}Question: Ice is\nAnswer:", " hot"), (f"{five}Question: Ice is\nAnswer:", " cold")]
    assert asked(tasks["hellaswag"])[0] == (f"{five}Cooking: A man cooks. He", " eats it")
    assert asked(tasks["hellaswag"])[4] == (f"{five}Art: How to draw. Sit.", " a")
    assert asked(tasks["winogrande"])[:2] == [(f"{five}Sarah asked Maria so {name}", " said yes.") for name in ("Sarah", "Maria")]


def test_the_answers_of_gsm8k_are_scored_by_their_last_number(tmp_path: Path, folder: Path) -> None:
    task = loaded(benchmarks(olmes_task("gsm8k", folder)), tmp_path)["gsm8k"]
    scores = score_outputs(task, [" 3 + 4 = 7. So the answer is 7.", " It is $1,000.", " 5 or 7"], tiny_tokenizer())
    assert [row["exact_match"] for row in scores.rows] == [1.0, 1.0, 0.0]
    assert scores.primary == "exact_match"
    assert scores.metrics == {
        "exact_match": {"value": pytest.approx(2 / 3), "stderr": pytest.approx(1 / 3), "n": 3, "higher_is_better": True}
    }


def test_f1_comes_before_exact_match_in_drop(tmp_path: Path, folder: Path) -> None:
    task = loaded(benchmarks(olmes_task("drop", folder)), tmp_path)["drop"]
    scores = score_outputs(task, [" Ann Lee", " May 1"], tiny_tokenizer())
    assert (scores.primary, scores.metrics["f1"]["value"], scores.metrics["em"]["value"]) == ("f1", pytest.approx(0.835), 0.5)


def test_the_mean_of_the_language_tasks_is_a_metric_with_its_own_standard_error(tmp_path: Path, folder: Path) -> None:
    names = ("arc_easy", "hellaswag", "winogrande")
    spec = benchmarks(*(olmes_task(name, folder) for name in names), means=(LANGUAGE,), primary="language/accuracy")
    torch.set_num_threads(1)
    session = EvalSession(build(spec, tmp_path), spec, tokenizer=tiny_tokenizer(), how=Execution())
    scores = session.score(tiny_model(tiny_shape().but(context=512)))
    parts = [scores.metrics[name] for name in LANGUAGE.of]
    assert scores.primary == "language/accuracy"
    assert scores.metrics["language/accuracy"] == {
        "value": pytest.approx(sum(part["value"] for part in parts) / 3),
        "stderr": pytest.approx(math.sqrt(sum(part["stderr"] ** 2 for part in parts if part["stderr"] is not None)) / 3),
        "n": 6,
        "higher_is_better": True,
    }


def test_a_mean_without_one_of_its_errors_has_none() -> None:
    known: Metric = {"value": 0.5, "stderr": 0.1, "n": 4, "higher_is_better": True}
    unknown: Metric = {"value": 1.0, "stderr": None, "n": 6, "higher_is_better": True}
    spec = benchmarks(OlmesTask(name="gsm8k"), OlmesTask(name="drop"), means=(Mean(name="both", of=("gsm8k/exact_match", "drop/f1")),))
    found = means_of(spec, {"gsm8k/exact_match": known, "drop/f1": unknown})
    assert found == {"both/mean": {"value": 0.75, "stderr": None, "n": 10, "higher_is_better": True}}


# ------------------------------------------------------------------------------------------------------------------ chat


def test_a_chat_prompt_is_a_system_prompt_and_a_question_in_the_models_own_form(tmp_path: Path, folder: Path) -> None:
    tasks = loaded(benchmarks(*(chat_task(name, folder) for name in CHAT)), tmp_path, chat_tokenizer())
    prompt, settings = asked(tasks["gsm8k"])[0]
    assert prompt == "<system>Please put your final answer within \\boxed{}.<user>What is 3 and 4?<assistant>"
    assert settings == {"until": [], "do_sample": True, "temperature": 0.2, "top_p": 0.95, "max_gen_toks": 1024}
    assert {request.repeats for task in tasks.values() for request in task.requests} == {3}
    assert asked(tasks["mmlu"])[0][0] == (
        "<system>Please put your final answer within \\boxed{} and keep your thought process as short as possible."
        "<user>What is 1 + 1? You have four options, and they are: A.1 B.2 C.3 D.4 Please select the correct option and just give A, B, C "
        "or D. For example, if you think the answer is A, just give \\boxed{A} as the answer.<assistant>"
    )


def test_every_answer_to_a_chat_prompt_is_scored_and_their_spread_and_length_reported(tmp_path: Path, folder: Path) -> None:
    tokenizer = chat_tokenizer()
    task = loaded(benchmarks(chat_task("gsm8k", folder)), tmp_path, tokenizer)["gsm8k"]
    right = [r"\boxed{7}", r"\boxed{1000}", r"\boxed{6}"]
    outputs = [right[0], "no", right[0], "", right[1], right[1], right[2], right[2], "no"]  # the three answers of a document together
    scores = score_outputs(task, outputs, tokenizer)
    per_document = [2 / 3, 2 / 3, 2 / 3]
    per_repetition = [2 / 3, 2 / 3, 2 / 3]
    assert [row["exact_match"] for row in scores.rows] == pytest.approx(per_document)
    assert [row["answers"] for row in scores.rows] == [outputs[:3], outputs[3:6], outputs[6:]]
    assert scores.metrics["exact_match"] == {
        **{"value": pytest.approx(2 / 3), "stderr": pytest.approx(0, abs=1e-9), "n": 3, "higher_is_better": True},
        "std": pytest.approx(stdev(per_repetition)),
    }
    lengths = [len(tokenizer(text)["input_ids"]) for text in outputs]
    assert scores.metrics["output_tokens"]["value"] == pytest.approx(sum(lengths) / 9)
    assert scores.metrics["output_tokens"]["std"] == pytest.approx(stdev(sum(lengths[start::3]) / 3 for start in range(3)))
    assert scores.rows[1]["tokens"] == sum(lengths[3:6])


def test_a_spread_is_that_of_the_means_of_the_repetitions(tmp_path: Path, folder: Path) -> None:
    task = loaded(benchmarks(chat_task("gsm8k", folder, repeats=2)), tmp_path, chat_tokenizer())["gsm8k"]
    scores = score_outputs(task, [r"\boxed{7}", "", r"\boxed{1000}", "", r"\boxed{6}", r"\boxed{6}"], chat_tokenizer())
    assert scores.metrics["exact_match"]["value"] == pytest.approx(2 / 3)
    assert scores.metrics["exact_match"]["std"] == pytest.approx(stdev([1.0, 1 / 3]))


def test_one_greedy_answer_has_no_spread(tmp_path: Path, folder: Path) -> None:
    task = loaded(benchmarks(chat_task("math500", folder, repeats=1, temperature=0)), tmp_path, chat_tokenizer())["math500"]
    assert asked(task)[0][1] == {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 1024}
    assert "std" not in score_outputs(task, [r"\boxed{\frac12}"], chat_tokenizer()).metrics["exact_match"]


def test_answers_that_are_empty_in_every_repetition_are_reported(tmp_path: Path, folder: Path) -> None:
    task = loaded(benchmarks(chat_task("gsm8k", folder, repeats=2)), tmp_path, chat_tokenizer())["gsm8k"]
    assert score_outputs(task, [""] * 6, chat_tokenizer()).warnings == ["gsm8k: all 3 answers are empty"]
    assert score_outputs(task, ["", "x"] * 3, chat_tokenizer()).warnings == []


# ----------------------------------------------------------------------------------------------------------- cheap looks


@pytest.mark.parametrize("subset", ["first", "seeded"])
def test_a_part_of_the_items_is_marked_wherever_its_scores_stand(tmp_path: Path, folder: Path, subset: str) -> None:
    names = ("gsm8k", "drop")
    both = Mean(name="both", of=("gsm8k/exact_match", "drop/f1"))
    spec = benchmarks(*(olmes_task(name, folder, limit=1, subset=subset) for name in names), means=(both,))
    tasks = loaded(spec, tmp_path)
    assert spec.label() == f"case-{subset}1"
    scores = {name: score_outputs(task, ["7"], tiny_tokenizer()) for name, task in tasks.items()}
    marks = {name: scores[name].metrics[OLMES[name].metrics[0]]["part"] for name in names}
    assert marks == {name: f"{subset} 1 of {len(ROWS[name])}" for name in names}
    metrics = {f"{name}/{metric}": value for name in names for metric, value in scores[name].metrics.items()}
    assert means_of(spec, metrics)["both/mean"]["part"] == "; ".join(marks.values())


def test_a_limit_beyond_the_items_is_no_part_of_them() -> None:
    assert OlmesTask(name="gsm8k", limit=2000).mark == ""
    assert OlmesTask(name="gsm8k", limit=50).count == 50
    assert OlmesTask(name="gsm8k", limit=2000).count == 1319


# --------------------------------------------------------------------------------------------------------------- bad input


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"gsm8k asks by chat prompts and .* no chat template: choose a post-trained model"):
        loaded(benchmarks(chat_task("gsm8k", folder)), tmp_path)


def test_a_chat_template_that_refuses_system_prompts_is_named(tmp_path: Path, folder: Path) -> None:
    refusing = chat_tokenizer("{{ raise_exception('no system role') }}")
    with pytest.raises(ValueError, match=r"gsm8k: the model's chat template refuses the prompt \(no system role\)"):
        loaded(benchmarks(chat_task("gsm8k", folder)), tmp_path, refusing)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path, folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"gsm8k: the model's tokenizer has no end-of-text token"):
        loaded(benchmarks(olmes_task("gsm8k", folder)), tmp_path, tokenizer)


def test_prompts_beyond_the_context_are_counted_and_never_cut(tmp_path: Path, folder: Path) -> None:
    tasks = loaded(benchmarks(olmes_task("gsm8k", folder), olmes_task("arc_easy", folder)), tmp_path)
    longest = max(len(tiny_tokenizer()(prompt)["input_ids"]) for prompt, _ in asked(tasks["gsm8k"]))
    with pytest.raises(ValueError, match=rf"3 of 3 prompts .* context of 512 tokens \(the longest has {longest + 512}\)"):
        tasks["gsm8k"].check_fits(512)
    tasks["gsm8k"].check_fits(longest + 512)
    with pytest.raises(ValueError, match=r"5 of 5 prompts"):
        tasks["arc_easy"].check_fits(10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OlmesTask(name="hella_swag"), r"unknown olmes task 'hella_swag' \(did you mean hellaswag\?\).*`kind: harness`"),
        (lambda: ChatTask(name="gsm8"), r"unknown chat task 'gsm8' \(did you mean gsm8k\?\)"),
        (lambda: ChatTask(name="gsm8k", temperature=0), "is greedy .* says the same 3 times: give repeats=1"),
        (lambda: OlmesTask(name="gsm8k", source="files"), "source=files and no folder"),
        (
            lambda: benchmarks(OlmesTask(name="gsm8k"), primary="gsm8k/f1"),
            r"unknown metric of protocol case 'gsm8k/f1'.*there are gsm8k/exact_match",
        ),
        (
            lambda: benchmarks(OlmesTask(name="arc_easy"), means=(Mean(name="m", of=("arc_easy/acc", "arc_easy/acc_raw")),)),
            r"unknown metric of protocol case 'arc_easy/acc' \(did you mean",
        ),
        (
            lambda: benchmarks(OlmesTask(name="drop"), means=(Mean(name="drop", of=("drop/f1", "drop/em")),)),
            "the mean 'drop' has the name of a task",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_does(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -------------------------------------------------------------------------------------------------------- the stock command


def test_a_task_file_is_read_back_with_its_functions(tmp_path: Path) -> None:
    import yaml

    written = {"a": f"{FUNCTION}math.sqrt", "list": [{"b": f"{FUNCTION}math.floor"}], "text": 'say "!" and: {x}', "none": None}
    write_task_file(tmp_path / "t.yaml", written)
    assert read_task_file(tmp_path / "t.yaml") == {"a": math.sqrt, "list": [{"b": math.floor}], "text": 'say "!" and: {x}', "none": None}

    class Loader(yaml.SafeLoader):
        """A YAML library's own reading, with functions as their names."""

    Loader.add_constructor("!function", lambda loader, node: f"{FUNCTION}{loader.construct_scalar(node)}")
    assert yaml.load((tmp_path / "t.yaml").read_text(), Loader) == written


@pytest.mark.slow
def test_the_stock_command_gives_the_same_scores(tmp_path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    names = ("gsm8k", "drop", "arc_easy", "hellaswag", "winogrande")
    spec = benchmarks(*(olmes_task(name, folder, limit=1 if name == "gsm8k" else None) for name in names))
    product = build(spec, tmp_path)
    model, tokenizer = tiny_model(tiny_shape().but(context=1536)), tiny_tokenizer()
    ours = EvalSession(product, spec, tokenizer=tokenizer, how=Execution()).score(model)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    theirs = stock(tmp_path / "model", product, tmp_path / "elsewhere", names)
    for name in names:
        for metric in OLMES[name].metrics:
            assert ours.metrics[f"{name}/{metric}"]["value"] == pytest.approx(theirs[f"cpt_{name}"][f"{metric},none"], abs=1e-12), (
                name,
                metric,
            )


def stock(model: Path, product: Path, elsewhere: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The results of `lm_eval run` in a process of its own, in a folder of its own."""
    elsewhere.mkdir()
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(elsewhere / "hub"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    arguments = ["run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu", "--batch_size", "3"]
    tasks = ["--tasks", ",".join(f"cpt_{name}" for name in names), "--include_path", str(product), "--output_path", "out"]
    command = [sys.executable, "-m", "lm_eval", *arguments, *tasks]
    done = subprocess.run(command, cwd=elsewhere, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (elsewhere / "out").rglob("results_*.json")
    found: dict[str, Any] = json.loads(results.read_text())["results"]
    return found
