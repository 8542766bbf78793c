"""The names that planning knows are the measures that there are."""

from __future__ import annotations

import pytest

from cpt_lab.spectra import FAMILY_OF, MEASURES, NAMES, PAIR_FAMILIES, PRESETS
from cpt_lab.spectra.families import FAMILIES
from spectra_cases import random, spectrum


def test_every_name_has_its_function_in_its_family_and_every_function_its_name() -> None:
    assert {name: list(family.measures) for name, family in FAMILIES.items()} == {name: list(names) for name, names in MEASURES.items()}
    assert len(set(NAMES)) == len(NAMES) == sum(map(len, MEASURES.values()))


def test_presets_and_pair_families_name_what_there_is() -> None:
    assert {name for preset in PRESETS.values() for name in preset} <= set(NAMES)
    assert all(len(set(preset)) == len(preset) for preset in PRESETS.values())
    assert set(PAIR_FAMILIES) <= set(FAMILIES)
    assert set(PRESETS["all"]) == {name for name, family in FAMILY_OF.items() if family != "tails"}


@pytest.mark.parametrize("family", ["norms", "power_law", "marchenko_pastur"])
def test_columns_come_in_the_order_that_is_asked_for(family: str) -> None:
    names = MEASURES[family][::-2]
    found = FAMILIES[family].columns(spectrum(random(2, 30, 12)), names)
    assert tuple(found) == names
    assert {values.shape for values in found.values()} == {(2,)}


def test_a_measure_of_another_family_is_refused_with_those_of_this_one() -> None:
    with pytest.raises(KeyError, match=r"unknown measure of this family 'pl_alpha'.*spectral_norm"):
        FAMILIES["norms"].columns(spectrum(random(5, 3)), ["pl_alpha"])
