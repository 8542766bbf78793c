"""Tokenising a corpus of files against the `tokenizers` library alone on the same texts, and two processes against one, in turn.

The library gets all texts in memory and its fast call; ours reads the files, checks them, encodes, and writes the token file. One thread
each, and seconds of the processor, which other work on the machine leaves alone: ratios travel between machines, seconds do not.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the library is loaded: it reads this once

from cpt_lab.data import formats
from cpt_lab.data.documents import write_splits
from cpt_lab.data.sources import library_files
from cpt_lab.data.tokenizer import build_tokenizer
from cpt_lab.data.tokens import BATCH, build_tokens
from cpt_lab.specs import BpeTokenizer, BuiltinCorpus, Tokens
from cpt_lab.store import Workspace

ROUNDS = 3
MEGABYTES = 24
PIECES = 8  # that the corpus is read in
DOCUMENT = 3000  # characters
VOCABULARY = 16_000

CORPUS = BuiltinCorpus(name="text", documents=1, held_out=1)
TOKENIZER = BpeTokenizer(corpora=(CORPUS,), vocab_size=VOCABULARY)


def main() -> None:
    """Print the ratio per core, and what a second process brings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus, tokenizer, texts = prepared(folder)
        size = (corpus / "train.jsonl").stat().st_size
        formats.PIECE = size // PIECES + 1
        small = workspace(folder / "small").product
        write_splits(small, {"train": [{"text": texts[0]}]}, {})
        build(folder / "warm", small, tokenizer, processes=1)
        alone, start, whole, waited_one, waited_two = [], [], [], [], []
        for index in range(ROUNDS):
            start.append(build(folder / f"start{index}", small, tokenizer, processes=1)[0])
            alone.append(library(tokenizer, texts))
            took, waited = build(folder / f"1-{index}", corpus, tokenizer, processes=1)
            whole.append(took)
            waited_one.append(waited)
            waited_two.append(build(folder / f"2-{index}", corpus, tokenizer, processes=2)[1])
        same = {(folder / f"{count}-{index}" / "product" / "tokens.npy").read_bytes() for count in (1, 2) for index in range(ROUNDS)}
        if len(same) != 1:
            raise SystemExit("the token file depends on the number of processes: it must not")
    megabytes = size / 1e6
    print(f"{megabytes:.0f} MB of Python sources, {len(texts):,} documents, {PIECES} pieces, vocabulary {VOCABULARY:,}")
    print(f"tokenizers alone: {megabytes / statistics.median(alone):.2f} MB/s on one core")
    steady = [took - once for took, once in zip(whole, start, strict=True)]
    print(f"ours, from file to token file: {_ratio(alone, steady):.1%} of that per core, after a start of {statistics.median(start):.2f} s")
    print(f"two processes end after {_ratio(waited_two, waited_one):.2f} of the time of one: two idle cores are needed to see it")


def prepared(folder: Path) -> tuple[Path, Path, list[str]]:
    """The folders of a corpus and of a tokenizer that was trained on it, and the corpus's texts."""
    whole = "".join(path.read_text(encoding="utf-8", errors="replace") for path in library_files())
    whole = (whole * (MEGABYTES * 10**6 // len(whole) + 1))[: MEGABYTES * 10**6]
    texts = [whole[start : start + DOCUMENT] for start in range(0, len(whole), DOCUMENT)]
    corpus, tokenizer = workspace(folder / "corpus"), workspace(folder / "tokenizer")
    write_splits(corpus.product, {"train": ({"text": text} for text in texts)}, {})
    build_tokenizer(TOKENIZER, [corpus.product], tokenizer)
    return corpus.product, tokenizer.product, texts


def library(tokenizer: Path, texts: list[str]) -> float:
    """Seconds in which the library encodes all texts, in batches like ours."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    started = time.process_time()
    for start in range(0, len(texts), BATCH):
        encoder.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
    return time.process_time() - started


def build(folder: Path, corpus: Path, tokenizer: Path, *, processes: int) -> tuple[float, float]:
    """Seconds of this process's processor in which our pipeline makes the token file, and seconds on the wall."""
    work = workspace(folder)
    started, began = time.process_time(), time.perf_counter()
    build_tokens(Tokens(corpus=CORPUS, tokenizer=TOKENIZER), corpus, tokenizer, work, processes=processes)
    return time.process_time() - started, time.perf_counter() - began


def workspace(folder: Path) -> Workspace:
    (folder / "product").mkdir(parents=True)
    return Workspace(folder, folder / "product")


def _ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of what was measured one after the other."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


if __name__ == "__main__":
    main()
