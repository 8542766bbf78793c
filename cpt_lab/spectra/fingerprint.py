"""Does a checkpoint descend from another? Singular vectors of attention matrices beside those of unrelated ones (T appendix F).

Post-training keeps a model's vectors or turns those of both sides of a matrix together: I_orth of T eq. 7 is near the identity. Three
statistics of a pair of matrices are looked at, since each sees what is hidden from another: NF = ||I_orth - I||_F / n sees vectors that
turned together; the vectors of the residual stream are the same when heads change places; those of the heads are the same when the
residual stream is rotated, and a factor of any sign leaves both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cpt_lab.architecture import ATTENTION_ROLES, AttentionRole
from cpt_lab.execution import Execution
from cpt_lab.specs import Checkpoint, Fingerprint, SpectralPart, key
from cpt_lab.spectra import decompose, pairs
from cpt_lab.spectra.parts import Opened, read_blocks
from cpt_lab.store import Workspace
from cpt_lab.weights import open_weights

if TYPE_CHECKING:
    Products = Mapping[str, Path]  # of finished specs, by key

TABLE, VERDICT = "matrices.parquet", "verdict.json"
MATCHED, MISMATCHED, UNRELATED = "matched", "mismatched", "unrelated"
STATISTICS = {"nf": -1, "residual": 1, "head": 1}  # and which way is closer
CALLED = {"nf": "NF of I_orth", "residual": "vectors of the residual stream", "head": "vectors of the heads"}
# A verdict for descent needs at least half of the matrices and a chance below one in a thousand; one against it a chance above one in
# twenty, where the comparison could have gone below one in a thousand. Three statistics are tried: their chances count threefold.
HALF, DESCENDS, DOES_NOT = 0.5, 1e-3, 0.05


@dataclass(frozen=True)
class Evidence:
    """What one statistic says: a matrix counts if it is closer to its own layer of the other checkpoint than every control of its role."""

    statistic: str
    closer: int
    matrices: int
    chance: float  # of so many or more if matched matrices are like controls
    least: float  # the smallest that this can be
    margin: float  # median distance to the controls' mean, in their standard deviations; positive is closer

    @property
    def share(self) -> float:
        """Of the matrices that count."""
        return self.closer / self.matrices


@dataclass(frozen=True)
class Verdict:
    """An answer, the statistic that gives it, and all of them."""

    answer: Literal["descends", "does not descend", "cannot tell"]
    by: Evidence
    evidence: tuple[Evidence, ...]

    def sentence(self) -> str:
        """The answer in a line."""
        found = self.by
        return (
            f"{self.answer}: {found.closer} of {found.matrices} matrices are closer to their own layer than every control "
            f"({CALLED[found.statistic]}; median {found.margin:+.1f} deviations of the controls, chance {found.chance:.1g})"
        )


def build_fingerprint(spec: Fingerprint, products: Products, work: Workspace, how: Execution) -> None:
    """Write matrices.parquet, a row per pair of matrices, and verdict.json; ValueError for values that are not finite.

    Columns: kind (matched, mismatched, unrelated), role, layer (of `against`), other (the layer beside it), nf, residual and head. Finished
    roles are kept in scratch.
    """
    work.scratch.mkdir(parents=True, exist_ok=True)
    frames = []
    for done, role in enumerate(ATTENTION_ROLES, start=1):
        file = work.scratch / f"{role}.parquet"
        if not file.exists():
            beside = file.with_suffix(".part")
            compared(spec, role, products, how).to_parquet(beside, index=False)
            beside.replace(file)
        frames.append(pd.read_parquet(file))
        work.progress(done, len(ATTENTION_ROLES), "roles")
    table = pd.concat(frames, ignore_index=True)
    table.to_parquet(work.product / TABLE, index=False)
    found = verdict(table)
    written = {**asdict(found), "sentence": found.sentence(), "roles": by_role(table).to_dict("records")}
    (work.product / VERDICT).write_text(json.dumps(written, indent=1))


def compared(spec: Fingerprint, role: AttentionRole, products: Products, how: Execution) -> pd.DataFrame:
    """The rows of one role."""
    base = _vectors(spec.against, role, spec.compared, products, how)
    tuned = _vectors(spec.checkpoint, role, spec.compared, products, how)
    jobs = [(MATCHED, layer, layer, tuned) for layer in spec.compared]
    jobs += [(MISMATCHED, layer, other, tuned) for layer, other in spec.mismatched]
    rows = _rows(role, jobs, base, how)
    for control in spec.controls:  # one after another: the vectors of a model take gigabytes
        unrelated = _vectors(control, role, spec.compared, products, how)
        rows += _rows(role, [(UNRELATED, layer, layer, unrelated) for layer in spec.compared], base, how)
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame) -> Verdict:
    """The answer of the statistic with the smallest chance, and that with the larger margin among equals."""
    evidence = tuple(_evidence(table, statistic) for statistic in STATISTICS)
    best = min(evidence, key=lambda one: (one.chance, -one.margin))
    if best.chance < DESCENDS and best.share >= HALF:
        return Verdict("descends", best, evidence)
    could_tell = max(one.least for one in evidence) < DESCENDS
    return Verdict("does not descend" if best.chance >= DOES_NOT and could_tell else "cannot tell", best, evidence)


def by_role(table: pd.DataFrame) -> pd.DataFrame:
    """Medians of the matched matrices and of the controls, role by role."""
    grouped = table.assign(control=table["kind"] != MATCHED).groupby(["role", "control"], sort=False)[list(STATISTICS)].median().unstack()
    columns = {f"{'control' if control else 'matched'}_{name}": grouped[name, control] for name in STATISTICS for control in (False, True)}
    return pd.DataFrame(columns).reset_index()


# -------------------------------------------------------------------------------------------------------------- evidence


def _evidence(table: pd.DataFrame, statistic: str) -> Evidence:
    closer, counts, distances = 0, [], []
    for _, rows in table.groupby("role", sort=False):
        values = STATISTICS[statistic] * rows[statistic].to_numpy(np.float64)
        own = (rows["kind"] == MATCHED).to_numpy()
        matched, controls = np.nan_to_num(values[own], nan=-np.inf), values[~own & np.isfinite(values)]
        closer += int((matched > controls.max(initial=-np.inf)).sum())
        counts.append((len(matched), len(controls)))
        spread = controls.std() if len(controls) else 0.0
        distances += list((matched - controls.mean()) / spread if spread > 0 else np.zeros(len(matched)))
    chances = _chances(counts) * len(STATISTICS)
    return Evidence(
        statistic=statistic,
        closer=closer,
        matrices=len(distances),
        chance=min(1.0, float(chances[closer])),
        least=min(1.0, float(chances[-1])),
        margin=float(np.clip(np.median(distances), -1e9, 1e9)),
    )


def _chances(counts: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """P(K >= k) for k = 0, 1, ...: K matched values, over all roles, lie above every control of their role.

    If matched and control pairs are exchangeable the k largest of a role's l matched and c control values are all matched with the chance
    l (l - 1) ... (l - k + 1) / ((l + c) (l + c - 1) ... (l + c - k + 1)).
    """
    total = np.ones(1)
    for matched, controls in counts:
        places = np.arange(matched)
        at_least = np.concatenate([[1.0], np.cumprod((matched - places) / (matched + controls - places)), [0.0]])
        total = np.convolve(total, at_least[:-1] - at_least[1:])
    return total[::-1].cumsum()[::-1]


# --------------------------------------------------------------------------------------------------------------- vectors


def _vectors(
    checkpoint: Checkpoint, role: AttentionRole, layers: Sequence[int], products: Products, how: Execution
) -> dict[int, pairs.Vectors]:
    """The singular vectors of a role's whole matrix in each layer, in float32, which takes half the memory and is exact enough here."""
    opened = Opened(f"{checkpoint.label()} ({products[key(checkpoint)]})", open_weights(products[key(checkpoint)]))

    def of_layer(layer: int) -> pairs.Vectors:
        spec = SpectralPart(checkpoint=checkpoint, layer=layer, scope="attention", of="values")
        (matrix,) = read_blocks(spec, role, opened).values
        return pairs.Vectors(*(side.float() for side in decompose.vectors(matrix)))

    return dict(zip(layers, decompose.in_threads(of_layer, layers, how.threads), strict=True))


def _rows(
    role: AttentionRole,
    jobs: Sequence[tuple[str, int, int, dict[int, pairs.Vectors]]],
    base: dict[int, pairs.Vectors],
    how: Execution,
) -> list[dict[str, str | int | float]]:
    def row(job: tuple[str, int, int, dict[int, pairs.Vectors]]) -> dict[str, str | int | float]:
        kind, layer, other, theirs = job
        found = pairs.agreement(base[layer], theirs[other])
        sides = {"residual": float(found.residual_max.nanmean()), "head": float(found.head_max.nanmean())}
        return {"kind": kind, "role": role, "layer": layer, "other": other, "nf": float(found.deviation), **sides}

    return list(decompose.in_threads(row, jobs, how.threads))
