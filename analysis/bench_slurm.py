"""`make bench`: the quickstart's sweep through SLURM against one job per point, side by side on a real one-node SLURM; and a large launch.

`python -m analysis.bench_slurm`, as root, with the packages that `launchers/devcluster` names. One job per point writes the edited weights
as a checkpoint and starts the stock `lm_eval` command on it. Both sides have checkpoints, spectra and rankings from the start, two cores,
one thread a task; the clock runs from the command, or the first sbatch, to the end of the last job; the scores must be the same.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from analysis import bench_worker, stock
from cpt_lab import launch, launches, plan, remote, slurm, study
from cpt_lab.execution import Execution
from cpt_lab.site import Site
from cpt_lab.specs import Evaluation, Patched
from cpt_lab.store import Store, Workspace
from cpt_lab.study import Point, Study
from cpt_lab.tracking_settings import Tracking

ROOT = Path(__file__).parents[1]
WORKERS = 2
POINTS = 10  # that the plain way scores; ours scores all of the study
LARGE = 1000
POLL_SECONDS = 0.2
HELD = Site(name="devcluster", partition="dev", extra={"hold": True})


def main() -> None:
    """Print points per minute both ways and their ratio, and the seconds of a large submission; nothing without SLURM or root."""
    if os.geteuid() or not shutil.which("slurmctld"):
        print("SLURM: not measured (needs root, slurmctld, slurmd, slurm-client and munge)")
        return
    finished = Store(Path(os.environ.get("CPT_LAB_RESULTS", "results")))
    points = stock.edited_points(finished)
    with tempfile.TemporaryDirectory() as name, cluster():
        folder = Path(name)
        tasks, seconds = _submit(folder / "large")
        print(f"{tasks} tasks of {LARGE} points submitted in {seconds:.1f} s", flush=True)
        swept, count, before = _sweep(finished, folder / "before")
        chosen = points[:: max(1, len(points) // POINTS)][:POINTS]
        plain = _one_job_each(finished, chosen, folder / "plain") / len(chosen)
        for index, point in enumerate(chosen):
            metrics = json.loads((swept.product(point) / "results.json").read_text())["metrics"]
            stock.check_equal(metrics, stock.results(folder / "plain" / str(index) / "out"))
        _, _, after = _sweep(finished, folder / "after")  # before and after: the machine may have other work
    ours = (before + after) / 2 / count
    print(f"a sweep with {WORKERS} workers: {count} results in {before:.0f} s and in {after:.0f} s, {60 / ours:.1f} a minute")
    print(f"one job a point: {len(chosen)} results in {plain * len(chosen):.0f} s, {60 / plain:.1f} a minute, the same scores")
    print(f"ratio: {plain / ours:.1f}")


@contextmanager
def cluster() -> Iterator[None]:
    """A devcluster of its own that this process's SLURM commands talk to."""
    script = [sys.executable, str(ROOT / "launchers" / "devcluster")]
    with tempfile.TemporaryDirectory(prefix="devcluster-") as folder:
        subprocess.run([*script, "up", folder], check=True, stdout=subprocess.DEVNULL)
        try:
            with patch.dict(os.environ, {"SLURM_CONF": f"{folder}/slurm.conf"}):
                yield
        finally:
            subprocess.run([*script, "down", folder], check=True)


def _sweep(finished: Store, root: Path) -> tuple[Store, int, float]:
    """A store with all that the sweep needs and then its results, how many, and the seconds from the command to the last job's end."""
    root.mkdir()
    for kind in (path for path in finished.root.iterdir() if path.name not in ("evaluations", "launches", "studies", "code", "mlflow")):
        subprocess.run(["cp", "--archive", str(kind), str(root)], check=True)
    command = [sys.executable, "-m", "cpt_lab", f"+experiment={stock.STUDY}", f"results={root}", "hydra/launcher=slurm", "site=devcluster"]
    began = time.perf_counter()
    subprocess.run([*command, f"packs={WORKERS}", "tracking=off"], check=True, stdout=subprocess.DEVNULL)
    store = Store(root)
    (launched,) = launches.of_study(store, stock.STUDY)
    _wait(launched.tasks())
    seconds = time.perf_counter() - began
    done = list((root / "evaluations").glob("*/DONE"))
    return store, len(done), seconds


def _one_job_each(store: Store, points: Sequence[Evaluation], root: Path) -> float:
    """Seconds from the first sbatch to the end of the last job."""
    began = time.perf_counter()
    jobs = []
    for index, point in enumerate(points):
        folder = root / str(index)
        (folder / "checkpoint").mkdir(parents=True)
        (folder / "point.json").write_text(point.model_dump_json())
        write = [sys.executable, "-c", "from analysis import bench_slurm; bench_slurm.write_out()", str(folder), str(store.root)]
        score = stock.command(point, checkpoint=folder / "checkpoint", protocol=store.product(point.protocol), out=folder / "out")
        setting = " ".join(f"{name}={shlex.quote(value)}" for name, value in stock.environment(folder).items())
        script = f"cd {shlex.quote(str(ROOT))} && export {setting} && {shlex.join(write)} && {shlex.join(score)}"
        options = ["--parsable", "--cpus-per-task=1", f"--output={folder}/log.txt", f"--wrap={script}"]
        jobs.append(subprocess.run(["sbatch", *options], check=True, capture_output=True, text=True).stdout.strip())
    _wait(jobs)
    return time.perf_counter() - began


def write_out() -> None:
    """In a job of one point: the edited weights of FOLDER/point.json as FOLDER/checkpoint."""
    from cpt_lab import checkpoints

    folder, store = Path(sys.argv[1]), Store(Path(sys.argv[2]))
    point = Evaluation.model_validate_json((folder / "point.json").read_text())
    assert isinstance(point.checkpoint, Patched)
    sources = {name: store.product(source) for change in point.checkpoint.interventions for name, source in change.sources().items()}
    checkpoints.materialize(point.checkpoint, Workspace(folder, folder / "checkpoint"), tuned=store.product(point.loaded), sources=sources)


def _submit(root: Path) -> tuple[int, float]:
    """How many tasks, each a pack of one point, and the seconds to submit them; they are held, and cancelled."""
    store = Store(root)
    specs = bench_worker.many_points(root, LARGE)
    points = tuple(Point(name=str(index), varies={}, config={}, spec=spec) for index, spec in enumerate(specs))
    made = plan.make(points, status=store.status, orders={}, workers=LARGE)
    asked = Study(name="large", points=points, tracking=Tracking(kind="off"))
    study.save(store, asked)
    told = launch.prepare(made, asked, store, where="slurm", how=Execution(), max_attempts=3)
    began = time.perf_counter()
    jobs = slurm.submit(told.folder, remote.stages(told, HELD), HELD)
    seconds = time.perf_counter() - began
    slurm.cancel(jobs.values())
    (launched,) = launches.of_study(store, "large")
    return len(launched.tasks()), seconds


def _wait(tasks: Sequence[str]) -> None:
    """Return when all have ended; SystemExit if one failed."""
    states: dict[str, str] = {}
    while not states or not set(states.values()) <= slurm.ENDED:
        time.sleep(POLL_SECONDS)
        states = slurm.job_states(tasks)
    if set(states.values()) != {"COMPLETED"}:
        raise SystemExit(f"jobs ended as {states}")


if __name__ == "__main__":
    main()
