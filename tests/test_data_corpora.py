"""Corpora: the built-in ones, local files and the hub's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.data import arithmetic, builtin, files, hub, passages, prose, sources
from cpt_lab.data.documents import SPLITS, read_documents, read_manifest
from cpt_lab.specs import BuiltinCorpus, FilesCorpus, HubCorpus
from cpt_lab.store import Workspace

CORPORA = [
    pytest.param("math", marks=()),
    pytest.param("inst", marks=()),
    pytest.param("text", marks=pytest.mark.slow),
    pytest.param("code", marks=pytest.mark.slow),
]
SEEDS = st.integers(min_value=0, max_value=2**32 - 1)


def workspace(folder: Path) -> Workspace:
    (folder / "product").mkdir(parents=True)
    return Workspace(folder, folder / "product")


def built(folder: Path, name: Any, *, documents: int = 300, held_out: int = 50, seed: int = 0) -> Path:
    work = workspace(folder)
    builtin.build_corpus(BuiltinCorpus(name=name, documents=documents, held_out=held_out, seed=seed), work)
    return work.product


def texts(corpus: Path, split: str) -> list[str]:
    return [document["text"] for document in read_documents(corpus, split)]


@pytest.mark.parametrize("name", CORPORA)
def test_no_text_stands_in_two_splits_or_twice_in_one(name: str, tmp_path: Path) -> None:
    corpus = built(tmp_path, name)
    everything = [text for split in SPLITS for text in texts(corpus, split)]
    assert len(everything) == len(set(everything)) == 400
    assert read_manifest(corpus)["documents"] == {"train": 300, "validation": 50, "test": 50}


@pytest.mark.parametrize("name", CORPORA)
def test_the_seed_decides_every_document(name: str, tmp_path: Path) -> None:
    first, again, other = (built(tmp_path / str(index), name, seed=seed) for index, seed in enumerate((3, 3, 4)))
    assert [texts(first, split) for split in SPLITS] == [texts(again, split) for split in SPLITS]
    assert texts(first, "test") != texts(other, "test")


def test_no_question_of_math_is_asked_in_two_splits(tmp_path: Path) -> None:
    corpus = built(tmp_path, "math", documents=3000, held_out=300)
    questions = [document["question"] for split in SPLITS for document in read_documents(corpus, split)]
    assert len(set(questions)) == len(questions) == 3600


@given(seed=SEEDS)
def test_every_problem_of_math_is_solved_right_in_its_answer(seed: int) -> None:
    problem = arithmetic.problem(np.random.default_rng(seed))
    first, second = map(int, re.findall(r"\d+", problem["question"]))
    expected = first + second if re.search(r"gets|finds|adds|then", problem["question"]) else first - second
    sign = "+" if expected == first + second else "-"
    assert problem["answer"] == f"{first} {sign} {second} = {expected}\n#### {expected}"
    assert expected >= 0
    assert problem["text"] == f"Question: {problem['question']}\nAnswer: {problem['answer']}"


@given(seed=SEEDS)
def test_the_answer_of_inst_stands_in_the_sentence_that_it_is_about(seed: int) -> None:
    passage = passages.passage(np.random.default_rng(seed))
    *story, question = re.split(r"(?<=[.?]) ", passage["question"])
    thing = question.rstrip("?").split()[-1]
    words = thing if "has" not in question else question.rstrip("?").split()[-1]
    (about,) = [sentence for sentence in story if f" {words} " in sentence]
    assert f" {passage['answer']} " in f" {about.rstrip('.')} "


def test_held_out_documents_that_leave_none_to_train_on_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builtin.CORPORA, "text", lambda *_: ({"text": f"number {index}"} for index in range(10)))
    with pytest.raises(ValueError, match=r"has 10 documents, too few to hold out 5 each .* below 5"):
        built(tmp_path, "text", held_out=5)


@pytest.mark.parametrize("name", ["math", "inst"])
def test_a_generator_refuses_to_tell_more_than_it_knows(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lower its documents"):
        built(tmp_path, name, documents=10**7)


def test_prose_is_what_has_sentences_and_not_what_has_tables() -> None:
    paragraph = "A mapping object maps hashable values to arbitrary objects.\nMappings are mutable objects."
    table = "+----+----+----+----+----+----+----+\n| 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 |"
    assert list(prose.prose_of(f"{paragraph}\n\n{table}\n\nshort.")) == [" ".join(paragraph.split())]


def test_sources_are_cut_between_top_level_definitions_and_lose_no_decorator() -> None:
    body = "    '''A long enough docstring, so that this piece of code counts as a document of its own.'''\n"
    source = f"import os\n\n@decorated\ndef first():\n{body}\n\nclass Second:\n{body}"
    first, second = sources.top_level_pieces(source)
    assert first.startswith("@decorated\ndef first")
    assert second.startswith("class Second")
    assert list(sources.top_level_pieces("def broken(:")) == []


def files_corpus(path: Path, **changes: Any) -> FilesCorpus:
    values = {"name": "own", "files": (str(path),), "files_digest": files.files_digest((str(path),)), "held_out": 2}
    return FilesCorpus(**(values | changes))


def test_a_corpus_of_files_holds_each_of_their_texts_once(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {index % 10}"}) + "\n" for index in range(30)) + "\n")
    work = workspace(tmp_path / "built")
    files.build_corpus(files_corpus(path), work)
    assert sorted(text for split in SPLITS for text in texts(work.product, split)) == [f"document {index}" for index in range(10)]
    assert read_manifest(work.product)["documents"] == {"train": 6, "validation": 2, "test": 2}


def test_files_that_changed_since_their_digest_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "one"}\n')
    spec = files_corpus(path)
    path.write_text('{"text": "two"}\n')
    with pytest.raises(ValueError, match="not files_digest"):
        files.build_corpus(spec, workspace(tmp_path / "built"))


def test_a_line_without_the_text_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "one"}\n{"txt": "two"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*own.jsonl is no JSON object with a text in 'text'"):
        files.build_corpus(files_corpus(path), workspace(tmp_path / "built"))


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.jsonl cannot be read \(No such file"):
        files.files_digest((str(tmp_path / "nowhere.jsonl"),))


def test_a_hub_corpus_is_streamed_into_its_train_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(identity: str, **settings: Any) -> list[dict[str, str]]:
        asked.update(settings, id=identity)
        return [{"body": "one", "id": "1"}, {"body": "two", "id": "2"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    work = workspace(tmp_path)
    hub.build_corpus(HubCorpus(name="own", id="some/data", revision="v1", config="math", field="body"), work)
    assert texts(work.product, "train") == ["one", "two"]
    assert asked["streaming"] is True
    assert (asked["id"], asked["revision"], asked["name"], asked["split"]) == ("some/data", "v1", "math", "train")


def test_a_hub_corpus_out_of_reach_says_what_to_give_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"some/data \(main\) could not be reached on the hub: give a network, or .* files_corpus"):
        hub.build_corpus(HubCorpus(name="own", id="some/data"), workspace(tmp_path))


def test_a_hub_corpus_without_the_field_lists_the_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"body": "one", "id": "1"}])
    with pytest.raises(ValueError, match="no field 'text': its fields are body, id"):
        hub.build_corpus(HubCorpus(name="own", id="some/data"), workspace(tmp_path))


def test_an_unknown_split_names_the_splits_there_are(tmp_path: Path) -> None:
    corpus = built(tmp_path, "math")
    with pytest.raises(KeyError, match=r"no split 'dev' .* it has test, train, validation"):
        list(read_documents(corpus, "dev"))
