"""The numbers that the papers print, as data with their source. P: the main paper and its slides, T: post-training, L: lifecycle."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

FOLDER = Path(__file__).parent
NUMBERS = ("value", "error", "measured")  # columns of the tables that do not say what a number is of
Paper = Literal["P", "T", "L"]


@dataclass(frozen=True)
class Printed:
    """A number as it stands in a paper: what it is, what it is of, and where it stands.

    `value` is None where the paper prints a dash (the model collapsed) or gives a range, `low` to `high`; a bound alone is a claim of one
    side. `error` is what the paper prints behind its ±, `error_is` what that means.
    """

    paper: Paper
    place: str
    quantity: str
    of: Mapping[str, str]
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    error_is: str = ""

    @property
    def source(self) -> str:
        return f"{self.paper} {self.place}"

    def difference(self, ours: float) -> float | None:
        """ours - theirs; from the nearer end of a range, 0 inside; None where the paper prints a dash."""
        if self.value is not None:
            return ours - self.value
        if self.low is not None and ours < self.low:
            return ours - self.low
        if self.high is not None and ours > self.high:
            return ours - self.high
        return None if self.low is None and self.high is None else 0.0

    def text(self) -> str:
        """`85.14 ± 0.14`, `0.69 to 0.84`, `at most 23.7`, or a dash."""
        if self.value is not None:
            return f"{self.value:g}" + (f" ± {self.error:g}" if self.error is not None else "")
        match self.low, self.high:
            case None, None:
                return "-"
            case None, high:
                return f"at most {high:g}"
            case low, None:
                return f"at least {low:g}"
            case low, high:
                return f"{low:g} to {high:g}"


@cache
def numbers() -> tuple[Printed, ...]:
    """Every number that is kept: all tables, then the claims of the prose."""
    return (*_tables(), *_claims())


@cache
def table(file: str) -> tuple[Mapping[str, str], ...]:
    """The rows of one CSV file beside this module, as they stand."""
    with (FOLDER / file).open(newline="") as lines:
        return tuple(csv.DictReader(lines))


@cache
def post_trained() -> Mapping[str, tuple[str, str]]:
    """The last part of a hub id -> (base model, instruct or reasoning), of the checkpoints that T compares (T table 9)."""
    return {row["checkpoint"]: (row["model"], row["tuned"]) for row in table("t_table_9.csv")}


def _tables() -> Iterator[Printed]:
    for file, about in yaml.safe_load((FOLDER / "tables.yaml").read_text()).items():
        for row in table(file):
            of = {name: value for name, value in row.items() if name not in NUMBERS}
            yield Printed(
                paper=about["paper"],
                place=about["place"],
                quantity=about["quantity"],
                of=of,
                unit=about["unit"],
                value=_number(row["value"]),
                error=_number(row.get("error", "")),
                error_is=about["error"],
            )


def _claims() -> Iterator[Printed]:
    claims: list[dict[str, Any]] = yaml.safe_load((FOLDER / "claims.yaml").read_text())
    for claim in claims:
        yield Printed(**claim)


def _number(text: str) -> float | None:
    return float(text) if text else None
