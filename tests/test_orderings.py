from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.checkpoints import in_folder
from cpt_lab.orderings import CRITERIA, DELTA_MEASURES, build_ranking, order, per_head, ranking, scale01
from cpt_lab.specs import ModelShape, Ranking, key
from cpt_lab.spectra import NAMES
from factory import folder_spec, tiny_checkpoint, tiny_shape, workspace
from spec_cases import MEAN, PROTOCOL
from spectral_tables import product

SHAPE = tiny_shape()
SQUARE = tiny_shape(num_heads=2)  # 2 layers x 2 heads
TUNED, BASE, REFERENCE = (folder_spec(Path(name), SHAPE) for name in ("tuned", "base", "reference"))


def ranked(criterion: str, direction: str = "descending", **settings: Any) -> Ranking:
    return ranking(criterion, direction, **{"tuned": TUNED, "base": BASE, "reference": REFERENCE, **settings})


def norms(values: Any, role: str = "q") -> pd.DataFrame:
    """A table with the Frobenius norms of one role."""
    layers, heads = np.indices(np.shape(values)).reshape(2, -1)
    return pd.DataFrame({"layer": layers, "head": heads, "role": role, "frobenius_norm": np.ravel(values).astype(float)})


# ----------------------------------------------------------------------------------------------------------- the order


def test_equal_scores_are_ordered_by_layer_and_head_in_both_directions() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert order(scores, "ascending") == [(0, 1), (1, 1), (0, 0), (1, 0)]
    assert order(scores, "descending") == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_scores_that_are_nan_come_last_in_both_directions() -> None:
    scores = np.array([[np.nan, 2.0], [1.0, np.nan]])
    assert order(scores, "ascending") == [(1, 0), (0, 1), (0, 0), (1, 1)]
    assert order(scores, "descending") == [(0, 1), (1, 0), (0, 0), (1, 1)]


@given(values=st.lists(st.integers(-3, 3), min_size=6, max_size=6))
def test_an_order_is_a_sorted_permutation_of_all_heads(values: list[int]) -> None:
    scores = np.array(values, dtype=float).reshape(2, 3)
    for direction, sign in (("ascending", 1), ("descending", -1)):
        heads = order(scores, direction)
        keys = [(sign * scores[head], head) for head in heads]
        assert sorted(heads) == list(np.ndindex(2, 3))
        assert keys == sorted(keys)


# -------------------------------------------------------------------------------------------------------- the criteria


def test_scaled_norm_diff_by_hand() -> None:
    spec = ranked("scaled_norm_diff", roles=("q",), tuned=folder_spec(Path("tuned"), SQUARE))
    scores = CRITERIA["scaled_norm_diff"].score(spec, norms([[1, 2], [3, 5]]), norms([[10, 20], [20, 10]]))
    assert scores == pytest.approx(np.array([[0, 0.25 - 1], [0.5 - 1, 1]]))


def test_the_scale_of_equal_values_is_zero() -> None:
    assert scale01(np.full((2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]


def test_the_delta_norm_of_a_head_is_the_norm_of_its_blocks_together() -> None:
    spec = ranked("delta_norm", roles=("q", "o"), tuned=folder_spec(Path("tuned"), SQUARE))
    table = pd.concat([norms([[3, 5], [8, 0]]), norms([[4, 12], [15, 1]], "o"), norms([[100, 100], [100, 100]], "v")])
    assert CRITERIA["delta_norm"].score(spec, table).tolist() == [[5, 13], [17, 1]]


def test_query_heads_of_a_group_share_its_k_and_v() -> None:
    shape = tiny_shape(num_kv_heads=2)
    assert per_head(norms([[1, 2], [3, 4]], "k"), shape, "k", "frobenius_norm").tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]


def test_whole_matrices_and_the_order_of_rows_do_not_matter() -> None:
    table = pd.concat([norms([[1, 2], [3, 4]]).iloc[::-1], norms([[9]]).assign(head=-1)])
    assert per_head(table, SQUARE, "q", "frobenius_norm").tolist() == [[1, 2], [3, 4]]


def test_random_orders_depend_on_the_seed_alone_and_descending_is_ascending_backwards() -> None:
    orders = {}
    for seed in (0, 1):
        for direction in ("ascending", "descending"):
            spec = ranked("random", direction, seed=seed)
            orders[seed, direction] = order(CRITERIA["random"].score(spec), direction)
    assert orders[0, "ascending"] == orders[0, "descending"][::-1]
    assert orders[0, "ascending"] != orders[1, "ascending"]
    assert orders[0, "ascending"] == [(1, 1), (1, 2), (0, 0), (0, 2), (0, 1), (1, 0), (0, 3), (1, 3)]


def column(values: Any, measure: str, role: str = "q") -> pd.DataFrame:
    return norms(values, role).rename(columns={"frobenius_norm": measure})


def square(criterion: str, **settings: Any) -> Ranking:
    """A ranking of two layers with two heads that looks at q and o."""
    return ranked(criterion, roles=("q", "o"), tuned=folder_spec(Path("tuned"), SQUARE), **settings)


def test_agreement_is_the_mean_over_the_roles_and_its_difference_that_of_reference_minus_that_of_tuned() -> None:
    tables = [
        pd.concat([column(q, "agreement_residual_max"), column(o, "agreement_residual_max", "o")])
        for q, o in (([[0.5, 1], [1, 1]], [[1, 1], [1, 0.5]]), ([[1, 1], [1, 1]], [[1, 1], [1, 1]]))
    ]
    assert CRITERIA["agreement"].score(square("agreement"), tables[0]).tolist() == [[0.75, 1], [1, 0.75]]
    assert CRITERIA["agreement_diff"].score(square("agreement_diff"), *tables).tolist() == [[0.25, 0], [0, 0.25]]


@pytest.mark.parametrize("criterion", ["pl_ks", "pl_alpha"])
def test_a_fit_is_the_mean_over_the_roles_and_missing_where_one_of_them_is(criterion: str) -> None:
    table = pd.concat([column([[2, 3], [4, 5]], criterion), column([[4, 3], [2, np.nan]], criterion, "o")])
    np.testing.assert_array_equal(CRITERIA[criterion].score(square(criterion), table), [[3, 3], [3, np.nan]])


def test_what_a_criterion_reads() -> None:
    names: dict[Any, str] = {TUNED: "tuned", BASE: "base", REFERENCE: "reference"}

    def read(criterion: str, **settings: Any) -> list[tuple[str, str | None]]:
        tables = ranked(criterion, **settings).spectra
        return [(names[table.checkpoint], table.against and names[table.against]) for table in tables]

    delta, other = [("tuned", "base")], [("tuned", "base"), ("reference", "base")]
    assert read("delta_norm") == read("agreement") == read("spectral", column="pl_ks", of="delta") == delta
    assert read("scaled_norm_diff") == read("agreement_diff") == other
    assert read("pl_ks") == read("pl_alpha") == read("spectral", column="pl_ks", of="base") == [("base", None)]
    assert read("spectral", column="stable_rank", of="tuned") == [("tuned", None)]


def test_a_spectral_criterion_of_a_delta_shares_the_table_of_the_norms() -> None:
    assert key(ranked("spectral", column="stable_rank", of="delta").spectra[0]) == key(ranked("delta_norm").spectra[0])
    assert key(ranked("spectral", column="stable_rank", of="delta")) != key(ranked("spectral", column="spectral_norm", of="delta"))


@pytest.mark.parametrize("column", NAMES)
def test_every_spectral_measure_can_be_a_criterion_of_the_delta(column: str) -> None:
    (table,) = ranked("spectral", column=column, of="delta").spectra
    assert column in table.measures
    assert (table.checkpoint, table.against) == (TUNED, BASE)


# ----------------------------------------------------------------------------------------------------------- the units


def test_units_are_heads_matrices_by_role_or_layers() -> None:
    shape = folder_spec(Path("tuned"), tiny_shape("gpt2"))
    assert ranked("random", seed=0, tuned=shape).units == tuple(np.ndindex(2, 4))
    assert ranked("random", seed=0, tuned=shape, unit="layer").units == ((0, "all"), (1, "all"))
    roles = ("q", "k", "v", "o", "up", "down")  # GPT-2 has no gate
    assert ranked("random", seed=0, tuned=shape, unit="matrix").units == tuple((layer, role) for layer in range(2) for role in roles)
    assert ranked("random", seed=0, unit="matrix", roles=("down", "q")).units == ((0, "q"), (0, "down"), (1, "q"), (1, "down"))
    with pytest.raises(ValueError, match="gpt2 models have no gate"):
        ranked("random", seed=0, tuned=shape, unit="matrix", roles=("gate",))


def test_the_norm_of_a_matrix_is_its_own_and_not_that_of_its_heads() -> None:
    spec = square("delta_norm", unit="matrix")
    whole = pd.concat([norms([[7], [8]]).assign(head=-1), norms([[9], [1]], "o").assign(head=-1)])
    assert CRITERIA["delta_norm"].score(spec, pd.concat([norms([[3, 5], [8, 0]]), whole])).tolist() == [[7, 9], [8, 1]]


@pytest.mark.parametrize(("unit", "parts", "blocks"), [("head", 4, "heads"), ("layer", 1, "heads"), ("matrix", 7, "matrices")])
def test_a_ranking_of_any_unit_is_built_and_read_back(tmp_path: Path, unit: str, parts: int, blocks: str) -> None:
    folders = {name: tiny_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate(["tuned", "base"])}
    tuned, base = (in_folder(folder) for folder in folders.values())
    spec = ranking("delta_norm", "ascending", tuned=tuned, base=base, unit=unit)
    work = workspace(tmp_path / "ranking")
    assert spec.spectra[0].blocks == blocks
    build_ranking(spec, [product(spec.spectra[0], tmp_path / "results")], work)
    written = json.loads((work.product / "ranking.json").read_text())
    scores = pd.read_parquet(work.product / "scores.parquet")
    assert sorted(map(tuple, written["order"])) == sorted(spec.units)
    assert len(scores) == 2 * parts
    again = ranking("from_file", "descending", tuned=tuned, base=base, unit=unit, file=str(work.product / "ranking.json"))
    copied = workspace(tmp_path / "copied")
    build_ranking(again, [], copied)
    assert json.loads((copied.product / "ranking.json").read_text())["order"] == written["order"]
    same = ranking("from_file", "ascending", tuned=tuned, base=base, unit=unit, file=str(work.product / "scores.parquet"))
    build_ranking(same, [], workspace(tmp_path / "same"))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "same" / "product" / "scores.parquet"), scores)


def test_the_score_of_a_layer_is_the_mean_over_its_heads(tmp_path: Path) -> None:
    folders = {name: tiny_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate(["tuned", "base"])}
    tuned, base = (in_folder(folder) for folder in folders.values())
    found = {}
    for unit in ("head", "layer"):
        spec = ranking("agreement", "ascending", tuned=tuned, base=base, unit=unit)
        work = workspace(tmp_path / unit)
        build_ranking(spec, [product(spec.spectra[0], tmp_path / "results")], work)
        found[unit] = pd.read_parquet(work.product / "scores.parquet").groupby("layer")["score"].mean()
    assert found["layer"].tolist() == pytest.approx(found["head"].tolist())


def test_a_measure_that_no_block_is_large_enough_for_is_said_so(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "base")
    spec = ranking("pl_ks", "ascending", tuned=in_folder(folder), base=in_folder(folder))
    table = product(spec.spectra[0], tmp_path / "results")
    with pytest.raises(ValueError, match="no score for any head: its blocks have too few singular values"):
        build_ranking(spec, [table], workspace(tmp_path / "ranking"))


# --------------------------------------------------------------------------------------------------------- the ranking


def test_criteria_of_one_pair_share_the_table_of_its_delta() -> None:
    both, one = ranked("scaled_norm_diff"), ranked("delta_norm")
    assert [table.checkpoint for table in both.spectra] == [TUNED, REFERENCE]
    assert [table.against for table in both.spectra] == [BASE, BASE]
    assert key(both.spectra[0]) == key(one.spectra[0])
    assert both.spectra[0].measures == DELTA_MEASURES


def test_a_random_order_reads_nothing_and_is_the_same_whatever_the_roles() -> None:
    assert ranked("random", seed=1).needs() == ()
    assert key(ranked("random", seed=1, roles=("q",))) == key(ranked("random", seed=1))


def test_the_order_in_which_roles_are_named_does_not_matter() -> None:
    assert key(ranked("delta_norm", roles=("o", "q"))) == key(ranked("delta_norm", roles=("q", "o")))
    assert key(ranked("delta_norm", roles=("q",))) != key(ranked("delta_norm"))


@pytest.mark.parametrize(
    ("criterion", "settings", "message"),
    [
        ("delta_nrm", {}, r"unknown criterion 'delta_nrm' \(did you mean delta_norm.*there are ablation, .*scaled_norm_diff, spectral"),
        ("delta_norm", {"direction": "down"}, "unknown direction 'down'.*ascending, descending"),
        ("delta_norm", {"roles": ("q", "gate")}, "unknown role of a head 'gate'"),
        ("delta_norm", {"roles": ()}, "no roles"),
        ("scaled_norm_diff", {"reference": None}, "compares with a reference checkpoint and there is none"),
        ("random", {}, "needs a seed"),
        ("delta_norm", {"seed": 1}, r"takes no seed, got 1: leave criterion\.seed at null"),
        ("delta_norm", {"unit": "layers"}, r"unknown unit 'layers' \(did you mean layer\?\)"),
        ("delta_norm", {"roles": ("gate", "nose"), "unit": "matrix"}, "unknown role of a matrix 'nose'"),
        ("spectral", {"of": "delta"}, r"needs a column: set criterion\.column"),
        ("spectral", {"column": "stable_rnk", "of": "delta"}, r"unknown spectral measure 'stable_rnk' \(did you mean stable_rank"),
        ("spectral", {"column": "stable_rank", "of": "text"}, "unknown place of a spectral measure 'text'; there are base, delta, tuned"),
        ("spectral", {"column": "agreement_head_max", "of": "base"}, r"compares tuned with the base.*set criterion\.of=delta"),
        ("spectral", {"column": "svsm_mean", "of": "tuned"}, r"compares tuned with the base.*set criterion\.of=delta"),
        ("greedy", {}, "needs a protocol"),
        ("greedy", {"protocol": PROTOCOL, "metric": "drop/f1"}, r"unknown metric of protocol tiny 'drop/f1'.*gsm8k/METRIC, prose/bits"),
        (
            "greedy",
            {"protocol": PROTOCOL.but(means=(MEAN,), primary="both/mean")},
            r"both/mean is a mean over tasks .* one of sums/exact_match_strict, prose/bits",
        ),
        ("from_file", {}, r"needs a file: set criterion\.file"),
        ("from_file", {"file": "/no/such.json"}, "which is no file that can be read"),
    ],
)
def test_a_ranking_that_makes_no_sense_is_refused(criterion: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranked(criterion, **settings)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_head_that_changed_most_comes_first_in_a_built_ranking(tmp_path: Path, kv_heads: int) -> None:
    shape = tiny_shape(num_kv_heads=kv_heads)
    folders = {name: tiny_checkpoint(tmp_path / name, seed=seed, num_kv_heads=kv_heads) for seed, name in enumerate(["tuned", "base"])}
    tuned, base = (in_folder(folder) for folder in folders.values())
    spec = ranking("delta_norm", "descending", tuned=tuned, base=base)
    work = workspace(tmp_path / "ranking")
    build_ranking(spec, [product(spec.spectra[0], tmp_path / "results")], work)
    written = json.loads((work.product / "ranking.json").read_text())
    scores = pd.read_parquet(work.product / "scores.parquet")
    assert (written["criterion"], written["direction"]) == ("delta_norm", "descending")
    assert written["order"] == scores.sort_values("score", ascending=False)[["layer", "head"]].to_numpy().tolist()
    assert len(scores) == shape.total_heads


def test_a_shape_of_many_layers_is_covered_by_a_random_order() -> None:
    shape: ModelShape = tiny_shape(num_layers=5)
    spec = ranking("random", "ascending", tuned=folder_spec(Path("t"), shape), base=folder_spec(Path("b"), shape), seed=7)
    assert sorted(order(CRITERIA["random"].score(spec), "ascending")) == list(np.ndindex(5, 4))
