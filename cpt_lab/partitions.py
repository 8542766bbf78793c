"""What a cluster's partitions can give: read from `sinfo`, and held against what a task asks for.

SLURM itself takes a request that no node can meet, or that is longer than its partition allows, and keeps it waiting for ever.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cpt_lab.names import unknown

SINFO = ("sinfo", "--all", "--Node", "--noheader", "--format=%P|%l|%c|%m|%G")


@dataclass(frozen=True)
class Node:
    """One kind of node: what a task can have of it."""

    cores: int
    memory_mb: int
    gpus: int

    def has(self, other: Node) -> bool:
        return self.cores >= other.cores and self.memory_mb >= other.memory_mb and self.gpus >= other.gpus

    def __str__(self) -> str:
        memory = f", {self.memory_mb / 1024:.4g} GB" if self.memory_mb else ""
        return f"{self.cores} cores{memory} and {self.gpus} GPUs"


@dataclass(frozen=True)
class Partition:
    """A partition: its time limit and how many nodes of which kind it has."""

    name: str
    is_default: bool
    minutes: float
    nodes: Mapping[Node, int]


def parse(text: str) -> list[Partition]:
    """The partitions that SINFO prints, one line per node and partition."""
    nodes: dict[tuple[str, str], Counter[Node]] = {}
    for line in text.splitlines():
        name, limit, cores, memory, gres = (field.strip() for field in line.split("|"))
        nodes.setdefault((name, limit), Counter())[Node(_number(cores), _number(memory), _gpus(gres))] += 1
    return [Partition(name.rstrip("*"), name.endswith("*"), _minutes(limit), found) for (name, limit), found in nodes.items()]


def check(stage: str, asked: Mapping[str, str | int], known: Sequence[Partition]) -> None:
    """ValueError, KeyError for the partition's name, if none of the partitions can ever give a task what it asks for.

    `asked` are options of sbatch. Several partitions may be named, as sbatch takes them: one that can is enough.
    """
    by_name = {partition.name: partition for partition in known}
    names = str(asked["partition"]).split(",") if "partition" in asked else [one.name for one in known if one.is_default]
    for name in names:
        if name not in by_name:
            raise KeyError(f"{unknown('partition', name, by_name)}; set site.partition")
    reasons = [_refusal(stage, asked, by_name[name]) for name in names]
    if reasons and all(reasons):
        raise ValueError(reasons[0])


def _refusal(stage: str, asked: Mapping[str, str | int], partition: Partition) -> str:
    """Why this partition would keep such a task waiting for ever, in one sentence; empty if it can run it."""
    where = f"partition {partition.name}"
    if int(asked["time"]) > partition.minutes:
        return f"stage {stage} asks {where} for {asked['time']} minutes, and it gives {partition.minutes:g} at most: lower site.minutes"
    memory = int(str(asked.get("mem", "0M")).removesuffix("M"))
    wanted = Node(int(asked.get("cpus-per-task", 1)), memory, int(asked.get("gpus-per-node", 0)))
    able = sum(count for node, count in partition.nodes.items() if node.has(wanted))
    if able >= int(asked.get("nodes", 1)):
        return ""
    largest = "; ".join(f"{count} with {node}" for node, count in partition.nodes.items())
    count = f"{asked['nodes']} nodes" if "nodes" in asked else "a node"
    return f"stage {stage} asks {where} for {count} with {wanted}, and it has {largest}: lower what the site or its stages ask for"


def _gpus(gres: str) -> int:
    """`gpu:h100:8(S:0-1),gpu:a100:2` -> 10."""
    return sum(int(number) for number in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", gres))


def _minutes(limit: str) -> float:
    """`7-00:00:00`, `12:00:00` or `30:00` in minutes; what is no time is no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def _number(text: str) -> int:
    return int(re.sub(r"\D.*", "", text) or 0)
