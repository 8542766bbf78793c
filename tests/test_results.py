"""Results: several studies as one table, and the products behind it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import made_up_points as made
import made_up_study as curves_made
from analysis.errors import Errors
from analysis.results import Results, frame
from cpt_lab.specs import Evaluation, Ranking, TrainedCheckpoint, key
from cpt_lab.store import Store
from cpt_lab.study import resolved

MATH = made.tuned()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("pair")
    one, two = made.study([made.evaluation(MATH), made.truncated(MATH, 50)], "one"), made.study([made.truncated(MATH, 20)], "two")
    made.finished(root, one)
    return Results(made.finished(root, two), [one, two])


def test_points_of_several_studies_stand_below_each_other(pair: Results) -> None:
    assert list(pair.points["study"]) == ["one", "one", "two"]
    assert list(pair.points["percent"].dropna()) == [50, 20]
    assert pair.name == "one+two"
    assert pair.points.attrs["n"][made.SUMS] == made.DOCUMENTS
    assert pair.metric() == made.SUMS
    for study in pair.studies:
        alone = frame(pair.store, study)
        joined = pair.points[pair.points["study"] == study.name]
        assert list(joined[made.SUMS]) == list(alone[made.SUMS])


def test_documents_and_outcomes_are_those_of_the_evaluation(pair: Results) -> None:
    spec = made.evaluation(MATH)
    pd.testing.assert_frame_equal(pair.documents(key(spec)), made.outcomes(spec))
    scored = pair.scored(key(spec), "sums", "exact_match_strict")
    assert scored is not None
    assert list(scored[1]) == list(made.of(made.outcomes(spec), made.SUMS))
    assert pair.scored(key(spec), "sums", "no_such_column") is None
    assert pair.has(key(spec))
    assert not pair.has("nothing")


def test_paired_errors_are_those_of_the_differences_and_of_means_over_tasks(pair: Results) -> None:
    edited, plain = made.truncated(MATH, 50), made.evaluation(MATH)
    found = Errors(pair, made.SUMS).of(pair.points)
    assert found[0] == 0
    assert found[1] == pytest.approx(made.paired_error(edited, plain, made.SUMS))
    of_tasks = [made.paired_error(edited, plain, task) for task in (made.SUMS, made.ADDING)]
    assert Errors(pair, made.LANGUAGE).between(key(edited), key(plain)) == pytest.approx(np.hypot(*of_tasks) / 2)


def test_documents_that_only_one_of_a_pair_has_are_left_out_and_none_in_common_is_no_error(tmp_path: Path) -> None:
    specs = made.evaluation(MATH), made.truncated(MATH, 50)
    asked = made.study(specs)
    store = made.finished(tmp_path, asked)
    file = store.product(specs[1]) / "samples.parquet"
    table = pd.read_parquet(file)
    table[table["document"] >= 20].to_parquet(file)
    ours, theirs = (made.of(made.outcomes(spec), made.SUMS)[20:] for spec in reversed(specs))
    found = Errors(Results(store, [asked]), made.SUMS).between(key(specs[1]), key(specs[0]))
    assert found == pytest.approx((ours - theirs).std(ddof=1) / np.sqrt(40))
    table.assign(document=table["document"] + 1000).to_parquet(file)
    assert np.isnan(Errors(Results(store, [asked]), made.SUMS).between(key(specs[1]), key(specs[0])))


def test_several_answers_to_a_document_count_as_their_mean(tmp_path: Path) -> None:
    asked = made.study([made.evaluation(MATH)])
    store = made.finished(tmp_path, asked)
    file = store.product(made.evaluation(MATH)) / "samples.parquet"
    table = pd.read_parquet(file)
    pd.concat([table, table.assign(exact_match_strict=1 - table["exact_match_strict"])]).to_parquet(file)
    found = Results(store, [asked]).outcomes(made.SUMS).of(key(made.evaluation(MATH)))
    assert found is not None
    assert set(found) == {0.5}
    assert len(found) == made.DOCUMENTS


def test_finished_specs_of_a_kind_are_found_among_points_and_needs(tmp_path: Path) -> None:
    store, study = curves_made.make(tmp_path)
    curves_made.finish(store, study)
    results = Results(store, [study])
    assert len(results.of_kind(Evaluation)) == len(study.points)
    assert results.of_kind(Ranking) == []
    assert {key(spec) for spec, _ in results.needed(TrainedCheckpoint)} == {key(curves_made.BASE), key(curves_made.TUNED)}
    assert len(results.rankings) == 4
    assert results.tables == []


def test_a_metric_that_was_not_scored_gets_the_nearest(pair: Results) -> None:
    with pytest.raises(KeyError, match="did you mean sums/exact_match_strict"):
        pair.metric("sums/exact_match")


def test_results_of_another_version_are_refused_with_their_key(tmp_path: Path) -> None:
    asked = made.study([made.evaluation(MATH)])
    store = made.finished(tmp_path, asked)
    (spec,) = resolved(store, asked.points).values()
    (store.product(spec) / "results.json").write_text(json.dumps({"primary": made.SUMS, "metrics": {made.SUMS: {"mean": 0.5}}}))
    with pytest.raises(ValueError, match=r"written by another version of cpt_lab: use that one, or another results folder"):
        frame(store, asked)


def test_results_of_no_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name at least one"):
        Results(Store(tmp_path), [])
