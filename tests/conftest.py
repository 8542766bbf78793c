"""Every test process computes with one thread, asks no hub, and writes results and caches below a folder of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from training_cases import Made

QUIET = {
    "OMP_NUM_THREADS": "1",  # before anything imports torch, and for the processes that tests start
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
OF_A_JOB = ("SLURM_", "SBATCH_")  # tests that run inside a job are not part of it

_FOLDER = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    folder = Path(tempfile.mkdtemp(prefix="cpt-lab-tests-"))
    config.stash[_FOLDER] = folder
    for name in [name for name in os.environ if name.startswith(OF_A_JOB) and name != "SLURM_CONF"]:
        del os.environ[name]
    os.environ.update(QUIET)
    os.environ.update({"CPT_LAB_RESULTS": str(folder / "results"), "HF_HOME": str(folder / "huggingface")})


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What the training runs of the tests need; nobody changes it."""
    import training_cases  # not for tests that train nothing

    return training_cases.make(tmp_path_factory.mktemp("made"))
