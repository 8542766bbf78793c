"""`report STUDY [STUDY ...]`: a study as one page that is complete in itself; and the page that is written when a study ends."""

from __future__ import annotations

import sys
from pathlib import Path

from cpt_lab import study
from cpt_lab.commands.words import Words
from cpt_lab.store import Store
from cpt_lab.study import Study


def run(words: Words) -> int:
    """Write the report of these studies together and print where it lies; ValueError in one sentence where nothing is finished."""
    if not words.names:
        raise ValueError("report of which study? `report STUDY [STUDY ...]`, as in `report rewind_7b`")
    print(f"report: {write(words.store, [study.load(words.store, name) for name in words.names])}")
    return 0


def write(store: Store, studies: list[Study]) -> Path:
    """Write the page beside the manifest of the study, or in a folder named after all of them; its path."""
    from analysis import report
    from analysis.results import Results

    results = Results(store, studies)
    return report.write(results, study.folder(store, results.name) / report.NAME)


def at_end(store: Store, asked: Study) -> list[Path]:
    """The report of a study that has ended, if it wants one and anything is finished; what is wrong with it is a warning."""
    if not asked.report or not any(store.is_done(spec) for spec in study.resolved(store, asked.points).values()):
        return []
    try:
        return [write(store, [asked])]
    except ValueError as error:
        print(f"warning: no report: {error}", file=sys.stderr)
        return []
