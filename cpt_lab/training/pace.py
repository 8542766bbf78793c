"""How often something may be measured during training, so that it takes no more than a share of the time."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

REMEMBERED = 3  # measurements, whose median is what the next one will take


@dataclass
class Pace:
    """Measure every `interval` steps: `every`, doubled as often as need be, so that the steps of a slower pace are some of a faster one's.

    A measurement of c seconds is the share c / (c + n t) of an interval of n steps of t seconds.
    """

    every: int
    share: float
    interval: int = field(init=False)
    measuring: float = 0.0  # seconds, of all attempts
    training: float = 0.0
    trained: int = 0  # steps that took so long
    recent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.interval = self.every

    def count_step(self, seconds: float) -> None:
        """Count a step that took so long."""
        self.training += seconds
        self.trained += 1

    def count_measurement(self, seconds: float) -> None:
        """Count a measurement, and choose the interval to the next; while no step was counted it is `every`."""
        self.measuring += seconds
        self.recent = [*self.recent, seconds][-REMEMBERED:]
        self.interval = self.every
        while self.trained and self.interval < self.fewest_steps:
            self.interval *= 2

    @property
    def fewest_steps(self) -> float:
        """The shortest interval in which a measurement takes no more than its share: c (1 - share) / (share t)."""
        step = max(self.training / self.trained, 1e-9)
        return statistics.median(self.recent) * (1 - self.share) / (self.share * step)

    @property
    def spent(self) -> float:
        """The share of the time that measuring has taken."""
        return self.measuring / max(self.measuring + self.training, 1e-9)

    def state(self) -> dict[str, Any]:
        """What another attempt goes on from."""
        return asdict(self)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier attempt, unless that was asked for another pace."""
        if (state.get("every"), state.get("share")) == (self.every, self.share):
            for name in asdict(self):
                setattr(self, name, state[name])
