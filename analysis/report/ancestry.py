"""From data to points as a picture: corpora, training, checkpoints, tables, rankings and points, alike ones in one box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from analysis.lineage import called
from analysis.results import Results
from cpt_lab.specs import (
    BuiltinCorpus,
    Evaluation,
    FilesCorpus,
    FolderCheckpoint,
    HubCheckpoint,
    HubCorpus,
    Ranking,
    Spec,
    Spectra,
    TrainedCheckpoint,
    closure,
    key,
)

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 196, 50, 250, 66, 8  # pixels of a box, of the steps between boxes, around all
LETTERS = 27  # that fit a box


@dataclass
class Box:
    """One or many steps that stand together."""

    title: str
    kind: str  # data, checkpoint, measured, points
    count: int = 0
    also: str = ""
    column: int = 0
    row: int = 0

    @property
    def x(self) -> int:
        return MARGIN + ACROSS * self.column

    @property
    def y(self) -> int:
        return MARGIN + DOWN * self.row

    @property
    def below(self) -> str:
        return f"{self.also} ({self.count})" if self.count > 1 else self.also


@dataclass
class Graph:
    """Boxes by name in columns, and the arrows between them."""

    boxes: dict[str, Box] = field(default_factory=dict)
    arrows: set[tuple[str, str]] = field(default_factory=set)

    @property
    def width(self) -> int:
        return 2 * MARGIN + WIDTH + ACROSS * max((box.column for box in self.boxes.values()), default=0)

    @property
    def height(self) -> int:
        return 2 * MARGIN + HEIGHT + DOWN * max((box.row for box in self.boxes.values()), default=0)

    def paths(self) -> Iterator[str]:
        """The arrows as SVG paths, from the right of a box to the left of the next."""
        for source, target in sorted(self.arrows):
            one, other = self.boxes[source], self.boxes[target]
            x, y, to_x, to_y = one.x + WIDTH, one.y + HEIGHT // 2, other.x, other.y + HEIGHT // 2
            bend = (to_x - x) // 2
            yield f"M{x} {y} C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"

    def in_words(self) -> Iterator[str]:
        """The same for who does not see the picture: a line per box with what it is made from."""
        for name, box in sorted(self.boxes.items(), key=lambda item: (item[1].column, item[1].row)):
            sources = [self.boxes[source].title for source, target in sorted(self.arrows) if target == name]
            yield f"{box.title} ({box.below})" + (f": from {', '.join(sources)}" if sources else "")


def graph(results: Results) -> Graph:
    """The boxes of everything that the points are made from, laid out in columns by the longest way from the data."""
    points = {key(point.spec): point.spec for study in results.studies for point in study.points}
    steps = {key(spec): spec for spec in closure(list(points.values()))}
    found, boxed = Graph(), _names(results, steps, points)
    seen: dict[str, frozenset[str]] = {}
    for name in steps:
        if name in boxed:
            box = found.boxes.setdefault(boxed[name].title, boxed[name])
            box.count += 1
    for name, spec in steps.items():
        for source in _sources(spec, boxed, seen) if name in boxed else ():
            if boxed[source].title != boxed[name].title:
                found.arrows.add((boxed[source].title, boxed[name].title))
    trained = {each for each in found.arrows if [found.boxes[name].kind for name in each] == ["data", "checkpoint"]}
    found.arrows = trained | _direct(found.arrows)
    _lay_out(found)
    return found


def short(text: str) -> str:
    """A text that fits a box."""
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _names(results: Results, steps: dict[str, Spec], points: dict[str, Spec]) -> dict[str, Box]:
    """Key -> the box that a step is drawn in; those that are not drawn (tokens, tokenizers, parts of tables) are left out."""
    rows = {str(row["point_key"]): row for row in _rows(results)}
    found = {}
    for name, spec in steps.items():
        box = _of_point(spec, rows.get(name, {})) if name in points else _box(spec)
        if box is not None:
            found[name] = box
    return found


def _rows(results: Results) -> Iterator[dict[str, object]]:
    """The table's rows, with the keys that the points had before their rankings were known."""
    asked = [key(point.spec) for study in results.studies for point in study.points]
    for given, (_, row) in zip(asked, results.points.iterrows(), strict=True):
        yield {str(name): value for name, value in row.items()} | {"point_key": given}


def _of_point(spec: Spec, row: dict[str, object]) -> Box:
    if not isinstance(spec, Evaluation):
        return _box(spec) or Box(spec.PRODUCT, "points", also=spec.PRODUCT)
    done = str(row.get("intervention") or "none")
    by = row.get("criterion")
    title = "nothing edited" if done == "none" else done.replace("_", " ") + (f" by {by}".replace("_", " ") if isinstance(by, str) else "")
    return Box(title, "points", also=f"points, {spec.protocol.name}")


def _box(spec: Spec) -> Box | None:
    match spec:
        case BuiltinCorpus() | FilesCorpus() | HubCorpus():
            return Box(f"{spec.name} corpus", "data", also="data")
        case TrainedCheckpoint():
            stage = "pre-training" if spec.start is None else "CPT"
            return Box(f"{stage}: {called(spec)}", "checkpoint", also=f"{spec.mixture.tokens:,} tokens")
        case HubCheckpoint() | FolderCheckpoint():
            return Box(called(spec), "checkpoint", also="given checkpoint")
        case Spectra():
            of = "a pair" if spec.against is not None else "one checkpoint"
            return Box(f"spectra of {of}", "measured", also="tables")
        case Ranking():
            return Box(f"ranking: {(spec.column or spec.criterion).replace('_', ' ')}", "measured", also="orders")
        case Evaluation():
            return Box("probes of single units", "measured", also="evaluations")
        case _:
            return None


def _sources(spec: Spec, boxed: dict[str, Box], seen: dict[str, frozenset[str]]) -> frozenset[str]:
    """The keys of the nearest steps with a box that this one needs."""
    name = key(spec)
    if name not in seen:
        found: set[str] = set()
        for need in spec.needs():
            found |= {key(need)} if key(need) in boxed else _sources(need, boxed, seen)
        seen[name] = frozenset(found)
    return seen[name]


def _direct(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no way over other boxes says already."""
    after: dict[str, set[str]] = {}
    for source, target in arrows:
        after.setdefault(source, set()).add(target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            fresh = after.get(waiting.pop(), set()) - seen
            seen |= fresh
            waiting += fresh
        return seen

    beyond = {name: reached(name) for name in after}
    return {
        (source, target)
        for source, target in arrows
        if not any(target in beyond.get(other, set()) for other in after[source] - {target} if source not in beyond.get(other, set()))
    }


def _lay_out(found: Graph) -> None:
    """Each box right of all it is made from, and points last of all; in a column, in the order of their names."""
    for _ in found.boxes:
        moved = False
        for source, target in found.arrows:
            least = found.boxes[source].column + 1
            if found.boxes[target].column < least <= len(found.boxes):
                found.boxes[target].column, moved = least, True
        if not moved:
            break
    last = max((box.column for box in found.boxes.values()), default=0)
    made = {target for _, target in found.arrows}
    for box in found.boxes.values():
        box.column = last if box.kind == "points" else box.column
    for name, box in found.boxes.items():
        after = [found.boxes[target].column for source, target in found.arrows if source == name]
        if name not in made and box.kind != "data" and after:
            box.column = min(after) - 1
    rows: dict[int, int] = {}
    for box in sorted(found.boxes.values(), key=lambda box: (box.kind, box.title)):
        box.row = rows.get(box.column, 0)
        rows[box.column] = box.row + 1
