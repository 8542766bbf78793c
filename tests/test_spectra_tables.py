"""Tables of spectra: every column against plain loops, what rows there are, what is computed again and what is not, and bad input."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import spectral_oracles as oracles
import toys
from cpt_lab import build, remote
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.site import Site
from cpt_lab.specs import FolderCheckpoint, ModelShape, Spectra, SpectralPart, closure, key
from cpt_lab.spectra import MEASURES, NAMES, PAIR_FAMILIES, decompose
from cpt_lab.spectra.blocks import WHOLE, block_seeds
from cpt_lab.spectra.choice import chosen
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.parts import Opened, decomposed
from cpt_lab.store import Store
from cpt_lab.weights import open_weights
from cpt_lab.worker import Worker
from factory import tiny_shape, workspace
from spec_cases import SPECTRA
from spectral_cases import BY_HAND, arrays, blocks, checkpoints, title, wholes
from spectral_tables import built, product, saved

OLMO2, GQA = tiny_shape(), tiny_shape("llama", num_kv_heads=2)
EVERY = chosen("all", pair=True)
EPS = float(torch.finfo(torch.float32).eps)
PLACE = ["checkpoint", "against", "layer", "role", "head"]

Key = tuple[int, str, int]
Blocks = dict[Key, oracles.Array]


@pytest.fixture(scope="module")
def olmo2(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderCheckpoint, FolderCheckpoint, Path]:
    """Tuned, base and a store, shared by tests that do not mind what else lies there."""
    folder = tmp_path_factory.mktemp("olmo2")
    tuned, base = pair(OLMO2, folder)
    return tuned, base, folder / "results"


def pair(shape: ModelShape, folder: Path) -> tuple[FolderCheckpoint, FolderCheckpoint]:
    tuned, base = (saved(shape, folder / name, seed=seed) for seed, name in enumerate(["tuned", "base"]))
    return tuned, base


# ----------------------------------------------------------------------------------------------------------- the numbers


def by_hand(shape: ModelShape, name: str) -> Blocks:
    """Every block of a checkpoint as (residual, head), by layer, role and head."""
    weights, found = arrays(checkpoints(shape)[name]), {}
    per_layer = [*([role, head] for role, count in roles_and_heads(shape) for head in range(count))]
    for turn, (role, parameter, index) in enumerate(place for place in blocks(shape) if place[0] in "qkvo"):
        layer, within = divmod(turn, len(per_layer))
        assert role == per_layer[within][0]
        found[layer, role, per_layer[within][1]] = oriented(weights[parameter][index], shape, index)
    for layer in range(shape.num_layers):
        for role, parameter, index in wholes(shape, layer):
            found[layer, role, WHOLE] = oriented(weights[parameter][index], shape, index)
    return found


def roles_and_heads(shape: ModelShape) -> list[tuple[str, int]]:
    return [("q", shape.num_heads), ("k", shape.num_kv_heads), ("v", shape.num_kv_heads), ("o", shape.num_heads)]


def oriented(block: oracles.Array, shape: ModelShape, index: Any) -> oracles.Array:
    """Rows of the residual stream: an index of one axis takes rows of the heads, or of the MLP where they are as many."""
    of_heads = isinstance(index, tuple) and len(index) == 1
    return block.T if of_heads or (not isinstance(index, tuple) and block.shape[0] == shape.mlp_size) else block


def rms(block: oracles.Array) -> float:
    return math.sqrt(float((block**2).mean()))


def rows_of(table: pd.DataFrame) -> dict[Key, dict[str, float]]:
    rows = table.set_index(["layer", "role", "head"]).drop(columns=["checkpoint", "against"])
    return {(int(layer), str(role), int(head)): row for (layer, role, head), row in rows.to_dict(orient="index").items()}


def assert_rows(found: dict[Key, dict[str, float]], expected: dict[Key, dict[str, float]], *, rel: float = 1e-6) -> None:
    assert set(found) == set(expected)
    for place, row in expected.items():
        assert {name: found[place][name] for name in row} == pytest.approx(row, rel=rel, abs=1e-7, nan_ok=True), place


@pytest.mark.parametrize("shape", [BY_HAND[0], *(shape.but(num_layers=1) for shape in BY_HAND[1:])], ids=title)
def test_every_column_of_a_delta_and_a_pair_equals_plain_float64_loops(tmp_path: Path, shape: ModelShape) -> None:
    tuned, base = pair(shape, tmp_path)
    table = built(Spectra(checkpoint=tuned, against=base, measures=EVERY), tmp_path / "results")
    new, old = by_hand(shape, "tuned"), by_hand(shape, "base")
    expected = {
        place: oracles.weights_row(new[place] - old[place], EPS, math.hypot(rms(new[place]), rms(old[place])))
        | oracles.pair_row(new[place], old[place], EPS)
        for place in new
    }
    assert set(next(iter(expected.values()))) == set(EVERY)
    assert_rows(rows_of(table), expected)


def test_every_column_of_weights_equals_plain_loops_under_every_option(tmp_path: Path) -> None:
    checkpoint = saved(GQA, tmp_path / "tuned")
    options: dict[str, Any] = {"min_tail": 5, "ks": "two_sided", "null_model": "permute", "seed": 7}
    table = built(Spectra(checkpoint=checkpoint, measures=chosen("all", pair=False), **options), tmp_path / "results")
    expected = {}
    for (layer, role, head), block in by_hand(GQA, "tuned").items():
        (seed,) = block_seeds(7, layer, role, [head])  # type: ignore[arg-type]
        permuted = decompose.permuted(torch.from_numpy(block), seed).double().numpy()
        assert sorted(permuted.ravel()) == sorted(block.ravel())
        null = np.linalg.svd(permuted, compute_uv=False)
        expected[layer, role, head] = oracles.weights_row(block, EPS, rms(block), min_tail=5, two_sided=True, null=null)
    assert np.isfinite([row["pl_alpha"] for row in expected.values()]).all()
    assert_rows(rows_of(table), expected)


@pytest.mark.slow
def test_likelihood_ratios_of_whole_matrices_equal_numerical_optimisation(tmp_path: Path) -> None:
    checkpoint = saved(OLMO2, tmp_path / "tuned")
    spec = Spectra(checkpoint=checkpoint, measures=chosen("tails", pair=False), blocks="matrices", roles=("q", "up"), samples=3)
    found = rows_of(built(spec, tmp_path / "results"))
    blocks_of = by_hand(OLMO2, "tuned")
    assert len(found) == 4
    for place, row in found.items():
        values = np.linalg.svd(blocks_of[place], compute_uv=False)
        expected = oracles.tail_row([value**2 / max(blocks_of[place].shape) for value in values])
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-3), place
        assert row["pl_p_value"] in (pytest.approx(share / 3) for share in range(4))


def test_every_measure_has_its_function_and_every_function_its_name() -> None:
    assert {name: set(family.measures) for name, family in FAMILIES.items()} == {name: set(names) for name, names in MEASURES.items()}


# -------------------------------------------------------------------------------------------------------------- the rows


def test_a_table_says_what_it_is_of_and_has_its_measures_in_the_order_asked(olmo2: Any) -> None:
    tuned, base, results = olmo2
    asked = ("stable_rank", "agreement_head_max", "frobenius_norm")
    table = built(Spectra(checkpoint=tuned, against=base, measures=asked), results)
    assert list(table.columns) == [*PLACE, *asked]
    assert (set(table.checkpoint), set(table.against)) == ({key(tuned)}, {key(base)})
    alone = built(Spectra(checkpoint=tuned, measures=("stable_rank",)), results)
    assert alone.against.isna().all()


def test_rows_are_layer_by_layer_role_by_role_and_a_whole_matrix_comes_after_its_heads(tmp_path: Path) -> None:
    table = built(Spectra(checkpoint=saved(GQA, tmp_path / "one"), measures=("frobenius_norm",)), tmp_path / "results")
    heads = {"q": 4, "k": 2, "v": 2, "o": 4}
    layer = [(role, head) for role, count in heads.items() for head in (*range(count), WHOLE)]
    layer += [(role, WHOLE) for role in ("gate", "up", "down")]
    rows = list(zip(table["layer"], table["role"], table["head"], strict=True))
    assert rows == [(number, *row) for number in range(2) for row in layer]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"blocks": "heads"}, lambda table: table["head"] >= 0),
        ({"blocks": "matrices"}, lambda table: table["head"] < 0),
        ({"roles": ("q", "down")}, lambda table: table["role"].isin(["q", "down"])),
        ({"roles": ("o", "up"), "blocks": "heads"}, lambda table: (table["role"] == "o") & (table["head"] >= 0)),
    ],
)
def test_fewer_blocks_and_roles_are_rows_of_the_whole_table(olmo2: Any, options: dict[str, Any], kept: Any) -> None:
    tuned, base, results = olmo2
    spec = Spectra(checkpoint=tuned, against=base, measures=("frobenius_norm", "agreement_head_max"))
    every = built(spec, results)
    pd.testing.assert_frame_equal(built(spec.but(**options), results), every[kept(every)].reset_index(drop=True))


def test_the_delta_of_a_checkpoint_to_itself_has_zero_norms_and_its_vectors_agree(olmo2: Any) -> None:
    tuned, _, results = olmo2
    table = built(Spectra(checkpoint=tuned, against=tuned, measures=("frobenius_norm", "hard_rank", "agreement_head_max")), results)
    assert not table[["frobenius_norm", "hard_rank"]].to_numpy().any()
    assert table["agreement_head_max"].to_numpy() == pytest.approx(1)


def test_the_long_form_has_a_row_per_singular_value_in_float32(olmo2: Any) -> None:
    tuned, base, results = olmo2
    measures = ("spectral_norm", "mp_edge", "agreement_head_max")
    spec = Spectra(checkpoint=tuned, against=base, measures=measures, indices=True, null_model="permute", roles=("q", "up"))
    folder = product(spec, results)
    table, rows = pd.read_parquet(folder / "table.parquet"), pd.read_parquet(folder / "indices.parquet")
    agreements = [f"agreement_{side}_{kind}" for side in ("residual", "head") for kind in ("max", "diagonal")]
    assert list(rows.columns) == ["layer", "role", "head", "index", "singular_value", "null_value", "against_value", *agreements]
    assert set(rows.dtypes.iloc[4:]) == {np.dtype(np.float32)}
    assert len(rows) == 2 * (4 * 8 + 32 + 32)  # of two layers: heads of q, the whole of q, up
    groups = rows.groupby(["layer", "role", "head"], sort=False)
    places = table.set_index(["layer", "role", "head"])
    for column, statistic, measure in (("singular_value", "first", "spectral_norm"), (agreements[2], "mean", "agreement_head_max")):
        summary = groups[column].agg(statistic)
        assert list(summary.index) == list(places.index)
        assert summary.to_numpy() == pytest.approx(places[measure].to_numpy(), rel=1e-6)
    alone = built(Spectra(checkpoint=base, measures=("spectral_norm",), roles=("q", "up")), results)
    assert groups["against_value"].first().to_numpy() == pytest.approx(alone["spectral_norm"].to_numpy(), rel=1e-6)
    assert (groups["index"].apply(list) == groups["index"].size().map(lambda count: list(range(count)))).all()
    squares = (rows[["singular_value", "null_value"]].astype(float) ** 2).groupby([rows["layer"], rows["role"], rows["head"]]).sum()
    assert squares["null_value"].to_numpy() == pytest.approx(squares["singular_value"].to_numpy(), rel=1e-5)  # the same entries


def test_the_long_form_is_made_only_where_it_is_asked_for(olmo2: Any) -> None:
    tuned, _, results = olmo2
    spec = Spectra(checkpoint=tuned, measures=("stable_rank",), blocks="heads")
    assert [path.name for path in product(spec, results).iterdir()] == ["table.parquet"]
    rows = pd.read_parquet(product(spec.but(indices=True), results) / "indices.parquet")
    assert list(rows.columns) == ["layer", "role", "head", "index", "singular_value"]


# ----------------------------------------------------------------------------------------- what is computed, and how often


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


# ------------------------------------------------------------------------------------------------------------- bad input


def test_values_that_are_not_finite_are_named_by_checkpoint_and_parameter(tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in checkpoints(OLMO2)["tuned"].items()}
    weights["model.layers.1.mlp.up_proj.weight"][3, 4:6] = float("nan")
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=OLMO2)
    part = SpectralPart(checkpoint=checkpoint, layer=1, scope="mlp", of="values")
    with pytest.raises(ValueError, match=r"mine has 2 values in model.layers.1.mlp.up_proj.weight"):
        decomposed(part, [Opened("mine", weights)], work=workspace(tmp_path), how=Execution(device="cpu"))


def test_checkpoints_of_different_shapes_are_refused_but_for_what_is_not_read(tmp_path: Path) -> None:
    tuned, base = (dict(checkpoints(OLMO2)[name]) for name in ("tuned", "base"))
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=OLMO2)
    part = SpectralPart(checkpoint=checkpoint, against=checkpoint.but(weights_digest="base"), layer=0, scope="heads", of="pair")
    del base["lm_head.weight"]  # as after tying the embeddings
    how, work = Execution(device="cpu"), workspace(tmp_path)
    decomposed(part, [Opened("tuned", tuned), Opened("base", base)], work=work, how=how)
    base["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(16, 32)
    with pytest.raises(ValueError, match=r"k_proj.weight is \(32, 32\) in tuned and \(16, 32\) in base"):
        decomposed(part, [Opened("tuned", tuned), Opened("base", base)], work=work, how=how)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"measures": ("stable_rnk",)}, r"unknown spectral measure 'stable_rnk' \(did you mean stable_rank"),
        ({"measures": ("svsm_mean",)}, "svsm_mean compares two checkpoints and there is one: give the other one as `against`"),
        ({"roles": ("gat",)}, r"unknown role 'gat' \(did you mean gate"),
        ({"roles": ()}, "a spectra table of no roles has no rows"),
        ({"roles": ("up",), "blocks": "heads"}, "of blocks=heads of the roles up has no rows.*of them q, k, v, o have heads"),
        ({"min_tail": 4}, "greater than or equal to 5"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=OLMO2)
    with pytest.raises(ValueError, match=message):
        Spectra(**{"checkpoint": checkpoint, "measures": ("stable_rank",), **fields})


def test_a_role_that_the_family_lacks_is_refused() -> None:
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=tiny_shape("gpt2"))
    with pytest.raises(ValueError, match="gpt2 models have no gate: choose roles from q, k, v, o, up, down"):
        Spectra(checkpoint=checkpoint, measures=("stable_rank",), roles=("gate",))


def test_a_part_of_a_layer_that_the_model_lacks_and_a_null_without_a_seed_are_refused() -> None:
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=OLMO2)
    for fields, message in (
        ({"layer": 2, "of": "values"}, "no layer 2 in a model of 2"),
        ({"layer": 0, "of": "pair"}, "a pair is of two checkpoints"),
        ({"layer": 0, "of": "null"}, "give it a seed"),
    ):
        with pytest.raises(ValueError, match=message):
            SpectralPart.model_validate({"checkpoint": checkpoint, "scope": "heads", **fields})


def test_stored_products_of_another_version_are_refused_with_what_to_do(tmp_path: Path) -> None:
    spec, results = Spectra(checkpoint=saved(OLMO2, tmp_path / "one"), measures=("stable_rank",), blocks="heads"), tmp_path / "results"
    built(spec, results)
    store = Store(results)
    (columns,) = spec.columns()
    file = store.product(columns) / "columns.parquet"
    pd.read_parquet(file).drop(columns="hard_rank").to_parquet(file)
    with pytest.raises(ValueError, match=r"does not have the columns of norms \(hard_rank\).*remove the folder .*norms-heads"):
        built(spec.but(measures=("hard_rank",)), results)
    part = store.product(columns.needs()[0]) / "part.safetensors"
    save_file({name: tensor for name, tensor in load_file(part).items() if name != "k.std"}, part)
    with pytest.raises(ValueError, match=r"holds no k.std: another version of this code made it; remove the folder .*values-heads-layer0"):
        built(spec.but(measures=("mp_edge",)), results)
    save_file({name: tensor[..., :3].clone() if tensor.ndim else tensor for name, tensor in load_file(part).items()}, part)
    with pytest.raises(ValueError, match=r"holds q.values of \(4, 3\) and not \(4, 8\)"):
        built(spec.but(measures=("pl_alpha",)), results)


# -------------------------------------------------------------------------------------------------------- choosing measures


def test_presets_and_families_stand_for_their_measures_and_leave_out_what_compares_two_where_there_is_one() -> None:
    assert chosen("norms", pair=False) == MEASURES["norms"]
    assert chosen(["stable_rank", "lifecycle"], pair=False)[0] == "stable_rank"
    paper = chosen("paper", pair=True)
    assert set(paper) - set(chosen("paper", pair=False)) == set(MEASURES["agreement"])
    assert set(EVERY) == set(NAMES) - set(MEASURES["tails"])
    assert not {name for family in PAIR_FAMILIES for name in MEASURES[family]} & set(chosen("all", pair=False))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("papr", r"unknown spectral measure or preset 'papr' \(did you mean paper"),
        (("stable_rank", "pl_alfa"), r"unknown spectral measure or preset 'pl_alfa' \(did you mean pl_alpha"),
        ("post_training", "the measures of post_training compare two checkpoints and there is one"),
        ((), "no spectral measures are chosen"),
    ],
)
def test_measures_that_cannot_be_meant_are_refused(names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(names, pair=False)
