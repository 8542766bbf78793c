"""Scores of post-trained models with the rotation of singular vectors undone and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.edited import ROTATED
from analysis.edited_scores import score_sheet

if TYPE_CHECKING:
    from analysis.drawing import Sheet
    from analysis.results import Results

SHOWS = "scores with one side's rotation undone and restored"
PAPERS = ("T table 2", "T table 7")
NEEDS = "evaluations of a tuned model as it is and with rotations undone or restored (see experiments rotate_MODEL)"


def build(results: Results, _: Mapping[str, Any]) -> Sheet:
    """A row per model and edit, a column per task."""
    return score_sheet(results, ROTATED, name="restored_scores", title="Scores with rotations undone and restored", needs=NEEDS)
