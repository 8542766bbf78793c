"""`figure`: which words are studies, figures and settings, what is written, and what is said of what cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

import made_up_points as made
import made_up_study as curves_made
from analysis.figures import REGISTRY
from cpt_lab import report
from cpt_lab.commands import figure, words
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, save

MATH = made.tuned()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    asked = made.study([made.evaluation(MATH), made.truncated(MATH, 50)])
    store = made.finished(tmp_path, asked)
    save(store, asked)
    save(store, asked.model_copy(update={"name": "truncation"}))  # a study may be called like a figure
    return store


def run(store: Store, *given: str) -> int:
    return figure.run(words.parse("figure", [*given, f"results={store.root}"], figure.FLAGS))


def test_words_are_studies_then_figures_and_settings(store: Store) -> None:
    assert figure.divided(store, ["made_up", "hyper_parameters", "metric=a/b", "metrics=[a, b]"]) == (
        ["made_up"],
        ["hyper_parameters"],
        {"metric": "a/b", "metrics": ["a", "b"]},
    )
    assert figure.divided(store, ["made_up", "truncation"])[:2] == (["made_up", "truncation"], [])
    with pytest.raises(KeyError, match="did you mean hyper_parameters"):
        figure.divided(store, ["made_up", "hyper_parameter"])


def test_a_named_table_is_written_into_the_folder_of_the_study(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "made_up", "hyper_parameters") == 0
    folder = store.root / "studies" / "made_up" / "figures"
    names = [f"hyper_parameters.{suffix}" for suffix in ("csv", "md", "tex", "html")]
    assert capsys.readouterr().out.splitlines() == [f"figure: {folder / name}" for name in names]
    assert all((folder / name).stat().st_size for name in names)


@pytest.mark.slow
def test_without_names_all_that_can_be_is_drawn_and_the_rest_has_its_reason(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "made_up") == 0
    said = capsys.readouterr().out
    assert "figures/truncation.pdf" in said
    assert "figures/mixtures.tex" in said
    assert "not drawn: interpolation: study 'made_up' has no soup of two models" in said


def test_settings_without_a_figure_and_an_unknown_study_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="settings belong to a figure"):
        run(store, "made_up", "metric=sums/exact_match_strict")
    with pytest.raises(KeyError, match="did you mean made_up"):
        run(store, "made_upp")
    with pytest.raises(ValueError, match="figure of which study"):
        run(store)
    with pytest.raises(KeyError, match="--list"):
        run(store, "--lst")


def test_the_list_says_of_every_figure_what_it_shows_and_needs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "--list") == 0
    said = capsys.readouterr().out
    assert all(f"{name}\n    {module.SHOWS}" in said and module.NEEDS in said for name, module in REGISTRY.items())


def test_a_figure_that_cannot_be_drawn_at_the_end_of_a_study_is_a_warning(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    asked = made.study([made.evaluation(MATH)]).model_copy(update={"figures": ("interpolation", "hyper_parameters")})
    assert [path.suffix for path in report.draw(store, asked)] == [".csv", ".md", ".tex", ".html"]
    assert "warning: figure interpolation is not drawn: study 'made_up' has no soup" in capsys.readouterr().out


def test_nothing_is_drawn_of_a_study_without_results(tmp_path: Path) -> None:
    order = curves_made.ranking("random", "ascending", 0)
    study = Study(name="maps", points=(Point(name="one", varies={}, config={}, spec=order),), figures=("head_map",))
    assert report.draw(Store(tmp_path), study) == []
