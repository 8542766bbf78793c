"""Filters of corpora: which rows of a source count as documents."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cpt_lab.names import unknown

if TYPE_CHECKING:
    from cpt_lab.specs import Rule


def passes(row: Mapping[str, Any], rules: Sequence[Rule]) -> bool:
    """Whether a row passes every rule; ValueError for a row that lacks a field or holds something else than the rule tests."""
    return all(_passes(row, rule) for rule in rules)


def value_of(row: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path; a field whose own name has dots is found by that name. ValueError listing the fields there are."""
    if path in row:
        return row[path]
    inside: Any = row
    for name in path.split("."):
        if not isinstance(inside, Mapping) or name not in inside:
            raise ValueError(unknown("field", path, inside if isinstance(inside, Mapping) else row))
        inside = inside[name]
    return inside


def _passes(row: Mapping[str, Any], rule: Rule) -> bool:
    value = value_of(row, rule.field)
    if rule.at_least is not None or rule.at_most is not None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"field {rule.field!r} holds {value!r}, which at_least and at_most cannot be asked of: use one_of or matches")
        if (rule.at_least is not None and value < rule.at_least) or (rule.at_most is not None and value > rule.at_most):
            return False
    if rule.one_of is not None and str(value) not in rule.one_of:
        return False
    return rule.matches is None or re.search(rule.matches, str(value)) is not None
