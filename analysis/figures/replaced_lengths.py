"""How long the answers of post-trained models are with their own singular values and with those of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.edited import REPLACED
from analysis.edited_scores import length_sheet

if TYPE_CHECKING:
    from analysis.drawing import Sheet
    from analysis.results import Results

SHOWS = "tokens of an answer with the tuned model's own and with replaced singular values"
PAPERS = ("T table 6",)
NEEDS = "evaluations of a tuned model as it is and with replaced singular values (see experiments scale_transplant_MODEL)"


def build(results: Results, _: Mapping[str, Any]) -> Sheet:
    """A row per model and edit, a column per task."""
    return length_sheet(results, REPLACED, name="replaced_lengths", title="Lengths of answers with replaced singular values", needs=NEEDS)
