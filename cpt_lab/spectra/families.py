"""The measures by family: what a family works out once for a batch of matrices, and each measure as a function of that.

A measure more of a family is one function and one entry here, and its name in `cpt_lab/spectra/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cpt_lab.names import unknown
from cpt_lab.spectra import fits, marchenko_pastur, measures, pairs, rotation, svsm, tails


@dataclass(frozen=True)
class Family:
    """`fit` takes what the measures are of and the family's options by keyword; measures take what it returns."""

    fit: Callable[..., Any]
    measures: Mapping[str, Callable[[Any], Tensor]]

    def columns(self, source: Any, names: Iterable[str], **options: Any) -> dict[str, Tensor]:
        """These measures, (...,) float64 each, in the order of the names; KeyError for one of another family."""
        wanted = tuple(names)
        for name in wanted:
            if name not in self.measures:
                raise KeyError(unknown("measure of this family", name, self.measures))
        found = self.fit(source, **options)
        return {name: self.measures[name](found) for name in wanted}


FAMILIES: dict[str, Family] = {
    # of a Spectrum
    "norms": Family(lambda spectrum: spectrum, measures.MEASURES),
    "power_law": Family(fits.fit, fits.MEASURES),  # min_tail=None, ks="clauset"
    "tails": Family(tails.fit, tails.MEASURES),  # samples, seeds (one per spectrum), min_tail=None, ks="clauset"
    "marchenko_pastur": Family(marchenko_pastur.fit, marchenko_pastur.MEASURES),  # null="analytic"
    # of an Agreement
    "agreement": Family(lambda agreement: agreement, pairs.MEASURES),
    "rotation": Family(lambda agreement: agreement, rotation.MEASURES),
    # of svsm.Spectra: tuned and base
    "svsm": Family(svsm.scalings, svsm.MEASURES),
}
