"""The report of a study: everything that stands on the page, put into its template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import captions, figures, interactive, sheets
from analysis.drawing import Drawing, Sheet
from analysis.papers import beside
from analysis.report import ancestry, answer, cost, verdicts
from analysis.results import Results
from cpt_lab.report import duration
from cpt_lab.specs import (
    Evaluation,
    FolderCheckpoint,
    HubCheckpoint,
    Protocol,
    Ranking,
    Spec,
    Spectra,
    TrainedCheckpoint,
    closure,
    identity,
    key,
)
from cpt_lab.store import write_atomically

NAME = "report.html"
TEMPLATE = "report.html.jinja"
MOST_BYTES = 4_500_000  # of all figures: with plotly.js, which is as large, the page stays below 10 MB
MOST_ROWS = 200  # of a figure's numbers that stand below it
DESCRIBED: tuple[type[Spec], ...] = (Protocol, TrainedCheckpoint, HubCheckpoint, FolderCheckpoint, Spectra, Ranking)
MOST_SPECS = 60


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its own HTML, the numbers below it, and the command that makes its files."""

    name: str
    title: str
    html: str
    numbers: str
    rest: int  # rows that the numbers leave out
    command: str


@dataclass(frozen=True)
class Described:
    """A spec of the study, written out."""

    kind: str
    label: str
    key: str
    json: str


def write(results: Results, path: Path) -> Path:
    """Write the page, whole or not at all; its path. ValueError, in one sentence, where nothing is finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render(results))
    return path


def render(results: Results) -> str:
    """The whole page as HTML, complete in itself; ValueError saying what to run where no point is finished."""
    table = results.points
    if not (table["state"] == "done").any():
        name = results.studies[0].name
        raise ValueError(
            f"no point of study {results.name} is finished: `python -m cpt_lab status {name}` says why, `python -m cpt_lab resume {name}` "
            "goes on with it"
        )
    account = cost.account(results)
    drawn, absent = _drawn(results)
    scored = bool(table.attrs["primary"])
    said, tests = _verdicts(results, account.cost) if scored else (answer.of_products(results, account.cost), [])
    page: str = _template().render(
        results=results,
        studies=results.studies,
        counts=table["state"].value_counts().to_dict(),
        answer=said,
        graph=ancestry.graph(results),
        boxes=ancestry,
        pictures=drawn,
        absent=absent,
        tests=tests,
        tables=[sheets.html(sheet) for sheet in _sheets(absent)],
        papers=_beside(results),
        account=account,
        specs=list(_described(results)),
        duration=duration,
        plotly=_plotly() if drawn else "",
        store=str(results.store.root),
        evaluations=Evaluation.FOLDER,
    )
    return page


def _verdicts(results: Results, spent: cost.Cost) -> tuple[answer.Answer, list[str]]:
    """The answer, and the tables of tests that it rests on; ValueError if there are several protocols."""
    captions.one_protocol(results.points)
    primary, *others = verdicts.shown_metrics(results)
    orders, points = verdicts.of_orders(results, primary), verdicts.of_points(results, primary)
    said = answer.of_orders(results, orders, spent) if orders else answer.of_points(results, primary, points, spent)
    tables = [verdicts.order_sheet(results, orders)] if orders else []
    tables.append(verdicts.point_sheet(results, primary, points))
    tables += [verdicts.point_sheet(results, metric, verdicts.of_points(results, metric)) for metric in others]
    return said, [sheets.html(table) for table in tables]


def _drawn(results: Results) -> tuple[list[Picture], dict[str, list[Sheet] | str]]:
    """The pictures that the study can show, those it asks for first; and of other names the tables, or why there is nothing."""
    asked = list(dict.fromkeys(name for study in results.studies for name in study.figures))
    found = dict(figures.available(results))
    pictures: list[Picture] = []
    absent: dict[str, list[Sheet] | str] = {}
    left = MOST_BYTES
    for name in [*(name for name in asked if name in found), *(name for name in found if name not in asked)]:
        made = found[name]
        if isinstance(made, str):
            absent[name] = made
            continue
        for each in made:
            if isinstance(each, Drawing):
                picture = _picture(results, name, each)
                if len(picture.html) + len(picture.numbers) > left:
                    absent[each.name] = f"too large for this page: {picture.command}"
                    continue
                left -= len(picture.html) + len(picture.numbers)
                pictures.append(picture)
        if tables := [each for each in made if isinstance(each, Sheet)]:
            absent[name] = tables
    return pictures, absent


def _picture(results: Results, name: str, drawing: Drawing) -> Picture:
    data = drawing.data()
    numbers = data.head(MOST_ROWS).to_html(index=False, border=0, na_rep="", float_format=lambda value: f"{value:.6g}")
    names = " ".join(study.name for study in results.studies)
    command = f"python -m cpt_lab figure {names} {name}"
    return Picture(drawing.name, drawing.title, interactive.fragment(drawing), numbers, max(0, len(data) - MOST_ROWS), command)


def _sheets(absent: dict[str, list[Sheet] | str]) -> Iterator[Sheet]:
    for made in absent.values():
        if not isinstance(made, str):
            yield from made


def _beside(results: Results) -> str:
    """The table beside the papers' numbers; empty where they have none of these."""
    matches = beside.beside(results)
    return sheets.html(beside.sheet(results, matches)) if matches else ""


def _described(results: Results) -> Iterator[Described]:
    """Protocols, checkpoints, tables and rankings as they are hashed, each once."""
    wanted = closure([point.spec for study in results.studies for point in study.points])
    once = {key(spec): spec for spec in wanted if isinstance(spec, DESCRIBED)}
    for name, spec in sorted(once.items(), key=lambda item: DESCRIBED.index(type(item[1])))[:MOST_SPECS]:
        yield Described(spec.PRODUCT or type(spec).__name__, spec.label(), name, json.dumps(identity(spec), indent=1, default=str))


def _plotly() -> str:
    """plotly.js, once for all figures; a closing tag inside it would end its script."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("analysis.report", "")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).get_template(
        TEMPLATE
    )
