"""The figures of spectra: what they draw is what numpy says of the weights, by way of a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import figures
from analysis.drawing import Bars, Dots, Drawing, Heat, Line, Panel, Spread
from analysis.figures.spectra_bars import counts, edges
from analysis.lineage import tokens_text
from analysis.results import Results, SpectraOf
from analysis.spectral import distinguished, facets_of, jitter, named, pretrain_tokens, tables, thinned
from cpt_lab.specs import HubCheckpoint, Spectra
from cpt_lab.spectra import PRESETS
from cpt_lab.spectra.choice import chosen
from spec_cases import PRETRAINED, TUNED
from spectral_studies import SHALLOW, SHAPE, Array, block, finished, matrix, row_maxima, values, weights
from spectral_tables import saved

LAYERS, HEADS = range(SHAPE.num_layers), range(SHAPE.num_heads)
ROLES = ("q", "o", "gate", "down")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, dict[str, dict[str, Array]]]:
    """Weights of base and tuned, their delta, and weights of a shallower model; with all parameters by name."""
    folder = tmp_path_factory.mktemp("spectra")
    base, tuned = (saved(SHAPE, folder / name, seed=seed) for seed, name in enumerate(("base", "tuned")))
    shallow = saved(SHALLOW, folder / "shallow", seed=2)
    alone: dict[str, Any] = {"measures": chosen("paper", pair=False), "indices": True, "roles": ROLES}
    specs = {
        "base": Spectra(checkpoint=base, **alone),
        "tuned": Spectra(checkpoint=tuned, **alone),
        "shallow": Spectra(checkpoint=shallow, **alone),
        "delta": Spectra(checkpoint=tuned, against=base, **{**alone, "measures": PRESETS["paper"]}),
    }
    return finished(folder, specs), {name: weights(folder / name) for name in ("base", "tuned", "shallow")}


def drawn(name: str, results: Results, **changes: Any) -> list[Drawing]:
    found = figures.build(name, results, changes)
    assert all(isinstance(one, Drawing) for one in found)
    return [one for one in found if isinstance(one, Drawing)]


def one(name: str, results: Results, **changes: Any) -> Drawing:
    (found,) = drawn(name, results, **changes)
    return found


def panel(drawing: Drawing, title: str) -> Panel:
    (found,) = [panel for panel in drawing.panels if panel.title == title]
    return found


def norms(one: dict[str, Array], role: str) -> Array:
    """(layers, heads) of Frobenius norms."""
    return np.array([[np.linalg.norm(block(one, layer, role, head)) for head in HEADS] for layer in LAYERS])


def delta(parameters: dict[str, dict[str, Array]]) -> dict[str, Array]:
    return {name: parameters["tuned"][name] - base for name, base in parameters["base"].items()}


# ---------------------------------------------------------------------------------------------------------------- curves


def test_norms_of_deltas_are_the_mean_the_median_and_the_deviation_over_the_heads_of_a_layer(scene: Any) -> None:
    results, parameters = scene
    expected = norms(delta(parameters), "q")
    found = panel(one("delta_norms", results), "W Q: Frobenius norm")
    mean, median = found.marks
    assert isinstance(mean, Line)
    assert isinstance(median, Line)
    assert mean.x.tolist() == [0, 1, 2]
    assert mean.y == pytest.approx(expected.mean(axis=1))
    assert mean.band == pytest.approx(expected.std(axis=1))
    assert median.y == pytest.approx(np.median(expected, axis=1))
    assert (mean.look.dash, median.look.dash) == ("solid", "dashed")


def test_a_whole_matrix_has_one_line_and_no_band(scene: Any) -> None:
    results, parameters = scene
    (line,) = panel(one("delta_norms", results), "W down: Frobenius norm").marks
    assert isinstance(line, Line)
    assert line.y == pytest.approx([np.linalg.norm(matrix(delta(parameters), layer, "down")) for layer in LAYERS])
    assert line.band is None


def test_models_of_different_depth_share_an_axis_of_percent(scene: Any) -> None:
    results, parameters = scene
    found = panel(one("depth_profile", results, roles=["down"], measures=["spectral_norm"]), "W down: spectral norm")
    lines = {mark.label: mark for mark in found.marks if isinstance(mark, Line)}
    assert found.x.text == "depth [%]"
    assert set(lines) == {"base", "tuned", "shallow"}
    assert lines["shallow"].x.tolist() == [0, 100]
    assert lines["tuned"].x.tolist() == [0, 50, 100]
    shallow = [values(matrix(parameters["shallow"], layer, "down"))[0] for layer in range(2)]
    assert lines["shallow"].y == pytest.approx(shallow)


def test_distances_of_fits_are_the_means_of_the_tables(scene: Any) -> None:
    results, _ = scene
    (base, *_) = [table for table in tables(results, kind="weights", needs="") if table.label == "base"]
    rows = base.table()
    expected = rows[(rows["role"] == "q") & (rows["head"] >= 0)].groupby("layer")["pl_ks"].mean()
    (mean,) = [mark for mark in panel(one("fit_distances", results), "W Q: distance to the power law").marks if mark.label == "base"]
    assert isinstance(mean, Line)
    assert np.isfinite(mean.y).all()
    assert mean.y == pytest.approx(expected.to_numpy())


def test_sparklines_show_weights_and_deltas_of_every_role(scene: Any) -> None:
    results, _ = scene
    found = one("sparklines", results, measures=["stable_rank"])
    assert [row[0].title for row in found.rows if row[0]] == [f"W {role}: stable rank" for role in ("Q", "O", "gate", "down")]
    labels = {mark.label for mark in found.panels[0].marks if not mark.label.endswith("median")}
    assert labels == {"base, weights", "tuned, weights", "shallow, weights", "tuned, delta, against base"}


def test_sparklines_of_more_tables_than_colours_are_one_figure_of_weights_and_one_of_deltas(tmp_path: Path) -> None:
    base, *tuned = (saved(SHAPE, tmp_path / f"m{seed}", seed=seed) for seed in range(6))
    measured: dict[str, Any] = {"blocks": "heads", "roles": ("q",), "measures": ("stable_rank",)}
    specs = {f"weights {place}": Spectra(checkpoint=one, **measured) for place, one in enumerate(tuned)}
    deltas = {f"delta {place}": Spectra(checkpoint=one, against=base, **measured) for place, one in enumerate(tuned)}
    found = drawn("sparklines", finished(tmp_path, specs | deltas), measures=["stable_rank"])
    assert [one.name for one in found] == ["sparklines_weights", "sparklines_deltas"]
    assert [len({mark.label for mark in one.panels[0].marks if not mark.label.endswith("median")}) for one in found] == [5, 5]


def test_a_table_of_heads_that_a_ranking_read_stands_only_where_there_is_none_of_all_matrices(tmp_path: Path) -> None:
    base, one, other = (saved(SHAPE, tmp_path / name, seed=seed) for seed, name in enumerate(("base", "one", "other")))
    heads = Spectra(checkpoint=one, against=base, blocks="heads", roles=("q",), measures=("frobenius_norm",))
    specs = {"heads": heads, "all": heads.but(blocks="all"), "alone": heads.but(checkpoint=other)}
    found = tables(finished(tmp_path, specs), kind="deltas", needs="")
    assert [(table.spec.checkpoint, table.spec.blocks) for table in found] == [(one, "all"), (other, "heads")]


def test_a_delta_of_its_own_base_does_not_name_it_and_another_does() -> None:
    own = Spectra(checkpoint=TUNED, against=TUNED.start, measures=("frobenius_norm",))
    (alone,) = named([SpectraOf(own, Path())])
    assert "its base" not in alone.label
    elsewhere = SpectraOf(own.but(against=HubCheckpoint(id="a/OLMo", revision="tokens20B", shape=TUNED.shape)), Path())
    assert [table.label for table in named([SpectraOf(own, Path()), elsewhere])] == ["against its base", "against OLMo 20B tokens"]


def test_maps_of_heads_are_compared_within_each_base(tmp_path: Path) -> None:
    folders = {name: saved(SHAPE, tmp_path / name, seed=seed) for seed, name in enumerate(("b1", "b2", "t1", "t2", "t3", "t4"))}
    pairs = (("t1", "b1"), ("t2", "b1"), ("t3", "b2"), ("t4", "b2"))
    measured: dict[str, Any] = {"blocks": "heads", "roles": ("q",), "measures": ("agreement_residual_max",)}
    specs = {one: Spectra(checkpoint=folders[one], against=folders[base], **measured) for one, base in pairs}
    first, second = drawn("head_map_difference", finished(tmp_path, specs))
    assert [panel.title for panel in first.panels] == ["t1", "t2", "t2 - t1"]
    assert [panel.title for panel in second.panels] == ["t3", "t4", "t4 - t3"]
    assert first.name != second.name


# ------------------------------------------------------------------------------------------------------- boxes and bars


def test_an_evolution_has_every_matrix_as_a_point_coloured_by_its_layer(scene: Any) -> None:
    results, parameters = scene
    found = panel(one("spectral_evolution", results, roles=["q"], measures=["frobenius_norm"]), "W Q: Frobenius norm")
    boxes = {mark.label: mark for mark in found.marks if isinstance(mark, Spread)}
    layers = {mark.label: mark for mark in found.marks if isinstance(mark, Dots)}
    assert np.sort(boxes["tuned"].samples) == pytest.approx(np.sort(norms(parameters["tuned"], "q").ravel()))
    assert set(layers) == {"layer 0", "layer 1", "layer 2"}
    at = [label for _, label in found.x.ticks].index("tuned")
    near = np.abs(layers["layer 1"].x - at) < 0.5
    assert np.sort(layers["layer 1"].y[near]) == pytest.approx(np.sort(norms(parameters["tuned"], "q")[1]))
    assert len({mark.look.colour for mark in layers.values()}) == 3


def test_boxes_stand_side_by_side_for_base_tuned_and_delta(scene: Any) -> None:
    results, parameters = scene
    whole = one("spectra_boxes", results, measures=["frobenius_norm"], roles=["q", "down"], mlp_measures=["pl_ks"])
    found, of_mlp = whole.panels
    assert [text for _, text in of_mlp.x.ticks] == ["W down"]
    boxes = [mark for mark in found.marks if isinstance(mark, Spread)]
    assert [box.label for box in boxes] == ["base", "base", "tuned", "tuned", "delta", "delta"]
    assert sorted(boxes[4].samples) == pytest.approx(sorted(norms(delta(parameters), "q").ravel()))
    assert boxes[0].at < boxes[2].at < boxes[4].at < boxes[1].at


def test_bars_count_the_mean_spectrum_of_a_layers_heads(scene: Any) -> None:
    results, parameters = scene
    found = one("spectra_bars", results, bins=7, roles=["q"])
    assert [panel.title for panel in found.panels] == ["W Q: base", "W Q: tuned", "W Q: delta"]
    of = {"base": parameters["base"], "tuned": parameters["tuned"], "delta": delta(parameters)}
    spectra = {
        name: np.array([np.mean([values(block(weights_of, layer, "q", head)) for head in HEADS], axis=0) for layer in LAYERS])
        for name, weights_of in of.items()
    }
    every = np.concatenate([found.ravel() for found in spectra.values()])
    bounds = np.geomspace(every.min() * (1 - 1e-6), every.max() * (1 + 1e-6), 8)
    for panel_of, name in zip(found.panels, spectra, strict=True):
        for layer, mark in enumerate(panel_of.marks):
            assert isinstance(mark, Bars)
            assert mark.label == f"layer {layer}"
            assert mark.height.tolist() == np.histogram(spectra[name][layer], bounds)[0].tolist()


def test_zeros_are_in_no_bin_and_equal_values_in_one() -> None:
    assert counts(np.array([0.0, 1.0, 10.0, 100.0]), edges([np.array([1.0, 100.0])], 2)).tolist() == [1, 2]
    assert counts(np.array([2.0, 2.0]), edges([np.array([2.0, 2.0])], 4)).tolist() == [2, 0, 0, 0]
    assert counts(np.zeros(3), edges([np.zeros(3)], 3)).sum() == 0


# ---------------------------------------------------------------------------------------------------------------- violins


def test_singular_values_are_the_bases_and_their_colours_the_agreement_of_its_vectors(scene: Any) -> None:
    results, parameters = scene
    found = one("singular_values", results, layer=1, heads=[1]).panels[0]
    body, points = found.marks
    base, tuned = (block(parameters[name], 1, "q", 1) for name in ("base", "tuned"))
    assert isinstance(body, Spread)
    assert isinstance(points, Dots)
    assert body.kind == "violin"
    assert points.y == pytest.approx(values(base), rel=1e-5)
    assert points.by == pytest.approx(row_maxima(base, tuned), rel=1e-4)
    assert found.colours == "agreement, residual side"


def test_where_nothing_is_compared_values_are_of_the_weights_without_colours(scene: Any) -> None:
    results, parameters = scene
    alone = Results(results.store, [results.studies[0].model_copy(update={"points": results.studies[0].points[:1]})])
    found = one("singular_values", alone, layer=0, heads=[0], role="o").panels[0]
    points = found.marks[1]
    assert isinstance(points, Dots)
    assert points.by is None
    assert points.y == pytest.approx(values(block(parameters["base"], 0, "o", 0)), rel=1e-5)


def test_agreement_by_layer_is_of_whole_matrices(scene: Any) -> None:
    results, parameters = scene
    found = one("agreement_layers", results).panels[0]
    points = [mark for mark in found.marks if isinstance(mark, Dots)]
    assert [mark.label for mark in points] == ["0", "1", "2"]
    for layer, mark in enumerate(points):
        base, tuned = (matrix(parameters[name], layer, "gate") for name in ("base", "tuned"))
        assert mark.y == pytest.approx(values(base), rel=1e-5)
        assert mark.by == pytest.approx(row_maxima(base, tuned), rel=1e-3)


def test_the_violin_matrix_has_a_row_per_layer_and_a_violin_per_head(scene: Any) -> None:
    results, _ = scene
    found = one("violin_matrix", results)
    assert [row[0].title for row in found.rows if row[0]] == ["layer 2", "layer 1", "layer 0"]
    assert [[mark.label for mark in panel.marks if isinstance(mark, Spread)] for panel in found.panels] == [["0", "1"]] * 3
    colours = np.concatenate([mark.by for panel in found.panels for mark in panel.marks if isinstance(mark, Dots) and mark.by is not None])
    assert {panel.colour_limits for panel in found.panels} == {(colours.min(), colours.max())}
    fewer = one("violin_matrix", results, layers=2)
    assert len(fewer.rows) == 2
    assert "2 of 3 layers" in fewer.caption


def test_long_spectra_are_thinned_and_the_caption_says_so(scene: Any) -> None:
    results, parameters = scene
    found = one("agreement_layers", results, points=5)
    points = found.panels[0].marks[1]
    assert isinstance(points, Dots)
    assert points.y == pytest.approx(values(matrix(parameters["base"], 0, "gate"))[[0, 8, 16, 23, 31]], rel=1e-5)
    assert "Of longer spectra 5 values, evenly spaced by rank, are drawn (the longest has 32)" in found.caption
    assert "evenly spaced" not in one("agreement_layers", results).caption


# --------------------------------------------------------------------------------------------------------------- quartets


def test_a_quartet_is_base_tuned_delta_and_the_difference_of_the_measures(scene: Any) -> None:
    results, parameters = scene
    found = one("quartets", results, measures=["frobenius_norm"], roles=["q"])
    heats = {panel.title.split(": ")[1]: panel.marks[0] for panel in found.panels}
    assert list(heats) == ["base", "tuned", "delta", "tuned less base"]
    expected = {name: norms(parameters[name], "q") for name in ("base", "tuned")}
    expected |= {"delta": norms(delta(parameters), "q"), "tuned less base": expected["tuned"] - expected["base"]}
    for name, heat in heats.items():
        assert isinstance(heat, Heat)
        assert heat.cells == pytest.approx(expected[name], abs=1e-9)
    assert heats["base"].limits == heats["tuned"].limits
    assert heats["tuned less base"].diverging


# --------------------------------------------------------------------------------------------------------- names and bad input


def test_checkpoints_are_called_by_what_they_do_not_have_in_common() -> None:
    hub = HubCheckpoint(id="allenai/OLMo-2-0425-1B", revision="stage1-step1907359-tokens4001B", shape=SHAPE)
    assert facets_of(hub) == {"model": "OLMo-2-0425-1B", "pretrain": "4T tokens"}
    assert facets_of(TUNED)["mixture"] == "CPT mostly math"
    assert (pretrain_tokens(hub), pretrain_tokens(PRETRAINED), pretrain_tokens(TUNED)) == (4001 * 10**9, 1000, None)
    assert distinguished([{"model": "a", "mixture": "math"}, {"model": "a", "mixture": "text"}]) == ["math", "text"]
    assert distinguished([{"model": "a"}, {"model": "a"}]) == ["a (1)", "a (2)"]
    assert [tokens_text(count) for count in (20 * 10**9, 3896 * 10**9, 1187840, 320, 0)] == ["20B", "3.9T", "1.19M", "320", "0"]


def test_jitter_is_always_the_same_and_stays_beside_its_place() -> None:
    places = jitter(3.0, 100, 0.4)
    assert np.abs(places - 3).max() == pytest.approx(0.2, abs=0.01)
    assert (places == jitter(3.0, 100, 0.4)).all()
    assert thinned(10, 4).tolist() == [0, 3, 6, 9]
    assert thinned(3, 4).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("delta_norms", {"measures": ["frobenius_nrm"]}, "did you mean frobenius_norm"),
        ("delta_norms", {"measures": ["pl_p_value"]}, "it needs tables of deltas"),
        ("delta_norms", {"roles": ["k"]}, "none of the roles k is in all tables: choose some of q, o, gate, down"),
        ("singular_values", {"layer": 7}, "has no head 0 of q in layer 7: choose other layers, heads or roles"),
        ("quartets", {"roles": ["gate"]}, "none of gate has heads: choose roles from q, k, v, o"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_to_do(scene: Any, name: str, changes: dict[str, Any], message: str) -> None:
    results, _ = scene
    with pytest.raises(ValueError, match=message):
        figures.build(name, results, changes)


def test_a_study_without_tables_says_what_to_run(tmp_path: Path, scene: Any) -> None:
    results, _ = scene
    spec = results.studies[0].points[0].spec
    empty = finished(tmp_path, {"one": spec}, name="empty", unfinished=["one"])
    for name in ("delta_norms", "spectral_evolution", "singular_values", "violin_matrix", "quartets", "spectra_bars"):
        with pytest.raises(ValueError, match=r"study 'empty' has no finished table of spectra .*target=spectra"):
            figures.build(name, empty)


def test_an_evolution_of_one_checkpoint_is_none(scene: Any) -> None:
    results, _ = scene
    alone = Results(results.store, [results.studies[0].model_copy(update={"points": results.studies[0].points[:1]})])
    with pytest.raises(ValueError, match=r"weights of one checkpoint .*: an evolution needs two"):
        figures.build("spectral_evolution", alone)
