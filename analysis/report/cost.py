"""What a study took, what it was made with, and what went wrong: from the provenance of everything its points need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.results import Results
from cpt_lab.plan import stage_of
from cpt_lab.specs import Spec, closure, key
from cpt_lab.store import State
from cpt_lab.study import warnings

MOST_MESSAGES = 20


@dataclass(frozen=True)
class Stage:
    """How many steps of a stage are done, and what they took."""

    name: str
    steps: int
    seconds: float
    gpu_hours: float


@dataclass(frozen=True)
class Cost:
    """What was spent, stage by stage; steps that other studies share are counted here too."""

    stages: tuple[Stage, ...]

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        return sum(stage.gpu_hours for stage in self.stages)


@dataclass(frozen=True)
class Trouble:
    """Points without a result that ended alike."""

    state: str
    message: str  # its first line
    points: tuple[str, ...]


@dataclass(frozen=True)
class Account:
    """Cost, provenance (fact -> values with the number of results that have each), troubles and warnings."""

    cost: Cost
    made_with: dict[str, Counter[str]]
    troubles: tuple[Trouble, ...]
    warnings: Counter[str]


def account(results: Results) -> Account:
    """Read once for every distinct step behind the points, whichever launch or study built it."""
    steps = _steps(results)
    stages: dict[str, list[tuple[float, float]]] = {}
    made_with: dict[str, Counter[str]] = {}
    warned: Counter[str] = Counter()
    for spec in steps:
        if not spec.FOLDER or not results.store.is_done(spec):
            continue
        facts = results.store.provenance(spec)
        seconds = float(facts.get("seconds", 0.0))
        gpus = int((facts.get("execution") or {}).get("gpus") or 1) if facts.get("gpu") else 0
        stages.setdefault(stage_of(spec), []).append((seconds, gpus * seconds / 3600))
        for name, value in _facts(facts):
            made_with.setdefault(name, Counter())[value] += 1
        warned.update(warnings(results.store, spec))
    found = [Stage(name, len(of), sum(each for each, _ in of), sum(each for _, each in of)) for name, of in stages.items()]
    return Account(Cost(tuple(found)), made_with, tuple(troubles(results)), warned)


def troubles(results: Results) -> Iterable[Trouble]:
    """The points without a result, those that ended alike together, the most frequent first."""
    table = results.points
    alike: dict[tuple[str, str], list[str]] = {}
    for name, state, message in table.loc[table["state"] != State.DONE.value, ["name", "state", "message"]].itertuples(index=False):
        first = next(iter(str(message).splitlines()), "")
        alike.setdefault((str(state), first), []).append(str(name))
    return [Trouble(*what, tuple(points)) for what, points in sorted(alike.items(), key=lambda each: -len(each[1]))][:MOST_MESSAGES]


def _steps(results: Results) -> list[Spec]:
    """Every distinct step that the points are or need, in an order in which they can be built."""
    asked = [point.spec for study in results.studies for point in study.points]
    whole = closure([*asked, *results.resolved.values()])
    return list({key(spec): spec for spec in whole}.values())


def _facts(facts: dict[str, object]) -> Iterable[tuple[str, str]]:
    commit, changed = str(facts.get("git") or "unknown"), facts.get("git_diff")
    yield "code", commit[:12] + (f" with changes {changed}" if changed else "")
    yield "machine", str(facts.get("host") or "unknown")
    yield "GPU", str(facts.get("gpu") or "none")
    yield "Python", str(facts.get("python") or "unknown")
    packages = facts.get("versions")
    for name, version in sorted(packages.items()) if isinstance(packages, dict) else ():
        yield str(name), str(version)
