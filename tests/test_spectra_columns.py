"""Columns and parts behind tables of spectra: what is computed when, what is shared, and what goes on after an interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import toys
from cpt_lab import build, remote
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.site import Site
from cpt_lab.specs import FolderCheckpoint, Spectra, SpectralPart, closure, key
from cpt_lab.spectra import MEASURES, decompose
from cpt_lab.spectra.choice import chosen
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.parts import Opened, decomposed
from cpt_lab.store import Store
from cpt_lab.weights import open_weights
from cpt_lab.worker import Worker
from factory import tiny_shape, workspace
from spec_cases import SPECTRA
from spectral_cases import checkpoints
from spectral_tables import built, pair, product, saved

OLMO2, GQA = tiny_shape(), tiny_shape("llama", num_kv_heads=2)
EVERY = chosen("all", pair=True)


@pytest.fixture(scope="module")
def olmo2(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderCheckpoint, FolderCheckpoint, Path]:
    """Tuned, base and a store, shared by tests that do not mind what else lies there."""
    folder = tmp_path_factory.mktemp("olmo2")
    tuned, base = pair(OLMO2, folder)
    return tuned, base, folder / "results"


def finished(results: Path) -> dict[Path, int]:
    return {path.parent: path.stat().st_mtime_ns for path in results.glob("*/*/DONE")}


def new_in(results: Path, before: dict[Path, int]) -> list[str]:
    """Kinds of folders that were finished since; those of before are as they were."""
    after = finished(results)
    assert {folder: after[folder] for folder in before} == before
    return sorted(folder.parent.name for folder in after.keys() - before.keys())


@pytest.mark.slow
def test_another_measure_of_a_family_makes_a_table_alone_and_one_of_another_family_its_columns(tmp_path: Path) -> None:
    tuned, base = pair(OLMO2, tmp_path)
    spec, results = Spectra(checkpoint=tuned, against=base, measures=("stable_rank",)), tmp_path / "results"
    built(spec, results)
    before = finished(results)
    built(spec.but(measures=("stable_rank", "effective_rank")), results)
    assert new_in(results, before) == ["spectra"]
    before = finished(results)
    built(spec.but(measures=("stable_rank", "pl_alpha")), results)
    assert new_in(results, before) == ["spectra", *["spectral_columns"] * 3]
    before = finished(results)
    built(spec.but(measures=("pl_alpha", "agreement_head_max")), results)
    assert new_in(results, before) == ["spectra", *["spectral_columns"] * 3, *["spectral_parts"] * 6]


def test_options_that_a_family_does_not_depend_on_are_not_in_the_keys_of_its_columns(olmo2: Any) -> None:
    tuned, base, _ = olmo2
    spec = Spectra(checkpoint=tuned, against=base, measures=EVERY)
    changed = spec.but(min_tail=12, ks="two_sided", null_model="permute", seed=3, samples=7)
    same = {key(columns) for columns in spec.columns()} & {key(columns) for columns in changed.columns()}
    families = {columns.family for columns in spec.columns() if key(columns) not in same}
    assert families == {"power_law", "marchenko_pastur"}
    again = spec.but(seed=3)  # which nothing draws from
    assert {key(columns) for columns in spec.columns()} == {key(columns) for columns in again.columns()}


def test_a_new_measure_of_a_family_makes_new_columns_of_the_same_parts(olmo2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, _, _ = olmo2
    spec = Spectra(checkpoint=tuned, measures=("stable_rank",), seed=11)
    before = spec.columns()[0]
    monkeypatch.setitem(MEASURES, "norms", (*MEASURES["norms"], "nuclear_norm"))
    after = spec.but(seed=12).columns()[0]
    assert key(before) != key(after)
    assert [key(part) for part in before.needs()] == [key(part) for part in after.needs()]


def test_an_interrupted_table_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, base = pair(OLMO2, tmp_path)
    spec, results, calls = Spectra(checkpoint=tuned, against=base, measures=("stable_rank", "pl_alpha")), tmp_path / "results", []
    real = decompose.values

    def counted(matrices: Tensor, *, threads: int = 1) -> Tensor:
        calls.append(len(matrices))
        if len(calls) == 14:  # of four roles in two layers of heads, then whole matrices
            raise RuntimeError("the machine is gone")
        return real(matrices, threads=threads)

    monkeypatch.setattr(decompose, "values", counted)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        built(spec, results)
    before = finished(results)
    assert sum(folder.parent.name == "spectral_parts" for folder in before) == 3
    table = built(spec, results)
    assert len(calls) == 14 + 4 + 3 + 3
    assert new_in(results, before).count("spectral_parts") == 3
    monkeypatch.undo()
    pd.testing.assert_frame_equal(table, built(spec, tmp_path / "others"))


@pytest.mark.slow
def test_columns_go_on_with_the_layers_that_they_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cpt_lab.spectra import columns

    spec = Spectra(checkpoint=saved(OLMO2, tmp_path / "one"), measures=("pl_p_value",), blocks="heads", samples=2, min_tail=5)
    real, seen = columns._of_layer, []

    def broken(spec: Any, layer: int, products: Any) -> pd.DataFrame:
        seen.append(layer)
        if len(seen) == 2:
            raise RuntimeError("the machine is gone")
        return real(spec, layer, products)

    monkeypatch.setattr(columns, "_of_layer", broken)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        built(spec, tmp_path / "results")
    table = built(spec, tmp_path / "results")
    assert seen == [0, 1, 1]
    monkeypatch.undo()
    pd.testing.assert_frame_equal(table, built(spec, tmp_path / "others"))


BUILD = """
import sys
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.specs import parse
from cpt_lab.store import Store
import json, pathlib
spec = parse(json.loads(pathlib.Path(sys.argv[1]).read_text()))
ensure(Workshop(Store(pathlib.Path(sys.argv[2])), Execution(device="cpu", threads=int(sys.argv[3]))), spec)
"""


def worker(spec: Spectra, folder: Path, *, threads: int = 1) -> subprocess.Popen[bytes]:
    (folder / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-c", BUILD, str(folder / "spec.json"), str(folder / "results"), str(threads)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_its_finished_layers_to_the_next(tmp_path: Path) -> None:
    shape = tiny_shape(num_layers=40)
    spec = Spectra(checkpoint=saved(shape, tmp_path / "one"), measures=EVERY[:8], indices=True)
    first = worker(spec, tmp_path)
    while first.poll() is None and len(finished(tmp_path / "results")) < 20:
        threading.Event().wait(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = finished(tmp_path / "results")
    assert 20 <= len(before) < len(closure([spec]))
    assert worker(spec, tmp_path).wait(timeout=300) == 0
    assert len(new_in(tmp_path / "results", before)) == len(closure([spec])) - len(before)


def stored(results: Path) -> dict[str, bytes]:
    """The products of a store's spectra by their path in it."""
    return {str(path.relative_to(results)): path.read_bytes() for path in results.glob("spectra*/*/product/*")}


@pytest.mark.slow
def test_two_workers_make_what_one_makes_bit_for_bit(tmp_path: Path) -> None:
    tuned, base = pair(GQA, tmp_path)
    measures = ("stable_rank", "pl_alpha", "pl_p_value", "mp_edge", "agreement_head_max", "svsm_mean", "rotation_nf")  # one of each family
    options: dict[str, Any] = {"indices": True, "null_model": "permute", "samples": 2, "min_tail": 5, "blocks": "heads"}
    spec = Spectra(checkpoint=tuned, against=base, measures=measures, **options)
    product(spec, tmp_path / "alone")
    errors: list[BaseException] = []

    def work(wanted: list[Any], threads: int) -> None:
        try:
            workshop = Workshop(Store(tmp_path / "together"), Execution(device="cpu", threads=threads))
            for one in wanted:
                ensure(workshop, one)
        except BaseException as error:  # of the thread: the test raises it
            errors.append(error)

    orders = closure([spec]), [*reversed(spec.needs()), spec]
    workers = [threading.Thread(target=work, args=(wanted, threads)) for wanted, threads in zip(orders, (1, 3), strict=True)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert errors == []
    assert len(stored(tmp_path / "alone")) == 2 * 5 + len(FAMILIES) + 2  # parts of two layers, columns, table and long form
    assert stored(tmp_path / "together") == stored(tmp_path / "alone")


def test_a_layer_of_a_part_does_not_depend_on_the_layers_beside_it(tmp_path: Path) -> None:
    """A model of one layer, the same as the first of two, has the same part bit for bit."""
    both, one = (saved(tiny_shape(num_layers=count), tmp_path / str(count)) for count in (2, 1))
    first = dict(load_file(tmp_path / "2" / "model.safetensors"))
    save_file({name: first[name] for name in load_file(tmp_path / "1" / "model.safetensors")}, tmp_path / "1" / "model.safetensors")
    work = workspace(tmp_path / "work")
    found = [
        decomposed(
            SpectralPart(checkpoint=checkpoint, layer=0, scope="heads", of="null", seed=3),
            [Opened("one", open_weights(Path(checkpoint.path)))],
            work=work,
            how=Execution(device="cpu", threads=threads),
        )
        for checkpoint, threads in ((both, 1), (one, 2))
    ]
    assert set(found[0]) == set(found[1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


class Watched(Mapping[str, Tensor]):
    """Weights that count how many elements of theirs are alive."""

    alive, most = 0, 0

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def __getitem__(self, name: str) -> Tensor:
        found = self.weights[name].clone()
        Watched.alive += found.numel()
        Watched.most = max(Watched.most, Watched.alive)
        weakref.finalize(found.untyped_storage(), self.forget, found.numel())
        return found

    def forget(self, count: int) -> None:
        Watched.alive -= count

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __len__(self) -> int:
        return len(self.weights)


@pytest.mark.parametrize("of", ["values", "null", "pair"])
def test_no_more_than_a_few_matrices_of_a_layer_are_in_memory(tmp_path: Path, of: Any) -> None:
    weights = checkpoints(OLMO2)
    opened = [Opened(name, Watched(weights[name])) for name in ("tuned", "base")]
    specs = [FolderCheckpoint(path=name, weights_digest=name, shape=OLMO2) for name in ("tuned", "base")]
    part = SpectralPart(checkpoint=specs[0], against=specs[1], layer=1, scope="mlp", of=of, seed=0)
    Watched.alive = Watched.most = 0
    decomposed(part, opened, work=workspace(tmp_path), how=Execution(device="cpu"))
    assert Watched.alive == 0
    assert 2 * 48 * 32 <= Watched.most <= 4 * 48 * 32  # of up: each of two checkpoints, looked at for its shape and read


def test_progress_counts_matrices(tmp_path: Path) -> None:
    told: list[tuple[float, float, str]] = []
    work = workspace(tmp_path)
    work.progress = lambda done, total, unit: told.append((done, total, unit))  # type: ignore[method-assign]
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=GQA)
    part = SpectralPart(checkpoint=checkpoint, layer=0, scope="heads", of="values")
    decomposed(part, [Opened("tuned", checkpoints(GQA)["tuned"])], work=work, how=Execution(device="cpu"))
    assert told == [(done, 12, "matrices") for done in (4, 6, 8, 12)]


# ------------------------------------------------------------------------------------------------------ plan and workers


def test_on_a_cluster_layers_are_shared_by_tasks_with_a_gpu_and_columns_by_tasks_without(tmp_path: Path) -> None:
    told = toys.told(tmp_path, [SPECTRA], packs=4)
    made = remote.stages(told, Site(name="plain", gpus_per_node=1))
    assert [(stage.name, stage.packs, stage.gpus) for stage in made[-2:]] == [("spectra", 4, 1), ("tables", 4, 0)]
    assert "spectra" in made[-1].needs


def test_stage_by_stage_every_worker_finds_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BUILDERS", dict.fromkeys(build.BUILDERS, toys.toy))
    told = toys.told(tmp_path / "results", [SPECTRA], packs=2)
    for stage in told.stages():
        for pack in (1, 0):
            assert Worker(told, stage, pack).run() == 0, stage
    built_last = [name for _, name in toys.notes(told.results)][-1]
    assert built_last == key(SPECTRA)
