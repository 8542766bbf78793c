"""Where a result comes from: the code (git sha, difference, snapshot), the packages, the machine, the job."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import uuid
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("cpt-lab", "torch", "transformers", "lm_eval", "ai2-olmo-core", "hydra-core", "mlflow", "numpy", "safetensors", "tokenizers")
SOURCES = ("cpt_lab", "conf", "launchers", "analysis")
SOURCE_ENDINGS = (".py", ".yaml")


def facts(seconds: float, snapshot: str) -> dict[str, Any]:
    """What provenance.json holds of one build."""
    slurm = {name: value for name, value in os.environ.items() if name.startswith("SLURM_") and name.endswith(("_ID", "_NAME"))}
    return {
        "seconds": round(seconds, 3),
        "code": snapshot,
        **git_state(),
        "versions": versions(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "gpu": gpu_name(),
        "command": os.environ.get("CPT_LAB_COMMAND", " ".join(sys.argv)),
        "slurm": slurm,
    }


def source_root() -> Path:
    """The folder that holds the package `cpt_lab`: a checkout, a snapshot of one, or site-packages."""
    return Path(__file__).parent.parent


@cache
def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_state() -> dict[str, str]:
    """Commit and digest of the uncommitted difference; of the launch, when a worker runs from its snapshot."""
    recorded = source_root() / "GIT"
    if recorded.exists():
        commit, _, difference = recorded.read_text().partition("\n")
        return {"git": commit, "git_diff": difference.strip()}
    commit = _git("rev-parse", "HEAD")
    difference = _git("diff", "HEAD") if commit else ""
    return {"git": commit.strip(), "git_diff": hashlib.sha256(difference.encode()).hexdigest()[:16] if difference else ""}


@cache
def gpu_name() -> str:
    """The first GPU's name by NVIDIA's own tool; empty without one. No torch."""
    if shutil.which("nvidia-smi") is None:
        return ""
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return asked.stdout.splitlines()[0].strip() if asked.returncode == 0 and asked.stdout else ""


def snapshot(results: Path) -> Path:
    """A copy of the source below the results, named by its contents and commit: workers run from it, whatever is edited meanwhile."""
    files = _source_files()
    git = git_state()
    recorded = f"{git['git']}\n{git['git_diff']}\n"
    state = hashlib.sha256(recorded.encode())  # two commits may have the same source, and results name the commit
    for name, path in files:
        state.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    target = results / "code" / state.hexdigest()[:16]
    if target.exists():
        return target
    beside = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    for name, path in files:
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, beside / name)
    (beside / "GIT").write_text(recorded)
    (beside / "difference.patch").write_text(_git("diff", "HEAD") if git["git"] else "")
    try:
        beside.rename(target)
    except OSError:  # another launch of the same code was first
        shutil.rmtree(beside)
    return target


def _source_files() -> list[tuple[str, Path]]:
    """(name in the snapshot, path). A checkout has conf/ and launchers/ beside the package, an installed wheel inside and beside it."""
    root = source_root()
    folders = {name: root / name for name in SOURCES if (root / name).is_dir()}
    if "launchers" not in folders:
        folders["launchers/hydra_plugins/cpt_packed"] = root / "hydra_plugins" / "cpt_packed"
    files = [
        (f"{name}/{path.relative_to(folder)}", path)
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.suffix in SOURCE_ENDINGS and "__pycache__" not in path.parts
    ]
    return sorted(files)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(source_root()), *arguments]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    except OSError:
        return ""
    return asked.stdout if asked.returncode == 0 else ""
