"""A checkpoint of the store as a folder of one's own: checked beforehand, copied, with a model card, whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from cpt_lab import specs
from cpt_lab.disk import nearest_folder
from cpt_lab.specs import Checkpoint, Patched, Spec
from cpt_lab.study import Point

CARD = "README.md"
LEAST_BYTES = 2  # of a weight: with less room than this it is not worth beginning
MOST_NAMES = 20  # of points in a refusal


def only(points: Sequence[Point], overrides: Sequence[Sequence[str]]) -> Point:
    """The one point of a command; ValueError with the names of its points and how to choose one if there are more."""
    if len(points) == 1:
        return points[0]
    listed = ", ".join(repr(point.name) for point in points[:MOST_NAMES])
    more = f" and {len(points) - MOST_NAMES} more" if len(points) > MOST_NAMES else ""
    common = set(overrides[0]).intersection(*overrides[1:])
    first = " ".join(override for override in overrides[0] if override not in common)
    raise ValueError(
        f"materialize writes the weights of one point and these are {len(points)}: {listed}{more}; "
        f"choose one by saying all that varies, as the first is {first}"
    )


def weights_of(spec: Spec) -> Checkpoint | Patched:
    """The weights that a point is about: those that it scores, or its own; ValueError if it has none."""
    spec = spec.checkpoint if isinstance(spec, specs.Evaluation) else spec
    if isinstance(
        spec,
        specs.HubCheckpoint | specs.FolderCheckpoint | specs.TrainedCheckpoint | specs.OlmoCoreCheckpoint | specs.Intermediate | Patched,
    ):
        return spec
    raise ValueError(f"a {spec.PRODUCT} has no weights to write: materialize takes target=evaluate, materialize and train")


def is_taken(out: Path) -> bool:
    """Whether a folder with something in it stands there."""
    return out.is_dir() and any(out.iterdir())


def check_place(out: Path) -> None:
    """ValueError if this is no place for a new folder: something stands there, or a file stands above it."""
    if is_taken(out):
        raise ValueError(f"out={out} is not empty: give a new folder")
    nearest = nearest_folder(out)
    if not nearest.is_dir():
        raise ValueError(f"out={out} cannot be made, for {nearest} is a file: give a new folder")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"out={out} cannot be made, for {nearest} may not be written to: give a folder elsewhere")


def check_room(out: Path, needed: int) -> None:
    """ValueError if the disk of `out` has fewer free bytes than are needed."""
    free = shutil.disk_usage(nearest_folder(out)).free
    if free < needed:
        raise ValueError(f"out={out} needs {needed:,} bytes and its disk has {free:,} free: free some or give a folder on another disk")


def write(product: Path, out: Path, card: str) -> None:
    """Copy the files of a checkpoint folder to `out`, with this card as README.md; ValueError if there is no place or no room for it.

    Copies and no hard links: a later save_pretrained into the folder writes into the files that it finds, and so into the store.
    """
    files = [path for path in sorted(product.iterdir()) if path.is_file() and path.name != CARD]
    check_place(out)
    check_room(out, sum(path.stat().st_size for path in files) + len(card.encode()))
    beside = out.with_name(f".{out.name.lstrip('.')}.{uuid.uuid4().hex[:8]}")
    beside.mkdir(parents=True)
    try:
        for path in files:
            shutil.copyfile(path, beside / path.name)  # follows the links that hub snapshots are made of
        (beside / CARD).write_text(card)
        os.replace(beside, out)  # an empty folder gives way
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
