"""The interventions of a configuration in the order in which they apply: `intervention`, then those of `then` as they stand there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING
from pydantic import ValidationError

from cpt_lab.config import Config, CriterionConfig, explain, validated
from cpt_lab.interventions import INTERVENTIONS
from cpt_lab.names import unknown
from cpt_lab.specs import Choices, Intervention

NONE = "none"


@dataclass(frozen=True)
class Link:
    """One intervention as it is configured: where it stands, its settings, and the criterion that its units are ranked by."""

    place: str
    name: str
    settings: dict[str, Any]
    criterion: CriterionConfig
    own: bool = False  # whether the criterion is its own, at `<place>.criterion`; else it is the study's

    @property
    def kind(self) -> type[Intervention]:
        """The class of this name; KeyError with the names there are."""
        if self.name not in INTERVENTIONS:
            raise KeyError(f"{self.place}.name: {unknown('intervention', self.name, [NONE, *INTERVENTIONS])}")
        return INTERVENTIONS[self.name]


def links(config: Config) -> Iterator[Link]:
    """Every intervention of the configuration but `none`; ValueError for a criterion that cannot be read."""
    for place, data in (("intervention", config.intervention), *((f"then.{name}", data) for name, data in config.then.items())):
        given = {name: value for name, value in data.items() if value != MISSING}
        name = given.pop("name", None)
        if name is None:
            raise ValueError(f"{place} names no intervention: add one with +intervention@{place}=NAME")
        own = given.pop("criterion", None) if place != "intervention" else None
        if name != NONE:
            yield Link(place, str(name), given, _criterion(own, place) if own else config.criterion, own=own is not None)


def interventions(config: Config, choices: Callable[[Link], Choices]) -> tuple[Intervention, ...]:
    """The interventions as specs; ValueError or KeyError that names the place of what is wrong."""
    made = []
    for link in links(config):
        try:
            made.append(link.kind.chosen(validated(link.kind.SETTINGS, link.settings, link.place), choices(link)))
        except ValidationError as error:
            raise ValueError(_at_its_place(explain(error, link.kind), link)) from None
        except ValueError as error:
            raise ValueError(_at_its_place(str(error), link)) from None
    return tuple(made)


def _criterion(data: Any, place: str) -> CriterionConfig:
    if not isinstance(data, dict):
        raise ValueError(f"{place}.criterion: got {data!r}, allowed is a mapping: choose a file with +criterion@{place}.criterion={data}")
    return validated(CriterionConfig, data, f"{place}.criterion")


def _at_its_place(message: str, link: Link) -> str:
    """Interventions and criteria speak of their settings as if they stood alone: `intervention.percent`, `criterion.seed`."""
    message = re.sub(r"\bintervention(?==)", f"intervention@{link.place}", message) if link.place != "intervention" else message
    message = re.sub(r"(?<![\w.])intervention(?=\.\w)", link.place, message)
    return re.sub(r"(?<![\w.])criterion(?=\.\w)", f"{link.place}.criterion", message) if link.own else message
