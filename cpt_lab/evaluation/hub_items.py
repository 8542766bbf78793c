"""The items of the benchmarks from the Hugging Face hub, or from its cache on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cpt_lab.evaluation.rows import READERS, SOLVED, Row

SHOT_DIGITS = 12


class DataSet(NamedTuple):
    """Where a benchmark lies on the hub."""

    id: str
    config: str | None
    split: str
    gated: bool = False


DATA_SETS: dict[str, DataSet] = {
    "gsm8k": DataSet("openai/gsm8k", "main", "test"),
    "drop": DataSet("EleutherAI/drop", None, "validation"),
    "humaneval": DataSet("openai/openai_humaneval", None, "test"),
    "arc_easy": DataSet("allenai/ai2_arc", "ARC-Easy", "test"),
    "hellaswag": DataSet("Rowan/hellaswag", None, "validation"),
    "winogrande": DataSet("allenai/winogrande", "winogrande_xl", "validation"),
    "math500": DataSet("HuggingFaceH4/MATH-500", None, "test"),
    "mmlu": DataSet("cais/mmlu", "all", "dev"),
    "gpqa": DataSet("Idavidrein/gpqa", "gpqa_main", "train", gated=True),
}
# Digests of the solved examples that OLMES took from the training splits, in its order.
SHOTS: dict[str, tuple[str, ...]] = {
    "drop": ("480329227cb6", "29348eaa4c95", "699039dfb9df", "8d8c8f44096e", "81695d69c968"),
    "arc_easy": ("7f7cb391d57d", "3ad22fbfcb4f", "11696ef181fc", "e3f8535fd68b", "13bc3e3bba4a"),
    "hellaswag": ("c7c7a389b9d0", "cd294cd95387", "0b2e507452af", "d3f36b55b0df", "e889952edb42"),
    "winogrande": ("cdc5c642f7bc", "99c32ed826e1", "ce0d400b6407", "9e924fa30afc", "5a7aacc558f2"),
}


def rows(task: str) -> list[Row]:
    """All rows of a task's split; ValueError if they can be had neither from the hub nor from its cache."""
    return list(_load(task, DATA_SETS[task].split))


def shots(task: str) -> list[str]:
    """OLMES's solved examples, found among the training split by their digests; ValueError if one is not there."""
    found = found_shots(task, _load(task, "train"))
    missing = len(SHOTS[task]) - len(found)
    if missing:
        raise ValueError(
            f"{missing} of the {len(SHOTS[task])} solved examples of {task} are not in the training split of {DATA_SETS[task].id}: "
            "the data set has changed since OLMES; install cpt-lab[olmes], which carries them"
        )
    return found


def found_shots(task: str, training: Iterable[Row]) -> list[str]:
    """Those of the solved examples that these rows hold, in OLMES's order."""
    texts: dict[str, str] = {}
    for row in training:
        text = SOLVED[task](READERS[task](row))
        name = shot_digest(text)
        if name in SHOTS[task]:
            texts[name] = text
    return [texts[name] for name in SHOTS[task] if name in texts]


def shot_digest(text: str) -> str:
    """A short SHA-256 of a solved example."""
    return hashlib.sha256(text.encode()).hexdigest()[:SHOT_DIGITS]


def is_cached(task: str) -> bool:
    """Whether the hub's cache on this machine has the data set; looks at folders only."""
    name = DATA_SETS[task].id.replace("/", "___").lower()
    home = Path(os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"))
    place = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    return place.is_dir() and any(folder.name.lower() in (name, name.split("___")[1]) for folder in place.iterdir())


def _load(task: str, split: str) -> Sequence[Any]:
    from datasets import load_dataset

    known = DATA_SETS[task]
    try:
        loaded: Sequence[Any] = load_dataset(known.id, known.config, split=split)
    except (OSError, RuntimeError, ValueError) as error:  # the hub's, the cache's and the reader's errors are of these kinds
        gate = f"; {known.id} asks for your consent: accept its terms on the hub and log in with `hf auth login`" if known.gated else ""
        raise ValueError(f"{known.id} cannot be loaded ({str(error).splitlines()[0][:200]}){gate}") from None
    return loaded
