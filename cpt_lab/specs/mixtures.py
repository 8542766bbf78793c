"""What a model is trained on, as specs: token files, what they share with an evaluation, mixtures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from cpt_lab.specs.base import Spec
from cpt_lab.specs.corpora import Corpus, Tokenizer
from cpt_lab.specs.protocols import Protocol


class Contamination(Spec):
    """Which documents of a corpus's train split share `words` words in a row with a test item of a protocol."""

    FOLDER = "contaminations"
    PRODUCT = "contamination report"
    kind: Literal["contamination"] = "contamination"
    corpus: Corpus
    protocol: Protocol
    words: int = Field(default=13, ge=8)

    def needs(self) -> tuple[Spec, ...]:
        return (self.corpus, self.protocol)

    def label(self) -> str:
        return f"{self.corpus.name}-{self.protocol.label()}"


class Tokens(Spec):
    """One split of a corpus as a flat file of token ids, documents ended by EOS; without what overlaps `clean_of`, if that is given."""

    FOLDER = "tokens"
    PRODUCT = "token file"
    IF_GIVEN = frozenset({"clean_of"})
    kind: Literal["tokens"] = "tokens"
    corpus: Corpus
    split: Literal["train", "validation", "test"] = "train"
    tokenizer: Tokenizer
    clean_of: Protocol | None = None

    @property
    def contamination(self) -> Contamination | None:
        """The report that says which documents are left out."""
        return None if self.clean_of is None else Contamination(corpus=self.corpus, protocol=self.clean_of)

    def needs(self) -> tuple[Spec, ...]:
        report = self.contamination
        return (self.corpus, self.tokenizer, *(() if report is None else (report,)))

    def label(self) -> str:
        return f"{self.corpus.name}-{self.split}" + ("-clean" if self.clean_of is not None else "")


class Part(Spec):
    """So many tokens of one corpus; `oversample` allows repeating it."""

    corpus: Corpus
    tokens: int = Field(gt=0)
    oversample: bool = False


class Mixture(Spec):
    """What a model is trained on: exact token budgets per corpus, without documents that overlap the items of `clean_of`."""

    name: str
    parts: tuple[Part, ...] = Field(min_length=1)
    seed: int = 0
    clean_of: Protocol | None = None
    NOT_IDENTITY = frozenset({"name"})
    IF_GIVEN = frozenset({"clean_of"})

    @property
    def tokens(self) -> int:
        """The token budget of the whole mixture."""
        return sum(part.tokens for part in self.parts)

    def token_files(self, tokenizer: Tokenizer) -> tuple[Tokens, ...]:
        """The token file of each part, in order."""
        return tuple(Tokens(corpus=part.corpus, tokenizer=tokenizer, clean_of=self.clean_of) for part in self.parts)

    @field_validator("parts")
    @classmethod
    def _each_corpus_once(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        names = [part.corpus.name for part in parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"corpus {twice[0]} stands twice in the mixture: give it one part with the sum of the tokens")
        return parts
