"""Tasks whose answers are programs: every answer runs in the sandbox against the tests of its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from cpt_lab.evaluation.sandbox.runner import Program, run_programs
from cpt_lab.specs import OlmesTask, Protocol

if TYPE_CHECKING:
    from cpt_lab.specs import Task

RUNS_CODE = frozenset({"humaneval"})


def runs_code(task: Task) -> bool:
    """Whether the answers to a task are run."""
    return isinstance(task, OlmesTask) and task.name in RUNS_CODE


def check_consent(protocol: Protocol, *, allowed: bool) -> None:
    """ValueError if a task of the protocol runs what the model writes and nobody has allowed it."""
    names = [task.name for task in protocol.tasks if runs_code(task)]
    if names and not allowed:
        raise ValueError(
            f"protocol {protocol.name} runs programs that the model writes ({', '.join(names)}), in a sandbox: read docs/sandbox.md and "
            "allow it with execution.allow_code_execution=true, or choose another protocol"
        )


def program(document: Mapping[str, Any], completion: str) -> Program:
    """HumanEval's program, prompt + completion, with the tests of its document.

    What the prompt defines beside the function that was asked for is the task's own, for the tests to use: the program cannot change it.
    """
    entry = str(document["entry_point"])
    tests = f"{document['test']}\ncheck({entry})"
    return Program(source=f"{document['prompt']}{completion}", tests=tests, entries=(entry,), setup=str(document["prompt"]))


def pass_rates(documents: Sequence[Mapping[str, Any]], completions: Sequence[Sequence[str]], *, workers: int | None = None) -> list[float]:
    """pass@1 of every document, c/n of its n completions of which c passed: the unbiased estimate of Chen et al. (2021), eq. 1, at k = 1.

    `completions` holds those of each document, in the same order; all programs share the workers (None: one per core). SandboxUnavailable
    where programs cannot be confined; ValueError if a document's tests cannot be run.
    """
    groups = [[program(document, text) for text in texts] for document, texts in zip(documents, completions, strict=True)]
    outcomes = iter(run_programs(list(chain.from_iterable(groups)), workers=workers))
    passed = [[next(outcomes).passed for _ in group] for group in groups]
    return [sum(group) / len(group) for group in passed]


def pass_at_1(document: Mapping[str, Any], completions: Sequence[str]) -> dict[str, float]:
    """pass@1 of one document, as the harness asks for it when it scores alone; it asks for consent itself (`--confirm_run_unsafe_code`)."""
    return {"pass_at_1": pass_rates([document], [completions], workers=1)[0]}
