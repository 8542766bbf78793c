"""What every model of a study was trained on: tokens per corpus (P table 2), and the corpora themselves (P table 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis import captions
from analysis.drawing import Cell, Sheet
from analysis.lineage import tokens_text
from analysis.results import Results
from cpt_lab.specs import BuiltinCorpus, Corpus, FilesCorpus, HubCorpus, Mixture, TokenFilesCorpus, Tokens, TrainedCheckpoint, closure, key
from cpt_lab.store import read_json

SHOWS = "the tokens per corpus of every mixture that a model was trained on, and where the corpora come from"
PAPERS = ("P table 1", "P table 2")
NEEDS = "a checkpoint that is trained here (tuned.from=train), finished or planned"
STAR = "*"


def build(results: Results, settings: Mapping[str, Any]) -> list[Sheet]:  # noqa: ARG001 (there is nothing to set)
    """A table of mixtures and one of corpora; ValueError if nothing is trained."""
    trained = trainings(results)
    stages = {(spec.start is not None, key_of(spec.mixture)): spec.mixture for spec in trained}
    corpora = {part.corpus.name: part.corpus for mixture in stages.values() for part in mixture.parts}
    rows = tuple((mixture.name, _budgets(mixture, list(corpora))) for _, mixture in sorted(stages.items(), key=lambda item: item[0]))
    first_cpt = sum(not cpt for cpt, _ in stages)
    groups = tuple(
        (place, name) for place, name, count in ((0, "Pre-training", first_cpt), (first_cpt, "CPT", len(stages) - first_cpt)) if count
    )
    caption = f"Tokens. {STAR}: oversampled, more tokens than the corpus has or may have."
    mixtures = Sheet("mixtures", "Training mixtures", caption, ("mixture", *corpora, "all"), rows, groups)
    return [mixtures, _corpora(results, corpora)]


def trainings(results: Results) -> list[TrainedCheckpoint]:
    """Every training run that the points come from, what comes first first."""
    wanted = closure([point.spec for study in results.studies for point in study.points])
    found = [spec for spec in wanted if isinstance(spec, TrainedCheckpoint)]
    if not found:
        raise ValueError(f"study {results.name!r} trains nothing, its checkpoints are given: it needs {NEEDS}")
    return found


def key_of(mixture: Mixture) -> str:
    return mixture.name + "".join(f"{part.corpus.name}{part.tokens}" for part in mixture.parts)


def _budgets(mixture: Mixture, corpora: list[str]) -> tuple[Cell, ...]:
    parts = {part.corpus.name: part for part in mixture.parts}
    cells = (
        Cell(f"{tokens_text(parts[name].tokens)}{STAR if parts[name].oversample else ''}") if name in parts else Cell(None)
        for name in corpora
    )
    return (*cells, Cell(tokens_text(mixture.tokens)))


def _corpora(results: Results, corpora: Mapping[str, Corpus]) -> Sheet:
    """A row per corpus: where it comes from, documents and tokens as far as they are known."""
    counted = {
        spec.corpus.name: read_json(next(product.glob("*.json"))) for spec, product in results.needed(Tokens) if spec.split == "train"
    }
    rows = []
    for name, corpus in corpora.items():
        known = counted.get(name, {})
        given = getattr(corpus, "available_tokens", None)
        tokens = known.get("tokens", given)
        cells = (Cell(_source(corpus)), _count(known.get("documents")), _count(tokens), Cell(captions.short(key(corpus))))
        rows.append((name, cells))
    return Sheet(
        "corpora",
        "Corpora",
        "Tokens as counted, or as the configuration states them.",
        ("corpus", "source", "documents", "tokens", "key"),
        tuple(rows),
    )


def _source(corpus: Corpus) -> str:
    match corpus:
        case HubCorpus():
            return f"{corpus.id} {corpus.config or corpus.data_files or ''} @ {corpus.revision}".replace("  ", " ")
        case BuiltinCorpus():
            return "built in"
        case FilesCorpus():
            return "files"
        case TokenFilesCorpus():
            return "token files"


def _count(number: int | None) -> Cell:
    return Cell(None) if number is None else Cell(tokens_text(float(number)))
