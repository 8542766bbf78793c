"""Post-trained models and what was done to them: points in groups of one tuned checkpoint, the untouched model first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from analysis.spectral import distinguished, facets_of
from cpt_lab.interventions.rotate_ablate import RotateAblate
from cpt_lab.interventions.rotate_restore import RotateRestore
from cpt_lab.interventions.rotation import Rotation
from cpt_lab.interventions.scale_transplant import ScaleTransplant
from cpt_lab.interventions.transplant import Transplant
from cpt_lab.specs import Checkpoint, Intervention, Patched, Spec, key

if TYPE_CHECKING:
    from analysis.results import Found, Results

Watched = TypeVar("Watched", bound=Spec)  # a kind of point that has a checkpoint, edited or not
ORIGINAL = "original"
REPLACED: tuple[type[Intervention], ...] = (ScaleTransplant, Transplant)
ROTATED: tuple[type[Intervention], ...] = (RotateAblate, RotateRestore)
PARTS = {"attention": "attention", "mlp": "MLP"}
SIDES = {"in": "input", "out": "output"}


@dataclass(frozen=True)
class Group(Generic[Watched]):
    """One tuned checkpoint: the point of the model as it is, if there is one, and those of its edits with their words, in T's order."""

    label: str
    tuned: Checkpoint
    original: Found[Watched] | None
    edited: tuple[tuple[str, Found[Watched]], ...]

    @property
    def every(self) -> tuple[tuple[str, Found[Watched]], ...]:
        return ((ORIGINAL, self.original), *self.edited) if self.original is not None else self.edited


def groups(results: Results, kind: type[Watched], edits: Sequence[type[Intervention]], *, needs: str) -> list[Group[Watched]]:
    """The finished points of this kind with one of these edits, and the same without; ValueError, with `needs`, if there is none."""
    found: dict[str, tuple[Checkpoint, list[Found[Watched]]]] = {}
    for one in {key(one.spec): one for one in results.of_kind(kind)}.values():
        tuned = tuned_of(one.spec)
        if edits_of(one.spec) == () or isinstance(edit_of(one.spec), tuple(edits)):
            found.setdefault(key(tuned), (tuned, []))[1].append(one)
    kept = [(tuned, points) for tuned, points in found.values() if any(edits_of(one.spec) for one in points)]
    if not kept:
        raise ValueError(f"study {results.name!r} has no finished points for this figure: it needs {needs}")
    labels = distinguished([facets_of(tuned) for tuned, _ in kept])
    return [_group(label, tuned, points) for label, (tuned, points) in zip(labels, kept, strict=True)]


def tuned_of(spec: Any) -> Checkpoint:
    """The checkpoint that a point edits, or reads as it is."""
    given: Checkpoint | Patched = spec.checkpoint
    return given.tuned if isinstance(given, Patched) else given


def edits_of(spec: Any) -> tuple[Intervention, ...]:
    return spec.checkpoint.interventions if isinstance(spec.checkpoint, Patched) else ()


def edit_of(spec: Any) -> Intervention | None:
    """The one edit of a point; None if there is none, or more."""
    changes = edits_of(spec)
    return changes[0] if len(changes) == 1 else None


def edit_text(change: Intervention) -> str:
    """What an edit does, in words."""
    if isinstance(change, ScaleTransplant):
        scales = "measured" if change.alpha is None else ", ".join(dict.fromkeys(f"{scale:g}" for scale in change.alpha))
        return f"singular values replaced, alpha' {scales}"
    if isinstance(change, Transplant):
        return f"singular values replaced by those of {change.name}"
    if isinstance(change, Rotation):
        by = "" if change.name == "base" else f", by way of {change.name}"
        done = "undone" if isinstance(change, RotateAblate) else "restored"
        own = ", own signs" if isinstance(change, RotateAblate) and change.signs == "own" else ""
        return f"rotation {done}, {PARTS[change.part]}, {SIDES[change.side]} side{by}{own}"
    return change.label()


def same(found: Sequence[Spec], what: str) -> None:
    """ValueError if these specs are several: what was measured in different ways does not belong into one figure."""
    names = list(dict.fromkeys(f"{one.label() or type(one).__name__} ({key(one).rsplit('-', 1)[-1][:8]})" for one in found))
    if len(names) > 1:
        raise ValueError(
            f"these points have {len(names)} {what}, {', '.join(names)}, which do not belong into one figure: name studies of one"
        )


def _group(label: str, tuned: Checkpoint, points: Sequence[Found[Watched]]) -> Group[Watched]:
    original = next((one for one in points if not edits_of(one.spec)), None)
    edited = [one for one in points if edits_of(one.spec)]
    texts = [edit_text(change) for one in edited if (change := edit_of(one.spec)) is not None]
    ordered = sorted(zip(texts, edited, strict=True), key=lambda pair: (_turn(edit_of(pair[1].spec)), pair[0]))
    return Group(label, tuned, original, tuple(ordered))


def _turn(change: Intervention | None) -> tuple[bool, bool, bool]:
    """Restorations before ablations, attention before the MLP, as in T table 7."""
    return isinstance(change, RotateAblate), getattr(change, "part", "") == "mlp", getattr(change, "side", "") == "out"
