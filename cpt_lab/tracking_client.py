"""The MLflow client: connecting, creating what is missing, writing one run. MLflow is imported here, and only when it is needed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cpt_lab.failures import first_line
from cpt_lab.store import read_json, write_atomically
from cpt_lab.tracking_records import TAG_LENGTH, Measurement, Record, legal_name, series
from cpt_lab.tracking_settings import SQLITE, Tracking

PROBE_SECONDS = 5.0
METRICS_PER_BATCH = 800  # MLflow's limits for one request: 1000 items, 100 of them parameters and 100 tags
NAMES_PER_BATCH = 100
RUNS_PER_PAGE = 1000
CHATTY_LOGGERS = ("mlflow", "alembic", "sqlalchemy", "urllib3")
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it starts threads and calls home, which hangs on nodes without a way out
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default waits for minutes before it gives up
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "QueuePool",  # MLflow opens six sessions for every run
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingUnavailable(ValueError):
    """MLflow cannot be reached or written now; the store has everything, and a later sync completes the view."""


@contextmanager
def connected(settings: Tracking) -> Iterator[Any]:
    """An `MlflowClient` without its chatter; what goes wrong with it inside the block becomes TrackingUnavailable."""
    if settings.kind == "server":
        _probe(settings.address)
    with _quiet():
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            client = MlflowClient(tracking_uri=settings.address)
            try:
                yield client
            finally:
                _disconnect(client)
        except (MlflowException, OSError) as error:
            raise TrackingUnavailable(f"{settings.address}: {first_line(error)}") from error


def _disconnect(client: Any) -> None:
    """Close what MLflow has open on an SQLite file: it would go on writing to one that somebody has deleted and made anew."""
    engine = getattr(client._tracking_client.store, "engine", None)  # a server's store has none
    if engine is not None:
        engine.dispose()


def is_initialised(settings: Tracking) -> dict[str, str]:
    """{database, experiment} of an SQLite file that this module and this version of MLflow made ready; else nothing. No MLflow needed."""
    if settings.kind != "sqlite" or not settings.database.exists():
        return {}
    marker = read_json(_marker(settings.database))
    experiment = marker.get("experiments", {}).get(settings.experiment)
    if experiment is None or marker.get("mlflow") != version("mlflow"):
        return {}
    return {"database": marker["database"], "experiment": experiment}


def create_database(settings: Tracking) -> None:
    """Make the SQLite file, with all its tables, beside its place and move it there: whoever sees it sees it whole.

    Several processes migrating one new file crash each other; call this with the lock in hand.
    """
    if settings.database.exists():
        return
    settings.database.parent.mkdir(parents=True, exist_ok=True)
    _marker(settings.database).unlink(missing_ok=True)  # of a database that somebody has deleted
    beside = settings.database.with_name(f".{settings.database.name}.{uuid.uuid4().hex[:8]}")
    try:
        with connected(settings.model_copy(update={"uri": f"{SQLITE}{beside}"})) as client:
            client.search_experiments(max_results=1)
        os.replace(beside, settings.database)
    finally:
        beside.unlink(missing_ok=True)


def ensure_experiment(client: Any, settings: Tracking) -> str:
    """The id of the experiment, created if there is none; TrackingUnavailable if its name belongs to a deleted one."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(settings.experiment)
    if found is None:
        root = settings.artifact_root
        location = Path(root).as_uri() if root is not None and "://" not in root else root
        with suppress(MlflowException):  # another process was first, or the next line says what is wrong
            client.create_experiment(settings.experiment, artifact_location=location)
        found = client.get_experiment_by_name(settings.experiment)
    if found is None or found.name != settings.experiment or found.lifecycle_stage != "active":
        raise TrackingUnavailable(
            f"experiment {settings.experiment!r} at {settings.address} is deleted: restore it with `mlflow experiments restore`, "
            "or choose another with tracking.experiment=NAME"
        )
    return str(found.experiment_id)


def mark_initialised(settings: Tracking, experiment: str) -> None:
    """Remember, beside the SQLite file, that it is ready, under a random name of this very file."""
    path = _marker(settings.database)
    marker = read_json(path)
    experiments = {**marker.get("experiments", {}), settings.experiment: experiment}
    content = {"database": marker.get("database", uuid.uuid4().hex), "experiments": experiments, "mlflow": version("mlflow")}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1))


def find_runs(client: Any, experiment: str, tags: dict[str, str], only: Sequence[str] | None = None) -> dict[str, Any]:
    """Identity -> run, of all runs that carry these tags, or of a few: the authority on what exists, whatever a cache says."""
    shared = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    queries = [f"{shared} and tags.`cpt.run` = '{identity}'" for identity in only or ()] if only is not None else [shared]
    runs: dict[str, Any] = {}
    for query in queries:
        for run in _search(client, experiment, query):
            runs.setdefault(run.data.tags.get("cpt.run", ""), run)
    return runs


def _search(client: Any, experiment: str, query: str) -> Iterator[Any]:
    page = None
    while True:
        found = client.search_runs([experiment], query, max_results=RUNS_PER_PAGE, page_token=page)
        yield from found
        page = found.token
        if not page:
            return


def create_run(client: Any, experiment: str, record: Record, *, tags: dict[str, str]) -> Any:
    """A new run that carries its identity from its first moment, so that a sync killed right after is found by the next."""
    started = round(record.started * 1000) or None
    carried = {**tags, **_tags(record), "cpt.run": record.identity}
    return client.create_run(experiment, start_time=started, tags=carried, run_name=record.name)


def write_run(client: Any, run: Any, record: Record) -> None:
    """Bring a run up to its record: what is there already stays as it is. The status comes last."""
    from mlflow.entities import Metric, Param, RunTag

    had = run.data.params  # MLflow never changes a parameter
    params = [Param(name, value) for name, value in record.params.items() if name not in had]
    tags = [RunTag(name, value) for name, value in _tags(record).items() if run.data.tags.get(name) != value]
    metrics = [Metric(*_as_metric(item, run)) for item in (*record.metrics, *series(record))]
    batches = zip_longest(_batches(params, NAMES_PER_BATCH), _batches(tags, NAMES_PER_BATCH), _batches(metrics, METRICS_PER_BATCH))
    for some_params, some_tags, some_metrics in batches:
        client.log_batch(run.info.run_id, params=some_params or (), tags=some_tags or (), metrics=some_metrics or ())
    _write_artifacts(client, run, record)
    _write_status(client, run, record)


def shows(run: Any, record: Record) -> bool:
    """Whether a run has the record's status, parameters, tags and last measurements; what else it has does not matter.

    Of parameters the names count: what was written first, MLflow keeps.
    """
    numbers = {name: value for name, value, _, _ in (_as_metric(item, run) for item in record.metrics)}
    shown = ((_tags(record), run.data.tags), (numbers, run.data.metrics))
    known = record.params.keys() <= run.data.params.keys() and run.info.status == record.status
    return bool(known) and all(wanted.items() <= dict(there).items() for wanted, there in shown)


def retire_run(client: Any, run: Any) -> None:
    """Mark a run whose point the study no longer has, or has not finished; one left open by a killed sync is closed."""
    if run.data.tags.get("cpt.current") != "false":
        client.set_tag(run.info.run_id, "cpt.current", "false")
    if run.info.status == "RUNNING":
        client.set_terminated(run.info.run_id, status="KILLED")


def write_files(client: Any, run: Any, files: Sequence[Path], folder: str) -> None:
    for path in files:
        _artifacts(client, run).log_artifact(str(path), folder or None)


def write_text(client: Any, run: Any, text: str, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="cpt-lab-") as folder:
        (Path(folder) / name).write_text(text)
        write_files(client, run, [Path(folder) / name], "")


# -------------------------------------------------------------------------------------------------------------- helpers


def _artifacts(client: Any, run: Any) -> Any:
    """Where a run's artifacts go; the client itself would ask for the run once more each time."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(run.info.artifact_uri, tracking_uri=client.tracking_uri)


def _write_artifacts(client: Any, run: Any, record: Record) -> None:
    if not record.texts and not record.files:
        return
    with tempfile.TemporaryDirectory(prefix="cpt-lab-") as name:
        folder = Path(name)
        for path, text in record.texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        for path, file in record.files.items():
            shutil.copyfile(file, folder / path)
        _artifacts(client, run).log_artifacts(name)


def _tags(record: Record) -> dict[str, str]:
    return {legal_name(name): value[:TAG_LENGTH] for name, value in record.tags.items()}


def _write_status(client: Any, run: Any, record: Record) -> None:
    if record.status in ("RUNNING", "SCHEDULED"):
        client.update_run(run.info.run_id, status=record.status)
    else:
        client.set_terminated(run.info.run_id, status=record.status, end_time=round(record.ended * 1000) or None)


def _as_metric(item: Measurement, run: Any) -> tuple[str, float, int, int]:
    step = max(0, round(item.time - run.info.start_time / 1000)) if item.step is None else item.step
    return item.name, item.value, round(item.time * 1000), step


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _probe(address: str) -> None:
    """TrackingUnavailable if nothing answers; any answer will do. Asked before MLflow, whose own retries take minutes."""
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, ValueError) as error:
        raise TrackingUnavailable(f"{address}: {getattr(error, 'reason', error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow with its warnings, log lines and calls home switched off, and everything as it was afterwards."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in CHATTY_LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        for name in ENVIRONMENT.keys() - os.environ.keys():
            stack.callback(os.environ.pop, name, None)
            os.environ[name] = ENVIRONMENT[name]
        import_module("mlflow.tracking")  # sets the level of its logger
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        yield


def _marker(database: Path) -> Path:
    return database.with_name(f"{database.name}.ready.json")
