"""Contamination: which documents of a corpus share words in a row with an evaluation's test items."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.data import ngrams
from cpt_lab.data.documents import shards
from cpt_lab.data.shards import Group, grouped
from cpt_lab.data.tokens import LEFT_OUT, texts_of

if TYPE_CHECKING:
    from cpt_lab.specs import Contamination
    from cpt_lab.store import Workspace

EXAMPLES = 3  # documents shown of each task
ITEMS = "items.json"

Items = Mapping[str, Sequence[Sequence[str]]]


@dataclass(frozen=True)
class Compare:
    """The step that writes which documents of a group overlap, and with what; nothing if `enough` words are clean before it."""

    scratch: Path
    words: int
    enough: int | None = None  # tokens that are sampled: a word takes one at least, so that no more words are sampled

    def work(self, group: Group, rank: int) -> None:
        import numpy as np

        if self.enough is not None and sum(part["clean_words"] for part in parts_of(self.scratch, rank)) >= self.enough:
            return
        index = _index(self.scratch / ITEMS, self.words)
        found: dict[int, list[tuple[str, int, str]]] = {}
        documents = clean_words = 0
        for place, text in enumerate(texts_of(group)):
            documents += 1
            words = ngrams.words_of(text)
            if shared := ngrams.overlaps(words, index):
                found[place] = [(task, number, run) for (task, number), run in sorted(shared.items())]
            else:
                clean_words += len(words)
        np.save(self.scratch / f"{rank}.npy", np.array(sorted(found), dtype=np.int64))
        beside = self.scratch / f".{rank}.json"
        beside.write_text(json.dumps({"documents": documents, "clean_words": clean_words, "found": found}))
        os.replace(beside, self.scratch / f"{rank}.json")


def build_report(spec: Contamination, corpus: Path, items: Items, work: Workspace, *, processes: int = 1) -> None:
    """Write report.json (documents that overlap, and per task: items found, examples) and which documents of every group they are.

    A document overlaps if it shares `spec.words` words in a row with a text of an item, case and punctuation aside, or all of a text of
    at least 8 words that is shorter; items of shorter texts only cannot be told. Of a corpus with `sample_tokens` no more is read than
    the sample can need. ValueError if the protocol has no item that can be told.
    """
    from cpt_lab.data import executor

    groups = grouped(shards(corpus, "train"))
    told = {
        task: [number for number, fields in enumerate(members) if any(ngrams.runs_of(fields, spec.words))]
        for task, members in items.items()
    }
    if not any(told.values()):
        raise ValueError(f"no item of protocol {spec.protocol.name} has a text of {ngrams.SHORTEST} words: there is nothing to look for")
    executor.prepare(groups, work.scratch)
    (work.scratch / ITEMS).write_text(json.dumps(items))
    enough = getattr(spec.corpus, "sample_tokens", None)
    step = Compare(work.scratch, spec.words, enough)
    executor.run(step, groups, processes=processes, scratch=work.scratch, progress=work.progress)
    parts = needed_parts(work.scratch, len(groups), enough)
    (work.product / LEFT_OUT).mkdir()
    for rank in range(len(parts)):
        shutil.copyfile(work.scratch / f"{rank}.npy", work.product / LEFT_OUT / f"{rank}.npy")
    tasks = {task: _task(task, len(items[task]), len(numbers), parts) for task, numbers in told.items()}
    facts = {"words": spec.words, "documents": sum(part["documents"] for part in parts), "tasks": tasks}
    overlapping = {"overlapping": sum(len(part["found"]) for part in parts)}
    (work.product / "report.json").write_text(json.dumps({**overlapping, **facts}, indent=1, ensure_ascii=False) + "\n")


def needed_parts(scratch: Path, count: int, enough: int | None) -> list[dict[str, Any]]:
    """What was found in the groups up to the one with which `enough` words are clean: others that were under way by then do not count."""
    parts: list[dict[str, Any]] = []
    clean = 0
    for rank in range(count):
        if enough is not None and clean >= enough:
            break
        parts.append(json.loads((scratch / f"{rank}.json").read_text()))
        clean += parts[-1]["clean_words"]
    return parts


def parts_of(scratch: Path, count: int) -> list[dict[str, Any]]:
    """What was found in the first `count` groups, as far as they were looked through."""
    paths = (scratch / f"{rank}.json" for rank in range(count))
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def _task(task: str, items: int, told: int, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was found of one task: documents, items, the first few words in a row."""
    hits = [(group, int(place), number, run) for group, part in enumerate(parts) for place, shared in part["found"].items()
            for name, number, run in shared if name == task]  # fmt: skip
    examples = [{"group": group, "document": place, "item": number, "words": run} for group, place, number, run in hits[:EXAMPLES]]
    return {
        "items": items,
        "items_that_can_be_told": told,
        "items_found": len({number for _, _, number, _ in hits}),
        "documents": len({(group, place) for group, place, _, _ in hits}),
        "examples": examples,
    }


@lru_cache(maxsize=1)
def _index(path: Path, words: int) -> ngrams.Index:
    """The index of a file of items: once per process."""
    return ngrams.index(json.loads(path.read_text()), words)
