"""Tokenising a corpus of files against the `tokenizers` library alone on the same texts, and two processes against one, in turn.

The library gets all texts in memory and its fast call; ours reads the files, checks them, encodes, and writes the token file. One thread
each, and seconds of the processor, which other work on the machine leaves alone: ratios travel between machines, seconds do not.
"""

from __future__ import annotations

import os
import resource
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
MEGABYTES = 6
PIECES = 6  # that the corpus is read in
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
        build(folder / "warm", corpus, tokenizer, processes=1)
        alone, one, two, waited_one, waited_two = [], [], [], [], []
        for index in range(ROUNDS):
            alone.append(library(tokenizer, texts))
            for processes, seconds, waited in ((1, one, waited_one), (2, two, waited_two)):
                took, ended = build(folder / f"{processes}-{index}", corpus, tokenizer, processes=processes)
                seconds.append(took)
                waited.append(ended)
        same = {(folder / f"{count}-{index}" / "product" / "tokens.npy").read_bytes() for count in (1, 2) for index in range(ROUNDS)}
        if len(same) != 1:
            raise SystemExit("the token file depends on the number of processes: it must not")
    megabytes = size / 1e6
    print(f"{megabytes:.0f} MB of Python sources, {len(texts):,} documents, {PIECES} pieces, vocabulary {VOCABULARY:,}")
    print(f"tokenizers alone: {megabytes / statistics.median(alone):.2f} MB/s on one core")
    print(f"ours, from files to a token file: {_ratio(alone, one):.1%} of that per core on one process")
    print(f"two processes take {1 / _ratio(one, two):.2f} times the processor seconds of one, their start included")
    print(f"two processes end after {1 / _ratio(waited_one, waited_two):.2f} of the time of one, beside whatever else runs here")


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
    """Seconds of the processor in which our pipeline makes the token file, those of its processes too, and seconds on the wall."""
    work = workspace(folder)
    started, began = processor(), time.perf_counter()
    build_tokens(Tokens(corpus=CORPUS, tokenizer=TOKENIZER), corpus, tokenizer, work, processes=processes)
    return processor() - started, time.perf_counter() - began


def processor() -> float:
    """Seconds of the processor of this process and of those that it started and that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def workspace(folder: Path) -> Workspace:
    (folder / "product").mkdir(parents=True)
    return Workspace(folder, folder / "product")


def _ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of what was measured one after the other."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


if __name__ == "__main__":
    main()
