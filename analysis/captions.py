"""What the captions of figures must say: the exact specs, the protocol, how many documents and seeds, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.lineage import exact
from analysis.results import Results, gaps
from cpt_lab.specs import Checkpoint, Evaluation, Patched, Ranking, key

if TYPE_CHECKING:
    import pandas as pd


MANY = 2  # interventions of a study: its question is then about more than one figure shows


def sentences(*parts: str) -> str:
    """The parts that say something, as sentences."""
    return " ".join(part if part.endswith((".", "?", "!")) else f"{part}." for part in parts if part)


def title(results: Results, shown: str) -> str:
    """What the study asks, if it does one thing to the weights; else its name and what is shown."""
    done = set(results.points["intervention"].dropna()) - {"none"}
    return results.question if results.question and len(done) < MANY else f"{results.name}: {shown}"


def short(name: str) -> str:
    """The hash of a key, as far as people compare it."""
    return name.rsplit("-", 1)[-1][:8]


def ranking(spec: Ranking) -> str:
    """`Ranking greedy (1a2b3c4d) of the roles q, k, v, o`."""
    of = f" of the roles {', '.join(spec.roles)}" if spec.unit == "head" and spec.criterion != "random" else ""
    return f"Ranking {spec.label().replace(f'-{spec.direction}', '')} ({short(key(spec))}){of}"


def one_protocol(table: pd.DataFrame) -> str:
    """The name of the protocol of these points; ValueError, naming them, if there are several: their scores are not comparable."""
    known = table.attrs["protocols"]
    used = [known[name] + f" ({short(name)})" for name in dict.fromkeys(table["protocol_key"].dropna())]
    if len(used) > 1:
        raise ValueError(
            f"these points were scored by {len(used)} protocols, {', '.join(used)}, and scores of different protocols do not belong into "
            "one figure: name studies of one protocol"
        )
    return used[0] if used else ""


def protocol(table: pd.DataFrame, metrics: Sequence[str]) -> str:
    """`Protocol tiny (1a2b3c4d): 200 documents of tiny_math and 100 of tiny_text`."""
    sizes = " and ".join(size(table, metric) for metric in dict.fromkeys(metrics) if metric in table.attrs["n"])
    return f"Protocol {one_protocol(table)}: {sizes}"


def size(table: pd.DataFrame, metric: str) -> str:
    """How many documents a metric is made from, and which, if they are a part."""
    part = table.attrs.get("part", {}).get(metric)
    return f"{table.attrs['n'][metric]:,} documents of {metric.split('/')[0]}" + (f" ({part})" if part else "")


def checkpoints(results: Results, *, most: int = 4) -> str:
    """The checkpoints that the points are made of, by what they are called and the start of their hash."""
    found: dict[str, Checkpoint] = {}
    for study in results.studies:
        for point in study.points:
            if isinstance(point.spec, Evaluation):
                given = point.spec.checkpoint
                sources = (
                    [source for change in given.interventions for source in change.sources().values()] if isinstance(given, Patched) else []
                )
                found |= {key(one): one for one in (given.tuned if isinstance(given, Patched) else given, *sources)}
    names = [exact(one) for one in found.values()]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{'Checkpoint' if len(names) == 1 else 'Checkpoints'} {', '.join(names[:most])}{rest}" if names else ""


def missing(table: pd.DataFrame) -> str:
    """`Gaps: 2 of 28 points failed`; nothing if all are done."""
    found = gaps(table)
    return f"Gaps: {found}" if found else ""


def without(*names: str) -> str:
    """`Without pl ks, greedy: none of their points is finished`; nothing if nothing is left out."""
    words = ", ".join(name.replace("_", " ") for name in dict.fromkeys(names))
    return f"Without {words}: no point of {'it' if len(set(names)) == 1 else 'them'} is finished" if words else ""
