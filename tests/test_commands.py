"""Commands on launched studies: logs, wait, cancel, retry, resume, status --watch, from files alone."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import made_up_study as made
import toys
from command_line import here
from compositions import composed
from cpt_lab import config, launches, lease, report, roster, standing, study
from cpt_lab.app import HELP, VERBS
from cpt_lab.commands import cancel, gc, logs, relaunch, wait
from cpt_lab.commands.words import Words
from cpt_lab.config import Settings
from cpt_lab.launch import Launch
from cpt_lab.site import Site
from cpt_lab.specs import key
from cpt_lab.store import State, Store
from cpt_lab.study import Study
from processes import ROOT, TESTS, kill, start, wait_for
from spec_cases import INST, MATH, TEXT

FRACTIONS = (0.25, 0.5)


@pytest.fixture
def made_up(tmp_path: Path) -> tuple[Store, Study]:
    return made.make(tmp_path / "results", fractions=FRACTIONS)


@pytest.fixture
def told(tmp_path: Path) -> Launch:
    """A launch of two points; its study is saved."""
    made_launch = toys.told(tmp_path / "results", [MATH, INST])
    store = made_launch.store()
    study.save(store, Study(name="toys", command="python -m cpt_lab +experiment=toys", points=_points(MATH, INST)))
    return made_launch


def _points(*specs: Any) -> Any:
    return tuple(study.Point(name=f"point {index}", varies={}, config={}, spec=spec) for index, spec in enumerate(specs))


def words(store: Store, *names: str, flags: tuple[str, ...] = ()) -> Words:
    return Words(names, frozenset(flags), store.root)


def marked(store: Store, asked: Study, index: int, state: State, message: str = "") -> Path:
    """The folder of a point, whose state was written."""
    spec = study.resolved(store, asked.points)[asked.points[index].name]
    store.mark(spec, state, message)
    return store.folder(spec)


# ------------------------------------------------------------------------------------------------------------------ words


def test_the_help_names_every_verb() -> None:
    assert [verb for verb in VERBS if f"\n  {verb} " not in HELP] == []


@pytest.mark.parametrize("verb", ["logs", "wait", "cancel", "resume", "retry", "gc", "track"])
def test_a_flag_that_a_verb_does_not_know_is_refused_with_those_it_knows(verb: str, tmp_path: Path) -> None:
    refusal = here(verb, "--folow", f"results={tmp_path}").refusal
    assert "--folow" in refusal
    assert ("did you mean --follow" in refusal) == (verb == "logs")


@pytest.mark.parametrize("verb", ["status", "wait", "cancel", "resume", "retry"])
def test_an_unknown_study_is_refused_with_the_nearest_name(made_up: tuple[Store, Study], verb: str) -> None:
    refusal = here(verb, "made_upp", f"results={made_up[0].root}").refusal
    assert "no study 'made_upp'" in refusal
    assert "did you mean made_up?" in refusal


@pytest.mark.parametrize("verb", ["resume", "retry"])
def test_a_study_that_was_never_launched_is_not_launched_again(made_up: tuple[Store, Study], verb: str) -> None:
    assert "was never launched" in here(verb, "made_up", f"results={made_up[0].root}").refusal


@pytest.mark.parametrize("verb", ["compare", "retry", "track"])
def test_a_manifest_of_another_version_is_refused_in_one_sentence(made_up: tuple[Store, Study], verb: str) -> None:
    store, asked = made_up
    manifest = study.folder(store, asked.name) / "study.json"
    manifest.write_text(manifest.read_text().replace('"question"', '"query"'))
    words = {"compare": ("made_up",), "retry": ("made_up",), "track": ("sync", "made_up")}[verb]
    assert "another version of cpt_lab" in here(verb, *words, f"results={store.root}").refusal


def test_a_state_that_this_version_does_not_know_is_refused_in_one_sentence(made_up: tuple[Store, Study]) -> None:
    store, asked = made_up
    folder = marked(store, asked, 0, State.QUEUED)
    (folder / "status.json").write_text('{"state": "resting"}')
    assert "another version of cpt_lab" in here("status", "made_up", f"results={store.root}").refusal


# ----------------------------------------------------------------------------------------------------------------- status


def test_a_status_tells_each_reason_with_the_points_that_have_it(made_up: tuple[Store, Study]) -> None:
    store, asked = made_up
    for index in range(3):
        marked(store, asked, index, State.FAILED, "ValueError: too large")
    marked(store, asked, 3, State.TIMEOUT, "took 60 minutes")
    lines = report.status_lines(standing.look(store, roster.read(store, asked.name)), most=2)
    assert lines[0] == "study made_up: 8 points: 4 planned, 3 failed, 1 timeout"
    failed = [line for line in lines if line.startswith("  failed")]
    assert failed == [
        f"  failed    {asked.points[0].name}: ValueError: too large",
        f"  failed    {asked.points[1].name}: ValueError: too large",
        "  failed    and 1 more points: ValueError: too large",
    ]
    assert f"  timeout   {asked.points[3].name}: took 60 minutes" in lines


def test_points_are_as_fast_as_those_that_ended_in_the_last_hour(made_up: tuple[Store, Study], monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = made_up
    specs = study.resolved(store, asked.points)
    ends = dict(zip(specs, (500.0, 5000.0, 5060.0, 5120.0), strict=False))  # the first is more than an hour before the look
    for name, since in ends.items():
        made.score(store, specs[name], 0.5)
        path = store.folder(specs[name]) / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "since": since}))
    last = list(specs.values())[-1]
    lease = store.claim(last)
    assert lease is not None
    store.mark(last, State.RUNNING)
    (store.folder(last) / "progress.json").write_text('{"done": 30, "total": 120, "unit": "items", "time": 5115}')
    monkeypatch.setattr(standing.time, "time", lambda: 5120.0)
    found = standing.look(store, roster.read(store, asked.name))
    lease.release()
    assert found.per_minute == pytest.approx(1.0)  # two more after the first, in two minutes
    assert found.seconds_left == pytest.approx(60 * 4)
    lines = report.status_lines(found)
    assert "  1 points a minute, about 4 min left" in lines
    assert f"  running   {asked.points[-1].name}: 25 % of 120 items" in lines


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (5400, "1 h 30 min"), (7200 - 1, "2 h 00 min"), (180000, "2 d 2 h")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert report.duration(seconds) == said


# ------------------------------------------------------------------------------------------------------------------- logs


def test_the_log_of_a_point_is_found_by_its_name_by_words_of_it_and_by_its_key(
    made_up: tuple[Store, Study], capsys: pytest.CaptureFixture[str]
) -> None:
    store, asked = made_up
    folder = marked(store, asked, 1, State.FAILED, "ValueError: no")
    (folder / "log.txt").write_text("first\nlast")
    name = asked.points[1].name
    for given in ((name,), ("made_up", *name.split()), tuple(reversed(name.split())), (folder.name,)):
        assert logs.run(words(store, *given)) == 0
        head, where, *text = capsys.readouterr().out.splitlines()
        assert head.endswith("failed, ValueError: no")
        assert where == f"# {folder / 'log.txt'}"
        assert text == ["first", "last"]


def test_words_that_many_points_have_are_not_enough(made_up: tuple[Store, Study]) -> None:
    store, asked = made_up
    with pytest.raises(ValueError, match=f"'{asked.points[0].name}' of made_up"):
        logs.find(store, ["0.25"])


def test_an_unknown_point_is_refused_with_the_nearest_names(made_up: tuple[Store, Study]) -> None:
    store, asked = made_up
    name = asked.points[0].name
    with pytest.raises(KeyError, match="did you mean") as refused:
        logs.find(store, [name.replace("0.25", "0.26")])
    assert name in str(refused.value)


def test_the_log_of_a_blocked_point_is_that_of_what_failed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    order = made.ranking("delta_norm", "ascending")
    asked = Study(name="blocked", points=(made.point(order, 0.5),))
    study.save(store, asked)
    store.mark(made.BASE, State.FAILED, "diverged")
    store.mark(order, State.BLOCKED, f"{key(made.BASE)} failed: diverged")
    assert roster.states(store, roster.read(store, "blocked"))[asked.points[0].name].state is State.BLOCKED
    assert logs.find(store, [asked.points[0].name])[1] == store.folder(made.BASE)


FOLLOW = """
import sys
from cpt_lab import app
app.run(["logs", sys.argv[1], "--follow", "results=" + sys.argv[2]])
"""


@pytest.mark.slow
def test_a_log_is_followed_until_its_point_has_ended(made_up: tuple[Store, Study]) -> None:
    store, asked = made_up
    folder = marked(store, asked, 0, State.QUEUED)
    log = folder / "log.txt"
    log.write_text("one\n")
    follower = start(FOLLOW, folder.name, store.root)
    try:
        assert follower.stdout is not None
        heard = [follower.stdout.readline() for _ in range(3)]
        assert heard[2] == "one\n"
        with log.open("a") as file:
            file.write("two\n")
        assert follower.stdout.readline() == "two\n"
        marked(store, asked, 0, State.FAILED, "ValueError: three")
        rest, errors = follower.communicate(timeout=60)
    finally:
        kill(follower)
    assert (rest, errors, follower.returncode) == ("# failed, ValueError: three\n", "", 1)


# ------------------------------------------------------------------------------------------------------- retry and resume


def test_what_is_tried_again_is_what_failed_or_what_was_lost(made_up: tuple[Store, Study]) -> None:
    store, asked = made_up
    states = (State.FAILED, State.TIMEOUT, State.RUNNING, State.CANCELLED, State.BLOCKED)
    for index, state in enumerate(states):
        marked(store, asked, index, state)  # RUNNING without a lease reads LOST
    names = [point.name for point in asked.points]

    def chosen(*flags: str) -> list[str]:
        return [point.name for point in relaunch.among(words(store, flags=flags), store, asked)]

    assert chosen("--failed") == names[:2]
    assert chosen("--lost") == names[2:3]
    assert chosen() == chosen("--failed", "--lost") == names[:3]


def test_points_whose_ranking_failed_are_tried_again_and_those_that_are_done_are_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    good, bad = made.ranking("random", "ascending", 0), made.ranking("random", "ascending", 1)
    made.build(store, good, {"ranking.json": {"order": [[layer, head] for layer in range(2) for head in range(4)]}})
    asked = Study(name="half", points=tuple(made.point(order, 0.5) for order in (good, bad)))
    study.save(store, asked)
    made.score(store, study.resolved(store, asked.points)[asked.points[0].name], 0.5)
    store.mark(bad, State.FAILED, "no scores")
    assert [point.name for point in relaunch.among(words(store), store, asked)] == [asked.points[1].name]


def kept(told: Launch, **changes: Any) -> Settings:
    """Settings in the launch's folder, as the command line leaves them there."""
    site = Site(name="here", extra={"constraint": "h100", "exclusive": True})
    parsed = config.parse(composed("study=toys", "tracking=off", "workers=2")[0])
    chosen = config.settings(parsed, None, Path("/")).model_copy(update={"results": Path("/elsewhere"), "site": site, **changes})
    relaunch.keep(told.folder, chosen)
    return chosen


def test_a_launch_is_repeated_with_its_settings_in_the_folder_where_its_results_are_now(told: Launch) -> None:
    chosen = kept(told)
    asked, again, where = relaunch.last(told.store(), "toys")
    assert again == chosen.model_copy(update={"results": told.results})
    assert (asked.name, [point.name for point in asked.points], where) == ("toys", ["point 0", "point 1"], "local")


def test_settings_of_another_version_are_refused_with_what_is_wrong(told: Launch) -> None:
    path = told.folder / "settings.json"
    kept(told)
    path.write_text(path.read_text().replace('"packs"', '"parcels"'))
    refusal = here("resume", "toys", f"results={told.results}").refusal
    assert "another version of cpt_lab (packs: " in refusal
    assert "launch the study with its own command" in refusal


# --------------------------------------------------------------------------------------------------------- cancel and wait


WORK = """
import sys
from pathlib import Path
from cpt_lab import launch, local
local.work(launch.load(Path(sys.argv[1])), 2)
"""


@pytest.mark.slow
def test_cancel_ends_the_workers_of_this_machine_and_wait_says_that_not_all_is_done(
    told: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    toys.write_script(told.results, {key(MATH): "hang", key(INST): "hang"})
    place = {**os.environ, "PYTHONPATH": f"{toys.customized(told)}:{TESTS.parent}"}
    work = subprocess.Popen(
        [sys.executable, "-c", WORK, str(told.folder)], env=place, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    store = told.store()
    waited: list[int] = []
    waiter = threading.Thread(target=lambda: waited.append(wait.run(words(store, "toys"))))
    try:
        wait_for(lambda: all((store.folder(spec) / "hanging").exists() for spec in (MATH, INST)), what="both builds")
        waiter.start()
        assert cancel.run(words(store, "toys")) == 0
        work.communicate(timeout=60)
        waiter.join(timeout=60)
    finally:
        kill(work)
    assert "2 workers told to end" in capsys.readouterr().out
    assert [store.status(spec).state for spec in (MATH, INST)] == [State.CANCELLED, State.CANCELLED]
    assert waited == [1]
    assert launches.of_study(store, "toys")[0].workers_here() == []


def test_what_was_queued_by_a_cancelled_launch_is_cancelled_and_what_others_queued_is_not(told: Launch) -> None:
    store = told.store()
    Store(told.results, launch="another").mark(INST, State.QUEUED)
    cancel.run(words(store, "toys"))
    assert [store.status(spec).state for spec in (MATH, INST)] == [State.CANCELLED, State.QUEUED]


def test_jobs_that_slurm_still_has_are_cancelled(told: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    store = told.store()
    (told.folder / "jobs.json").write_text(json.dumps({"data": {"job": "7", "tasks": 2, "ids": ["7_0", "7_1"]}}))
    cancelled: list[str] = []
    monkeypatch.setattr("cpt_lab.slurm.job_states", lambda _: {"7_0": "COMPLETED", "7_1": "PENDING"})
    monkeypatch.setattr("cpt_lab.slurm.cancel", lambda jobs: cancelled.extend(jobs))
    assert cancel.run(words(store, "toys")) == 0
    assert cancelled == ["7_1"]


def test_jobs_that_may_not_be_cancelled_are_named_and_the_others_end(
    told: Launch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = told.store()
    theirs = toys.prepared(store, toys.planned(store, [TEXT]), where="slurm")
    study.save(store, Study(name="toys", points=_points(MATH, TEXT)))
    for folder, job in ((told.folder, "7"), (theirs.folder, "8")):
        (folder / "jobs.json").write_text(json.dumps({"data": {"job": job, "tasks": 1, "ids": [job]}}))

    def only_mine(jobs: list[str]) -> None:
        if jobs == ["8"]:
            raise ValueError("scancel: Access/permission denied")

    monkeypatch.setattr("cpt_lab.slurm.job_states", lambda _: {"7": "PENDING", "8": "PENDING"})
    monkeypatch.setattr("cpt_lab.slurm.cancel", only_mine)
    assert cancel.run(words(store, "toys")) == 1
    said = capsys.readouterr().out
    assert "1 jobs and 0 workers told to end" in said
    assert f"jobs of launch {theirs.id}: scancel: Access/permission denied" in said
    assert [store.status(spec).state for spec in (MATH, TEXT)] == [State.CANCELLED, State.QUEUED]


def working_on(folder: Path, host: str) -> None:
    """The folder's lease, held by a process of another machine."""
    owner = lease.Owner(id="theirs", host=host, namespace="pid:[1]", pid=77, started="1", slurm_job="")
    (folder / "lease.json").write_text(json.dumps(asdict(owner)))


def test_what_a_launch_on_another_machine_has_queued_is_left_to_it_and_cancel_says_where_it_is(
    told: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = told.store()
    working_on(told.folder, "their-laptop")
    assert cancel.run(words(store, "toys")) == 1
    assert f"may still be at work: launch {told.id}, by process 77 on their-laptop: run the same command there" in capsys.readouterr().out
    assert [store.status(spec).state for spec in (MATH, INST)] == [State.QUEUED, State.QUEUED]
    (told.folder / "lease.json").unlink()
    assert cancel.run(words(store, "toys")) == 0
    assert [store.status(spec).state for spec in (MATH, INST)] == [State.CANCELLED, State.CANCELLED]


def test_workers_that_outlived_their_launch_on_another_machine_keep_what_it_queued(
    told: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = told.store()
    store.mark(MATH, State.RUNNING)
    working_on(store.folder(MATH), "their-laptop")
    assert cancel.run(words(store, "toys")) == 1
    assert f"process 77 on their-laptop, at {MATH.FOLDER}/{key(MATH)}: run the same command there" in capsys.readouterr().out
    assert store.status(INST).state is State.QUEUED


def test_workers_of_this_machine_are_told_to_end_though_slurm_does_not_answer(
    told: Launch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = told.store()
    submitted = toys.prepared(store, toys.planned(store, [TEXT]), where="slurm")
    (submitted.folder / "jobs.json").write_text(json.dumps({"data": {"job": "7", "tasks": 1, "ids": ["7"]}}))
    study.save(store, Study(name="toys", points=_points(MATH, INST, TEXT)))
    worker = subprocess.Popen(["sleep", "3600"])
    monkeypatch.setattr(launches.Found, "workers_here", lambda launch: [worker.pid] if launch.id == told.id else [])

    def unanswered(_: object) -> dict[str, str]:
        raise ValueError("squeue failed (Unable to contact slurm controller)")

    monkeypatch.setattr("cpt_lab.slurm.job_states", unanswered)
    try:
        assert cancel.run(words(store, "toys")) == 1
        assert worker.wait(timeout=60) == -signal.SIGTERM
    finally:
        worker.kill()
        worker.wait()
    said = capsys.readouterr().out
    assert "0 jobs and 1 workers told to end, 2 waiting steps cancelled" in said
    assert f"may still be at work: jobs of launch {submitted.id}: squeue failed (Unable to contact slurm controller)" in said
    assert [store.status(spec).state for spec in (MATH, INST, TEXT)] == [State.CANCELLED, State.CANCELLED, State.QUEUED]


def test_gc_keeps_a_launch_that_is_at_work_on_another_machine(told: Launch) -> None:
    store = told.store()
    newest = toys.prepared(store, toys.planned(store, [TEXT])).folder  # which is kept in any case
    newest.rename(newest.with_name("99991231-235959-newest"))
    long_ago = time.time() - 2 * gc.SETTLED_SECONDS
    for at_work in (True, False):
        (told.folder / "lease.json").unlink(missing_ok=True)
        if at_work:
            working_on(told.folder, "their-laptop")
        os.utime(told.folder / "plan.json", (long_ago, long_ago))
        found = next(launch for launch in launches.of_study(store, "toys") if launch.id == told.id)
        assert (found.elsewhere() is not None) == at_work
        assert (told.folder in {waste.path for waste in gc.waste(store)}) == (not at_work)


def test_wait_returns_at_once_when_all_is_done(made_up: tuple[Store, Study], capsys: pytest.CaptureFixture[str]) -> None:
    store, asked = made_up
    made.finish(store, asked)
    assert wait.run(words(store, asked.name)) == 0
    assert capsys.readouterr().out.splitlines() == ["study made_up: 8 points: 8 done"]


def test_a_launch_is_known_by_the_head_of_its_plan(told: Launch) -> None:
    found = launches.of_study(told.store(), "toys")
    assert [(launch.folder, launch.where) for launch in found] == [(told.folder, "local")]
    assert launches.of_study(told.store(), "others") == []
    with (told.folder / "plan.json").open("r+") as file:
        file.truncate(len(file.read()) // 2)
    assert [launch.id for launch in launches.everyone(told.store())] == [told.id]


def test_a_terminal_shows_the_study_until_it_has_ended(made_up: tuple[Store, Study], monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = made_up
    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, width=100, height=12)
    monkeypatch.setattr(wait, "Console", lambda: terminal)
    monkeypatch.setattr(wait, "LOOK_SECONDS", 0.01)
    spec = study.resolved(store, asked.points)[asked.points[0].name]
    lease = store.claim(spec)
    assert lease is not None
    store.mark(spec, State.RUNNING)
    threading.Timer(0.3, lease.release).start()
    assert wait.watch(store, asked.name) == 0
    assert "1 running" in drawn.getvalue()


def test_wait_goes_on_while_slurm_has_jobs_and_while_it_cannot_be_asked(told: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    (told.folder / "plan.json").write_text((told.folder / "plan.json").read_text().replace('"where":"local"', '"where":"slurm"'))
    (told.folder / "jobs.json").write_text(json.dumps({"data": {"job": "7", "tasks": 1, "ids": ["7"]}}))
    answers = iter([{"7": "PENDING"}, None, {"7": "RUNNING"}, {"7": "FAILED"}])
    asked: list[object] = []

    def states(_: object) -> dict[str, str]:
        asked.append(answer := next(answers))
        if answer is None:
            raise ValueError("squeue failed (Unable to contact slurm controller)")
        return answer

    monkeypatch.setattr("cpt_lab.slurm.job_states", states)
    monkeypatch.setattr(report, "job_lines", lambda *_: [])
    for name in ("LOOK_SECONDS", "JOBS_SECONDS"):
        monkeypatch.setattr(wait, name, 0.0)
    assert wait.run(words(told.store(), "toys")) == 1
    assert len(asked) == 4


def test_wait_goes_on_while_a_launch_on_another_machine_is_at_work(told: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    working_on(told.folder, "their-laptop")
    looks: list[int] = []

    def look(store: Store, named: roster.Roster) -> standing.Standing:
        looks.append(len(looks))
        if len(looks) == 3:
            (told.folder / "lease.json").unlink()
        return seen(store, named)

    seen = standing.look
    monkeypatch.setattr(standing, "look", look)
    for name in ("LOOK_SECONDS", "JOBS_SECONDS"):
        monkeypatch.setattr(wait, name, 0.0)
    assert wait.run(words(told.store(), "toys")) == 1
    assert len(looks) == 3
