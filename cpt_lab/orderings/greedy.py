"""The greedy order: how much better or worse the tuned model scores with one unit alone rewound, and how far that order can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.names import unknown
from cpt_lab.orderings.correlation import spearman
from cpt_lab.specs import Ranking
from cpt_lab.store import read_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Grid = np.ndarray[tuple[int, int], np.dtype[np.float64]]
    Vector = np.ndarray[tuple[int], np.dtype[np.float64]]

SPLITS = 100  # of the documents into halves
ROUNDS = 200  # of simulated measurements
SEED = 0  # of the splits and the rounds
TOP_SHARE = 0.15  # of the units: where P's curves peak


@dataclass(frozen=True)
class Outcomes:
    """What rewinding each unit alone changes, up being better."""

    changes: Vector  # of the metric, (units,)
    differences: Grid  # of the metric's value for every document, (units, documents)


def read_outcomes(ranking: Ranking, products: Sequence[Path]) -> Outcomes:
    """From the evaluations of the tuned checkpoint and of every unit rewound, in this order; ValueError for an unknown metric.

    A document counts by its own value of the metric: for ratios of totals, such as bits per byte, their mean is close to the metric only.
    """
    import numpy as np
    import pandas as pd

    assert ranking.probe is not None
    results = [read_json(product / "results.json") for product in products]
    name = ranking.probe.metric or str(results[0]["primary"])
    if name not in results[0]["metrics"]:
        raise ValueError(unknown("metric", name, results[0]["metrics"]))
    sign = 1.0 if results[0]["metrics"][name]["higher_is_better"] else -1.0
    values = np.array([result["metrics"][name]["value"] for result in results], dtype=np.float64)
    documents = np.stack([_of_documents(pd.read_parquet(product / "samples.parquet"), name) for product in products])
    documents = documents[:, np.isfinite(documents).all(axis=0)]  # a perplexity may be beyond the floats
    return Outcomes(sign * (values[1:] - values[0]), sign * (documents[1:] - documents[0]))


def gains(ranking: Ranking, outcomes: Outcomes) -> Grid:
    """The change of the metric when one unit alone is rewound, up being better: the first in descending order helps most."""
    return outcomes.changes.reshape(ranking.shape.num_layers, len(ranking.parts))


def losses(ranking: Ranking, outcomes: Outcomes) -> Grid:
    """How much worse the metric becomes without one unit: its importance by ablation (L figures 9 and 10), the most important up."""
    return -gains(ranking, outcomes)


def standard_errors(ranking: Ranking, outcomes: Outcomes) -> Grid:
    """The paired standard error of each change: of the mean of the documents' differences; nan for a single document."""
    import numpy as np

    count = outcomes.differences.shape[1]
    spread: Vector = outcomes.differences.std(axis=1, ddof=1) if count > 1 else np.full(len(outcomes.changes), np.nan)
    errors: Vector = spread / np.sqrt(count)
    return errors.reshape(ranking.shape.num_layers, len(ranking.parts))


def reliability(differences: Grid) -> dict[str, Any]:
    """How well this order would repeat itself on other documents of the kind, from halves of those it was measured on.

    `halves`: mean Spearman correlation of the scores of two random halves. `whole`: the same for the whole number of documents, by
    Spearman-Brown 2r / (1 + r). `found_by_half`: share of the best 15 % by one half that are among the best 15 % by the other. `found`:
    expected share of the truly best 15 % among the best 15 % here, see `found_share`. None for fewer than two documents or units.
    """
    import numpy as np

    units, documents = differences.shape
    facts = {"documents": documents, "splits": SPLITS, "seed": SEED, "top_share": TOP_SHARE}
    if documents < 2 or units < 2:
        return {**facts, **dict.fromkeys(("halves", "halves_std", "whole", "found_by_half", "found"), None)}
    pairs = _halves(differences)
    correlations = np.array([spearman(one, other) or 0.0 for one, other in pairs])  # 0 where a half does not tell the units apart
    overlaps = np.array([_overlap(one, other, TOP_SHARE) for one, other in pairs])
    half = float(correlations.mean())
    whole = max(0.0, 2 * half / (1 + half)) if half > -1 else 0.0
    return {
        **facts,
        "halves": half,
        "halves_std": float(correlations.std(ddof=1)),
        "whole": whole,
        "found_by_half": float(overlaps.mean()),
        "found": found_share(differences),
    }


def found_share(differences: Grid, top: float = TOP_SHARE) -> float:
    """The share of the truly best units that measuring them on so many documents finds, by simulation; the share itself is chance.

    True scores are taken to be spread as those measured, drawn together to the variance that is not noise; each round measures them on
    documents drawn anew from these. In simulations right to 0.02 for normal effects; up to 0.2 too good where the best crowd together.
    """
    import numpy as np

    documents = differences.shape[1]
    own = differences - differences.mean(axis=0)  # what a document does to all units alike changes no order
    scores = own.mean(axis=1)
    noise = own.var(axis=1, ddof=1).mean() / documents
    spread = scores.var(ddof=1)
    true = max(0.0, 1 - noise / spread) if spread > 0 else 0.0
    truth = scores * true**0.5
    drawn = np.random.default_rng(SEED).multinomial(documents, np.full(documents, 1 / documents), size=ROUNDS) / documents
    measured = truth + drawn @ own.T - scores
    return float(np.mean([_overlap(truth, row, top) for row in measured]))


def _of_documents(samples: pd.DataFrame, name: str) -> Vector:
    """The metric's value for every document, in the order of the documents."""
    import numpy as np

    task, _, metric = name.partition("/")
    rows = samples[samples["task"] == task].sort_values("document")
    return rows[metric].to_numpy(np.float64)


def _halves(differences: Grid) -> list[tuple[Vector, Vector]]:
    """The scores of the units by two random halves of the documents, for many splits."""
    import numpy as np

    generator = np.random.default_rng(SEED)
    documents = differences.shape[1]
    pairs = []
    for _ in range(SPLITS):
        shuffled = generator.permutation(documents)
        one, other = shuffled[: documents // 2], shuffled[documents // 2 :]
        pairs.append((differences[:, one].mean(axis=1), differences[:, other].mean(axis=1)))
    return pairs


def _overlap(one: Vector, other: Vector, top: float) -> float:
    """The share of the top units by one side that are so by the other; ties by place, as in an order."""
    import numpy as np

    count = max(1, round(top * len(one)))
    tops = [set(np.argsort(-side, kind="stable")[:count].tolist()) for side in (one, other)]
    return len(tops[0] & tops[1]) / count
