"""Interventions: one file per idea, each `(what, which units, settings) -> Patch`. Adding one is one file and one entry here."""

from __future__ import annotations

from typing import Any

from cpt_lab.interventions.dare import Dare
from cpt_lab.interventions.prune_layers import PruneLayers
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.interventions.rotate_ablate import RotateAblate
from cpt_lab.interventions.rotate_restore import RotateRestore
from cpt_lab.interventions.scale_transplant import ScaleTransplant
from cpt_lab.interventions.soup import Soup
from cpt_lab.interventions.task_arithmetic import TaskArithmetic
from cpt_lab.interventions.ties import Ties
from cpt_lab.interventions.transplant import Transplant
from cpt_lab.interventions.truncate import Truncate
from cpt_lab.names import unknown
from cpt_lab.specs import Intervention

INTERVENTIONS: dict[str, type[Intervention]] = {
    "rewind": Rewind,
    "truncate": Truncate,
    "transplant": Transplant,
    "scale_transplant": ScaleTransplant,
    "rotate_ablate": RotateAblate,
    "rotate_restore": RotateRestore,
    "soup": Soup,
    "task_arithmetic": TaskArithmetic,
    "dare": Dare,
    "ties": Ties,
    "prune_layers": PruneLayers,
}


def parse(data: dict[str, Any]) -> Intervention:
    """The intervention that `model_dump` wrote, by its `kind`."""
    if data.get("kind") not in INTERVENTIONS:
        raise ValueError(unknown("intervention", str(data.get("kind")), INTERVENTIONS))
    return INTERVENTIONS[data["kind"]].model_validate(data)
