"""What the terminal says of plans and studies."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cpt_lab import config, costs, launches, roster, specs, standing, study
from cpt_lab.names import unknown
from cpt_lab.plan import Plan, Step
from cpt_lab.roster import Roster
from cpt_lab.standing import Standing
from cpt_lab.store import State, Store, read_json
from cpt_lab.study import Study

MOST_ROWS = 12
ADDED = {"then": "+intervention@{name}=rewind", "others": "+{name}={{from: folder, path: FOLDER}}"}  # what users name themselves


def sentence(error: BaseException) -> str:
    """An error as one line: what was got, what is allowed; Hydra's own are said in our words, with the nearest names."""
    if isinstance(error, ValidationError):
        return config.explain(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be written or read ({error.strerror}): free some space or choose another with results=FOLDER"
    missing, options = getattr(error, "missing_cfg_file", None), getattr(error, "options", None)
    if missing and options:  # Hydra's error for a choice that no group has, without importing Hydra here
        group, _, name = str(missing).rpartition("/")
        return unknown(f"choice of {group}", name, options)
    for cause in (error, error.__cause__):
        if cause is not None and getattr(cause, "full_key", None) and isinstance(getattr(cause, "parent_node", None), Mapping):
            return _unknown_setting(cause)
    override = getattr(error, "override", None)
    before = f"{override!r} cannot be read as KEY=VALUE: " if override else ""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    causes = [str(cause) for cause in (error.__cause__,) if cause is not None]
    lines = [line.strip() for whole in (text, *causes) for line in whole.splitlines() if line.strip()]
    return before + " ".join(lines) or type(error).__name__


def show_summary(asked: Study, todo: Plan) -> None:
    """One line: how many points, how many done, what is to do."""
    evaluations = sum(isinstance(step.spec, specs.Evaluation) for step in todo.steps)
    rest = f"{todo.todo} to do" + (f": {_by_stage(todo)}" if todo.steps else "")
    shared = f" ({evaluations} distinct evaluations to do)" if evaluations else ""
    counts = "".join(f", {count} {name}" for name, count in todo.counts().items() if name not in ("done", "to do"))
    print(f"study {asked.name}: {len(todo.points)} points, {len(todo.done)} done{counts}, {rest}{shared}", flush=True)


def show_plan(asked: Study, todo: Plan, store: Store, *, missing: Sequence[str], warnings: Sequence[str], workers: int) -> None:
    """The whole plan: points, what they need with reasons, packs, cost, what this machine lacks, and what looks wrong."""
    console = Console()
    show_summary(asked, todo)
    if asked.question:
        console.print(asked.question, style="italic")
    for stage, steps in todo.stages().items():
        table = Table(title=f"{stage}: {len(steps)} to do", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("what", "key", "why", "hours"):
            table.add_column(column, overflow="fold")
        for step in steps[:MOST_ROWS]:
            table.add_row(*_row(step))
        if len(steps) > MOST_ROWS:
            table.add_row("", f"and {len(steps) - MOST_ROWS} more", "", _hours(sum(step.seconds for step in steps[MOST_ROWS:]) / 3600))
        console.print(table)
    for line in costs.lines(todo, workers):
        console.print(line)
    for lack in missing:
        console.print(f"[yellow]missing here:[/] {escape(lack)}")
    for warning in warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    print(f"results: {store.root}")


def show_status(store: Store, named: Roster) -> None:
    """Counts by state, what runs and how fast, the reasons of what failed, warnings and jobs."""
    found = standing.look(store, named)
    for line in status_lines(found):
        print(line)
    _show_warnings(standing.warnings(store, named, found))
    for line in job_lines(store, named.study):
        print(f"  {line}")


def status_lines(found: Standing, most: int = MOST_ROWS) -> list[str]:
    """The standing of a study in lines: summary, pace, needs, what is being built, and at most so many failures of each reason."""
    counts = ", ".join(f"{count} {state.value}" for state, count in found.counts.most_common())
    lines = [f"study {found.study}: {len(found.points)} points: {counts}"]
    if found.per_minute is not None and found.seconds_left is not None:
        lines.append(f"  {found.per_minute:.3g} points a minute, about {duration(found.seconds_left)} left")
    if found.probes[1]:
        lines.append(f"  probes: {found.probes[0]} of {found.probes[1]} evaluations that rankings wait for are done")
    lines += _needs(found)
    names = {folder: name for name, folder in found.folders.items()}
    for folder, progress in found.running.items():
        if progress and folder in names:
            lines.append(f"  {State.RUNNING.value:<9} {names[folder]}: {percent(progress)}of {progress['total']:,} {progress['unit']}")
    return lines + _failures(found, most)


def _needs(found: Standing) -> list[str]:
    """What points need and is not done, by state; nothing once all points are done."""
    if set(found.counts) == {State.DONE}:
        return []
    by_state: dict[State, list[str]] = {}
    for folder, status in found.needs.items():
        line = f"  {status.state.value:<9} {Path(folder).name}  {percent(found.running.get(folder, {}))}{status.message}"
        by_state.setdefault(status.state, []).append(line.rstrip())
    more = {state: f"  {state.value:<9} and {len(lines) - MOST_ROWS} more" for state, lines in by_state.items() if len(lines) > MOST_ROWS}
    return [line for state, lines in by_state.items() for line in (*lines[:MOST_ROWS], *((more[state],) if state in more else ()))]


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def job_lines(store: Store, name: str) -> list[str]:
    """SLURM's own view of the newest launch of the study that was submitted."""
    submitted = [launch for launch in launches.of_study(store, name) if (launch.folder / "jobs.json").exists()]
    if not submitted:
        return []
    from cpt_lab import remote

    try:
        return remote.job_lines(submitted[-1].folder)
    except ValueError as error:
        return [f"jobs: unknown from here: {error}"]


def draw(store: Store, asked: Study) -> list[Path]:
    """Draw the study's figures from what is done, of rankings their maps; the files. What cannot be drawn is said and left out."""
    names = ["head_map"] if _only_rankings(asked) else asked.figures
    if not names or not any(store.is_done(spec) for spec in study.resolved(store, asked.points).values()):
        return []
    from analysis import figures, output
    from analysis.results import Results

    results = Results(store, [asked])
    files: list[Path] = []
    for name in names:
        try:
            drawn = figures.build(name, results)
        except ValueError as error:
            print(f"warning: figure {name} is not drawn: {error}")
        else:
            files += output.write(drawn, study.folder(store, asked.name) / "figures")
    return files


def figure_files(store: Store, name: str) -> list[Path]:
    """What MLflow shows of a study's figures: the drawn ones but for their pages, which need a script beside them, and the report."""
    folder = study.folder(store, name)
    drawn = [path for path in (folder / "figures").glob("*") if path.suffix not in (".html", ".js")]
    return sorted([*drawn, *folder.glob("report.html")])


def show_end(store: Store, asked: Study, files: Sequence[Path], ui: str) -> int:
    """Summary, figures, failures, what to do next; the number of points without a result."""
    from analysis import results, summary

    frame = results.frame(store, asked)
    console = Console()
    if (frame["state"] == State.DONE.value).any() and isinstance(asked.points[0].spec, specs.Evaluation):
        console.print(summary.table(frame))
    wanted = study.resolved(store, asked.points)
    for spec in wanted.values():
        if not isinstance(spec, specs.Evaluation) and store.is_done(spec):
            print(f"{spec.PRODUCT}: {store.product(spec)}")
            for line in _in_words(store, spec):
                print(line)
    for path in files:
        print(f"{'report' if path.stem == 'report' else 'figure'}: {path}")
    named = roster.read(store, asked.name)
    _show_warnings(standing.warnings(store, named, standing.look(store, named)))
    states = {name: study.point_status(store, spec) for name, spec in wanted.items()}
    failed = {name: status for name, status in states.items() if status.state is not State.DONE}
    reasons = Counter(f"{status.state.value}: {status.message}" for status in failed.values())
    for reason, count in reasons.most_common():
        console.print(f"[red]{count} {'point' if count == 1 else 'points'}[/] {escape(reason)}")
    print(f"study {asked.name}: {len(states) - len(failed)} of {len(states)} points done; results in {store.root}")
    if failed:
        print(
            f"which ones: python -m cpt_lab status {asked.name} results={shlex.quote(str(store.root))}; the same command tries them again"
        )
    if ui:
        print(f"MLflow: {ui}")
    return len(failed)


def _failures(found: Standing, most: int) -> list[str]:
    """The points without a result, by reason: the most frequent first."""
    reasons: dict[tuple[State, str], list[str]] = {}
    for name, status in found.bad.items():
        reasons.setdefault((status.state, status.message), []).append(name)
    lines = []
    for (state, message), names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        lines += [f"  {state.value:<9} {name}: {message}" for name in names[:most]]
        if len(names) > most:
            lines.append(f"  {state.value:<9} and {len(names) - most} more points: {message}")
    return lines


def _show_warnings(found: Counter[str]) -> None:
    """The most frequent warnings of what is finished, each with the number of results that have it."""
    for warning, count in found.most_common(MOST_ROWS):
        print(f"warning: {warning} ({count} {'result' if count == 1 else 'results'})")
    if len(found) > MOST_ROWS:
        print(f"warning: and {len(found) - MOST_ROWS} others")


def _unknown_setting(cause: Any) -> str:
    """OmegaConf's error for a key that its mapping does not have."""
    name = str(cause.full_key)
    place = name.rpartition(".")[0]
    known = {f"{place}.{other}".lstrip(".") for other in [*cause.parent_node, *config.known_settings(place)] if other != "hydra"}
    if name in known:
        return f"setting {name!r} stands in no file that was chosen: add it with +{name}=VALUE"
    if place in ADDED:
        return f"nothing stands at {name}: add it with {ADDED[place].format(name=name)}"
    return unknown("setting", name, known) if known else f"unknown setting {name!r}: {place} is a single value"


def _only_rankings(asked: Study) -> bool:
    return all(isinstance(point.spec, specs.Ranking) for point in asked.points)


def _first_units(store: Store, ranking: specs.Ranking) -> str:
    """The order's first units with their scores, and how far a greedy one can be trusted."""
    import pandas as pd

    product = store.product(ranking)
    scores = dict(zip(ranking.units, pd.read_parquet(product / "scores.parquet")["score"], strict=True))
    order = study.read_order(store, ranking) or ()
    first = ", ".join(
        f"{'.'.join(map(str, unit)).removesuffix(f'.{specs.WHOLE_LAYER}')} ({scores[unit]:.4g})" for unit in order[:MOST_ROWS]
    )
    rest = f", and {len(order) - MOST_ROWS} more" if len(order) > MOST_ROWS else ""
    trust = read_json(product / "ranking.json").get("reliability") or {}
    said = (
        f"\n  reliability {trust['whole']:.2f}: about {100 * trust['found']:.0f} % of the truly best {100 * trust['top_share']:.0f} % found"
        if trust.get("found") is not None
        else ""
    )
    unit = {"head": "layer.head", "matrix": "layer.role", "layer": "layer"}[ranking.unit]
    return f"  {ranking.criterion} {ranking.direction}, {unit} (score): {first}{rest}{said}"


def _in_words(store: Store, spec: specs.Spec) -> list[str]:
    """What a finished product says, where that can be said in a line."""
    match spec:
        case specs.Ranking():
            return [_first_units(store, spec)]
        case specs.Fingerprint():
            return [_verdict(store, spec)]
        case specs.Correlation():
            return [_correlation(store, spec)]
        case specs.Contamination():
            return _contamination(store, spec)
        case _:
            return []


def _correlation(store: Store, correlation: specs.Correlation) -> str:
    found = read_json(store.product(correlation) / "correlation.json")
    names = f"  {correlation.one.label()} and {correlation.other.label()}"
    if found["spearman"] is None:
        return f"{names}: one of them does not tell the {found['units']} units apart"
    low, high = found["interval"]
    return (
        f"{names}: Spearman {found['spearman']:.2f} (95 % {low:.2f} to {high:.2f}, p = {found['p_value']:.2g}) over {found['units']} units"
    )


def _contamination(store: Store, contamination: specs.Contamination) -> list[str]:
    found = read_json(store.product(contamination) / "report.json")
    said = (
        f"  {contamination.corpus.name}: {found['overlapping']:,} of {found['documents']:,} documents share {found['words']} words in a row"
    )
    tasks = [
        f"    {name}: {task['items_found']:,} of {task['items']:,} items in {task['documents']:,} documents"
        + (
            f"; {task['items'] - task['items_that_can_be_told']:,} items are too short to tell"
            if task["items_that_can_be_told"] < task["items"]
            else ""
        )
        for name, task in found["tasks"].items()
    ]
    return [f"{said} with items of {contamination.protocol.name}", *tasks]


def _verdict(store: Store, fingerprint: specs.Fingerprint) -> str:
    """The answer, and for each role the medians of matched matrices with those of the controls in brackets."""
    found = read_json(store.product(fingerprint) / "verdict.json")
    names = {"nf": "NF", "residual": "residual side", "head": "heads' side"}
    lines = [
        f"    {role['role']}: "
        + ", ".join(f"{name} {role[f'matched_{key}']:.3f} ({role[f'control_{key}']:.3f})" for key, name in names.items())
        for role in found["roles"]
    ]
    return "\n".join([f"  {found['sentence']}", *lines])


def _row(step: Step) -> tuple[str, str, str, str]:
    return step.spec.PRODUCT, step.key, escape(step.reason), _hours(step.seconds / 3600)


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.005 else "-"


def _by_stage(todo: Plan) -> str:
    return ", ".join(f"{len(steps)} {stage}" for stage, steps in todo.stages().items())


def percent(progress: Mapping[str, Any]) -> str:
    """`40 % `, or nothing if nobody told."""
    return f"{100 * progress['done'] / max(progress['total'], 1):.0f} % " if progress else ""
