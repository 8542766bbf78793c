"""What is looked at before anything expensive starts: room for what is written and for what is downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import toys
from cpt_lab import preflight
from cpt_lab.specs import Evaluation, Spec
from cpt_lab.store import Store
from spec_cases import BASE, FOLDER, PATCHED, PROTOCOL


@pytest.fixture(autouse=True)
def _small_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(preflight, "network", lambda: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300 * 1024**2))


def check(root: Path, spec: Spec) -> None:
    store = Store(root)
    root.mkdir(exist_ok=True)
    preflight.check(toys.planned(store, [spec]), store, where="local")


def test_weights_that_do_not_fit_the_disk_are_refused_before_they_are_made(tmp_path: Path) -> None:
    large = FOLDER.but(shape=FOLDER.shape.but(vocab_size=3_000_000))  # 0.4 GB as released
    with pytest.raises(ValueError, match=r"0.3 GB free and the checkpoints of this study need 0.4 GB"):
        check(tmp_path / "results", PATCHED.but(tuned=large))


def test_downloads_that_do_not_fit_the_hubs_cache_are_refused_before_they_start(tmp_path: Path) -> None:
    large = BASE.but(shape=BASE.shape.but(vocab_size=3_000_000))
    with pytest.raises(ValueError, match=r"0.3 GB free and 1 checkpoints of about 0.4 GB will be downloaded"):
        check(tmp_path / "results", Evaluation(checkpoint=large, protocol=PROTOCOL))
