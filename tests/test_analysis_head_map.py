"""The map of a ranking: which cell is which, which colours, one per criterion, and when it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_up_study as made_up
from analysis import FIGURES, head_map, results
from cpt_lab import report
from cpt_lab import study as studies
from cpt_lab.orderings import build_ranking
from cpt_lab.specs import Ranking
from cpt_lab.store import Store
from cpt_lab.study import Point, Study

PNG = b"\x89PNG\r\n"


def order(direction: str = "ascending", seed: int = 0, **changes: Any) -> Ranking:
    return made_up.ranking("random", direction, seed).but(**changes)


def finished(root: Path, *rankings: Ranking) -> tuple[Store, Study]:
    """A store with these rankings built, and the study that asked for them."""
    store = Store(root)
    for ranking in rankings:
        lease = store.claim(ranking)
        assert lease is not None
        with store.building(ranking, lease) as work:
            build_ranking(ranking, [], work)
        lease.release()
    points = tuple(Point(name=ranking.label(), varies={}, config={}, spec=ranking) for ranking in rankings)
    return store, Study(name="maps", question="Where are they?", points=points)


@pytest.mark.slow
def test_both_directions_of_a_criterion_share_one_map_as_picture_and_page(tmp_path: Path) -> None:
    store, study = finished(tmp_path / "store", order(), order("descending"), order(seed=1), order(unit="layer"))
    files = FIGURES["head_map"](results.frame(store, study), tmp_path, title="Where are they?")
    names = ["random-seed0", "random-seed1", "random-layers-seed0"]
    assert [path.name for path in files] == [f"head_map_{name}.{kind}" for name in names for kind in ("png", "html")]
    assert files[0].read_bytes().startswith(PNG)
    page = files[1].read_text()
    assert "Where are they?" in page
    assert "random (seed 0), every head of tiny" in page


def test_a_cell_is_a_head_of_a_layer_with_layers_upwards(tmp_path: Path) -> None:
    store, study = finished(tmp_path, order())
    ((ranking, product),) = results.frame(store, study).attrs["rankings"]
    scores = head_map.grid(ranking, product)
    expected = np.random.default_rng(0).permutation(8).reshape(2, 4)
    assert (scores == expected).all()
    axis = head_map.printed(ranking, scores).axes[0]
    assert (np.asarray(axis.images[0].get_array()) == expected).all()
    assert (axis.images[0].origin, axis.get_ylabel(), axis.get_xlabel()) == ("lower", "layer", "head")
    (trace,) = head_map.interactive(ranking, scores).data
    assert (np.asarray(trace.z) == expected).all()
    assert (np.asarray(trace.customdata) == 8 - expected).all()  # the highest score is first


def test_scores_of_both_signs_have_zero_in_the_middle_of_the_colours() -> None:
    scores = np.array([[-1.0, 0, 3, np.nan], [2, 1, 0, 1]])
    image = head_map.printed(order(), scores).axes[0].images[0]
    assert (image.get_clim(), image.get_cmap().name) == ((-3, 3), "RdBu_r")
    image = head_map.printed(order(), scores**2).axes[0].images[0]
    assert (image.get_clim(), image.get_cmap().name) == ((0, 9), "viridis")


@pytest.mark.parametrize(("unit", "names", "label"), [("matrix", ["q", "o", "up"], "role"), ("layer", [""], "")])
def test_roles_stand_under_matrices_and_nothing_under_layers(unit: str, names: list[str], label: str) -> None:
    ranking = order(unit=unit, roles=("q", "o", "up"))
    axis = head_map.printed(ranking, np.arange(2.0 * len(names)).reshape(2, -1)).axes[0]
    assert ([text.get_text() for text in axis.get_xticklabels()], axis.get_xlabel()) == (names, label)


def test_a_study_of_rankings_is_drawn_without_being_asked_and_its_order_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, study = finished(tmp_path, order())
    assert [path.name for path in report.draw(store, study)] == ["head_map_random-seed0.png", "head_map_random-seed0.html"]
    studies.save(store, study)
    report.show_end(store, study, [], "")
    said = capsys.readouterr().out
    assert f"ranking: {store.product(order())}" in said
    first, second = (int(head) for head in np.argsort(np.random.default_rng(0).permutation(8))[:2])
    assert f"random ascending, layer.head (score): {first // 4}.{first % 4} (0), {second // 4}.{second % 4} (1)," in said


def test_nothing_is_drawn_of_a_ranking_that_is_not_there(tmp_path: Path) -> None:
    study = Study(name="maps", points=(Point(name="one", varies={}, config={}, spec=order()),))
    assert report.draw(Store(tmp_path), study) == []
    with pytest.raises(ValueError, match="study 'maps' has no finished ranking"):
        head_map.write(results.frame(Store(tmp_path), study), tmp_path)


def test_a_rewind_study_can_have_the_maps_of_its_orders_too(tmp_path: Path) -> None:
    store, study = made_up.make(tmp_path)
    assert len(results.frame(store, study).attrs["rankings"]) == 4
