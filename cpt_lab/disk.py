"""What steps write to the disk: how many bytes of what, which of them stay, and how much room a plan takes at its fullest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from cpt_lab import specs
from cpt_lab.data.tokens import LARGEST_UINT16
from cpt_lab.execution import Execution
from cpt_lab.specs import Spec, key

WEIGHT_BYTES = 4  # what is trained here is kept in float32: changes of continual pre-training are below what bf16 tells apart
STATE_BYTES = 12  # of a weight: itself and two moments in float32
RELEASED_BYTES = 2  # of a weight of a released checkpoint: bfloat16
# Where nobody said how many tokens a corpus has, of its text's bytes; more than they turn out to be, for a disk must not be too small.
BYTES_PER_TOKEN = 2
UNPACKED = 4  # bytes of text in one of a packed file
PACKED_ENDINGS = (".gz", ".zst", ".parquet")
BUILTIN_BYTES = {"text": 180, "code": 950, "math": 240, "inst": 260}  # of a document, measured over 2,000 of each
BUILTIN_MOST = {"text": 8_000, "code": 5_000}  # documents that they can have, about: they are taken from Python's own files

TOKENS, PIECES, MIXED = "token files", "their pieces while they are made", "mixed tokens of training runs"
STATES, WEIGHTS = "states to resume from", "weights"


@dataclass(frozen=True)
class Written:
    """So many bytes of one kind that a step writes; what does not stay is gone when the step is done."""

    what: str
    bytes: int
    stays: bool = True


def written(spec: Spec, how: Execution, *, least: int = 0, kept: bool | None = None) -> tuple[Written, ...]:
    """What a step writes as far as a disk notices; `least` are tokens that a token file has where its corpus does not say how many.

    `kept` says of weights on the way of a finished run whether it kept them: then they are linked, else trained again.
    """
    match spec:
        case specs.Tokens():
            size = tokens_of(spec, least) * token_width(spec)
            return Written(TOKENS, size), Written(PIECES, size, stays=False)
        case specs.TrainedCheckpoint():
            return _training(spec, how, folders=1 + len(kept_steps(spec, how)))
        case specs.Intermediate() if kept is not None:
            return () if kept else _training(spec.of, how, folders=1)
        case specs.Intermediate():
            own = spec.step not in kept_steps(spec.of, how)  # else its run counts it
            return (Written(WEIGHTS, own * WEIGHT_BYTES * spec.shape.parameters),)
        case specs.OlmoCoreCheckpoint():
            return (Written(WEIGHTS, WEIGHT_BYTES * spec.shape.parameters),)
        case specs.SpectralWarmup():
            return (Written(WEIGHTS, _weight_bytes(spec.reference) * spec.shape.parameters),)
        case specs.Patched():
            return (Written(WEIGHTS, _weight_bytes(spec.tuned) * spec.shape.parameters),)
        case _:
            return ()


def kept_steps(spec: specs.TrainedCheckpoint, how: Execution, keep: Sequence[int] = (), *, until: int | None = None) -> frozenset[int]:
    """The steps before the last whose weights a run keeps: those after `keep` tokens, and those that `how` asks for, to the nearest.

    Of a run that is made up to a place for its weights alone (`until`) only what is wanted up to there: the rest would be thrown away.
    """
    batch, whole = spec.recipe.batch_tokens, spec.steps * spec.recipe.batch_tokens
    regular = range(how.keep_every, whole, how.keep_every) if how.keep_every else ()
    asked = (*keep, *how.keep_at, *regular) if until is None else [tokens for tokens in keep if tokens <= until]
    steps = {max(1, round(tokens / batch)) for tokens in asked}
    return frozenset(step for step in steps if step < spec.steps)


def budgets(wanted: Iterable[Spec]) -> dict[str, int]:
    """Key of a token file -> how many tokens it must have for the mixtures of these runs, which may not repeat it."""
    found: dict[str, int] = {}
    for spec in wanted:
        if isinstance(spec, specs.TrainedCheckpoint):
            for part, tokens in zip(spec.mixture.parts, spec.mixture.token_files(spec.tokenizer), strict=True):
                if not part.oversample:
                    found[key(tokens)] = max(part.tokens, found.get(key(tokens), 0))
    return found


def fullest(stages: Iterable[tuple[int, Sequence[Sequence[Written]]]]) -> dict[str, int]:
    """What -> bytes when the disk is fullest: of stages one after the other, each with up to so many of its steps at a time."""
    stayed: Counter[str] = Counter()
    peak: Mapping[str, int] = {}
    for at_once, steps in stages:
        beside = sorted(([part for part in step if not part.stays] for step in steps), key=_sum, reverse=True)
        stayed += _by_kind(part for step in steps for part in step if part.stays)
        now = stayed + _by_kind(part for parts in beside[:at_once] for part in parts)
        peak = max(peak, now, key=lambda kinds: sum(kinds.values()))
    return dict(sorted(peak.items(), key=lambda kind: -kind[1]))


def words(kinds: Mapping[str, int]) -> str:
    """`token files 210.8 GB, weights 5.9 GB`; of what is a hundredth of it at most nothing is said."""
    told = {what: size for what, size in kinds.items() if size > sum(kinds.values()) / 100}
    return ", ".join(f"{what} {gigabytes(size)} GB" for what, size in told.items())


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f}"


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists: its disk is the one that a new file there will be on."""
    return next(place for place in (path, *path.parents) if place.exists())


def token_width(spec: specs.Tokens) -> int:
    """Bytes of a token. Of vocabularies on the hub only their checkpoints know the size: the larger type is assumed."""
    if isinstance(spec.corpus, specs.TokenFilesCorpus):
        return int(spec.corpus.dtype.removeprefix("uint")) // 8
    small = isinstance(spec.tokenizer, specs.BpeTokenizer) and spec.tokenizer.vocab_size <= LARGEST_UINT16
    return 2 if small else 4


def tokens_of(spec: specs.Tokens, least: int = 0) -> int:
    """About how many tokens a build writes; none of ready-made files, which stay where they are."""
    corpus = spec.corpus
    match corpus:
        case specs.TokenFilesCorpus():
            return 0
        case specs.BuiltinCorpus():
            wanted = corpus.documents if spec.split == "train" else corpus.held_out
            return BUILTIN_BYTES[corpus.name] * min(wanted, BUILTIN_MOST.get(corpus.name, wanted)) // BYTES_PER_TOKEN
        case specs.FilesCorpus():
            size = sum(map(_text_bytes, corpus.files)) // BYTES_PER_TOKEN
            return size if corpus.sample_tokens is None else min(size, corpus.sample_tokens)
        case specs.HubCorpus():
            return corpus.usable_tokens or least
        case _:
            assert_never(corpus)


def _training(spec: specs.TrainedCheckpoint, how: Execution, *, folders: int) -> tuple[Written, ...]:
    """So many folders of its weights stay; beside them lie the mixed tokens and one state more than is kept.

    For a new state is whole before the oldest goes.
    """
    weights = spec.shape.parameters
    width = max(token_width(tokens) for tokens in spec.mixture.token_files(spec.tokenizer))
    return (
        Written(WEIGHTS, WEIGHT_BYTES * weights * folders),
        Written(MIXED, spec.mixture.tokens * width, stays=False),
        Written(STATES, STATE_BYTES * weights * (how.keep_states + 1), stays=False),
    )


def _weight_bytes(checkpoint: specs.Checkpoint) -> int:
    """Of a weight of what has the type of this checkpoint."""
    trained = isinstance(checkpoint, specs.TrainedCheckpoint | specs.Intermediate | specs.OlmoCoreCheckpoint)
    return WEIGHT_BYTES if trained else RELEASED_BYTES


def _text_bytes(file: str) -> int:
    path = Path(file).expanduser()
    with suppress(OSError):
        return path.stat().st_size * (UNPACKED if path.suffix in PACKED_ENDINGS else 1)
    return 0


def _by_kind(parts: Iterable[Written]) -> Counter[str]:
    found: Counter[str] = Counter()
    for part in parts:
        found[part.what] += part.bytes
    return found


def _sum(parts: Sequence[Written]) -> int:
    return sum(part.bytes for part in parts)
