"""The figures of importance and pruning: what they draw is what numpy says of the made-up outcomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import figures
from analysis.drawing import Bars, Dots
from analysis.figures.pruning_synthesis import compared
from analysis.pruned import LAST, RANDOM, models
from analysis.results import Results
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.interventions.prune_layers import FirstLayers, Layers, PruneLayers
from cpt_lab.specs import Correlation, Evaluation, Patched, Probe, Ranking, Spec, Spectra, key, settled
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, orders, save
from evaluation_cases import prose_task, protocol
from factory import tiny_shape
from lifecycle_cases import lines, one, sheet
from spectral_studies import Array, block, values, weights
from spectral_tables import saved

SHAPE = tiny_shape(num_layers=6).but(num_heads=2, num_kv_heads=2, head_dim=16)
PROTOCOL = protocol(prose_task())
METRIC = "prose/bits_per_byte"
DOCUMENTS = 8
WORTH = (2.0, 0.3, 0.2, 0.1, 0.15, 0.4)  # of each layer, in bits per byte


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A model whose layers are ablated one by one, ranked by a measure, correlated and taken out."""
    folder = tmp_path_factory.mktemp("pruned")
    tuned = saved(SHAPE, folder / "model")
    table = Spectra(checkpoint=tuned, measures=("rank_decay_alpha",), blocks="heads", roles=("q",))
    layers: dict[str, Any] = {"shape": SHAPE, "unit": "layer"}
    alpha = Ranking(criterion="spectral", direction="descending", column="rank_decay_alpha", roles=("q",), spectra=(table,), **layers)
    ablation = Ranking(criterion="ablation", direction="descending", probe=Probe(tuned=tuned, protocol=PROTOCOL), **layers)

    def without(select: Layers | FirstLayers) -> Evaluation:
        return Evaluation(checkpoint=Patched(tuned=tuned, interventions=(PruneLayers(select=select),)), protocol=PROTOCOL)

    specs: dict[str, Spec] = {"whole": Evaluation(checkpoint=tuned, protocol=PROTOCOL)}
    specs |= {f"last {count}": without(Layers(layers=tuple(range(6 - count, 6)))) for count in (1, 2)}
    specs |= {f"random {seed}": without(Layers(layers=taken)) for seed, taken in enumerate(((0, 3), (1, 4)))}
    specs |= {f"alpha {count}": without(FirstLayers(ranking=alpha, count=count, protect=1)) for count in (1, 2)}
    specs["correlation"] = Correlation(one=ablation, other=alpha)
    store = Store(folder / "results")
    workshop = Workshop(store, Execution(device="cpu", threads=1))
    ensure(workshop, alpha)
    made = [one for one in (*specs.values(), *ablation.needs()) if isinstance(one, Evaluation)]
    for spec in {key(each): each for each in (settled(spec, orders(store, [spec])) for spec in made)}.values():
        assert isinstance(spec, Evaluation)
        scored(store, spec)
    ensure(workshop, specs["correlation"])
    ways = {"last": "last_n", "random": "random", "alpha": "ranking"}
    points = tuple(
        Point(name=name, varies={}, config={"intervention": {"by": ways.get(name.split()[0]), "protect": 0}}, spec=one)
        for name, one in specs.items()
    )
    whole = Study(name="pruned", points=points)
    save(store, whole)
    return Results(store, [whole])


def scored(store: Store, one: Evaluation) -> None:
    """A made-up evaluation: each document's bits per byte rise with what the layers that went are worth."""
    (change,) = one.checkpoint.interventions if isinstance(one.checkpoint, Patched) else (None,)
    gone = change.select.layers if isinstance(change, PruneLayers) and isinstance(change.select, Layers) else ()
    draw = np.random.default_rng([len(gone), sum(gone)])
    bits = np.linspace(2, 3, DOCUMENTS) + sum(WORTH[layer] for layer in gone) + 0.02 * draw.standard_normal(DOCUMENTS)
    metrics = {METRIC: {"value": float(bits.mean()), "stderr": None, "n": DOCUMENTS, "higher_is_better": False}}
    lease = store.claim(one)
    assert lease is not None
    with store.building(one, lease) as work:
        (work.product / "results.json").write_text(json.dumps({"primary": METRIC, "metrics": metrics}))
        samples = pd.DataFrame({"task": "prose", "document": range(DOCUMENTS), "bits_per_byte": bits})
        samples.to_parquet(work.product / "samples.parquet", index=False)


def score(results: Results, name: str) -> float:
    (row,) = results.points.loc[results.points["name"] == name, METRIC]
    return float(row)


def test_pruning_lines_start_at_the_whole_model_and_have_paired_errors(pruned: Results) -> None:
    (found,) = one("pruning_lines", pruned).panels
    last = lines(found)[LAST]
    assert last.x.tolist() == [0, 1, 2]
    assert last.y == pytest.approx([score(pruned, name) for name in ("whole", "last 1", "last 2")])
    keys = dict(zip(pruned.points["name"], pruned.points["key"], strict=True))
    bits = [pruned.documents(keys[name]).set_index("document")["bits_per_byte"] for name in ("last 2", "whole")]
    difference = bits[0] - bits[1]
    assert last.bars is not None
    assert last.bars[2] == pytest.approx(difference.std(ddof=1) / np.sqrt(len(difference)))
    drawn = [score(pruned, f"random {seed}") for seed in (0, 1)]
    random = lines(found)[RANDOM]
    assert random.bars is not None
    assert (random.y[1], random.bars[1]) == (pytest.approx(np.mean(drawn)), pytest.approx(np.std(drawn, ddof=1)))
    assert "rank decay alpha, descending, 1 at either end kept" in lines(found)


def test_pruning_bars_are_changes_against_the_whole_model(pruned: Results) -> None:
    (found,) = one("pruning_bars", pruned).panels
    bars = {mark.label: mark for mark in found.marks if isinstance(mark, Bars)}
    whole = score(pruned, "whole")
    assert bars[LAST].height == pytest.approx([score(pruned, f"last {count}") - whole for count in (1, 2)])
    assert bars[RANDOM].x.tolist() == [2]


def test_the_synthesis_divides_what_the_last_layers_lose_by_what_the_exponents_choice_loses(pruned: Results) -> None:
    (model,) = models(pruned, METRIC)
    found = compared(pruned, model, 1)
    assert found is not None
    whole = score(pruned, "whole")
    worse = {name: score(pruned, f"{name} 2") - whole for name in ("last", "alpha")}
    assert found.most == 2
    assert found.ratio == pytest.approx(worse["last"] / worse["alpha"])
    assert found.last_at == pytest.approx(score(pruned, "last 1") - whole)
    parameters = weights(Path(str(model.tuned.path)))  # type: ignore[union-attr]
    assert found.peak == pytest.approx(np.argmax([alpha(parameters, layer) for layer in range(6)]) / 5)
    assert len(one("pruning_synthesis", pruned).panels) == 3


def alpha(parameters: dict[str, Array], layer: int) -> float:
    """The mean over the heads of q."""
    return float(np.mean([decay(values(block(parameters, layer, "q", head, SHAPE))) for head in range(SHAPE.num_heads)]))


def decay(singular: Array) -> float:
    """Minus the slope of log s on log rank, weighted by s."""
    kept = singular[singular > 1e-6 * singular[0]]
    return -float(np.polyfit(np.log(np.arange(1, len(kept) + 1)), np.log(kept), 1, w=np.sqrt(kept))[0])


def test_the_table_of_pruning_marks_the_best_of_each_count(pruned: Results) -> None:
    table = sheet("pruning_table", pruned)
    rows = dict(table.rows)
    assert table.columns == ("layers chosen by", "0", "1", "2")
    assert rows["all layers"][0].value == pytest.approx(score(pruned, "whole"))
    second: dict[str, float] = {name: float(cells[2].value) for name, cells in rows.items() if isinstance(cells[2].value, float)}
    assert [name for name, cells in rows.items() if cells[2].best] == [min(second, key=lambda name: second[name])]


def test_importance_is_the_loss_without_a_layer_and_its_correlation_leaves_out_the_ends(pruned: Results) -> None:
    drawing = one("layer_importance", pruned)
    bars, scatter = drawing.panels
    inside, ends = (mark for mark in bars.marks if isinstance(mark, Bars))
    assert (inside.x.tolist(), ends.x.tolist()) == ([1, 2, 3, 4], [0, 5])
    assert ends.height[1] == pytest.approx(score(pruned, "last 1") - score(pruned, "whole"))
    dots = [mark for mark in scatter.marks if isinstance(mark, Dots)]
    x, y = (np.concatenate([getattr(mark, axis) for mark in dots]) for axis in "xy")
    told = stats.spearmanr(x[1:-1], y[1:-1]).statistic
    assert scatter.title.startswith(f"rho = {told:.2f}, p = ")
    assert [mark.look.filled for mark in dots] == [False, True, True, True, True, False]
    assert bars.y.text == "worse without the layer: prose bits per byte"
    with pytest.raises(ValueError, match="give smaller ends"):
        figures.build("layer_importance", pruned, {"ends": 2})


def test_profiles_of_models_that_were_not_watched_come_from_their_tables(pruned: Results) -> None:
    (found,) = one("alpha_profiles", pruned).panels
    (line,) = lines(found).values()
    (model,) = models(pruned, METRIC)
    parameters = weights(Path(str(model.tuned.path)))  # type: ignore[union-attr]
    assert line.y == pytest.approx([alpha(parameters, layer) for layer in range(6)], rel=1e-5)
    assert line.x.tolist() == list(range(6))


def test_a_study_without_pruned_points_or_without_the_whole_model_says_so(tmp_path: Path, pruned: Results) -> None:
    whole = pruned.studies[0]
    with pytest.raises(ValueError, match="nothing to show yet"):
        figures.build("pruning_lines", Results(Store(tmp_path), [whole]))

    def only(names: Sequence[str]) -> Results:
        return Results(pruned.store, [whole.model_copy(update={"points": tuple(one for one in whole.points if one.name in names)})])

    with pytest.raises(ValueError, match=r"no model with fewer layers: it needs .*prune_MODEL"):
        figures.build("pruning_lines", only(["whole"]))
    with pytest.raises(ValueError, match="no model that was pruned by the last layers and by an exponent"):
        figures.build("pruning_synthesis", only(["whole", "last 1"]))
