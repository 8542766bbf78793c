"""What a cluster's partitions can give, and what they would keep waiting for ever."""

from __future__ import annotations

import math

import pytest

from cpt_lab.partitions import Node, Partition, check, parse

SINFO = """\
gpu*|1-12:00:00|64|515000|gpu:h100:8(S:0-1)
gpu*|1-12:00:00|64|515000|gpu:h100:8(S:0-1)
gpu*|1-12:00:00|32|257000|gpu:4
short|30:00|64|515000|gpu:h100:8(S:0-1)
cpu|infinite|128|1031000|(null)
"""
KNOWN = parse(SINFO)


def test_partitions_are_read_with_their_default_their_limit_and_their_kinds_of_nodes() -> None:
    big, small = Node(64, 515000, 8), Node(32, 257000, 4)
    assert parse(SINFO) == [
        Partition("gpu", True, 36 * 60, {big: 2, small: 1}),
        Partition("short", False, 30, {big: 1}),
        Partition("cpu", False, math.inf, {Node(128, 1031000, 0): 1}),
    ]


@pytest.mark.parametrize(
    ("limit", "minutes"), [("30:00", 30), ("12:00:00", 720), ("2-00:00:00", 2880), ("infinite", math.inf), ("n/a", math.inf), ("0:30", 0.5)]
)
def test_time_limits_are_read_in_every_form_that_slurm_prints(limit: str, minutes: float) -> None:
    assert parse(f"a|{limit}|1|1|(null)")[0].minutes == minutes


@pytest.mark.parametrize(
    ("gres", "gpus"), [("(null)", 0), ("gpu:2", 2), ("gpu:a100:4,nvme:1", 4), ("gpu:h100:8(S:0-1),gpu:a100:2(S:1)", 10), ("shard:8", 0)]
)
def test_gpus_are_counted_of_every_kind_and_nothing_else(gres: str, gpus: int) -> None:
    assert [node.gpus for node in parse(f"a|1:00|1|1|{gres}")[0].nodes] == [gpus]


@pytest.mark.parametrize(
    "asked",
    [
        {"time": 2160, "cpus-per-task": 64, "mem": "515000M", "gpus-per-node": 8},
        {"time": 60, "gpus-per-node": 8, "nodes": 2, "partition": "gpu"},
        {"time": 100_000, "partition": "cpu", "cpus-per-task": 128},
        {"time": 60, "partition": "short,gpu"},  # one of them can
    ],
)
def test_what_some_node_can_give_is_let_through(asked: dict[str, str | int]) -> None:
    check("evaluate", asked, KNOWN)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"time": 31, "partition": "short"}, "partition short for 31 minutes, and it gives 30 at most: lower site.minutes"),
        ({"time": 5, "gpus-per-node": 16}, r"a node with 1 cores and 16 GPUs, and it has 2 with 64 cores, 502.9 GB and 8 GPUs; 1 with"),
        ({"time": 5, "gpus-per-node": 8, "nodes": 3}, "3 nodes with 1 cores and 8 GPUs"),
        ({"time": 5, "mem": "600000M"}, "585.9 GB"),
        ({"time": 5, "partition": "cpu", "gpus-per-node": 1}, "partition cpu"),
        ({"time": 99_999, "partition": "short,gpu"}, "partition short for 99999 minutes"),
    ],
)
def test_what_would_wait_for_ever_is_refused_with_what_there_is(asked: dict[str, str | int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check("evaluate", asked, KNOWN)


def test_an_unknown_partition_is_refused_with_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean short"):
        check("evaluate", {"time": 5, "partition": "shrt"}, KNOWN)


def test_a_cluster_without_a_default_partition_is_left_to_say_so_itself() -> None:
    check("evaluate", {"time": 5}, [Partition("gpu", False, 1, {})])
