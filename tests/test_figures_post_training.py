"""The figures and tables of post-training: what they show is what numpy says of the weights and of the stored outcomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import figures
from analysis.drawing import Cell, Drawing, Heat, Line, Panel, Sheet
from analysis.figures.svsm_maps import averaged
from analysis.results import Results
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.interventions import RotateAblate, RotateRestore, ScaleTransplant
from cpt_lab.specs import (
    AttentionEntropy,
    AttentionMaps,
    Evaluation,
    LayerSimilarity,
    Patched,
    Prompts,
    Rotations,
    Spec,
    Spectra,
)
from cpt_lab.spectra import PRESETS
from cpt_lab.spectra.rotations import averaged as averaged_blocks
from evaluation_cases import prose_task, protocol, sums_task
from factory import tiny_tokenizer
from spectral_studies import SHAPE, Array, finished, matrix, values, weights
from spectral_tables import saved

pytestmark = pytest.mark.slow  # the tiny models and their spectra take longer than the tests

LAYERS = range(SHAPE.num_layers)
ROLES = ("q", "o")
PROTOCOL = protocol(sums_task(max_new_tokens=6), prose_task())
PROMPTS = 4
SHARE = "sums/exact_match_strict"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """A base, a tuned model a little way from it, and all that the second paper looks at."""
    folder = tmp_path_factory.mktemp("post_training")
    base, tuned = (saved(SHAPE, folder / name, seed=seed) for seed, name in enumerate(("base", "tuned")))
    for name in ("base", "tuned"):
        tiny_tokenizer().save_pretrained(folder / name)
    scaled = Patched(tuned=tuned, interventions=(ScaleTransplant(base=base, roles=ROLES, alpha=(0.9, 1.4)),))
    turned: dict[str, type[RotateAblate] | type[RotateRestore]] = {"undone": RotateAblate, "restored": RotateRestore}
    rotated = {
        name: Patched(tuned=tuned, interventions=(kind(name="base", source=base, side="out", part="attention"),))
        for name, kind in turned.items()
    }
    prompts, one = Prompts(protocol=PROTOCOL, task="sums", count=PROMPTS), Prompts(protocol=PROTOCOL, task="sums", count=1)
    specs: dict[str, Spec] = {
        "table": Spectra(checkpoint=tuned, against=base, measures=PRESETS["post_training"], blocks="matrices", roles=ROLES),
        "rotations": Rotations(checkpoint=tuned, against=base, corner=5, blocks=4, roles=("q",)),
    }
    for name, model in {"original": tuned, "scaled": scaled}.items():
        specs[f"entropy {name}"] = AttentionEntropy(checkpoint=model, prompts=prompts)
        specs[f"attention {name}"] = AttentionMaps(checkpoint=model, prompts=one, layers=(0, 2), heads=(1,), cells=16)
    for name, model in {"original": tuned, **rotated}.items():
        specs[f"similarity {name}"] = LayerSimilarity(checkpoint=model, against=tuned, prompts=prompts)
    for name, model in {"original": tuned, "scaled": scaled, **rotated}.items():
        specs[f"scores {name}"] = Evaluation(checkpoint=model, protocol=PROTOCOL)
    return finished(folder, specs, name="post_training"), folder


def one(name: str, results: Results, **changes: Any) -> Drawing:
    (found,) = figures.build(name, results, changes)
    assert isinstance(found, Drawing)
    return found


def sheets(name: str, results: Results) -> list[Sheet]:
    return [found for found in figures.build(name, results) if isinstance(found, Sheet)]


def product(results: Results, point: str) -> Path:
    """The folder of a point's product."""
    (spec,) = [one.spec for one in results.studies[0].points if one.name == point]
    return results.store.product(spec)


def heat(panel: Panel) -> Heat:
    (found,) = panel.marks
    assert isinstance(found, Heat)
    return found


def lines(panel: Panel) -> dict[str, Line]:
    return {mark.label: mark for mark in panel.marks if isinstance(mark, Line)}


def of_both(folder: Path, layer: int, role: str) -> tuple[Array, Array]:
    return matrix(weights(folder / "base"), layer, role), matrix(weights(folder / "tuned"), layer, role)


def factors(folder: Path, role: str) -> Array:
    """(layers, n): s_tuned / s_base."""
    rows = [[values(one) for one in of_both(folder, layer, role)] for layer in LAYERS]
    return np.array([tuned / base for base, tuned in rows])


def overlaps(base: Array, tuned: Array) -> tuple[Array, Array]:
    """U_base^T U_tuned and V_base^T V_tuned."""
    (ours, _, our_rows), (theirs, _, their_rows) = (np.linalg.svd(found, full_matrices=False) for found in (base, tuned))
    return ours.T @ theirs, our_rows @ their_rows.T


# ------------------------------------------------------------------------------------------------------------ singular values


def test_maps_of_scaling_are_the_quotients_of_the_singular_values(scene: Any) -> None:
    results, folder = scene
    found = one("svsm_maps", results)
    assert [panel.title.split(": ")[1] for panel in found.panels] == ["W Q", "W O"]
    for panel, role in zip(found.panels, ROLES, strict=True):
        assert heat(panel).cells == pytest.approx(factors(folder, role), rel=1e-6)
    principal = np.stack([factors(folder, role)[:, :29] for role in ROLES])  # ceil(0.9 * 32)
    assert heat(found.panels[0]).limits == pytest.approx((principal.min(), principal.max()), rel=1e-6)


def test_more_values_than_cells_are_averaged_and_the_caption_says_so(scene: Any) -> None:
    results, folder = scene
    found = one("svsm_maps", results, cells=8, roles=["q"])
    assert heat(found.panels[0]).cells == pytest.approx(factors(folder, "q").reshape(3, 8, 4).mean(axis=2), rel=1e-6)
    assert "32 values in 8 columns" in found.caption
    assert averaged(np.array([[1.0, np.nan, np.nan, np.nan]]), 2).tolist() == [[1.0, pytest.approx(np.nan, nan_ok=True)]]


def test_bands_of_scaling_are_mean_and_deviation_of_the_largest_nine_tenths(scene: Any) -> None:
    results, folder = scene
    (line,) = lines(one("svsm_bands", results).panels[0]).values()
    assert line.y == pytest.approx(factors(folder, "q")[:, :29].mean(axis=1), rel=1e-6)
    assert line.band == pytest.approx(factors(folder, "q")[:, :29].std(axis=1), rel=1e-6)


def test_the_table_of_scaling_pools_all_layers_and_alpha_is_its_mean_in_one_digit(scene: Any) -> None:
    results, folder = scene
    table, alphas = sheets("svsm_table", results)
    assert table.columns[1:] == ("W Q", "W O")
    ((_, cells),) = table.rows
    ((_, rounded),) = alphas.rows
    for cell, alpha, role in zip(cells, rounded, ROLES, strict=True):
        pooled = factors(folder, role)[:, :29]
        assert (cell.value, cell.error) == (pytest.approx(pooled.mean(), rel=1e-6), pytest.approx(pooled.std(), rel=1e-6))
        assert alpha.value == pytest.approx(round(pooled.mean(), 1))


# ----------------------------------------------------------------------------------------------------------- singular vectors


def test_nf_by_layer_is_the_distance_of_i_orth_from_the_identity(scene: Any) -> None:
    results, folder = scene
    (line,) = lines(one("rotation_layers", results, roles=["o"]).panels[0]).values()
    expected = []
    for layer in LAYERS:
        left, right = overlaps(*of_both(folder, layer, "o"))
        expected.append(np.linalg.norm(left.T @ right - np.eye(len(left))) / len(left))
    assert line.y == pytest.approx(expected, rel=1e-5)


def test_similarity_matrices_have_the_entries_of_the_first_vectors(scene: Any) -> None:
    results, folder = scene
    found = one("similarity_matrices", results)
    assert next(panel.title for panel in found.rows[1] if panel) == "tuned, layer 2: residual side"
    for row, layer in zip(found.rows, (0, 2), strict=True):
        left, right = overlaps(*of_both(folder, layer, "q"))
        orth = left.T @ right
        sides, difference = (np.abs(left), np.abs(right)), np.abs(np.abs(left) - np.abs(right))
        shown = [heat(panel).cells for panel in row if panel]
        for cells, expected in zip(shown, (*sides, difference, np.abs(orth)), strict=True):
            assert np.abs(cells) == pytest.approx(expected[:5, :5], abs=1e-5)
        assert np.diag(shown[3]) == pytest.approx(np.diag(orth)[:5], abs=1e-5)  # signs of other entries are arbitrary


def test_whole_matrices_are_kept_as_averages_over_blocks(scene: Any) -> None:
    results, folder = scene
    found = one("similarity_matrices", results, part="blocks")
    left, _ = overlaps(*of_both(folder, 0, "q"))
    expected = np.abs(left).reshape(4, 8, 4, 8).mean(axis=(1, 3))
    assert heat(found.panels[0]).cells == pytest.approx(expected, abs=1e-6)
    assert "averaged over 4 x as many blocks" in found.caption


def test_blocks_of_unequal_size_hold_every_entry_once() -> None:
    entries = torch.arange(49, dtype=torch.float64).reshape(7, 7)
    expected = [
        [entries[rows, columns].mean() for columns in (slice(0, 2), slice(2, 5), slice(5, 7))]
        for rows in (slice(0, 2), slice(2, 5), slice(5, 7))
    ]
    assert averaged_blocks(entries, 3).tolist() == pytest.approx(np.array(expected))
    assert torch.equal(averaged_blocks(entries, 9), entries)


# ---------------------------------------------------------------------------------------------------------------- attention


def test_entropy_by_layer_has_bands_of_paired_differences_over_prompts(scene: Any) -> None:
    results, _ = scene
    found = lines(one("entropy_layers", results).panels[0])
    own, edited = (pd.read_parquet(product(results, f"entropy {name}") / "table.parquet") for name in ("original", "scaled"))
    means = [table.groupby(["prompt", "layer"])["entropy"].mean().unstack().to_numpy() for table in (own, edited)]
    (text,) = set(found) - {"original"}
    assert text == "singular values replaced, alpha' 0.9, 1.4"
    assert found["original"].y == pytest.approx(means[0].mean(axis=0))
    assert found["original"].band is None
    assert found[text].y == pytest.approx(means[1].mean(axis=0))
    assert found[text].band == pytest.approx((means[1] - means[0]).std(axis=0, ddof=1) / np.sqrt(PROMPTS))


def test_maps_of_entropy_are_original_edited_and_difference_head_by_head(scene: Any) -> None:
    results, _ = scene
    original, edited, difference = (heat(panel).cells for panel in one("entropy_maps", results, positions="all").panels)
    table = pd.read_parquet(product(results, "entropy original") / "table.parquet")
    assert original[1, 0] == pytest.approx(table[(table["layer"] == 1) & (table["head"] == 0)]["entropy_mean"].mean())
    assert difference == pytest.approx(edited - original)
    assert original.shape == (3, 2)


def test_attention_maps_are_the_models_own_averaged_over_neighbours(scene: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    results, folder = scene
    found = one("attention_maps", results)
    assert [row[0].title for row in found.rows if row[0]] == [
        f"layer {layer}, {head}: original" for layer in (0, 2) for head in ("mean of heads", "head 1")
    ]
    told = json.loads((product(results, "attention original") / "prompt.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "tuned", attn_implementation="eager").eval()
    ids = AutoTokenizer.from_pretrained(folder / "tuned").convert_tokens_to_ids(told["tokens"])
    with torch.no_grad():
        weights_of = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    edges = [*told["first"], len(ids)]
    assert len(ids) > 16 == len(told["first"])
    for row, expected in zip(
        found.rows, (weights_of[0][0].mean(0), weights_of[0][0, 1], weights_of[2][0].mean(0), weights_of[2][0, 1]), strict=True
    ):
        assert row[0] is not None
        cells = heat(row[0]).cells
        by_hand = [
            [float(expected[top:bottom, left:right].sum(1).mean()) for left, right in pairwise(edges)] for top, bottom in pairwise(edges)
        ]
        assert np.nan_to_num(cells) == pytest.approx(np.tril(by_hand), abs=1e-6)
        assert np.nansum(cells, axis=1) == pytest.approx(np.ones(16), abs=1e-5)
    assert "16 rows and columns of neighbouring tokens" in found.caption


# ------------------------------------------------------------------------------------------------------------------- layers


def test_maps_of_cka_begin_with_the_control_and_name_every_edit(scene: Any) -> None:
    results, _ = scene
    found = one("cka_maps", results)
    assert [panel.title for panel in found.panels] == [
        "original",
        "rotation restored, attention, output side",
        "rotation undone, attention, output side",
    ]
    table = pd.read_parquet(product(results, "similarity undone") / "table.parquet").set_index(["layer", "against_layer"])["cka"]
    assert heat(found.panels[2]).cells[1, 2] == table[1, 2]
    assert np.diag(heat(found.panels[0]).cells) == pytest.approx(np.ones(3))
    assert "4 prompts in 32 dimensions" in found.caption


# ------------------------------------------------------------------------------------------------------------------- tables


def documents(results: Results, point: str, column: str, task: str = "sums") -> Array:
    table = pd.read_parquet(product(results, point) / "samples.parquet")
    return table[table["task"] == task].sort_values("document")[column].to_numpy(np.float64)


def paired(ours: Array, theirs: Array, scale: float) -> tuple[Any, Any]:
    """The mean difference and its standard error."""
    difference = scale * (ours - theirs)
    return pytest.approx(difference.mean(), abs=1e-9), pytest.approx(difference.std(ddof=1) / np.sqrt(len(ours)), abs=1e-9)


@pytest.mark.parametrize(("name", "points"), [("replaced_scores", ["scaled"]), ("restored_scores", ["restored", "undone"])])
def test_a_table_of_scores_has_a_row_per_edit_with_its_paired_difference(scene: Any, name: str, points: Sequence[str]) -> None:
    results, _ = scene
    (table,) = sheets(name, results)
    assert table.columns == ("model", "sums exact match strict", "to the original", "prose bits per byte", "to the original")
    assert [cell.value for cell in table.rows[0][1]][1::2] == [None, None]
    assert table.rows[0][0] == "original"
    assert len(table.rows) == 1 + len(points)
    own = documents(results, "scores original", "exact_match_strict")
    for (_, cells), point in zip(table.rows[1:], points, strict=True):
        edited = documents(results, f"scores {point}", "exact_match_strict")
        assert cells[0].value == pytest.approx(100 * edited.mean())
        assert (cells[1].value, cells[1].error) == paired(edited, own, 100)
        told = json.loads((product(results, f"scores {point}") / "results.json").read_text())["metrics"]["prose/bits_per_byte"]
        assert cells[2].value == told["value"]
        bits = [documents(results, f"scores {one}", "bits_per_byte", "prose") for one in (point, "original")]
        assert (cells[3].value, cells[3].error) == paired(*bits, 1)
        assert abs(cells[3].value) > 1e-3
    assert "documents: 4 of sums, 5 of prose" in table.caption


@pytest.mark.parametrize("name", ["replaced_lengths", "restored_lengths"])
def test_a_table_of_lengths_counts_tokens_of_answers_and_leaves_out_what_is_only_read(scene: Any, name: str) -> None:
    results, _ = scene
    (table,) = sheets(name, results)
    assert table.columns == ("model", "sums [tokens]")
    lengths = documents(results, "scores original", "tokens")
    _, (cell,) = table.rows[0]
    assert cell == Cell(pytest.approx(lengths.mean()), pytest.approx(lengths.std(ddof=1) / 2), 1)


# ---------------------------------------------------------------------------------------------------------------- bad input


def only(results: Results, *names: str) -> Results:
    study = results.studies[0]
    return Results(results.store, [study.model_copy(update={"points": tuple(one for one in study.points if one.name in names)})])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("svsm_maps", "it needs tables of pairs of whole matrices .*post_training"),
        ("rotation_layers", "it needs tables of pairs of whole matrices"),
        ("similarity_matrices", r"it needs similarity matrices \(target=rotations\)"),
        ("entropy_layers", "it needs attention entropies"),
        ("attention_maps", "it needs attention maps"),
        ("cka_maps", "it needs similarities of layers"),
        ("replaced_scores", "it needs evaluations of a tuned model as it is and with replaced singular values"),
        ("restored_lengths", "it needs evaluations of a tuned model as it is and with rotations"),
    ],
)
def test_a_study_that_lacks_what_a_figure_needs_is_told_what_to_run(scene: Any, name: str, message: str) -> None:
    results, _ = scene
    with pytest.raises(ValueError, match=f"study 'post_training' has no .*{message}"):
        figures.build(name, only(results, "scores original"))


def test_a_difference_needs_the_model_as_it_is(scene: Any) -> None:
    results, _ = scene
    for name, point in (("entropy_maps", "entropy scaled"), ("attention_maps", "attention scaled")):
        with pytest.raises(ValueError, match="as it is are not in the study: add the point with intervention=none"):
            figures.build(name, only(results, point))
    (table,) = sheets("replaced_scores", only(results, "scores scaled"))
    assert "The untouched model is not in the study: tuned" in table.caption


def test_points_of_two_protocols_are_refused_by_name(scene: Any) -> None:
    results, _ = scene
    study = results.studies[0]
    (scaled,) = [point for point in study.points if point.name == "scores scaled"]
    assert isinstance(scaled.spec, Evaluation)
    other = scaled.spec.but(protocol=PROTOCOL.but(tasks=(sums_task(max_new_tokens=5),), name="shorter"))
    ensure(Workshop(results.store, Execution(device="cpu", threads=1)), other)
    both = study.model_copy(update={"points": (*study.points, scaled.model_copy(update={"name": "other", "spec": other}))})
    with pytest.raises(ValueError, match=r"2 protocols, case \(\w+\), shorter \(\w+\), which do not belong into one figure"):
        figures.build("replaced_scores", Results(results.store, [both]))


def test_tables_of_heads_alone_have_no_whole_matrices(scene: Any, tmp_path: Path) -> None:
    results, _ = scene
    (table,) = [point.spec for point in results.studies[0].points if point.name == "table"]
    assert isinstance(table, Spectra)
    heads = finished(tmp_path, {"heads": table.but(blocks="heads")})
    for name in ("svsm_bands", "rotation_layers", "svsm_table"):
        with pytest.raises(ValueError, match=r"the table has no whole matrix of q: run the study with spectra.blocks=matrices or all"):
            figures.build(name, heads)


def test_edits_that_are_none_of_the_papers_are_not_mixed_in(scene: Any) -> None:
    results, _ = scene
    (table,) = sheets("replaced_scores", results)
    assert [text for text, _ in table.rows] == ["original", "singular values replaced, alpha' 0.9, 1.4"]
