"""Interventions: one file per idea, each `(what, which units, settings) -> Patch`. Adding one is one file and one entry here."""

from __future__ import annotations

from typing import Any

from cpt_lab.interventions.rewind import Rewind
from cpt_lab.names import unknown
from cpt_lab.specs import Intervention

INTERVENTIONS: dict[str, type[Intervention]] = {"rewind": Rewind}


def parse(data: dict[str, Any]) -> Intervention:
    """The intervention that `model_dump` wrote, by its `kind`."""
    if data.get("kind") not in INTERVENTIONS:
        raise ValueError(unknown("intervention", str(data.get("kind")), INTERVENTIONS))
    return INTERVENTIONS[data["kind"]].model_validate(data)
