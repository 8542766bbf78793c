"""A protocol's files are the harness's own form, name their final place, and bad protocols are refused in a sentence."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from cpt_lab.specs import GenerateTask, PerplexityTask
from evaluation_cases import MATH, PROSE, TEXT, build, problem, prose_task, protocol, sums_task


def test_every_task_has_a_file_that_names_its_documents_where_they_lie_in_the_end(tmp_path: Path) -> None:
    product = build(protocol(), tmp_path)
    for name, items in (("cpt_sums", 4), ("cpt_prose", len(PROSE))):
        task = yaml.safe_load((product / f"{name}.yaml").read_text())
        place = Path(task["dataset_kwargs"]["data_files"]["test"])
        assert task["task"] == name
        assert place == product / name / "test.jsonl"
        assert len(place.read_text(encoding="utf-8").strip("\n").split("\n")) == items


def test_a_generate_task_is_the_harness_gsm8k_but_for_its_data_and_limits(tmp_path: Path) -> None:
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    theirs = yaml.safe_load((Path(spec.origin).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    ours = json.loads((build(protocol(), tmp_path) / "cpt_sums.yaml").read_text())
    for name in ("output_type", "doc_to_text", "metric_list", "filter_list", "fewshot_split"):
        assert ours.get(name, "train") == theirs[name]
    assert ours["generation_kwargs"] == {**theirs["generation_kwargs"], "max_gen_toks": 24}


def test_shots_are_the_first_items_of_the_train_split(tmp_path: Path) -> None:
    product = build(protocol(sums_task(shots=2)), tmp_path)
    shots = [json.loads(line) for line in (product / "cpt_sums" / "train.jsonl").read_text().splitlines()]
    assert [shot["question"] for shot in shots] == ["What is 1 and 1?", "What is 2 and 2?"]


def test_items_beyond_the_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sums asks for 5 items of math/test, which has 4: lower its items"):
        build(protocol(sums_task(items=5)), tmp_path)


def test_a_corpus_without_questions_makes_no_generate_task(tmp_path: Path) -> None:
    task = GenerateTask(name="prose", corpus=TEXT, items=2, max_new_tokens=4)
    with pytest.raises(ValueError, match="needs a question in every document, and document 0 of text/test has text"):
        build(protocol(task), tmp_path)


def test_an_empty_document_is_refused(tmp_path: Path) -> None:
    empty = {**problem(1, 2), "answer": ""}
    with pytest.raises(ValueError, match="needs a answer in every document, and document 1"):
        build(protocol(sums_task(items=2)), tmp_path, test=[problem(1, 2), empty])


@pytest.mark.parametrize("name", ["two words", "a/b", "", "pass@1"])
def test_a_task_name_that_is_no_part_of_a_metric_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="use letters, digits"):
        build(protocol(PerplexityTask(name=name, corpus=MATH, items=1)), tmp_path)


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'sums' stands twice"):
        build(protocol(sums_task(), sums_task(shots=1)), tmp_path)


def test_a_protocol_of_another_harness_is_refused(tmp_path: Path) -> None:
    spec = protocol(prose_task()).but(harness="0.3.0")
    with pytest.raises(ValueError, match=r"lm-eval 0\.3\.0 and .* is installed"):
        build(spec, tmp_path)
