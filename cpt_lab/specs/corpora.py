"""Data as specs: corpora and tokenizers."""

from __future__ import annotations

import platform
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

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


class Rule(Spec):
    """One test of a row's field: a document is kept if its row passes every rule of its corpus."""

    field: str = Field(min_length=1, description="a dotted path into the row, like metadata.score")
    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] | None = Field(default=None, min_length=1)
    matches: str | None = Field(default=None, description="a regular expression that is found somewhere in it")

    @model_validator(mode="after")
    def _tests_something(self) -> Self:
        if all(test is None for test in (self.at_least, self.at_most, self.one_of, self.matches)):
            raise ValueError(f"the filter of field {self.field!r} tests nothing: give at_least, at_most, one_of or matches")
        try:
            re.compile(self.matches or "")
        except re.error as error:
            raise ValueError(f"the filter of field {self.field!r} has matches={self.matches!r}, no regular expression ({error})") from None
        return self


class FilesCorpus(Spec):
    """Documents in local files (jsonl, plain or packed by gzip or zstd, or parquet), identified by their contents.

    Its train split has the order of the files; the others are drawn from `seed`. No text stands twice in it.
    """

    FOLDER = "corpora"
    PRODUCT = "corpus"
    NOT_IDENTITY = frozenset({"files", "licence"})
    IF_GIVEN = frozenset({"filter", "sample_tokens"})
    kind: Literal["files_corpus"] = "files_corpus"
    name: str
    files: tuple[str, ...] = Field(min_length=1)
    files_digest: str
    field: str = "text"
    filter: tuple[Rule, ...] | None = Field(default=None, min_length=1, description="rows that pass all of these; None: all rows")
    held_out: int = Field(gt=0)
    sample_tokens: int | None = Field(default=None, gt=0, description="so many tokens of it are used, in its order; None: all")
    seed: int = 0
    licence: str = Field(default="", description="what its owners allow, in words")

    def label(self) -> str:
        return self.name


class HubCorpus(Spec):
    """Documents of a Hugging Face data set, streamed: only what is asked for comes over the network."""

    FOLDER = "corpora"
    PRODUCT = "corpus"
    NOT_IDENTITY = frozenset({"licence"})
    IF_GIVEN = frozenset({"filter", "sample_tokens"})
    kind: Literal["hub_corpus"] = "hub_corpus"
    name: str
    id: str
    revision: str = "main"
    config: str | None = None
    data_files: str | None = None
    split: str = "train"
    field: str = "text"
    filter: tuple[Rule, ...] | None = Field(default=None, min_length=1, description="rows that pass all of these; None: all rows")
    sample_tokens: int | None = Field(default=None, gt=0, description="so many tokens of it are used, in its order; None: all")
    available_tokens: int | None = Field(default=None, gt=0, description="how many tokens it holds, if that is known")
    licence: str = Field(default="", description="what its owners allow, in words")

    @property
    def usable_tokens(self) -> int | None:
        """What a mixture may take of it before it repeats, if that is known."""
        return min((number for number in (self.sample_tokens, self.available_tokens) if number is not None), default=None)

    def label(self) -> str:
        return self.name


class TokenFilesCorpus(Spec):
    """Ready-made token files (flat, without a header, as OLMo's `.npy` are), taken as they are and identified by their contents."""

    FOLDER = "corpora"
    PRODUCT = "corpus"
    NOT_IDENTITY = frozenset({"files", "licence"})
    kind: Literal["token_files_corpus"] = "token_files_corpus"
    name: str
    files: tuple[str, ...] = Field(min_length=1)
    files_digest: str
    dtype: Literal["uint16", "uint32"]
    licence: str = Field(default="", description="what its owners allow, in words")

    def label(self) -> str:
        return self.name


Corpus = Annotated[BuiltinCorpus | FilesCorpus | HubCorpus | TokenFilesCorpus, Field(discriminator="kind")]


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
