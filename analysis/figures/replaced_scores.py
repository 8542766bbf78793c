"""Scores of post-trained models with their own singular values and with those of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.edited import REPLACED
from analysis.edited_scores import score_sheet

if TYPE_CHECKING:
    from analysis.drawing import Sheet
    from analysis.results import Results

SHOWS = "scores with the tuned model's own and with replaced singular values"
PAPERS = ("T table 1", "T table 5")
NEEDS = "evaluations of a tuned model as it is and with replaced singular values (see experiments scale_transplant_MODEL)"


def build(results: Results, _: Mapping[str, Any]) -> Sheet:
    """A row per model and edit, a column per task."""
    return score_sheet(results, REPLACED, name="replaced_scores", title="Scores with replaced singular values", needs=NEEDS)
