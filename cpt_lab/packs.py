"""Packs: points shared out to workers by their time, so that a worker loads little and edits little from one point to the next."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from cpt_lab import specs
from cpt_lab.specs import Spec, key

Item = TypeVar("Item")
LEAST_SHARE = 1e-3  # of the longest point's time: what seems to take none is still something to do


def pack(
    points: Sequence[Spec],
    workers: int,
    *,
    seconds: Mapping[str, float] | None = None,
    places: Mapping[str, int] | None = None,
) -> tuple[tuple[str, ...], ...]:
    """The keys of these points in at most so many packs, none empty, none longer than an even share of the `seconds` and one point.

    Points that share a loaded checkpoint and protocol lie together: by their `places` if they have some, else as `by_edit` puts them.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers can do nothing: a plan needs at least one worker")
    known = places or {}
    placed = all(key(point) in known for point in points)  # then they need not be compared, which takes long with many heads
    groups: dict[str, list[str]] = {}
    for point in points if placed else by_edit(points, lambda point: point):
        groups.setdefault(_shared(point), []).append(key(point))
    for group in groups.values():
        group.sort(key=lambda name: known.get(name, len(known)))
    in_order = [name for group in groups.values() for name in group]
    return _cut(in_order, min(workers, len(in_order)), seconds or {})


def by_edit(items: Sequence[Item], spec_of: Callable[[Item], Spec]) -> list[Item]:
    """The items in an order in which neighbours' edits differ little.

    Edits that differ in numbers only (fractions, ranks, factors) are a group, sorted by them: upwards in the first group, downwards in
    the next, and so on, for groups are alike at their ends: whatever the criterion, all heads are all heads.
    """
    groups: dict[str, list[tuple[tuple[float, ...], int]]] = {}
    for index, item in enumerate(items):
        words, numbers = _edit(spec_of(item))
        groups.setdefault(words, []).append((numbers, index))
    ordered = (sorted(group, reverse=number % 2 == 1) for number, group in enumerate(groups.values()))
    return [items[index] for group in ordered for _, index in group]


def _cut(names: list[str], count: int, seconds: Mapping[str, float]) -> tuple[tuple[str, ...], ...]:
    """Consecutive pieces: each ends where its share of all seconds is reached, and leaves a point for every piece to come."""
    costs = [seconds.get(name, 0.0) for name in names]
    least = LEAST_SHARE * max(costs, default=0.0) or 1.0
    reached = list(accumulate((max(cost, least) for cost in costs), initial=0.0))
    bounds = [0]
    for index in range(1, count):
        share = reached[-1] * index / count * (1 + 1e-9)  # rounding must not cost an exact share its last point
        place = bisect_right(reached, share) - 1
        bounds.append(min(max(place, bounds[-1] + 1), len(names) - (count - index)))
    return tuple(tuple(names[start:stop]) for start, stop in pairwise([*bounds, len(names)])) if count else ()


def _shared(point: Spec) -> str:
    """What a worker keeps loaded from one point to the next."""
    if isinstance(point, specs.Evaluation):
        return f"{key(point.loaded)} {key(point.protocol)}"
    return ""


def _edit(point: Spec) -> tuple[str, tuple[float, ...]]:
    """An evaluation's edit as its words and its numbers; steps without one have no words, and stay in their order."""
    if not isinstance(point, specs.Evaluation):
        return "", ()
    changes = point.checkpoint.interventions if isinstance(point.checkpoint, specs.Patched) else ()
    numbers: list[float] = []
    return _words(changes, numbers), tuple(numbers)


def _words(value: Any, numbers: list[float]) -> str:
    """The value as text with a mark for every number, which goes to `numbers`; what is a product of its own (a checkpoint, a ranking)
    counts as its name: another one is another edit, however near its numbers are."""
    if isinstance(value, Spec):
        if value.FOLDER:
            return key(value)
        return " ".join(_words(getattr(value, name), numbers) for name in type(value).model_fields)
    if isinstance(value, tuple) and (flat := _units(value)):  # hundreds of heads, and as many points
        numbers.extend(flat)
        return "#"
    if isinstance(value, tuple):  # of any length: one head and two heads are edits of one kind
        return " ".join(dict.fromkeys([_words(item, numbers) for item in value]))
    if isinstance(value, int | float) and not isinstance(value, bool):
        numbers.append(float(value))
        return "#"
    return repr(value)


def _units(values: tuple[Any, ...]) -> list[float]:
    """The numbers of a tuple of tuples of integers, such as heads; nothing for any other tuple."""
    flat = [number for item in values if isinstance(item, tuple) for number in item]
    return list(map(float, flat)) if set(map(type, values)) == {tuple} and set(map(type, flat)) == {int} else []
