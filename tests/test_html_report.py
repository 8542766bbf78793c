"""The report: its answer is made from the numbers, and the page is complete in itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.stats import binomtest, ttest_rel

import made_up_study as made
import paper_studies
from analysis import orders, paired, report
from analysis.report import ancestry, answer, cost, verdicts
from analysis.results import Results
from cpt_lab.commands import report as command
from cpt_lab.store import State
from cpt_lab.study import Study, resolved, save


class Page(HTMLParser):
    """What a test wants to know of a page."""

    VOID = frozenset(("meta", "link", "br", "hr", "img", "input", "path", "rect"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[int] = []
        self.outside: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        self.outside += [given[name] for name in ("src", "href") if given.get(name, "").startswith(("http", "//"))]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words += data


@pytest.fixture
def finished(tmp_path: Path) -> Results:
    store, study = made.make(tmp_path)
    made.finish(store, study)
    return Results(store, [study])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    store, study = made.make(tmp_path_factory.mktemp("page"))
    made.finish(store, study.model_copy(update={"points": study.points[:-1]}))
    failed = made.point(made.ranking("delta_norm", "descending"), 0.4)
    whole = study.model_copy(update={"points": (*study.points[:-1], failed), "question": "Is <this> safe & sound?"})
    save(store, whole)
    made.fail(store, resolved(store, [failed])[failed.name], "out of <memory>\nand much more")
    return report.render(Results(store, [whole]))


# --------------------------------------------------------------------------------------------------------------- statistics


@given(some.lists(some.tuples(some.booleans(), some.booleans()), min_size=2, max_size=40))
def test_right_and_wrong_answers_are_compared_by_mcnemars_exact_test(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = np.array(pairs, float).T
    won, lost = int((ours > theirs).sum()), int((ours < theirs).sum())
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert paired.p_value(ours, theirs) == pytest.approx(expected)


def test_other_scores_are_compared_by_the_paired_t_test() -> None:
    ours, theirs = np.random.default_rng(0).normal(size=(2, 30))
    assert paired.p_value(ours, theirs) == pytest.approx(ttest_rel(ours, theirs).pvalue)


def test_holm_is_as_in_his_example() -> None:
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(some.lists(some.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_stands_between_nothing_and_bonferroni(p_values: list[float]) -> None:
    corrected = paired.holm(p_values)
    assert all(p <= c <= min(1.0, len(p_values) * p) + 1e-12 for p, c in zip(p_values, corrected, strict=True))
    assert [corrected[place] for place in np.argsort(p_values, kind="stable")] == sorted(corrected)


def test_an_unknown_p_value_is_not_counted() -> None:
    assert paired.holm([float("nan"), 0.04])[1] == pytest.approx(0.04)


def test_areas_are_those_of_the_curves_and_their_differences_are_paired(finished: Results) -> None:
    found = {order.label: order for order in orders.orders(finished, made.ACCURACY)}
    at = np.array(made.FRACTIONS)
    right = {bend: np.array([np.arange(20) < round(20 * (0.9 - 0.8 * f**bend)) for f in at], float) for bend in (0.5, 2.0)}
    slow, fast = (np.trapezoid(right[bend], at, axis=0) for bend in (2.0, 0.5))
    assert found["delta norm ascending"].area == pytest.approx(slow.mean())
    test = orders.difference(found["delta norm ascending"], found["delta norm descending"])
    assert (test.mean, test.stderr) == (pytest.approx((slow - fast).mean()), pytest.approx((slow - fast).std(ddof=1) / np.sqrt(20)))
    assert test.p == pytest.approx(ttest_rel(slow, fast).pvalue)


def test_an_order_with_a_gap_is_left_out(tmp_path: Path) -> None:
    store, study = made.make(tmp_path)
    gap = "delta_norm-descending 0.5"
    made.finish(store, study.model_copy(update={"points": tuple(point for point in study.points if point.name != gap)}))
    found = orders.orders(Results(store, [study]), made.ACCURACY)
    assert "delta norm descending" not in {order.label for order in found}
    assert "delta norm ascending" in {order.label for order in found}


def test_of_a_metric_that_is_better_when_lower_the_lowest_area_is_best(finished: Results) -> None:
    found = orders.orders(finished, made.BITS)
    assert [order.area for order in found] == sorted(order.area for order in found)


# ------------------------------------------------------------------------------------------------------------- the answer


def test_the_answer_names_the_best_order_its_lead_and_how_far_it_carries(tmp_path: Path) -> None:
    right = {"ascending": (180, 180, 150, 40), "descending": (180, 100, 60, 40)}
    at = (0.0, 0.25, 0.5, 1.0)
    points = [paper_studies.rewind("delta_norm", direction, share) for direction in right for share in at]
    counts = [count for of in right.values() for count in of]
    outcomes = {point.name: np.arange(200) < count for point, count in zip(points, counts, strict=True)}
    store, study = paper_studies.finished(tmp_path, points, outcomes)
    results = Results(store, [study])
    verdict = verdicts.of_orders(results, paper_studies.GSM8K)
    assert verdict is not None
    said = answer.of_orders(results, verdict, cost.account(results).cost)
    area = np.trapezoid(np.array(right["ascending"]) / 2, at)
    assert said.headline == "Best order: delta norm ascending."
    assert f"delta norm ascending keeps {area:.3g} % of exact match on gsm8k over 200 documents" in said.sentences[0]
    assert "up to 25 % of the heads can be rewound within two standard errors of the unedited model: 90 % against 90 %" in " ".join(
        said.sentences
    )


def test_the_lead_over_another_criterion_is_called_noise_when_it_is(finished: Results) -> None:
    verdict = verdicts.of_orders(finished, made.ACCURACY)
    assert verdict is not None
    said = " ".join(answer.of_orders(finished, verdict, cost.account(finished).cost).sentences)
    (rival,) = verdict.others
    assert (rival.test.mean, rival.p) == (0.0, 1.0)  # made-up random orders fall like the ascending one
    assert "Against random (mean of 2) that is +0 ± 0 points (p = 1, Holm over 1 criterion): not more than noise." in said


def test_points_are_compared_with_the_unedited_model_each_once(tmp_path: Path) -> None:
    points = [paper_studies.truncated(percent) for percent in (50, 70, 100)]
    right = {"percent=50": np.arange(200) < 60, "percent=70": np.arange(200) < 98, "percent=100": np.arange(200) < 100}
    store, study = paper_studies.finished(tmp_path, points, right)
    results = Results(store, [study])
    verdict = verdicts.of_points(results, paper_studies.GSM8K)
    assert verdict is not None
    assert verdict.against == "the unedited model"
    raw = {name: binomtest(0, lost).pvalue for name, lost in (("percent=50", 40), ("percent=70", 2))}
    assert {found.name: found.p for found in verdict.found} == {
        "percent=50": pytest.approx(2 * raw["percent=50"]),
        "percent=70": pytest.approx(raw["percent=70"]),
    }
    said = answer.of_points(results, paper_studies.GSM8K, verdict, cost.account(results).cost)
    assert said.headline == "Best point: percent=100."
    assert "It is the unedited model itself: no edit is better." in said.sentences


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "python -m cpt_lab +experiment=rewind_7b tuned.from=folder tuned.path=/x results=/y",
            "python -m cpt_lab +experiment=rewind_7b study=made_up_mine base.from=folder base.path=BASE_FOLDER "
            "tuned.from=folder tuned.path=TUNED_FOLDER",
        ),
        (
            "python -m cpt_lab resume made_up",
            "python -m cpt_lab +experiment=made_up study=made_up_mine base.from=folder base.path=BASE_FOLDER "
            "tuned.from=folder tuned.path=TUNED_FOLDER",
        ),
    ],
)
def test_the_command_for_another_model_is_the_studys_own_with_other_checkpoints(finished: Results, given: str, expected: str) -> None:
    assert answer.command(finished.studies[0].model_copy(update={"command": given})) == expected


# ------------------------------------------------------------------------------------------------------------------ the page


def test_the_page_is_whole_and_asks_for_nothing_from_outside(page: str) -> None:
    read = Page(page)
    assert read.open == []
    assert read.outside == []
    assert len(read.ids) == len(set(read.ids))
    assert {link.removeprefix("#") for link in read.links} <= set(read.ids)
    assert len(page) < 10_000_000
    assert page.count("<script>") <= 1 + page.count("Plotly.newPlot")


def test_headings_go_down_one_level_at_a_time(page: str) -> None:
    levels = Page(page).headings
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_what_people_wrote_is_shown_and_not_run(page: str) -> None:
    assert "Is &lt;this&gt; safe &amp; sound?" in page
    assert "<this>" not in page.replace("&lt;this&gt;", "")
    words = Page(page).words
    assert "out of <memory>" in words
    assert "and much more" not in words


def test_every_point_stands_on_the_page_with_state_and_key(page: str) -> None:
    words = Page(page).words
    for name in ("delta_norm-ascending 0.5", "random-ascending-seed1 0.25", "delta_norm-descending 0.4"):
        assert name in words
    assert "1 failed" in words


def test_lineage_goes_from_data_to_points(finished: Results) -> None:
    drawn = ancestry.graph(finished)
    columns = {title: box.column for title, box in drawn.boxes.items()}
    assert columns["math corpus"] < columns["CPT: math"] < columns["rewind by delta norm"]
    assert columns["text corpus"] < columns["pre-training: text"] < columns["CPT: math"]
    assert ("pre-training: text", "CPT: math") in drawn.arrows
    assert ("ranking: delta norm", "rewind by delta norm") in drawn.arrows
    assert drawn.boxes["rewind by random"].count == 10
    places = [(box.column, box.row) for box in drawn.boxes.values()]
    assert len(places) == len(set(places))


def test_the_cost_counts_every_step_once(finished: Results) -> None:
    found = cost.account(finished).cost
    steps = {stage.name: stage.steps for stage in found.stages}
    distinct = len(set(finished.points["key"]))
    assert steps == {"pretrain": 1, "cpt": 1, "rank": 4, "evaluate": distinct}
    assert found.seconds == pytest.approx(1.5 * (6 + distinct))
    assert found.gpu_hours == 0


# ----------------------------------------------------------------------------------------------------------------- bad input


def test_a_study_without_results_says_what_to_run(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.5,))
    with pytest.raises(ValueError, match=r"no point of study made_up is finished: .*status made_up.*resume made_up"):
        report.render(Results(store, [study]))
    assert command.at_end(store, study) == []


def test_results_of_another_version_are_a_warning_at_the_end_and_an_error_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, study = made.make(tmp_path, fractions=(0.5,))
    made.finish(store, study)
    product = store.product(next(iter(resolved(store, study.points).values())))
    (product / "results.json").write_text('{"scores": 1}')
    with pytest.raises(ValueError, match="another version of cpt_lab"):
        command.write(store, [study])
    assert command.at_end(store, study) == []
    assert "warning: no report:" in capsys.readouterr().err


def test_a_study_that_wants_no_report_gets_none(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.5,))
    made.finish(store, study)
    assert command.at_end(store, study.model_copy(update={"report": False})) == []


def test_points_without_scores_are_counted(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.5,))
    points = (point.model_copy(update={"spec": order}) for point, order in zip(study.points, made.rankings(), strict=True))
    ranked = Study(name="ranked", points=tuple(points))
    page = Page(report.render(Results(store, [ranked])))
    assert "4 of 4 points are done: ranking." in page.words
    assert store.status(made.rankings()[0]).state is State.DONE


def test_the_report_lies_beside_the_manifest(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.0, 0.5))
    made.finish(store, study)
    assert command.at_end(store, study) == [tmp_path / "studies" / "made_up" / "report.html"]


@pytest.mark.parametrize(("p", "text"), [(0.0004, "< 0.001"), (0.0321, "0.032"), (float("nan"), "-"), (1.0, "1")])
def test_p_values_are_written_as_people_read_them(p: float, text: str) -> None:
    assert verdicts.p_text(p) == text


def test_a_store_is_not_written_to(finished: Results) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(finished.store.root).rglob("*")}
    report.render(finished)
    assert {path: path.stat().st_mtime_ns for path in Path(finished.store.root).rglob("*")} == before
