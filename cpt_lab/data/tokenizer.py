"""Byte-level BPE tokenizers as Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_lab.data.documents import read_documents

if TYPE_CHECKING:
    from cpt_lab.specs import BpeTokenizer
    from cpt_lab.store import Workspace

EOS = "<|endoftext|>"
PAD = "<|pad|>"
TEXT_LIMIT = 2_000_000  # characters of each corpus: merges settle long before, and every corpus gets the same say


def build_tokenizer(spec: BpeTokenizer, corpora: list[Path], work: Workspace) -> None:
    """Train a tokenizer on the train splits: bytes as the alphabet, every digit its own token, EOS `<|endoftext|>` and a pad.

    The folder loads with `AutoTokenizer.from_pretrained`, and decoding what was encoded gives the same text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for corpus in corpora for text in texts(corpus)), trainer)
    write_folder(work.product, tokenizer.to_str())


def texts(corpus: Path) -> Iterator[str]:
    """Training texts of a corpus, up to TEXT_LIMIT characters."""
    left = TEXT_LIMIT
    for document in read_documents(corpus, "train"):
        yield document["text"]
        left -= len(document["text"])
        if left <= 0:
            return


def write_folder(folder: Path, serialised: str) -> None:
    """tokenizer.json and the two files that tell transformers how to load it."""
    (folder / "tokenizer.json").write_text(serialised, encoding="utf-8")
    # Clean-up of spaces would make decoding lossy; the limit on the length is the model's to say.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": EOS, "pad_token": PAD}, indent=1))
