"""Merges as a configuration chooses them: with which checkpoints, by which names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compositions import points, refused
from cpt_lab.specs import Evaluation, HubCheckpoint, Patched, TrainedCheckpoint
from factory import tiny_checkpoint
from long_tables import rest_slow


def change_of(*words: str) -> Any:
    (point,) = points(*words)
    assert isinstance(point.spec, Evaluation)
    assert isinstance(point.spec.checkpoint, Patched)
    (change,) = point.spec.checkpoint.interventions
    return change


def test_a_soup_is_with_the_reference_unless_told_otherwise() -> None:
    soup = change_of("intervention=soup", "intervention.weight=0.4")
    assert [(part.name, part.weight) for part in soup.members] == [("tuned", 0.6), ("reference", 0.4)]
    assert soup.label() == "soup-0.6tuned-0.4cpt-text-" + soup.label().rpartition("-")[2]
    assert isinstance(soup.sources()["reference"], TrainedCheckpoint)


def test_others_are_checkpoints_by_name() -> None:
    trained = change_of(
        "intervention=soup",
        "intervention.with=code",
        "intervention.weight=0.5",
        "+others.code.from=cpt",
        "+mixture@others.code.mixture=tiny_code",
    ).sources()["code"]
    assert isinstance(trained, TrainedCheckpoint)
    assert trained.mixture.name == "tiny_code"
    fetched = change_of(
        "intervention=soup", "intervention.weights={inst:0.5,tuned:0.5}", "+others.inst={from: hub, id: some/model, revision: abc}"
    ).sources()["inst"]
    assert isinstance(fetched, HubCheckpoint)
    assert (fetched.id, fetched.revision) == ("some/model", "abc")


def test_a_folder_may_be_another_checkpoint(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "tuned", seed=0)
    tiny_checkpoint(tmp_path / "inst", seed=1)
    soup = change_of(
        "tuned.from=folder",
        f"tuned.path={tmp_path / 'tuned'}",
        f"+others.inst={{from: folder, path: {tmp_path / 'inst'}}}",
        "intervention=soup",
        "intervention.with=inst",
        "intervention.weight=0.5",
    )
    assert soup.sources()["inst"].path == str(tmp_path / "inst")


def test_a_checkpoint_that_nobody_named_is_refused_with_those_there_are() -> None:
    with pytest.raises(KeyError, match=r"unknown checkpoint 'refrence' \(did you mean reference\?\); there are base, reference, tuned"):
        points("intervention=soup", "intervention.with=refrence", "intervention.weight=0.5")


def test_a_checkpoint_of_another_size_is_refused_by_its_name(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "tuned")
    tiny_checkpoint(tmp_path / "inst", num_layers=3)
    folders = ("tuned.from=folder", f"tuned.path={tmp_path / 'tuned'}", f"+others.inst={{from: folder, path: {tmp_path / 'inst'}}}")
    with pytest.raises(ValueError, match="tuned and inst are different architectures: num_layers is 2 in tuned and 3 in inst"):
        points(*folders, "intervention=soup", "intervention.with=inst", "intervention.weight=0.5")


@pytest.mark.parametrize(
    ("words", "expected"),
    rest_slow(
        [
            (
                ("soup", "intervention.with=tuned", "intervention.weight=0.5"),
                "intervention.with is tuned, which would be mixed with itself",
            ),
            (("soup", "intervention.weight=30"), "intervention.weight is 30, allowed is a share of reference between 0 and 1"),
            (("soup", "intervention.weight=-0.5"), "say what both weigh, {tuned:1.5,reference:-0.5}"),
            (
                ("soup", "intervention.weight=0.5", "intervention.roles={q:1.2}"),
                "intervention.roles.q is 1.2, allowed is a share of reference",
            ),
            (
                ("soup", "intervention.weights={}", "intervention.allow_any_sum=true"),
                "intervention.weights: dictionary should have at least 1",
            ),
            (("task_arithmetic", "intervention.scales={}"), "intervention.scales: dictionary should have at least 1"),
            (("dare", "intervention.drop=0.5", "intervention.scales={}"), "intervention.scales: dictionary should have at least 1"),
            (("ties", "intervention.keep=0.2", "intervention.models=[tuned,tuned]"), "got tuned, tuned: name every checkpoint once"),
        ],
        fast=2,
    ),
)
def test_a_merge_that_makes_no_sense_is_refused(words: tuple[str, ...], expected: str) -> None:
    merge, *settings = words
    said = refused(f"intervention={merge}", *settings)
    assert said.startswith(("intervention.", "intervention="))
    assert expected in said


def test_weights_by_name_may_go_beyond_the_checkpoints() -> None:
    soup = change_of("intervention=soup", "intervention.weights={tuned:1.5,reference:-0.5}")
    assert [(part.name, part.weight) for part in soup.members] == [("tuned", 1.5), ("reference", -0.5)]


def test_other_merges_are_configured_by_their_files() -> None:
    arithmetic = change_of("intervention=task_arithmetic", "intervention.scale=0.5")
    assert [(part.name, part.weight) for part in arithmetic.members] == [("tuned", 0.5)]
    assert change_of("intervention=dare", "intervention.drop=0.9", "intervention.seed=3").seed == 3
    assert [part.name for part in change_of("intervention=ties", "intervention.keep=0.2").members] == ["tuned", "reference"]
