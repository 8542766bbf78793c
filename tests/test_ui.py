"""`ui`: where the runs are shown, and what is refused before anything is started."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

import made_up_study as made
from cpt_lab import tracking
from cpt_lab.commands import ui
from cpt_lab.commands.words import Words
from cpt_lab.store import Store
from cpt_lab.study import Study, save
from cpt_lab.tracking_settings import Tracking

SERVER = Tracking(kind="server", uri="http://host:5000")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run, with MLflow's experiment there as number 7."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(tracking, "initialise", lambda _: "7")
    monkeypatch.setattr(ui.subprocess, "run", run)
    return commands


def words(root: Path, *names: str) -> Words:
    return Words(names, frozenset(), root)


def tracked(root: Path, name: str, settings: Tracking) -> None:
    save(Store(root), Study(name=name, points=(made.point(made.rankings()[0], 0.5),), tracking=settings))


def test_the_pages_are_those_of_the_stores_file_and_the_curves_have_an_address(
    tmp_path: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    tracked(tmp_path, "made_up", Tracking())
    assert ui.run(words(tmp_path, "port=5001")) == 0
    (command,) = started
    assert command[1:] == ["-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow/mlflow.db", "--port", "5001"]
    curves = "tags.study%20%3D%20%27made_up%27%20and%20tags.kind%20%3D%20%27curve%27"
    assert f"curves of made_up: http://127.0.0.1:5001/#/experiments/7/runs?searchFilter={curves}\n" in capsys.readouterr().out


def test_a_server_is_named_and_nothing_started(tmp_path: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    tracked(tmp_path, "made_up", SERVER)
    assert ui.run(words(tmp_path, "made_up")) == 0
    assert started == []
    assert capsys.readouterr().out.splitlines()[-1] == "http://host:5000"


def test_of_studies_that_are_tracked_in_several_places_one_must_be_named(tmp_path: Path, started: list[list[str]]) -> None:
    tracked(tmp_path, "here", Tracking())
    tracked(tmp_path, "there", SERVER)
    tracked(tmp_path, "nowhere", Tracking(kind="off"))
    with pytest.raises(ValueError, match=r"tracked in several places: here \(sqlite:.*\), .*there \(http://host:5000\)"):
        ui.run(words(tmp_path))
    with pytest.raises(ValueError, match="tracking=off"):
        ui.run(words(tmp_path, "nowhere"))
    assert ui.run(words(tmp_path, "here")) == 0
    assert len(started) == 1


@pytest.mark.parametrize("port", ["", "http", "0", "70000", "-1"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, started: list[list[str]], port: str) -> None:
    with pytest.raises(ValueError, match="give a port between 1 and 65535"):
        ui.run(words(tmp_path, f"port={port}"))
    assert started == []
