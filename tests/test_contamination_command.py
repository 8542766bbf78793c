"""target=contamination: what is asked for becomes reports, and a finished report is told in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compositions import points, refused
from cpt_lab import report
from cpt_lab.specs import Contamination, TrainedCheckpoint
from cpt_lab.store import Store
from spec_cases import CONTAMINATION

ASKED = ("target=contamination", "protocol=tiny")


def told(root: Path, **tasks: dict[str, int]) -> list[str]:
    """The lines of a finished report of CONTAMINATION."""
    store = Store(root)
    folder = store.describe(CONTAMINATION)
    (folder / "product").mkdir()
    facts: dict[str, Any] = {"words": 13, "overlapping": 1072, "documents": 20000, "tasks": {}}
    facts["tasks"] = {name: {"items": 200, "documents": 7, "examples": [], **task} for name, task in tasks.items()}
    (folder / "product" / "report.json").write_text(json.dumps(facts))
    (folder / "DONE").write_text("")
    return report._in_words(store, CONTAMINATION)


def test_a_report_says_how_many_documents_overlap_and_how_many_items_of_each_task_stand_where(tmp_path: Path) -> None:
    whole = {"items_found": 35, "items_that_can_be_told": 200, "documents": 1070}
    assert told(tmp_path, sums=whole, prose={"items_found": 0, "items_that_can_be_told": 200, "documents": 0}) == [
        "  math: 1,072 of 20,000 documents share 13 words in a row with items of tiny",
        "    sums: 35 of 200 items in 1,070 documents",
        "    prose: 0 of 200 items in 0 documents",
    ]


def test_items_that_are_too_short_to_tell_are_counted_apart(tmp_path: Path) -> None:
    lines = told(tmp_path, sums={"items_found": 35, "items_that_can_be_told": 180})
    assert lines[1:] == ["    sums: 35 of 200 items in 7 documents; 20 items are too short to tell"]


def test_each_corpus_of_a_sweep_is_looked_through_for_the_items_of_the_protocol() -> None:
    specs = [point.spec for point in points(*ASKED, "contamination.corpus=math,inst", "contamination.words=9")]
    assert all(isinstance(spec, Contamination) for spec in specs)
    assert [(spec.corpus.name, spec.protocol.name, spec.words) for spec in specs if isinstance(spec, Contamination)] == [
        ("math", "tiny", 9),
        ("inst", "tiny", 9),
    ]


def test_the_report_that_a_clean_mixture_trains_by_is_the_one_that_the_target_makes() -> None:
    (asked,) = points(*ASKED, "contamination.corpus=math")
    (clean,) = points("target=train", "mixture=tiny_math", "+protocol@mixture.clean_of=tiny")
    assert isinstance(clean.spec, TrainedCheckpoint)
    reports = [tokens.contamination for tokens in clean.spec.mixture.token_files(clean.spec.tokenizer)]
    assert asked.spec in reports
    assert {one.corpus.name for one in reports if one is not None} == {"math", "text"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), r"target=contamination looks through one corpus: contamination.corpus=NAME, of .*math"),
        (("contamination.corpus=maths",), "unknown corpus 'maths' (did you mean math"),
        (("contamination.corpus=math", "contamination.words=7"), "contamination.words: input should be greater than or equal to 8"),
    ],
)
def test_a_report_of_no_corpus_an_unknown_one_or_too_few_words_is_refused(words: tuple[str, ...], said: str) -> None:
    found = refused(*ASKED, *words)
    start, _, end = said.partition(" of .*")
    assert found.startswith(start)
    assert end in found
