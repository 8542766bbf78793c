"""Mixtures: exact budgets, whole documents, explicit randomness."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.data.tokens import FILE, file_digest
from cpt_lab.specs import BuiltinCorpus, Mixture, Part
from cpt_lab.training.mixing import Mixed, document_bounds, documents_up_to, mix

EOS = 0
LENGTHS = (3, 5, 4, 6, 2)  # tokens of a source's documents, EOS included: 20 in all


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Two sources of five documents; document d of source s is the token 10 s + d + 1, repeated, then EOS."""
    (tmp_path / "tokenizer.json").write_text("{}")
    folders = []
    for source in range(2):
        folder = tmp_path / f"source{source}"
        folder.mkdir()
        ids = np.concatenate([[10 * source + index + 1] * (length - 1) + [EOS] for index, length in enumerate(LENGTHS)])
        (folder / FILE).write_bytes(ids.astype(np.uint16).tobytes())
        facts = {"documents": 5, "tokens": len(ids), "dtype": "uint16", "vocab_size": 30, "eos": EOS}
        digests = {"sha256": file_digest(folder / FILE), "tokenizer_sha256": file_digest(tmp_path / "tokenizer.json")}
        (folder / "manifest.json").write_text(json.dumps(facts | digests))
        folders.append(folder)
    return folders


def mixture(first: int, second: int, *, seed: int = 0, oversample: bool = False) -> Mixture:
    corpora = [BuiltinCorpus(name="math", documents=5, held_out=1), BuiltinCorpus(name="text", documents=5, held_out=1)]
    parts = tuple(Part(corpus=corpus, tokens=asked, oversample=oversample) for corpus, asked in zip(corpora, (first, second), strict=True))
    return Mixture(name="both", parts=parts, seed=seed)


def mixed(spec: Mixture, sources: list[Path]) -> tuple[Mixed, np.ndarray]:
    result = mix(spec, sources, sources[0].parent / "mixture.npy", tokenizer=sources[0].parent)
    return result, np.fromfile(result.path, dtype=result.dtype)


def owners(ids: np.ndarray) -> Counter[int]:
    """Source -> tokens, EOS counted to the document that it ends."""
    counts: Counter[int] = Counter()
    for token, before in zip(ids, np.concatenate([[EOS], ids[:-1]]), strict=True):
        counts[int(token if token != EOS else before) // 10] += 1
    return counts


@pytest.mark.parametrize(("first", "second"), [(20, 20), (20, 3), (7, 20)])
def test_every_source_gives_exactly_its_budget(sources: list[Path], first: int, second: int) -> None:
    result, ids = mixed(mixture(first, second), sources)
    assert result.tokens == len(ids) == first + second
    assert owners(ids) == {0: first, 1: second}


def test_a_source_taken_whole_gives_each_of_its_documents_once(sources: list[Path]) -> None:
    _, ids = mixed(mixture(20, 20), sources)
    bounds = document_bounds(ids, EOS)
    found = sorted(tuple(ids[start:stop].tolist()) for start, stop in bounds)
    assert found == sorted((10 * source + index + 1,) * (length - 1) + (EOS,) for source in (0, 1) for index, length in enumerate(LENGTHS))


def test_an_oversampled_source_is_gone_through_as_evenly_as_its_budget_allows(sources: list[Path]) -> None:
    result, ids = mixed(mixture(50, 20, oversample=True), sources)
    assert result.epochs == {"math": 2.5, "text": 1.0}
    times = {index: int((ids == index + 1).sum()) / (length - 1) for index, length in enumerate(LENGTHS)}
    assert all(2 <= share <= 3 for share in times.values())


def test_more_tokens_than_a_source_has_are_refused(sources: list[Path]) -> None:
    with pytest.raises(ValueError, match="asks for 21 tokens of corpus math, which has 20"):
        mixed(mixture(21, 20), sources)


@pytest.mark.parametrize("counts", [{"tokens": 20, "unended": 2}, {"tokens": 22}], ids=["whole", "all, as older manifests do"])
def test_tokens_after_the_last_end_of_text_are_no_part_of_a_source(sources: list[Path], counts: dict[str, int]) -> None:
    file, manifest = sources[0] / FILE, sources[0] / "manifest.json"
    ids = np.concatenate([np.fromfile(file, dtype=np.uint16), np.asarray([7, 7], dtype=np.uint16)])
    ids.tofile(file)
    files = [{"path": FILE, "tokens": 22, "sha256": file_digest(file)}]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {**counts, "files": files}))
    with pytest.raises(ValueError, match=r"asks for 21 tokens of corpus math, which has 20, and 2 after its last end of text.*lower"):
        mixed(mixture(21, 20), sources)
    result, whole = mixed(mixture(20, 20), sources)
    assert 7 not in whole
    assert sorted(whole.tolist()) == sorted([*ids[:20].tolist(), *np.fromfile(sources[1] / FILE, dtype=np.uint16).tolist()])
    assert result.epochs == {"math": 1.0, "text": 1.0}
    again, repeated = mixed(mixture(21, 20, oversample=True), sources)
    assert again.tokens == len(repeated) == 41


def test_the_seed_decides_the_order(sources: list[Path]) -> None:
    first, again, other = (mixed(mixture(20, 20, seed=seed), sources)[1].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert Counter(first) == Counter(other)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), budget=st.integers(0, 60), seed=st.integers(0, 999))
def test_documents_add_up_to_the_budget_and_at_most_one_is_cut(lengths: list[int], budget: int, seed: int) -> None:
    stops = np.cumsum(lengths)
    bounds = np.stack([stops - lengths, stops], axis=1)
    pieces = [tuple(piece) for piece in documents_up_to(budget, bounds, np.random.default_rng(seed)).tolist()]
    whole = {(int(start), int(stop)) for start, stop in bounds}
    assert sum(stop - start for start, stop in pieces) == budget
    assert all(piece in whole for piece in pieces[:-1])
