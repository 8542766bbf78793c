"""How long the answers of post-trained models are with the rotation of singular vectors undone and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.edited import ROTATED
from analysis.edited_scores import length_sheet

if TYPE_CHECKING:
    from analysis.drawing import Sheet
    from analysis.results import Results

SHOWS = "tokens of an answer with one side's rotation undone and restored"
PAPERS = ("T table 8",)
NEEDS = "evaluations of a tuned model as it is and with rotations undone or restored (see experiments rotate_MODEL)"


def build(results: Results, _: Mapping[str, Any]) -> Sheet:
    """A row per model and edit, a column per task."""
    return length_sheet(
        results, ROTATED, name="restored_lengths", title="Lengths of answers with rotations undone and restored", needs=NEEDS
    )
