"""What tests of tables share: pairs of tiny checkpoints in folders, and tables built in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cpt_lab.build import Workshop, ensure
from cpt_lab.checkpoints import in_folder
from cpt_lab.execution import Execution
from cpt_lab.specs import FolderCheckpoint, ModelShape, Spectra
from cpt_lab.store import Store
from factory import tiny_model


def saved(shape: ModelShape, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> FolderCheckpoint:
    """A random checkpoint in a folder, by its real digest and shape."""
    tiny_model(shape, seed=seed, dtype=dtype).save_pretrained(folder)
    return in_folder(folder)


def table_spec(
    checkpoint: FolderCheckpoint, against: FolderCheckpoint | None = None, *, measures: tuple[str, ...], **options: Any
) -> Spectra:
    return Spectra(checkpoint=checkpoint, against=against, measures=measures, **options)


def product(spec: Spectra, results: Path, *, threads: int = 1) -> Path:
    """The folder of a table, built in the store with all it needs."""
    return ensure(Workshop(Store(results), Execution(device="cpu", threads=threads)), spec)


def built(spec: Spectra, results: Path, *, threads: int = 1) -> pd.DataFrame:
    return pd.read_parquet(product(spec, results, threads=threads) / "table.parquet")


def pair(shape: ModelShape, folder: Path) -> tuple[FolderCheckpoint, FolderCheckpoint]:
    tuned, base = (saved(shape, folder / name, seed=seed) for seed, name in enumerate(["tuned", "base"]))
    return tuned, base
