"""Data as specs: corpora, tokenizers, token files, mixtures."""

from __future__ import annotations

import platform
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cpt_lab.specs.base import Spec


class BuiltinCorpus(Spec):
    """A small corpus that every installation can make by itself: no network, no licence question."""

    FOLDER = "corpora"
    PRODUCT = "corpus"
    kind: Literal["builtin_corpus"] = "builtin_corpus"
    name: Literal["text", "code", "math", "inst"]
    documents: int = Field(gt=0, description="at most so many training documents; text and code may have fewer")
    held_out: int = Field(gt=0, description="documents in each of validation and test")
    seed: int = 0
    python: str = Field(
        default="", description="of text and code, which are that version's documentation and sources; empty for the others"
    )

    @model_validator(mode="before")
    @classmethod
    def _made_of_this_python(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("name") in ("text", "code") and not data.get("python"):
            return {**data, "python": platform.python_version()}
        return data

    def label(self) -> str:
        return self.name


class FilesCorpus(Spec):
    """Documents in local files (jsonl, one object a line), identified by their contents."""

    FOLDER = "corpora"
    PRODUCT = "corpus"
    NOT_IDENTITY = frozenset({"files"})
    kind: Literal["files_corpus"] = "files_corpus"
    name: str
    files: tuple[str, ...] = Field(min_length=1)
    files_digest: str
    field: str = "text"
    held_out: int = Field(gt=0)
    seed: int = 0

    def label(self) -> str:
        return self.name


class HubCorpus(Spec):
    """Documents of a Hugging Face data set."""

    FOLDER = "corpora"
    PRODUCT = "corpus"
    kind: Literal["hub_corpus"] = "hub_corpus"
    name: str
    id: str
    revision: str = "main"
    config: str | None = None
    data_files: str | None = None
    split: str = "train"
    field: str = "text"
    available_tokens: int | None = Field(default=None, gt=0, description="how many tokens it holds, if that is known")

    def label(self) -> str:
        return self.name


Corpus = Annotated[BuiltinCorpus | FilesCorpus | HubCorpus, Field(discriminator="kind")]


class BpeTokenizer(Spec):
    """A byte-level BPE trained once on the train splits of some corpora; digits are single tokens."""

    FOLDER = "tokenizers"
    PRODUCT = "tokenizer"
    kind: Literal["bpe_tokenizer"] = "bpe_tokenizer"
    corpora: tuple[Corpus, ...] = Field(min_length=1)
    vocab_size: int = Field(ge=300)

    def needs(self) -> tuple[Spec, ...]:
        return self.corpora

    def label(self) -> str:
        return f"bpe-{self.vocab_size}"


class HubTokenizer(Spec):
    """The tokenizer that comes with a hub checkpoint."""

    FOLDER = "tokenizers"
    PRODUCT = "tokenizer"
    kind: Literal["hub_tokenizer"] = "hub_tokenizer"
    id: str
    revision: str = "main"

    def label(self) -> str:
        return f"{self.id}-{self.revision}"


Tokenizer = Annotated[BpeTokenizer | HubTokenizer, Field(discriminator="kind")]


class Tokens(Spec):
    """One split of a corpus as a flat file of token ids, documents ended by EOS."""

    FOLDER = "tokens"
    PRODUCT = "token file"
    kind: Literal["tokens"] = "tokens"
    corpus: Corpus
    split: Literal["train", "validation", "test"] = "train"
    tokenizer: Tokenizer

    def needs(self) -> tuple[Spec, ...]:
        return (self.corpus, self.tokenizer)

    def label(self) -> str:
        return f"{self.corpus.name}-{self.split}"


class Part(Spec):
    """So many tokens of one corpus; `oversample` allows repeating it."""

    corpus: Corpus
    tokens: int = Field(gt=0)
    oversample: bool = False


class Mixture(Spec):
    """What a model is trained on: exact token budgets per corpus."""

    name: str
    parts: tuple[Part, ...] = Field(min_length=1)
    seed: int = 0
    NOT_IDENTITY = frozenset({"name"})

    @property
    def tokens(self) -> int:
        """The token budget of the whole mixture."""
        return sum(part.tokens for part in self.parts)

    @field_validator("parts")
    @classmethod
    def _each_corpus_once(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        names = [part.corpus.name for part in parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"corpus {twice[0]} stands twice in the mixture: give it one part with the sum of the tokens")
        return parts
