"""What is measured of a model while it trains."""

from __future__ import annotations

from pydantic import Field, field_validator

from cpt_lab.names import unknown
from cpt_lab.specs.base import Spec

FAMILIES = ("norms", "power_law", "marchenko_pastur")  # of one checkpoint's values, and quick enough to be taken between two steps


class Watch(Spec):
    """Spectra of every matrix of the layers while a run trains (L algorithm 2). They change no weights, but are part of the product."""

    every: int = Field(default=25, gt=0, description="steps, unless that costs more than execution.spectra_share of the run's time")
    measures: tuple[str, ...] = Field(min_length=1, description="columns, in this order; of the families that need one checkpoint only")
    heads: bool = Field(default=False, description="also of each head's block of q, k, v and o")

    @field_validator("measures")
    @classmethod
    def _are_of_one_checkpoint(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        from cpt_lab.spectra import MEASURES

        allowed = [name for family in FAMILIES for name in MEASURES[family]]
        for name in measures:
            if name not in allowed:
                raise ValueError(unknown("measure of a run that trains", name, allowed))
        return tuple(dict.fromkeys(measures))
