"""`track sync|reconcile|init [STUDY ...]`: MLflow brought up to the store."""

from __future__ import annotations

from cpt_lab import report, roster, study
from cpt_lab.commands.words import Words
from cpt_lab.names import unknown
from cpt_lab.roster import Roster
from cpt_lab.store import Store
from cpt_lab.tracking_settings import Tracking

THINGS = ("init", "reconcile", "sync")


def run(words: Words) -> int:
    """Do it for these studies, or for all; errors in one sentence where MLflow cannot be reached."""
    thing, *names = words.names or ("",)
    if thing not in THINGS:
        raise KeyError(f"{unknown('thing to track', thing, THINGS)}, as in `track sync [STUDY ...]`")
    store = words.store
    studies = [roster.read(store, name) for name in names or study.names(store)]
    if thing == "init":
        return _initialise(store, studies)
    if not studies:
        print(f"no study was ever launched in {store.root}: MLflow has nothing to show of it")
    for asked in studies:
        _sync(store, asked) if thing == "sync" else _reconcile(store, asked)
    return 0


def _initialise(store: Store, studies: list[Roster]) -> int:
    """Make what is missing of every MLflow that the studies use; without a study, the SQLite file of the store."""
    from cpt_lab import tracking

    wanted = [asked.tracking.within(store.root) for asked in studies] or [Tracking().within(store.root)]
    for settings in {settings.model_dump_json(): settings for settings in wanted}.values():
        if settings.kind == "off":
            continue
        experiment = tracking.initialise(settings)
        print(f"{settings.address}: experiment {settings.experiment} (id {experiment}) is ready; {tracking.ui_command(settings)}")
    return 0


def _sync(store: Store, asked: Roster) -> None:
    from cpt_lab import tracking

    done = tracking.sync(store, asked.study, asked.tracking)
    tracking.log_figures(store, asked.study, asked.tracking, report.figure_files(store, asked.study))
    print(f"{asked.study}: {done.created} runs created, {done.updated} updated, {done.unchanged} unchanged, {done.pending} points to come")


def _reconcile(store: Store, asked: Roster) -> None:
    from cpt_lab import tracking

    found = tracking.reconcile(store, asked.study, asked.tracking)
    tracking.log_figures(store, asked.study, asked.tracking, report.figure_files(store, asked.study))
    print(f"{asked.study}: {found.closed} dead runs closed, {found.mended} of {found.runs} runs differed from the store and were mended")
