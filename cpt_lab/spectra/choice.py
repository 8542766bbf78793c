"""Which measures a table has, from names of presets, families and measures. Importing this module needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from cpt_lab.names import unknown
from cpt_lab.spectra import FAMILY_OF, MEASURES, NAMES, PAIR_FAMILIES, PRESETS


def chosen(names: str | Sequence[str], *, pair: bool) -> tuple[str, ...]:
    """The measures by name, each once, in the order of the names: a preset or a family stands for all it has.

    Without a second checkpoint presets leave out what compares two; ValueError if that is all they have, for an unknown name and for none.
    """
    given = (names,) if isinstance(names, str) else tuple(names)
    found = [measure for name in given for measure in _meant(name, pair=pair)]
    if not found:
        raise ValueError(f"no spectral measures are chosen: give some of {', '.join((*PRESETS, *MEASURES))}, or measures by name")
    return tuple(dict.fromkeys(found))


def _meant(name: str, *, pair: bool) -> tuple[str, ...]:
    if name not in PRESETS:
        known = (*PRESETS, *MEASURES, *NAMES)
        if name not in known:
            raise ValueError(unknown("spectral measure or preset", name, known))
        return MEASURES.get(name, (name,))
    found = tuple(measure for measure in PRESETS[name] if pair or FAMILY_OF[measure] not in PAIR_FAMILIES)
    if not found:
        raise ValueError(f"the measures of {name} compare two checkpoints and there is one: give the other one as `against`")
    return found
