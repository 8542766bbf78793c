"""Building: needs first, each thing once however many ask for it, and a record of how it ended."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cpt_lab import build, plan
from cpt_lab.build import BUILDERS, Stopped, Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.lease import LeaseLost
from cpt_lab.specs import STORED, Evaluation, Ranking, Spec, closure, key, settled
from cpt_lab.store import State, Store, Workspace
from processes import hear, many, say
from spec_cases import (
    BASE,
    DELTA_NORM,
    EVALUATION,
    MATH,
    ONE_OF_EACH,
    PRETRAINED,
    PROTOCOL,
    RANDOM,
    SPECTRA,
    TEXT,
    TUNED,
    rewound,
    rewound_heads,
)

ORDER = tuple((layer, head) for layer in (1, 0) for head in range(4))
ENSURE = """
import sys
from pathlib import Path
from spec_cases import INST, MATH
from cpt_lab.build import BUILDERS, Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.specs import BpeTokenizer
from cpt_lab.store import Store

def tokenizer(workshop, spec, work):  # the real one needs transformers
    (work.product / "lines").write_text(str(sum(len((workshop.product(c) / "train.jsonl").read_text()) for c in spec.corpora)))

BUILDERS[BpeTokenizer] = tokenizer
wanted = BpeTokenizer(corpora=(MATH, INST), vocab_size=320)
print("ready", flush=True)
sys.stdin.readline()
print(ensure(Workshop(Store(Path(sys.argv[1])), Execution()), wanted), flush=True)
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(Store(tmp_path / "results", launch="first"), Execution(), code="abc123")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces all builders by one that notes what it was asked for; rankings get ORDER."""
    asked: list[str] = []

    def note(workshop: Workshop, spec: Spec, work: Workspace) -> None:
        assert all(workshop.store.is_done(need) for need in spec.needs())
        asked.append(key(spec))
        if isinstance(spec, Ranking):
            (work.product / "ranking.json").write_text(json.dumps({"order": ORDER}))

    for kind in STORED:
        monkeypatch.setitem(BUILDERS, kind, note)
    return asked


def failing(error: BaseException) -> Any:
    def build_half(_: Workshop, __: Spec, work: Workspace) -> None:
        (work.product / "half.txt").write_text("half")
        raise error

    return build_half


# ------------------------------------------------------------------------------------------------------------- composition


def test_every_stored_kind_has_a_builder_a_stage_a_folder_and_a_name_for_people() -> None:
    assert set(BUILDERS) == set(plan.STAGE_OF) == set(STORED)
    stages = {plan.stage_of(spec) for spec in (*ONE_OF_EACH, PRETRAINED)}
    assert stages == set(plan.STAGES) - {"probe"}  # evaluations that rankings wait for
    assert all(kind.FOLDER and kind.PRODUCT for kind in STORED)


def test_ensuring_a_point_builds_all_it_needs_in_order_and_each_once(workshop: Workshop, built: list[str]) -> None:
    product = ensure(workshop, EVALUATION)
    final = settled(EVALUATION, {key(DELTA_NORM): ORDER})
    assert product == workshop.store.product(final)
    needs = [key(spec) for spec in closure(list(EVALUATION.needs()))]
    assert built == [*needs, key(final)]


def test_a_point_is_built_with_the_heads_that_its_ranking_chose(workshop: Workshop, built: list[str]) -> None:
    ensure(workshop, Evaluation(checkpoint=rewound(RANDOM), protocol=PROTOCOL))
    assert built[-1] == key(Evaluation(checkpoint=rewound_heads((1, 0), (1, 1)), protocol=PROTOCOL))


def test_ensuring_again_builds_nothing(workshop: Workshop, built: list[str]) -> None:
    first = ensure(workshop, EVALUATION)
    built.clear()
    assert ensure(workshop, EVALUATION) == first
    assert built == []


def test_two_points_that_choose_the_same_heads_are_built_once(workshop: Workshop, built: list[str]) -> None:
    first = ensure(workshop, EVALUATION)
    built.clear()
    assert ensure(workshop, Evaluation(checkpoint=rewound(RANDOM), protocol=PROTOCOL)) == first
    assert built == [key(RANDOM)]


def test_the_needs_of_what_is_done_are_not_built(workshop: Workshop, built: list[str]) -> None:
    ensure(workshop, SPECTRA)
    (workshop.store.folder(TUNED) / "DONE").unlink()
    built.clear()
    ensure(workshop, DELTA_NORM)
    assert built == [key(DELTA_NORM)]


def test_deleting_one_result_builds_exactly_that_one_again(workshop: Workshop, built: list[str]) -> None:
    ensure(workshop, EVALUATION)
    (workshop.store.folder(SPECTRA) / "DONE").unlink()
    built.clear()
    ensure(workshop, SPECTRA)
    assert built == [key(SPECTRA)]


def test_processes_that_ask_for_the_same_thing_build_it_and_its_needs_once(tmp_path: Path) -> None:
    root = tmp_path / "results"
    with many(ENSURE, [[root]] * 3) as asking:
        for process in asking:
            assert hear(process) == "ready"
        for process in asking:
            say(process, "go")
        products = {hear(process) for process in asking}
    assert len(products) == 1
    attempts = {path.parent.name: json.loads(path.read_text())["attempts"] for path in root.glob("*/*/status.json")}
    assert len(attempts) == 3
    assert set(attempts.values()) == {1}


# ------------------------------------------------------------------------------------------------------------------ endings


def test_a_failure_is_recorded_with_its_first_line_and_the_traceback_in_the_log(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILDERS, type(MATH), failing(ZeroDivisionError("no numbers\nat all")))
    with pytest.raises(ZeroDivisionError):
        ensure(workshop, MATH)
    store = workshop.store
    status = store.status(MATH)
    assert (status.state, status.message, status.attempts) == (State.FAILED, "ZeroDivisionError: no numbers", 1)
    log = (store.folder(MATH) / "log.txt").read_text()
    assert "Traceback" in log
    assert "in build_half" in log
    assert store.claim(MATH) is not None  # the lease was given back


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (ValueError("give fewer documents"), State.FAILED, "give fewer documents"),
        (ValueError(), State.FAILED, "ValueError"),
        (RuntimeError(), State.FAILED, "RuntimeError"),
        (SystemExit(3), State.FAILED, "SystemExit: 3"),
        (Stopped(State.PREEMPTED), State.PREEMPTED, "handed back by a signal"),
        (Stopped(State.CANCELLED), State.CANCELLED, "handed back by a signal"),
        (KeyboardInterrupt(), State.CANCELLED, "interrupted from the keyboard"),
    ],
    ids=repr,
)
def test_each_way_a_build_ends_has_its_state(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: State, message: str
) -> None:
    monkeypatch.setitem(BUILDERS, type(MATH), failing(error))
    with pytest.raises(type(error)):
        ensure(workshop, MATH)
    status = workshop.store.status(MATH)
    assert (status.state, status.message) == (state, message)
    assert not (workshop.store.folder(MATH) / "product").exists()
    assert not (workshop.store.folder(MATH) / "lease.json").exists()


@pytest.mark.usefixtures("built")
def test_a_failed_need_fails_the_whole_and_leaves_the_rest_alone(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, type(SPECTRA), failing(ValueError("no such measure")))
    with pytest.raises(ValueError, match="no such measure"):
        ensure(workshop, EVALUATION)
    assert workshop.store.status(BASE).state is State.DONE
    assert workshop.store.status(SPECTRA).state is State.FAILED
    assert workshop.store.status(DELTA_NORM).state is State.PLANNED


def test_a_builder_that_was_taken_over_does_not_touch_the_state_of_its_successor(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = workshop.store

    def slow(_: Workshop, spec: Spec, __: Workspace) -> None:
        lease = store.folder(spec) / "lease.json"
        lease.write_text(lease.read_text().replace('"id": "', '"id": "another'))

    monkeypatch.setitem(BUILDERS, type(MATH), slow)
    with pytest.raises(LeaseLost):
        ensure(workshop, MATH)
    assert json.loads((store.folder(MATH) / "status.json").read_text())["state"] == "running"


def test_what_others_finished_between_the_look_and_the_claim_is_not_built_again(workshop: Workshop, built: list[str]) -> None:
    ensure(workshop, MATH)
    lease = workshop.store.claim(MATH)
    assert lease is not None
    build.build(workshop, MATH, lease)
    assert built == [key(MATH)]
    assert not lease.held()


# --------------------------------------------------------------------------------------------------------------- provenance


def test_provenance_says_which_code_made_a_result_where_how_and_in_how_long(
    workshop: Workshop, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPT_LAB_COMMAND", "python -m cpt_lab +experiment=quickstart")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    ensure(workshop, MATH)
    facts = workshop.store.provenance(MATH)
    assert built == [key(MATH)]
    assert facts["command"] == "python -m cpt_lab +experiment=quickstart"
    assert facts["code"] == "abc123"
    assert facts["slurm"] == {"SLURM_JOB_ID": "77"}
    assert facts["execution"] == Execution().model_dump(mode="json")
    assert facts["versions"].keys() >= {"torch", "transformers", "lm_eval"}
    assert {"seconds", "git", "git_diff", "python", "host", "gpu"} <= facts.keys()


def test_each_build_logs_to_its_own_file_and_no_other(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def speak(_: Workshop, spec: Spec, __: Workspace) -> None:
        logging.getLogger("builder").warning("I build %s", spec.label())

    monkeypatch.setitem(BUILDERS, type(MATH), speak)
    before = list(logging.getLogger().handlers)
    for spec in (MATH, TEXT):
        ensure(workshop, spec)
    for spec in (MATH, TEXT):
        lines = (workshop.store.folder(spec) / "log.txt").read_text().splitlines()
        assert [line.split("builder: ")[1] for line in lines] == [f"I build {spec.label()}"]
    assert logging.getLogger().handlers == before
