"""Contamination: what was planted is found, nothing else is, and what is found can be left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.data import builtin, contamination, executor, formats, ngrams, tokenizer, tokens
from cpt_lab.data.documents import read_documents, read_manifest, write_splits
from cpt_lab.data.shards import Group
from cpt_lab.evaluation.item_texts import item_texts
from cpt_lab.evaluation.protocols import build_protocol
from cpt_lab.specs import BpeTokenizer, BuiltinCorpus, Contamination, HubCorpus, Mixture, Part, Protocol, Tokens, key
from cpt_lab.store import Workspace
from spec_cases import MATH, PROTOCOL

QUESTION = "A farmer has seventeen sheep and all but nine of them run away over the old stone bridge at dawn"
WORDS = QUESTION.split()
ITEMS = {"riddles": [[QUESTION, "9"], ["What is the capital city of the largest country in Africa?", "Algiers"], ["Why?", "Because"]]}
CLEAN = "There is nothing in this sentence that anybody would ever want to ask a model about in a test of riddles"
ALPHABET = st.sampled_from("abc")


def workspace(folder: Path) -> Workspace:
    (folder / "product").mkdir(parents=True)
    return Workspace(folder, folder / "product")


def corpus_of(folder: Path, texts: list[str]) -> Path:
    work = workspace(folder)
    write_splits(work.product, {"train": [{"text": text} for text in texts]}, {})
    return work.product


def report(folder: Path, texts: list[str], items: contamination.Items = ITEMS, **settings: Any) -> tuple[dict[str, Any], Path]:
    work = workspace(folder / "report")
    spec = Contamination(corpus=MATH, protocol=PROTOCOL, **settings)
    contamination.build_report(spec, corpus_of(folder / "corpus", texts), items, work)
    return json.loads((work.product / "report.json").read_text()), work.product


def left_out(product: Path) -> list[int]:
    return [int(place) for path in sorted((product / "overlaps").iterdir()) for place in np.load(path)]


@given(text=st.lists(ALPHABET, max_size=40), item=st.lists(ALPHABET, max_size=25))
def test_an_overlap_is_a_run_that_both_hold_word_for_word(text: list[str], item: list[str]) -> None:
    runs = {tuple(item[start : start + 9]) for start in range(len(item) - 8)} or ({tuple(item)} if len(item) == 8 else set())
    expected = any(tuple(text[start : start + len(run)]) == run for run in runs for start in range(len(text)))
    found = ngrams.overlaps(text, ngrams.index({"task": [[" ".join(item)]]}, 9))
    assert (("task", 0) in found) == expected
    assert all(tuple(run.split()) in runs for run in found.values())


def test_hashes_that_collide_are_told_apart_by_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "rolling", lambda numbers, size: np.zeros(len(numbers) - size + 1, dtype=np.uint64))
    known = ngrams.index(ITEMS, 13)
    assert ngrams.overlaps(ngrams.words_of(CLEAN), known) == {}
    assert set(ngrams.overlaps(ngrams.words_of(f"{CLEAN} {QUESTION}"), known)) == {("riddles", 0)}


def test_planted_items_are_found_and_nothing_else_is(tmp_path: Path) -> None:
    planted = [
        CLEAN,
        f"It is said: «{QUESTION.upper()}!»",
        f"{CLEAN} {' '.join(WORDS[2:15])} {CLEAN}",
        " ".join(WORDS[2:14]),
        f"Tell me, what is the capital\ncity of the largest country in Africa? {CLEAN}",
        "Why? Because",
    ]
    found, product = report(tmp_path, planted)
    assert (found["overlapping"], found["documents"], found["words"]) == (3, 6, 13)
    task = found["tasks"]["riddles"]
    assert (task["items"], task["items_that_can_be_told"], task["items_found"], task["documents"]) == (3, 2, 2, 3)
    assert [(example["document"], example["item"]) for example in task["examples"]] == [(1, 0), (2, 0), (4, 1)]
    assert task["examples"][1]["words"] == " ".join(WORDS[2:15]).lower()
    assert left_out(product) == [1, 2, 4]


def test_fewer_words_in_a_row_find_more(tmp_path: Path) -> None:
    found, _ = report(tmp_path, [" ".join(WORDS[2:14]), CLEAN], words=12)
    assert found["overlapping"] == 1


def test_a_protocol_whose_items_are_all_too_short_cannot_be_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no item of protocol tiny has a text of 8 words: there is nothing to look for"):
        report(tmp_path, [CLEAN], items={"riddles": [["Why?", "Because"]]})


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    corpus = BuiltinCorpus(name="math", documents=300, held_out=20)
    first, second = workspace(folder / "corpus"), workspace(folder / "bpe")
    builtin.build_corpus(corpus, first)
    tokenizer.build_tokenizer(BpeTokenizer(corpora=(corpus,), vocab_size=320), [first.product], second)
    return second.product


@pytest.mark.parametrize("piece", [200, 10**6])
def test_token_files_leave_the_overlapping_documents_out(
    piece: int, tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "PIECE", piece)
    texts = [f"{CLEAN} {index}" if index % 3 else f"{index} {QUESTION}" for index in range(20)]
    _, product = report(tmp_path, texts)
    spec = Tokens(corpus=MATH, tokenizer=BpeTokenizer(corpora=(MATH,), vocab_size=320), clean_of=PROTOCOL)
    built = []
    for name, kept, overlapping in (("clean", texts, product), ("alone", [text for text in texts if QUESTION not in text], None)):
        corpus = tmp_path / "corpus" / "product" if overlapping else corpus_of(tmp_path / "without", kept)
        work = workspace(tmp_path / name)
        tokens.build_tokens(spec, corpus, tokenizer_folder, work, contamination=overlapping)
        built.append(work.product)
    clean, alone = built
    assert tokens.read_tokens(clean).tolist() == tokens.read_tokens(alone).tolist()
    assert (read_manifest(clean)["dropped"], read_manifest(clean)["documents"], read_manifest(alone)["dropped"]) == (7, 13, 0)


def test_no_more_is_looked_through_than_a_sample_can_need(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "PIECE", 200)
    corpus = corpus_of(tmp_path / "corpus", [f"{CLEAN} {index}" if index % 3 else f"{index} {QUESTION}" for index in range(40)])
    sampled = HubCorpus(name="own", id="some/data", sample_tokens=150)
    work, tokenised = workspace(tmp_path / "report"), workspace(tmp_path / "tokens")
    contamination.build_report(Contamination(corpus=sampled, protocol=PROTOCOL), corpus, ITEMS, work)
    found = json.loads((work.product / "report.json").read_text())
    assert 8 < found["documents"] < 20  # 150 clean words of 22 each
    spec = Tokens(corpus=sampled, tokenizer=BpeTokenizer(corpora=(MATH,), vocab_size=320), clean_of=PROTOCOL)
    monkeypatch.setattr(tokens, "bytes_before", lambda *_: 0)  # as while other processes have the groups before
    tokens.build_tokens(spec, corpus, tokenizer_folder, tokenised, contamination=work.product)
    assert tokens.available_tokens(tokenised.product) >= 150


def test_the_report_of_a_sample_does_not_depend_on_the_order_in_which_processes_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "PIECE", 200)
    corpus = corpus_of(tmp_path / "corpus", [f"{CLEAN} {index}" if index % 3 else f"{index} {QUESTION}" for index in range(40)])
    spec = Contamination(corpus=HubCorpus(name="own", id="some/data", sample_tokens=150), protocol=PROTOCOL)

    def looked_at(name: str, order: Callable[[int], Sequence[int]]) -> tuple[str, list[str]]:
        def run(step: contamination.Compare, groups: Sequence[Group], **_: Any) -> None:
            for rank in order(len(groups)):
                step.work(groups[rank], rank)

        work = workspace(tmp_path / name)
        monkeypatch.setattr(executor, "run", run)
        contamination.build_report(spec, corpus, ITEMS, work)
        return (work.product / "report.json").read_text(), sorted(path.name for path in (work.product / tokens.LEFT_OUT).iterdir())

    forward = looked_at("forward", range)
    assert looked_at("backward", lambda count: range(count)[::-1]) == forward
    assert looked_at("with a hole", lambda count: [count - 1, *range(count - 1)]) == forward
    assert len(forward[1]) < 20


def test_of_the_piece_where_a_sample_ends_only_what_would_stand_in_it_counts_as_dropped(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{index} {QUESTION}" if index in (0, 2, 3, 7, 9) else f"{CLEAN} {index}" for index in range(10)]
    bpe = BpeTokenizer(corpora=(MATH,), vocab_size=320)
    corpus = corpus_of(tmp_path / "corpus", texts)

    def counts(name: str, sample_tokens: int) -> tuple[int, int]:
        sampled = HubCorpus(name="own", id="some/data", sample_tokens=sample_tokens)
        first, second = (workspace(tmp_path / f"{name}-{sample_tokens}-{kind}") for kind in ("report", "tokens"))
        contamination.build_report(Contamination(corpus=sampled, protocol=PROTOCOL), corpus, ITEMS, first)
        spec = Tokens(corpus=sampled, tokenizer=bpe, clean_of=PROTOCOL)
        tokens.build_tokens(spec, corpus, tokenizer_folder, second, contamination=first.product)
        manifest = read_manifest(second.product)
        return manifest["documents"], manifest["dropped"]

    each = counts("whole", 10**6)
    assert each == (5, 5)
    total = tokens.available_tokens(tmp_path / "whole-1000000-tokens" / "product")
    assert counts("whole", total) == (5, 4)  # the last overlapping one comes after them
    length = total // 5
    assert [counts("whole", wanted) for wanted in (1, length + 5, 3 * length + 5)] == [(1, 1), (2, 3), (4, 3)]
    monkeypatch.setattr(formats, "PIECE", 200)  # several pieces, the last of which is cut
    assert [counts("pieces", wanted) for wanted in (1, length + 5, 3 * length + 5)] == [(1, 1), (2, 3), (4, 3)]


def test_a_mixture_that_is_clean_of_a_protocol_asks_for_clean_token_files() -> None:
    bpe = BpeTokenizer(corpora=(MATH,), vocab_size=320)
    mixture = Mixture(name="mostly math", parts=(Part(corpus=MATH, tokens=800),))
    (plain,), (clean,) = mixture.token_files(bpe), mixture.but(clean_of=PROTOCOL).token_files(bpe)
    assert plain == Tokens(corpus=MATH, tokenizer=bpe)
    assert Contamination(corpus=MATH, protocol=PROTOCOL) in clean.needs()
    assert key(plain) != key(clean)


def test_items_are_looked_for_in_all_their_texts(tmp_path: Path) -> None:
    math, text = BuiltinCorpus(name="math", documents=30, held_out=6), BuiltinCorpus(name="inst", documents=30, held_out=6)
    data = {
        **PROTOCOL.model_dump(),
        "tasks": [
            {"kind": "generate", "name": "sums", "corpus": math, "items": 4, "max_new_tokens": 8},
            {"kind": "perplexity", "name": "prose", "corpus": text, "items": 3},
        ],
        "means": (),
        "primary": None,
    }
    spec = Protocol(**data)
    works = {key(corpus): workspace(tmp_path / corpus.name) for corpus in (math, text)}
    for corpus in (math, text):
        builtin.build_corpus(corpus, works[key(corpus)])
    work = workspace(tmp_path / "protocol")
    build_protocol(spec, {name: one.product for name, one in works.items()}, work)
    found = item_texts(spec, work.product)
    asked = list(read_documents(works[key(math)].product, "test"))[:4]
    assert found["sums"] == [[document["question"], document["answer"]] for document in asked]
    assert [len(item) for item in found["prose"]] == [1, 1, 1]
