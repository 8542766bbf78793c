"""Tokenizers and token files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.data import builtin, tokenizer, tokens
from cpt_lab.data.documents import read_documents, read_manifest
from cpt_lab.specs import BpeTokenizer, BuiltinCorpus, Part, Tokens
from cpt_lab.store import Workspace

CORPUS = BuiltinCorpus(name="math", documents=400, held_out=20)
TOKENIZER = BpeTokenizer(corpora=(CORPUS,), vocab_size=320)


def workspace(folder: Path) -> Workspace:
    (folder / "product").mkdir(parents=True)
    return Workspace(folder, folder / "product")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = workspace(tmp_path_factory.mktemp("corpus"))
    builtin.build_corpus(CORPUS, work)
    return work.product


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    work = workspace(tmp_path_factory.mktemp("tokenizer"))
    tokenizer.build_tokenizer(TOKENIZER, [corpus], work)
    return work.product


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture
def token_file(tmp_path: Path, corpus: Path, tokenizer_folder: Path) -> Path:
    work = workspace(tmp_path / "tokens")
    tokens.build_tokens(Tokens(corpus=CORPUS, tokenizer=TOKENIZER), corpus, tokenizer_folder, work)
    return work.product


@given(text=st.text(max_size=80))
def test_decoding_what_was_encoded_gives_the_text(text: str, encoder: Any) -> None:
    assert encoder.decode(encoder.encode(text, add_special_tokens=False)) == text


@given(text=st.from_regex(r"[a-z ]{0,5}[0-9]{1,6}[a-z ]{0,5}", fullmatch=True))
def test_every_digit_is_a_token_of_its_own(text: str, encoder: Any) -> None:
    pieces = [encoder.decode([token]) for token in encoder.encode(text, add_special_tokens=False)]
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == [character for character in text if character.isdigit()]


def test_the_vocabulary_has_the_asked_size_and_every_byte(encoder: Any) -> None:
    assert len(encoder) == 320
    assert encoder.eos_token == "<|endoftext|>"
    assert encoder.pad_token_id not in (None, encoder.eos_token_id)
    assert encoder.decode(encoder.encode(bytes(range(256)).decode("latin-1"))) == bytes(range(256)).decode("latin-1")


def test_training_the_tokenizer_twice_gives_the_same_file(tmp_path: Path, corpus: Path, tokenizer_folder: Path) -> None:
    work = workspace(tmp_path)
    tokenizer.build_tokenizer(TOKENIZER, [corpus], work)
    assert (work.product / "tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()


def test_a_token_file_is_the_documents_in_order_each_ended_by_eos(
    token_file: Path, corpus: Path, tokenizer_folder: Path, encoder: Any
) -> None:
    ids = tokens.read_tokens(token_file, tokenizer=tokenizer_folder)
    documents = [document["text"] for document in read_documents(corpus, "train")]
    assert encoder.decode(ids.tolist()) == "".join(f"{text}<|endoftext|>" for text in documents)
    manifest = read_manifest(token_file)
    assert manifest["tokens"] == len(ids) == tokens.available_tokens(token_file)
    assert manifest["documents"] == 400
    assert manifest["sha256"] == hashlib.sha256((token_file / "tokens.npy").read_bytes()).hexdigest()


def test_small_vocabularies_take_two_bytes_a_token(token_file: Path) -> None:
    assert read_manifest(token_file)["dtype"] == "uint16"
    assert (token_file / "tokens.npy").stat().st_size == 2 * read_manifest(token_file)["tokens"]


def test_a_token_file_that_changed_is_refused(token_file: Path) -> None:
    path = token_file / "tokens.npy"
    path.write_bytes(np.asarray([1, 2, 3], dtype=np.uint16).tobytes())
    with pytest.raises(ValueError, match="has changed since it was made"):
        tokens.read_tokens(token_file)


def test_a_token_file_of_another_tokenizer_is_refused(token_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="made with another tokenizer"):
        tokens.read_tokens(token_file, tokenizer=other)


def test_asking_for_more_tokens_than_there_are_needs_oversample() -> None:
    with pytest.raises(ValueError, match=r"asks for 1,001 tokens of corpus math, which has 1,000: .* oversample: true"):
        tokens.check_budget(Part(corpus=CORPUS, tokens=1001), 1000)


@pytest.mark.parametrize(("asked", "oversample"), [(1000, False), (1001, True)])
def test_a_budget_that_fits_or_may_repeat_is_accepted(asked: int, oversample: bool) -> None:
    part = Part(corpus=CORPUS, tokens=asked, oversample=oversample)
    assert tokens.check_budget(part, 1000) is None  # type: ignore[func-returns-value]
