"""What is looked at before anything expensive starts: room for what is written and for what is downloaded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import toys
from cpt_lab import preflight
from cpt_lab.specs import Evaluation, HubCorpus, Mixture, Part, Spec, TrainedCheckpoint
from cpt_lab.store import Store
from spec_cases import BASE, FOLDER, HUB, INTERMEDIATE, PATCHED, PRETRAINED, PROTOCOL


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
    with pytest.raises(ValueError, match=r"0.3 GB free and this study needs 0.4 GB \(weights 0.4 GB\) and a reserve of 0.2: free some"):
        check(tmp_path / "results", PATCHED.but(tuned=large))


def run_of(corpus: HubCorpus) -> TrainedCheckpoint:
    return PRETRAINED.but(mixture=Mixture(name="m", parts=(Part(corpus=corpus, tokens=5000),)))


def test_token_files_that_do_not_fit_the_disk_are_refused_naming_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this study needs 0.4 GB \(token files 0.2 GB, their pieces while they are made 0.2 GB\)"):
        check(tmp_path / "results", run_of(HUB.but(available_tokens=10**8)))
    check(tmp_path / "results", run_of(HUB.but(available_tokens=10**7)))


def test_what_an_interrupted_build_left_in_its_scratch_folder_is_not_asked_for_again(tmp_path: Path) -> None:
    run, store = run_of(HUB.but(available_tokens=3 * 10**7)), Store(tmp_path / "results")
    with pytest.raises(ValueError, match=r"this study needs 0.1 GB"):
        check(store.root, run)
    (tokens,) = run.mixture.token_files(run.tokenizer)
    scratch = store.folder(tokens) / "scratch"
    scratch.mkdir(parents=True)
    with (scratch / "0.npy").open("wb") as file:
        file.truncate(6 * 10**7)
    check(store.root, run)


def test_a_folder_that_is_removed_while_it_is_measured_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 100)
    scan = os.scandir

    def scan_late(place: object) -> object:
        if Path(str(place)).name == "second":
            shutil.rmtree(tmp_path / "second", ignore_errors=True)
        return scan(place)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scan_late)
    assert preflight._size(tmp_path) == 100


@pytest.mark.parametrize(("finished", "folder", "known"), [(False, True, None), (True, True, True), (True, False, False)])
def test_only_a_finished_run_has_kept_weights_or_not(tmp_path: Path, finished: bool, folder: bool, known: bool | None) -> None:
    place = tmp_path / "run"
    (place / "intermediates" / str(INTERMEDIATE.tokens) if folder else place).mkdir(parents=True)
    store = SimpleNamespace(is_done=lambda _: finished, product=lambda _: place)
    assert preflight.kept(INTERMEDIATE, cast(Store, store)) is known


def test_downloads_to_the_disk_of_the_results_need_their_room_beside_them(tmp_path: Path) -> None:
    shape = BASE.shape.but(vocab_size=800_000)  # 0.1 GB as released
    edited = PATCHED.but(tuned=BASE.but(shape=shape))
    with pytest.raises(ValueError, match=r"needs 0.2 GB \(weights 0.1 GB, downloads from the hub 0.1 GB\)"):
        check(tmp_path / "results", edited)


def test_downloads_that_do_not_fit_the_hubs_cache_are_refused_before_they_start(tmp_path: Path) -> None:
    large = BASE.but(shape=BASE.shape.but(vocab_size=3_000_000))
    with pytest.raises(ValueError, match=r"0.3 GB free and checkpoints of about 0.4 GB will be downloaded"):
        check(tmp_path / "results", Evaluation(checkpoint=large, protocol=PROTOCOL))
