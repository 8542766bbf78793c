"""Tokenizers and token files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from cpt_lab.data import builtin, formats, token_files, tokenizer, tokens
from cpt_lab.data.documents import read_documents, read_manifest, shards, write_splits
from cpt_lab.data.files import files_digest
from cpt_lab.data.shards import Group, grouped
from cpt_lab.specs import BpeTokenizer, BuiltinCorpus, HubCorpus, Mixture, Part, TokenFilesCorpus, Tokens
from cpt_lab.store import Workspace
from cpt_lab.training.mixing import mix
from long_tables import rest_slow

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


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"has 0 bytes, and its [\d,]+ tokens of 2 bytes take [\d,]+: it was cut off or replaced"),
        ([1, 2, 3], r"has 6 bytes, and its [\d,]+ tokens"),
        (None, "is gone, and its"),
    ],
)
def test_a_token_file_that_is_empty_cut_off_or_gone_is_refused(token_file: Path, ids: list[int] | None, message: str) -> None:
    path = token_file / "tokens.npy"
    if ids is None:
        path.unlink()
    else:
        path.write_bytes(np.asarray(ids, dtype=np.uint16).tobytes())
    with pytest.raises(ValueError, match=message):
        tokens.read_tokens(token_file)
    with pytest.raises(ValueError, match=message):
        tokens.token_paths(token_file)


def test_a_token_file_whose_contents_changed_is_refused(token_file: Path) -> None:
    path = token_file / "tokens.npy"
    ids = np.fromfile(path, dtype=np.uint16)
    ids[7] += 1
    ids.tofile(path)
    with pytest.raises(ValueError, match="has changed since it was made"):
        tokens.read_tokens(token_file)


def test_a_token_file_without_its_manifest_says_so(token_file: Path) -> None:
    (token_file / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json cannot be read"):
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


# ------------------------------------------------------------------------------------------------ pieces, processes, samples


def encoded(texts: list[str], encoder: Any) -> np.ndarray:
    """Every document by itself, EOS after it: what a token file must hold."""
    ids = [[*encoder(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], encoder.eos_token_id] for text in texts]
    return np.concatenate([np.asarray(one, dtype=np.uint16) for one in ids])


def made(folder: Path, corpus: Path, tokenizer_folder: Path, *, spec: Tokens | None = None, **settings: Any) -> Path:
    work = Workspace(folder, folder / "product")
    work.product.mkdir(parents=True, exist_ok=True)
    tokens.build_tokens(spec or Tokens(corpus=CORPUS, tokenizer=TOKENIZER), corpus, tokenizer_folder, work, **settings)
    return work.product


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> int:
    """The corpus in many pieces; how many."""
    monkeypatch.setattr(formats, "PIECE", 6000)
    return len(grouped(shards(corpus, "train")))


def test_pieces_change_no_token(tmp_path: Path, in_pieces: int, corpus: Path, tokenizer_folder: Path, token_file: Path) -> None:
    assert in_pieces > 5
    pieced = made(tmp_path / "pieced", corpus, tokenizer_folder)
    assert (pieced / "tokens.npy").read_bytes() == (token_file / "tokens.npy").read_bytes()
    assert read_manifest(pieced) == read_manifest(token_file)


@pytest.mark.slow
@pytest.mark.usefixtures("in_pieces")
def test_processes_change_no_token(tmp_path: Path, corpus: Path, tokenizer_folder: Path, token_file: Path) -> None:
    shared_out = made(tmp_path / "shared", corpus, tokenizer_folder, processes=2)
    assert (shared_out / "tokens.npy").read_bytes() == (token_file / "tokens.npy").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("in_pieces")
def test_what_a_process_finds_wrong_is_said_in_one_sentence(tmp_path: Path, tokenizer_folder: Path) -> None:
    work = workspace(tmp_path / "corpus")
    texts = [{"text": f"{index} {'x' * 500}"} for index in range(60)]
    write_splits(work.product, {"train": [*texts, {"txt": "wrong"}]}, {})
    with pytest.raises(ValueError, match=r"^the line at byte [\d,]+ of .*: unknown field 'text'.*there are txt$"):
        made(tmp_path / "tokens", work.product, tokenizer_folder, processes=2)


def test_an_interrupted_tokenisation_goes_on_where_it_was(
    tmp_path: Path, in_pieces: int, corpus: Path, tokenizer_folder: Path, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks: list[int] = []
    whole = tokens.Encode.work

    def work(step: tokens.Encode, group: Group, rank: int) -> None:
        ranks.append(rank)
        if len(ranks) == 4:
            raise KeyboardInterrupt
        whole(step, group, rank)

    monkeypatch.setattr(tokens.Encode, "work", work)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "interrupted", corpus, tokenizer_folder)
    (tmp_path / "interrupted" / "scratch" / ".3.npy").write_bytes(b"half of it")
    resumed = made(tmp_path / "interrupted", corpus, tokenizer_folder)
    assert ranks == [0, 1, 2, 3, *range(3, in_pieces)]
    assert (resumed / "tokens.npy").read_bytes() == (token_file / "tokens.npy").read_bytes()


def test_scratch_of_other_files_is_not_taken_up(tmp_path: Path, in_pieces: int, corpus: Path, tokenizer_folder: Path, encoder: Any) -> None:
    del in_pieces
    other = workspace(tmp_path / "corpus")
    write_splits(other.product, {"train": [{"text": "1 + 1 = 2"}]}, {})
    made(tmp_path / "tokens", corpus, tokenizer_folder)
    found = made(tmp_path / "tokens", other.product, tokenizer_folder)
    assert tokens.read_tokens(found).tolist() == encoded(["1 + 1 = 2"], encoder).tolist()


def test_the_word_for_the_end_of_a_text_ends_none(tmp_path: Path, tokenizer_folder: Path, encoder: Any) -> None:
    work = workspace(tmp_path / "corpus")
    texts = ["before <|endoftext|> after", "<|pad|>", "last"]
    write_splits(work.product, {"train": [{"text": text} for text in texts]}, {})
    found = made(tmp_path / "tokens", work.product, tokenizer_folder)
    ids = tokens.read_tokens(found)
    assert int((ids == encoder.eos_token_id).sum()) == read_manifest(found)["documents"] == 3
    assert ids.tolist() == encoded(texts, encoder).tolist()


@settings(max_examples=15)
@given(texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=6))
def test_a_token_file_is_what_transformers_makes_of_every_document(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, encoder: Any
) -> None:
    folder = tmp_path_factory.mktemp("parity")
    work = workspace(folder / "corpus")
    write_splits(work.product, {"train": [{"text": text} for text in texts]}, {})
    assert tokens.read_tokens(made(folder / "tokens", work.product, tokenizer_folder)).tolist() == encoded(texts, encoder).tolist()


@pytest.mark.parametrize("wanted", rest_slow([1, 700, 5000, 10**9], fast=3))
@pytest.mark.usefixtures("in_pieces")
def test_a_sample_is_the_documents_up_to_the_one_with_its_last_token(
    wanted: int, tmp_path: Path, corpus: Path, tokenizer_folder: Path, token_file: Path
) -> None:
    whole = tokens.read_tokens(token_file)
    spec = Tokens(corpus=HubCorpus(name="own", id="some/data", sample_tokens=wanted), tokenizer=TOKENIZER)
    sample = made(tmp_path / "sample", corpus, tokenizer_folder, spec=spec)
    ids = tokens.read_tokens(sample)
    eos = read_manifest(sample)["eos"]
    assert ids.tolist() == whole[: len(ids)].tolist()
    assert ids[-1] == eos
    assert len(ids) == len(whole) if wanted > len(whole) else len(ids) >= wanted
    assert wanted > len(whole) or eos not in ids[wanted - 1 : -1]
    assert read_manifest(sample)["documents"] == int((ids == eos).sum())
    if wanted < 1000:
        written = len(list((tmp_path / "sample" / "scratch").glob("[0-9]*.npy")))
        assert written == 1


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path: Path) -> None:
    words = [f"w{index}" for index in range(2**16 + 1)]
    model = Tokenizer(models.WordLevel({word: index for index, word in enumerate([tokenizer.EOS, tokenizer.PAD, *words])}))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.write_folder(folder, model.to_str())
    work = workspace(tmp_path / "corpus")
    write_splits(work.product, {"train": [{"text": "w0 w65536"}]}, {})
    found = made(tmp_path / "tokens", work.product, folder)
    assert read_manifest(found)["dtype"] == "uint32"
    assert (found / "tokens.npy").stat().st_size == 12
    assert tokens.read_tokens(found).tolist() == [2, 65538, 0]


def test_a_split_without_documents_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    work = workspace(tmp_path / "corpus")
    write_splits(work.product, {"train": [{"text": ""}]}, {})
    with pytest.raises(ValueError, match=r"split train of corpus math has no documents: look at its files, its field and its filter"):
        made(tmp_path / "tokens", work.product, tokenizer_folder)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path, corpus: Path, tokenizer_folder: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match="tokenizer bpe-320 has no end-of-text token"):
        made(tmp_path / "tokens", corpus, folder)


# ------------------------------------------------------------------------------------------------------- ready-made files


def adopted(folder: Path, files: list[np.ndarray], tokenizer_folder: Path, **changes: Any) -> Path:
    """The token product of ready-made files with these ids."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index}.npy" for index in range(len(files))]
    for path, ids in zip(paths, files, strict=True):
        ids.tofile(path)
    named = tuple(map(str, paths))
    values = {"name": "ready", "files": named, "files_digest": files_digest(named), "dtype": files[0].dtype.name}
    ready = TokenFilesCorpus(**(values | changes))
    first, second = workspace(folder / "corpus"), workspace(folder / "tokens")
    token_files.build_corpus(ready, first)
    token_files.adopt(Tokens(corpus=ready, tokenizer=TOKENIZER), first.product, tokenizer_folder, second)
    return second.product


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_ready_made_token_files_are_taken_as_they_are(dtype: Any, tmp_path: Path, tokenizer_folder: Path, encoder: Any) -> None:
    eos = encoder.eos_token_id
    files = [np.asarray(ids, dtype=dtype) for ids in ([5, 6, eos, 7], [8, eos])]
    product = adopted(tmp_path / "ready", files, tokenizer_folder)
    assert tokens.token_paths(product) == [tmp_path / "ready" / "0.npy", tmp_path / "ready" / "1.npy"]
    assert tokens.read_tokens(product, tokenizer=tokenizer_folder).tolist() == [5, 6, eos, 7, 8, eos]
    assert [path.name for path in product.iterdir()] == ["manifest.json"]
    assert (read_manifest(product)["documents"], tokens.available_tokens(product)) == (2, 6)


def test_what_a_ready_made_file_does_not_end_is_the_next_ones_and_after_the_last_it_is_not_counted(
    tmp_path: Path, tokenizer_folder: Path, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "BLOCK", 2)
    eos = encoder.eos_token_id
    files = [np.asarray(ids, dtype=np.uint16) for ids in ([5, eos, 6, eos, 7], [8, eos, 9, 9, 9])]
    manifest = read_manifest(adopted(tmp_path / "ready", files, tokenizer_folder))
    assert (manifest["documents"], manifest["tokens"], manifest["unended"]) == (3, 7, 3)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", r"0.npy is empty"),
        (b"abc", r"0.npy has 3 bytes, no multiple of the 2 of uint16: it was cut off"),
        (b"\x93NUMPY\x01\x00", r"0.npy has numpy's header, and flat tokens are needed"),
    ],
)
def test_ready_made_token_files_that_are_no_flat_tokens_are_refused(
    contents: bytes, message: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        adopted(tmp_path / "ready", [np.frombuffer(contents, dtype=np.uint8)], tokenizer_folder, dtype="uint16")


def test_ready_made_token_files_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer_folder: Path, encoder: Any) -> None:
    eos = encoder.eos_token_id
    with pytest.raises(ValueError, match=r"0.npy has the id 320, and the tokenizer 320 tokens: it was made with another tokenizer"):
        adopted(tmp_path / "ids", [np.asarray([320, eos], dtype=np.uint16)], tokenizer_folder)
    with pytest.raises(ValueError, match=rf"0.npy has no end of text \({eos}\)"):
        adopted(tmp_path / "eos", [np.asarray([9, 9], dtype=np.uint16)], tokenizer_folder)


def test_a_vocabulary_larger_than_the_type_of_ready_made_files_is_refused(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large:
        eos_token_id = 0

        def __len__(self) -> int:
            return 100_278

    monkeypatch.setattr(token_files, "load_encoder", lambda *_: Large())
    with pytest.raises(ValueError, match=r"has 100,278 tokens, more than uint16 of corpus ready can tell apart: .*give dtype: uint32"):
        adopted(tmp_path / "ready", [np.asarray([0], dtype=np.uint16)], tokenizer_folder)


def test_ready_made_token_files_that_changed_are_refused(tmp_path: Path, tokenizer_folder: Path, encoder: Any) -> None:
    product = adopted(tmp_path / "ready", [np.asarray([5, encoder.eos_token_id], dtype=np.uint16)], tokenizer_folder)
    np.asarray([6, encoder.eos_token_id], dtype=np.uint16).tofile(tmp_path / "ready" / "0.npy")
    with pytest.raises(ValueError, match=r"0.npy has changed since it was made"):
        tokens.read_tokens(product)
    with pytest.raises(ValueError, match=r"corpus ready: its files have digest .* not files_digest ab12"):
        adopted(tmp_path / "again", [np.asarray([5, 0], dtype=np.uint16)], tokenizer_folder, files_digest="ab12")


def test_ready_made_token_files_hold_no_documents_to_read(tmp_path: Path, tokenizer_folder: Path, encoder: Any) -> None:
    adopted(tmp_path / "ready", [np.asarray([5, encoder.eos_token_id], dtype=np.uint16)], tokenizer_folder)
    with pytest.raises(KeyError, match="holds token files and no documents"):
        list(read_documents(tmp_path / "ready" / "corpus" / "product", "train"))


def test_ready_made_files_of_another_width_are_mixed_by_their_values(tmp_path: Path, tokenizer_folder: Path, encoder: Any) -> None:
    eos = encoder.eos_token_id
    widths = {"narrow": np.uint16, "wide": np.uint32}
    folders = [adopted(tmp_path / name, [np.asarray([5, 6, eos], dtype=dtype)], tokenizer_folder) for name, dtype in widths.items()]
    parts = tuple(Part(corpus=CORPUS.but(name=name), tokens=3) for name in ("math", "inst"))
    mixed = mix(Mixture(name="both", parts=parts), folders, tmp_path / "mixture.npy", tokenizer=tokenizer_folder)
    assert np.fromfile(mixed.path, dtype=mixed.dtype).tolist() == [5, 6, eos, 5, 6, eos]
