"""Edits of singular values and vectors: a truncated delta, other singular values, singular vectors of another checkpoint.

Each is of one matrix, a head's block or a whole one, as it stands when its turn comes: in a chain they work on what earlier edits left.
Arithmetic is float64 (the product of a truncation float32, its factors float64), rounded once to the stored dtype. A factorisation stays in
the memo for all points of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

from cpt_lab import edits
from cpt_lab.architecture import Slice
from cpt_lab.edits import ROOM, Memo, SliceEdit, Sources, narrow, source_values
from cpt_lab.weights import check_finite

if TYPE_CHECKING:
    import torch

    from cpt_lab.factors import Factors, ShortSide, Truncations

Matrix = tuple[Slice, ...]  # of one parameter, joined along their axis
PATCHED = "the patched checkpoint"
MOST_KEPT = 16 << 30  # bytes: all that ladders of 2 billion parameters can use; of larger models what comes first, the rest is made anew
_Value = TypeVar("_Value")
_Large = TypeVar("_Large", "ShortSide", "Truncations")


def room_to_keep() -> int:
    """How many bytes of factorisations a model that lives beside them may keep: half of what is free now, and no more than `MOST_KEPT`."""
    import psutil

    return int(min(MOST_KEPT, psutil.virtual_memory().available // 2))


class TruncateDelta(SliceEdit):
    """The matrix takes the source's values plus the best approximation of rank floor(percent x r / 100) to what differs from them.

    At 100 % it keeps its bits, at 0 % it has the source's (P eq. 19).
    """

    kind: Literal["truncate_delta"] = "truncate_delta"
    source: str
    percent: int = Field(ge=0, le=100)

    def values(self, current: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:
        from cpt_lab import factors

        base = source_values(self.source, self.target, current, sources)
        rank = factors.rank_kept(self.percent, *current.shape)
        if rank in (0, min(current.shape)):
            return current if rank else base
        key = ("truncations", id(sources[self.source]), self.target)
        if key in memo:
            truncations: Truncations = memo[key]
            truncations.keep = truncations.keep or _has_room(memo, truncations.sum_nbytes)  # a second point makes it a ladder
        else:
            truncations = _remember_large(memo, key, lambda: self._factorised(current, base))
        return truncations.of_rank(rank, current, base)

    def _factorised(self, tuned: torch.Tensor, base: torch.Tensor) -> Truncations:
        from cpt_lab import factors

        name = self.target.parameter
        return factors.Truncations(_finite(tuned, name, PATCHED), _finite(base, name, self.source))


class MatrixEdit(SliceEdit):
    """An edit of one matrix that may lie scattered in its target: then `parts` says where, and the rest of the target stays."""

    parts: Matrix = ()

    @property
    def matrix(self) -> Matrix:
        """The slices of the matrix."""
        return self.parts or (self.target,)

    def values(self, current: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:
        """The target with the new matrix in its place."""
        import torch

        parts = [current.narrow(part.axis, part.start - self.target.start, part.stop - part.start) for part in self.matrix]
        axis = self.target.axis
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
        new = self.new_matrix(joined.double(), sources, memo).to(current.dtype)
        if not self.parts:
            return new
        whole = current.clone()
        for part, values in zip(self.parts, torch.split(new, [part.stop - part.start for part in self.parts], dim=axis), strict=True):
            whole.narrow(axis, part.start - self.target.start, part.stop - part.start).copy_(values)
        return whole

    def new_matrix(self, matrix: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:
        """The matrix, float64, that replaces this one; the lasting memo holds only what follows from the stored `matrix`."""
        raise NotImplementedError(f"{self.kind} has no matrix")

    def short_side(self, matrix: torch.Tensor, memo: Memo) -> ShortSide:
        """The factorisation of the edited matrix, made once."""
        from cpt_lab import factors

        key = ("own", self.matrix)
        return _remember_large(memo, key, lambda: factors.short_side(_finite(matrix, self.target.parameter, PATCHED)))


class MeasuredScale(BaseModel):
    """alpha' = the mean of s_post,i / s_base,i over the top 90 % of the singular values of all `matrices`, rounded to 0.1 (T table 4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    post: str
    matrices: tuple[Matrix, ...]


class SingularValues(MatrixEdit):
    """The matrix keeps its singular vectors; its singular values become `scale` times those of the source's: U diag(alpha' s) V^T.

    P eq. 14 (scale 1), T eq. 9 and 14.
    """

    kind: Literal["singular_values"] = "singular_values"
    source: str
    scale: float | MeasuredScale = 1.0

    def new_matrix(self, matrix: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:
        from cpt_lab import factors

        scale = self.scale
        if isinstance(scale, MeasuredScale):
            key = ("scale", *(id(edits.source(name, sources)) for name in (self.source, scale.post)), scale.matrices)
            scale = _remember(memo, key, partial(_measured, scale, self.source, matrix, sources, memo))
        values = _singular_values(self.source, self.matrix, sources, memo, like=matrix)
        return factors.with_singular_values(matrix, self.short_side(matrix, memo), scale * values)


class RotateVectors(MatrixEdit):
    """The singular vectors of one axis become the source's, as they are or rotated as those of the other axis were (`factors.rotated`)."""

    kind: Literal["rotate_vectors"] = "rotate_vectors"
    source: str
    axis: Literal[0, 1]
    restore: bool
    signs: Literal["aligned", "own"] = "aligned"

    def new_matrix(self, matrix: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:
        from cpt_lab import factors

        post = factors.factors(matrix, self.short_side(matrix, memo))
        base = self._base(matrix, sources, memo)
        return factors.rotated(post, base, axis=self.axis, restore=self.restore, signs=self.signs)

    def _base(self, matrix: torch.Tensor, sources: Sources, memo: Memo) -> Factors:
        from cpt_lab import factors

        theirs = _read(self.source, self.matrix, sources, like=matrix)
        key = ("short", id(sources[self.source]), self.matrix)
        return factors.factors(theirs, _remember_large(memo, key, lambda: factors.short_side(theirs)))


def located(matrix: Matrix) -> tuple[Slice, Matrix]:
    """`target` and `parts` of the edit of a matrix: the range that holds it, and its slices where other things lie between them."""
    first = matrix[0]
    if len(matrix) == 1:
        return first, ()
    start, stop = min(part.start for part in matrix), max(part.stop for part in matrix)
    return Slice(first.parameter, first.axis, start, stop), matrix


def _measured(scale: MeasuredScale, base: str, like: torch.Tensor, sources: Sources, memo: Memo) -> float:
    import torch

    ratios = []
    for matrix in scale.matrices:
        theirs, ours = (_singular_values(name, matrix, sources, memo, like=like) for name in (base, scale.post))
        top = max(1, 9 * ours.numel() // 10)
        if not bool(theirs[top - 1] > 0):
            raise ValueError(
                f"{matrix[0].parameter} has fewer than {top} singular values above zero in {base}, so that no scale can be measured: "
                "give intervention.alpha per role"
            )
        ratios.append(ours[:top] / theirs[:top])
    return float((torch.cat(ratios).mean() * 10 + 0.5).floor() / 10)


def _singular_values(source: str, matrix: Matrix, sources: Sources, memo: Memo, *, like: torch.Tensor) -> torch.Tensor:
    from cpt_lab import factors

    key = ("values", id(edits.source(source, sources)), matrix)
    return _remember(memo, key, lambda: factors.singular_values(_read(source, matrix, sources, like=like)))


def _read(source: str, matrix: Matrix, sources: Sources, *, like: torch.Tensor) -> torch.Tensor:
    """A matrix of a source in float64, whatever it is stored in: T compares bfloat16 bases with float32 models."""
    import torch

    weights = edits.source(source, sources)
    found = torch.cat([narrow(weights, part).double() for part in matrix], dim=matrix[0].axis)
    if found.shape != like.shape:
        raise ValueError(f"{matrix[0].parameter} differs in shape from {source}: give two models of one architecture and size")
    return _finite(found, matrix[0].parameter, source)


def _finite(tensor: torch.Tensor, parameter: str, source: str) -> torch.Tensor:
    check_finite({parameter: tensor}, source)
    return tensor


def _remember(memo: Memo, key: tuple[object, ...], make: Callable[[], _Value]) -> _Value:
    """What the memo has under the key, made if it has nothing yet."""
    if key not in memo:
        memo[key] = make()
    return cast(_Value, memo[key])


def _remember_large(memo: Memo, key: tuple[object, ...], make: Callable[[], _Large]) -> _Large:
    """The same for what takes much memory: it stays only while there is room for it."""
    if key in memo:
        return cast(_Large, memo[key])
    made = make()
    if _has_room(memo, made.nbytes):
        memo[key] = made
    return made


def _has_room(memo: Memo, nbytes: int) -> bool:
    """Whether so much more may stay, which is then counted."""
    room = memo.get(ROOM, MOST_KEPT)
    if nbytes > room:
        return False
    memo[ROOM] = room - nbytes
    return True
