"""Corpora: the built-in ones, local files and the hub's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.data import arithmetic, builtin, files, hub, passages, prose, sources
from cpt_lab.data.documents import SPLITS, read_documents, read_manifest, shards
from cpt_lab.data.shards import texts as shard_texts
from cpt_lab.specs import BuiltinCorpus, FilesCorpus, HubCorpus, Rule
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


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.jsonl cannot be read \(No such file"):
        files.files_digest((str(tmp_path / "nowhere.jsonl"),))


def test_the_train_split_keeps_the_order_of_the_files_and_their_texts_stay_there(tmp_path: Path) -> None:
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for start, path in zip((0, 50), paths, strict=True):
        path.write_text("".join(json.dumps({"text": f"document {index:02}"}) + "\n" for index in range(start, start + 50)))
    work = workspace(tmp_path / "built")
    named = tuple(map(str, paths))
    files.build_corpus(files_corpus(paths[0], files=named, files_digest=files.files_digest(named), held_out=10), work)
    train = texts(work.product, "train")
    assert train == sorted(train)
    assert len(train) == 80
    assert not (work.product / "train.jsonl").exists()
    held_out = texts(work.product, "validation") + texts(work.product, "test")
    assert sorted([*train, *held_out]) == [f"document {index:02}" for index in range(100)]
    assert held_out != sorted(held_out)


@pytest.mark.parametrize("held_out", [2, 4])
def test_a_repeated_text_is_in_one_split_only_wherever_it_stands_again(held_out: int, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {index % 12}"}) + "\n" for index in range(36)))
    work = workspace(tmp_path / "built")
    files.build_corpus(files_corpus(path, held_out=held_out), work)
    everything = [text for split in SPLITS for text in texts(work.product, split)]
    assert len(everything) == len(set(everything)) == 12
    assert read_manifest(work.product)["repeated"] == 24


def test_what_is_held_out_is_drawn_from_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {index}"}) + "\n" for index in range(60)))
    found = []
    for place, seed in enumerate((0, 0, 1)):
        work = workspace(tmp_path / str(place))
        files.build_corpus(files_corpus(path, held_out=5, seed=seed), work)
        found.append(texts(work.product, "test"))
    assert found[0] == found[1] != found[2]


def test_a_file_that_changed_after_its_corpus_was_made_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {index}"}) + "\n" for index in range(10)))
    work = workspace(tmp_path / "built")
    files.build_corpus(files_corpus(path), work)
    path.write_text(path.read_text().replace("document 3", "document x"))
    with pytest.raises(ValueError, match=r"own.jsonl has changed since its corpus was made"):
        texts(work.product, "train")
    path.unlink()
    with pytest.raises(ValueError, match=r"own.jsonl cannot be read \(No such file"):
        texts(work.product, "train")


class Stream:
    """What `load_dataset` gives of a data set of several files: rows that are fetched when they are asked for."""

    def __init__(self, files: list[list[dict[str, Any]]], fetched: list[int] | None = None) -> None:
        self.files = files
        self.fetched = fetched if fetched is not None else []
        self.n_shards = len(files)

    def shard(self, *, num_shards: int, index: int) -> Stream:
        assert num_shards == self.n_shards
        self.fetched.append(index)
        return Stream([self.files[index]], self.fetched)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for rows in self.files for row in rows)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A hub with one data set of two files; what it was asked for."""
    asked: dict[str, Any] = {}
    stream = Stream([[{"body": "one", "id": "1"}, {"body": "two", "id": "2"}], [{"body": "three", "id": "3"}]])

    def load_dataset(identity: str, **settings: Any) -> Stream:
        asked.update(settings, id=identity, stream=stream)
        return stream

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(hub, "commit_of", lambda source, revision: f"commit of {source} {revision}")
    hub.open_stream.cache_clear()
    yield asked
    hub.open_stream.cache_clear()


def test_a_hub_corpus_is_streamed_from_the_commit_that_its_revision_meant(tmp_path: Path, online: dict[str, Any]) -> None:
    work = workspace(tmp_path)
    hub.build_corpus(HubCorpus(name="own", id="some/data", revision="v1", config="math", field="body"), work)
    assert texts(work.product, "train") == ["one", "two", "three"]
    assert online["streaming"] is True
    assert (online["id"], online["name"], online["split"]) == ("some/data", "math", "train")
    assert online["revision"] == read_manifest(work.product)["revision"] == "commit of some/data v1"
    assert not (work.product / "train.jsonl").exists()


def test_each_file_of_a_data_set_is_a_shard_of_its_own(tmp_path: Path, online: dict[str, Any]) -> None:
    work = workspace(tmp_path)
    hub.build_corpus(HubCorpus(name="own", id="some/data", field="body"), work)
    _, second = shards(work.product, "train")
    online["stream"].fetched.clear()
    assert list(shard_texts(second)) == ["three"]
    assert online["stream"].fetched == [1]


@pytest.mark.usefixtures("online")
def test_a_hub_corpus_without_the_field_lists_the_fields(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1 of file 0 of data set some/data: unknown field 'text'.*; there are body, id"):
        hub.build_corpus(HubCorpus(name="own", id="some/data"), workspace(tmp_path))


@pytest.mark.usefixtures("online")
def test_a_hub_corpus_out_of_reach_says_what_to_give_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"some/data \(commit .*\) could not be reached on the hub: give a network, or .* files_corpus"):
        hub.build_corpus(HubCorpus(name="own", id="some/data"), workspace(tmp_path))


def test_a_hub_that_cannot_be_asked_for_a_commit_says_what_to_give_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_info(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    with pytest.raises(ValueError, match=r"some/data \(main\) could not be reached on the hub: give a network"):
        hub.commit_of("some/data", "main")


@pytest.mark.slow
def test_files_streamed_by_datasets_itself_are_read_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "commit_of", lambda *_: "main")
    for index in range(3):
        rows = [{"text": f"document {index}.{row}", "score": row} for row in range(4)]
        (tmp_path / f"{index}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hub.open_stream.cache_clear()
    work = workspace(tmp_path / "built")
    pattern = str(tmp_path / "*.jsonl")
    hub.build_corpus(HubCorpus(name="own", id="json", data_files=pattern, filter=(Rule(field="score", at_least=2),)), work)
    assert read_manifest(work.product)["files"] == 3
    assert texts(work.product, "train") == [f"document {index}.{row}" for index in range(3) for row in (2, 3)]


def test_an_unknown_split_names_the_splits_there_are(tmp_path: Path) -> None:
    corpus = built(tmp_path, "math")
    with pytest.raises(KeyError, match=r"no split 'dev' .* it has test, train, validation"):
        list(read_documents(corpus, "dev"))
