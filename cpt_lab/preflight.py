"""What can be checked before anything expensive starts: each problem is a ValueError in one sentence."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

from cpt_lab import disk, local, specs, vocabularies
from cpt_lab.costs import BIG_MODEL
from cpt_lab.execution import Execution
from cpt_lab.plan import Plan
from cpt_lab.provenance import gpu_name
from cpt_lab.store import Store, read_json

LOOK_SECONDS = 5.0
FREE_BYTES_LEFT = 200 * 1024**2
DOWNLOADS = "downloads from the hub"


def check(todo: Plan, store: Store, *, where: str) -> None:
    """ValueError for the first thing that would make these steps fail."""
    for step in todo.steps:
        store.check(step.spec)
    for point in todo.points:
        if todo.resolved[point.name] is point.spec:  # written out; to compare thousands of sets of heads takes seconds at every command
            store.check(point.spec)
    hub = [step.spec for step in todo.steps if isinstance(step.spec, specs.HubCheckpoint | specs.HubTokenizer | specs.HubCorpus)]
    unreachable = [spec for spec in hub if not is_cached(spec)]
    if unreachable and not network():
        raise ValueError(_hub_advice(unreachable[0]))
    _check_items(todo)
    if where == "slurm" and shutil.which("sbatch") is None:
        raise ValueError("hydra/launcher=slurm, but there is no sbatch here: log in to the cluster, or leave the launcher local")
    _check_downloads(todo)
    _check_disk(todo, store)
    for step in todo.steps:
        if isinstance(step.spec, specs.FolderCheckpoint):
            _check_folder(step.spec)


def check_consent(todo: Plan, *, allowed: bool, where: str) -> None:
    """ValueError if what a model writes would be run without leave, or here, where a sandbox cannot hold it."""
    from cpt_lab.evaluation import code

    scored = [step.spec.protocol for step in todo.steps if isinstance(step.spec, specs.Evaluation)]
    protocols = list({specs.key(protocol): protocol for protocol in scored}.values())
    for protocol in protocols:
        code.check_consent(protocol, allowed=allowed)
    runs_code = any(code.runs_code(task) for protocol in protocols for task in protocol.tasks)
    if runs_code and where == "local":
        from cpt_lab.evaluation.sandbox.runner import check_sandbox

        check_sandbox()


def check_budgets(todo: Plan, store: Store, how: Execution) -> None:
    """ValueError if a mixture asks for more tokens than a small local corpus has; the token files are built for it."""
    from cpt_lab.data.tokens import check_budget

    parts = [
        (part, tokens)
        for step in todo.steps
        if isinstance(step.spec, specs.TrainedCheckpoint)
        for part, tokens in zip(step.spec.mixture.parts, step.spec.mixture.token_files(step.spec.tokenizer), strict=True)
        if not isinstance(part.corpus, specs.HubCorpus)
    ]
    local.build_here(store, [tokens for _, tokens in parts], how)
    for part, tokens in parts:
        manifest = read_json(store.product(tokens) / "manifest.json")
        check_budget(part, int(manifest["tokens"]), unended=int(manifest.get("unended", 0)))


def missing_here(todo: Plan, where: str) -> list[str]:
    """What this machine lacks to run these steps, in sentences; looks at files only, asks no network."""
    lacks = []
    for step in todo.steps:
        spec = step.spec
        if isinstance(spec, specs.HubCheckpoint | specs.HubTokenizer | specs.HubCorpus) and not is_cached(spec):
            revision = spec.revision if spec.revision != "main" else "its newest version"
            lacks.append(f"{spec.PRODUCT} {spec.id} ({revision}) is not in the local hub cache: it will be downloaded")
    largest = max((_weights(step.spec) for step in todo.steps), default=0)
    if where == "local" and largest > BIG_MODEL and not gpu_name():
        lacks.append(f"no GPU here for a model of {largest / 1e9:.1f} billion weights: use hydra/launcher=slurm site=YOURS")
    if where == "slurm" and shutil.which("sbatch") is None:
        lacks.append("no sbatch here: launch from the cluster's login node")
    return list(dict.fromkeys(lacks))


def warnings(todo: Plan, store: Store) -> list[str]:
    """What looks wrong and may be meant: tokenizers that differ, as far as they are on this machine."""
    wanted: dict[tuple[str, ...], specs.Spec] = {}  # by the checkpoints that they combine: the points of a sweep have the same
    for spec in (*(point.spec for point in todo.points), *(step.spec for step in todo.steps)):
        wanted.setdefault(tuple(map(specs.key, vocabularies.compared(spec).values())), spec)
    found = [vocabularies.warnings(spec, lambda checkpoint: _tokenizer(checkpoint, store)) for spec in wanted.values()]
    return list(dict.fromkeys(sentence for sentences in (*found, _not_kept(todo, store)) for sentence in sentences))


def _not_kept(todo: Plan, store: Store) -> list[str]:
    """Of weights on the way of finished runs that were not asked to keep them: what they will cost."""
    asked = [step.spec for step in todo.steps if isinstance(step.spec, specs.Intermediate)]
    lost = [spec for spec in asked if kept(spec, store) is False]
    return [f"{specs.key(spec.of)} did not keep its weights after {spec.tokens:,} tokens: it is trained again up to there" for spec in lost]


def kept(spec: specs.Intermediate, store: Store) -> bool | None:
    """Whether a finished run kept these weights on its way; None of a run that is not finished."""
    return (store.product(spec.of) / "intermediates" / str(spec.tokens)).is_dir() if store.is_done(spec.of) else None


def is_cached(spec: specs.HubCheckpoint | specs.HubTokenizer | specs.HubCorpus) -> bool:
    """Whether the hub's local cache has this revision."""
    return _cached_folder(spec) is not None


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads, by its own rules, without importing it."""
    home = Path(os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def network() -> bool:
    """Whether the hub can be reached."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    address = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=LOOK_SECONDS):
            return True
    except OSError:
        return False


def _cached_folder(spec: specs.HubCheckpoint | specs.HubTokenizer | specs.HubCorpus) -> Path | None:
    """Where the hub's local cache has this revision, a commit or a name for one."""
    kind = "datasets" if isinstance(spec, specs.HubCorpus) else "models"
    folder = hub_cache() / f"{kind}--{spec.id.replace('/', '--')}"
    name = folder / "refs" / spec.revision
    snapshot = folder / "snapshots" / (name.read_text().strip() if name.is_file() else spec.revision)
    return snapshot if snapshot.is_dir() or name.is_file() else None


def _hub_advice(spec: specs.HubCheckpoint | specs.HubTokenizer | specs.HubCorpus) -> str:
    if isinstance(spec, specs.HubCorpus):
        return f"data set {spec.id} is not on this machine and the hub cannot be reached: give a files_corpus, or a network"
    return (
        f"{spec.id} ({spec.revision}) is not on this machine and the hub cannot be reached: "
        "point to a folder with base.from=folder base.path=FOLDER (tuned and reference likewise), or give a network"
    )


def _tokenizer(spec: specs.Checkpoint | specs.Tokenizer, store: Store) -> Path | None:
    """A folder with the tokenizer that a checkpoint has or will have; None if it is not on this machine yet."""
    if store.is_done(spec):
        return store.product(spec)
    match spec:
        case specs.FolderCheckpoint():
            return Path(spec.path)
        case specs.HubCheckpoint() | specs.HubTokenizer():
            return _cached_folder(spec)
        case specs.TrainedCheckpoint() | specs.OlmoCoreCheckpoint():
            return _tokenizer(spec.tokenizer, store)
        case specs.Intermediate():
            return _tokenizer(spec.of.tokenizer, store)
        case _:
            return None


def _check_items(todo: Plan) -> None:
    """ValueError if the items of a task are neither here nor on a hub that can be reached."""
    from cpt_lab.evaluation import data_check

    for step in todo.steps:
        if isinstance(step.spec, specs.Protocol):
            absent = data_check.absent(step.spec)
            if absent and not network():
                raise ValueError(f"{absent[0]}, and the hub cannot be reached")


def _check_folder(spec: specs.FolderCheckpoint) -> None:
    from cpt_lab.weights import check_finite, open_weights

    check_finite(open_weights(Path(spec.path)), spec.path)


def _check_disk(todo: Plan, store: Store) -> None:
    """ValueError if the disk of the results has no room for the plan at its fullest, with downloads if they go to the same disk.

    What interrupted builds have in their scratch folders is part of it, and there already.
    """
    needed, downloads = todo.room, _downloads(todo)
    if downloads and store.root.stat().st_dev == disk.nearest_folder(hub_cache()).stat().st_dev:
        needed = {**needed, DOWNLOADS: downloads}
    there = sum(_size(store.folder(step.spec) / "scratch") for step in todo.steps if step.written)
    size, free = max(sum(needed.values()) - there, 0), shutil.disk_usage(store.root).free
    if free < size + FREE_BYTES_LEFT:
        what = f" ({disk.words(needed)}{f', of which {disk.gigabytes(there)} are there' if there else ''})" if size else ""
        raise ValueError(
            f"results folder {store.root} has {free / 1e9:,.1f} GB free and this study needs {size / 1e9:,.1f} GB{what} "
            "and a reserve of 0.2: free some space or choose another with results=FOLDER"
        )


def _check_downloads(todo: Plan) -> None:
    """ValueError if the checkpoints that the hub has to send do not fit where its cache lies."""
    needed, free = _downloads(todo), shutil.disk_usage(disk.nearest_folder(hub_cache())).free
    if needed and free < needed:
        raise ValueError(
            f"the hub's cache {hub_cache()} has {free / 1e9:.1f} GB free and checkpoints of about {needed / 1e9:.1f} GB will be "
            "downloaded to it: free some space or choose another folder with HF_HUB_CACHE=FOLDER"
        )


def _downloads(todo: Plan) -> int:
    """Bytes of the checkpoints that the hub has to send."""
    absent = {step.key: step.spec for step in todo.steps if isinstance(step.spec, specs.HubCheckpoint) and not is_cached(step.spec)}
    return sum(disk.RELEASED_BYTES * spec.shape.parameters for spec in absent.values())


def _size(folder: Path) -> int:
    """Bytes of the files below a folder, which may be written to meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):  # unlike Path.rglob it goes on when a folder is gone
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(place, name).lstat().st_size
    return total


def _weights(spec: specs.Spec) -> int:
    """What has to fit where it is trained, scored or patched; spectra are of one layer at a time."""
    if isinstance(spec, specs.Evaluation):
        return spec.loaded.shape.parameters
    if isinstance(spec, specs.TrainedCheckpoint | specs.Patched):
        return spec.shape.parameters
    return 0
