"""Tables for notebooks: one call, kept in the store and taken from there the next time. Importing this module needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

if TYPE_CHECKING:
    import pandas as pd

    from cpt_lab.specs import Checkpoint, Spectra


class Options(TypedDict, total=False):
    """How a table is made: those of `specs.Spectra`, and where and how it is computed."""

    blocks: Literal["all", "heads", "matrices"]
    roles: Sequence[str] | None
    min_tail: int | None
    ks: Literal["clauset", "two_sided"]
    null_model: Literal["analytic", "permute"]
    seed: int
    samples: int
    results: str | Path | None  # the store; None: $CPT_LAB_RESULTS, else the folder `results` here
    device: Literal["auto", "cpu", "cuda"]
    threads: int | None  # None: the cores that this process may use


def table(
    checkpoint: str | Path,
    against: str | Path | None = None,
    *,
    measures: str | Sequence[str] = "paper",
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Spectral measures of a checkpoint, or of its delta to another and of the pair: a row per head and matrix, a column per measure.

    A checkpoint is a folder in Hugging Face format or a model of the hub, as `owner/name` or `owner/name@revision`. Measures are names of
    presets, families or measures. What the store has is not computed again. ValueError, in one sentence, for what cannot be done.
    """
    return _read(checkpoint, against, "table.parquet", measures=measures, options=dict(options))


def indices(
    checkpoint: str | Path,
    against: str | Path | None = None,
    *,
    measures: str | Sequence[str] = "paper",
    **options: Unpack[Options],
) -> pd.DataFrame:
    """The long form of the same table, float32: a row per singular value with its index, and what else was decomposed.

    Agreements are there if a measure compares the two checkpoints' vectors, null values if Marchenko-Pastur measures are made with
    `null_model="permute"`.
    """
    return _read(checkpoint, against, "indices.parquet", measures=measures, options={**options, "indices": True})


def _read(
    checkpoint: str | Path, against: str | Path | None, file: str, *, measures: str | Sequence[str], options: dict[str, Any]
) -> pd.DataFrame:
    import pandas as pd

    from cpt_lab import local  # it builds on this package
    from cpt_lab.execution import Execution
    from cpt_lab.names import unknown
    from cpt_lab.store import Store

    for name in options:
        if name not in (*Options.__annotations__, "indices"):
            raise ValueError(unknown("option", name, Options.__annotations__))
    results = options.pop("results", None) or os.environ.get("CPT_LAB_RESULTS") or "results"
    threads = options.pop("threads", None) or local.cores()
    how = Execution(device=options.pop("device", "auto"), threads=threads)
    spec = _spec(_checkpoint(checkpoint), None if against is None else _checkpoint(against), measures, options)
    store = Store(Path(results).expanduser())
    store.check_writable()
    local.build_here(store, [spec], how)
    return pd.read_parquet(store.product(spec) / file)


def _spec(checkpoint: Checkpoint, against: Checkpoint | None, measures: str | Sequence[str], options: dict[str, Any]) -> Spectra:
    from pydantic import ValidationError

    from cpt_lab.specs import Spectra
    from cpt_lab.spectra.choice import chosen

    names = chosen(measures, pair=against is not None)
    try:
        return Spectra(checkpoint=checkpoint, against=against, measures=names, **options)
    except ValidationError as error:
        first = error.errors()[0]
        text = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{first['msg']} (got {first['input']!r})"
        raise ValueError(": ".join([*map(str, first["loc"]), text])) from None


def _checkpoint(name: str | Path) -> Checkpoint:
    from cpt_lab import checkpoints

    folder = Path(name).expanduser()
    if folder.is_dir():
        return checkpoints.in_folder(folder)
    owner, _, revision = str(name).partition("@")
    if isinstance(name, Path) or owner.count("/") != 1 or owner.startswith((".", "/", "~")):
        raise ValueError(f"there is no folder {name}: give one in Hugging Face format, or a model of the hub as owner/name@revision")
    return checkpoints.on_hub(owner, revision or "main")
