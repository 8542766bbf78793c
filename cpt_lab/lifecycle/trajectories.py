"""One measure of all matrices over a training run, as arrays: what every function of this package takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cpt_lab.families import ROLES
from cpt_lab.names import unknown

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

TABLE = "spectra.parquet"  # of a trained checkpoint's folder
PIECES = "spectra"  # of its scratch folder, while it trains: a table per measured step
PLACES = ("step", "tokens", "layer", "role", "head")
WHOLE = -1  # in the column `head`: the whole matrix


@dataclass(frozen=True)
class Trajectory:
    """A measure of every matrix at every measured step; nan where there is none."""

    measure: str
    steps: Integers  # (t,) rising
    tokens: Integers  # (t,)
    roles: tuple[str, ...]  # r of them
    values: Floats  # (t, l, r): steps, layers, roles

    def __post_init__(self) -> None:
        expected = (len(self.steps), self.values.shape[1] if self.values.ndim == 3 else -1, len(self.roles))
        if self.values.shape != expected or self.tokens.shape != self.steps.shape or not len(self.steps):
            raise ValueError(
                f"a trajectory of {len(self.steps)} steps and {len(self.roles)} roles has values (steps, layers, roles), "
                f"not {self.values.shape}, and as many tokens as steps, not {len(self.tokens)}"
            )
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError("the steps of a trajectory must rise: sort them, and drop what was measured twice")

    @property
    def num_layers(self) -> int:
        return int(self.values.shape[1])

    @property
    def depths(self) -> Floats:
        """(l,) each layer's place from 0, the first, to 1, the last."""
        return np.linspace(0.0, 1.0, self.num_layers) if self.num_layers > 1 else np.zeros(1)

    def of(self, roles: str | Sequence[str] | None = None) -> Floats:
        """(t, l): the mean over these roles, None for all; KeyError for one that is not there. Where one is nan, so is the mean."""
        names = (roles,) if isinstance(roles, str) else tuple(roles or self.roles)
        for name in names:
            if name not in self.roles:
                raise KeyError(unknown("role of this trajectory", name, self.roles))
        mean: Floats = self.values[:, :, [self.roles.index(name) for name in names]].mean(axis=2)
        return mean

    def between(self, first: int, last: int) -> Trajectory:
        """The part from one step to another, both included; ValueError if nothing was measured there."""
        inside = (self.steps >= first) & (self.steps <= last)
        if not inside.any():
            raise ValueError(f"nothing was measured from step {first} to {last}: the steps go from {self.steps[0]} to {self.steps[-1]}")
        return Trajectory(self.measure, self.steps[inside], self.tokens[inside], self.roles, self.values[inside])


@dataclass(frozen=True)
class HeadTrajectory:
    """A measure of every head of one role at every measured step."""

    measure: str
    role: str
    steps: Integers  # (t,)
    tokens: Integers  # (t,)
    values: Floats  # (t, l, h): steps, layers, heads; key-value heads for k and v


def read(run: Path | str, measure: str) -> Trajectory:
    """The trajectory of a measure in a run: a trained checkpoint's folder, a run's scratch folder while it trains, or the table itself.

    ValueError if the run was not watched, KeyError for a measure that it has not.
    """
    rows = _rows(run, measure)
    rows = rows[rows["head"] == WHOLE]
    names = set(rows["role"])
    roles = tuple(role for role in ROLES if role in names)
    steps, tokens = _times(rows)
    cube = rows.pivot(index="step", columns=["layer", "role"], values=measure)
    layers = range(int(rows["layer"].max()) + 1)
    values = np.stack([cube.reindex(columns=[(layer, role) for role in roles]).to_numpy(float) for layer in layers], axis=1)
    return Trajectory(measure, steps, tokens, roles, values)


def read_heads(run: Path | str, measure: str, *, role: str) -> HeadTrajectory:
    """The same of the heads of one role; ValueError if the run was watched without its heads, or has no such role."""
    rows = _rows(run, measure)
    rows = rows[(rows["head"] != WHOLE) & (rows["role"] == role)]
    if rows.empty:
        raise ValueError(f"{run} has no heads of the role {role}: train with watch.heads=true, and give q, k, v or o")
    steps, tokens = _times(rows)
    cube = rows.pivot(index="step", columns=["layer", "head"], values=measure).sort_index(axis=1)
    layers = int(rows["layer"].max()) + 1
    return HeadTrajectory(measure, role, steps, tokens, cube.to_numpy(float).reshape(len(steps), layers, -1))


def measures(run: Path | str) -> tuple[str, ...]:
    """The measures that a run was watched by, in their order."""
    return tuple(name for name in _table(run).columns if name not in PLACES)


def _rows(run: Path | str, measure: str) -> pd.DataFrame:
    table = _table(run)
    known = [name for name in table.columns if name not in PLACES]
    if measure not in known:
        raise KeyError(unknown(f"measure of {run}", measure, known))
    return table[[*PLACES, measure]]


def _table(run: Path | str) -> pd.DataFrame:
    """All rows, by step."""
    import pandas as pd

    place = Path(run)
    files = [file for file in (place, place / TABLE) if file.is_file()][:1]
    folder = next((folder for folder in (place / PIECES, place) if folder.is_dir()), place)
    files = files or sorted((file for file in folder.glob("*.parquet") if file.stem.isdigit()), key=lambda file: int(file.stem))
    if not files:
        raise ValueError(f"{run} holds no spectra of its training: train with watch.every=25, and give the checkpoint's folder")
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True).sort_values("step", kind="stable")


def _times(rows: pd.DataFrame) -> tuple[Integers, Integers]:
    times = rows[["step", "tokens"]].drop_duplicates().to_numpy(np.int64)
    return times[:, 0], times[:, 1]
