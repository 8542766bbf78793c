"""What a study measured of the quantities that the papers print, and of what: the same words on both sides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import figures, lineage, orders
from analysis.figures import scaling_laws
from analysis.paired import Outcomes, test
from analysis.papers import post_trained
from analysis.results import Found, Results
from cpt_lab.evaluation.statistics import mean, standard_error
from cpt_lab.interventions.prune_layers import FirstLayers, PruneLayers
from cpt_lab.interventions.rotation import Rotation
from cpt_lab.interventions.truncate import Truncate
from cpt_lab.specs import (
    ChatTask,
    Checkpoint,
    Correlation,
    Evaluation,
    FolderCheckpoint,
    HubCheckpoint,
    Patched,
    Spectra,
    TrainedCheckpoint,
    key,
)
from cpt_lab.spectra.blocks import WHOLE
from cpt_lab.store import read_json

GAIN_AT = 0.15  # P speaks of the gain where 15 % of the heads are rewound
WITHOUT_LOSS = 2.0  # paired standard errors below the unedited model that still count as no loss: P says "significant" and no more
WHOLE_BENCHMARKS = ("gsm8k", "math500", "mmlu", "gpqa", "humaneval", "drop")
SMALLEST_IN_BILLIONS = 0.1e9  # tokens; of fewer the papers say nothing
ALPHAS = ("pl_alpha", "weighted_alpha", "rank_decay_alpha")  # which of them L's is, its page does not say


@dataclass(frozen=True)
class Measured:
    """Our number: `of` says of what in the papers' words, None where a study cannot know it (the data behind a folder)."""

    quantity: str
    of: Mapping[str, str | None]
    value: float
    error: float | None
    n: int | None
    points: tuple[str, ...]  # names


def of_checkpoint(checkpoint: Checkpoint) -> dict[str, str | None]:
    """model, pretrain and tuned as the papers' tables name them."""
    if isinstance(checkpoint, HubCheckpoint) and (known := post_trained().get(checkpoint.id.split("/")[-1])):
        return {"model": known[0], "tuned": known[1]}
    facts = lineage.origin(checkpoint)
    shape = checkpoint.shape
    model = f"OLMo-2-{facts['size']}" if shape.family == "olmo2" else shape.name
    tuned = f"{facts['domain']} {budget(facts['cpt_tokens'])}" if facts.get("cpt_tokens") else "nothing"
    if isinstance(checkpoint, FolderCheckpoint):
        return {"model": model, "pretrain": None, "tuned": None}
    from_folder = isinstance(checkpoint, TrainedCheckpoint) and isinstance(checkpoint.start, FolderCheckpoint)
    pretrain = None if from_folder or not facts.get("pretrain_tokens") else budget(facts["pretrain_tokens"])
    return {"model": model, "pretrain": pretrain, "tuned": tuned}


def budget(tokens: float) -> str:
    """`4T` of 3,896 billion tokens, `20B` of 20 billion, `0.5B` of 500 million, as the papers round them."""
    if tokens >= 0.95e12:
        return f"{tokens / 1e12:.0f}T"
    return f"{tokens / 1e9:.3g}B" if tokens >= SMALLEST_IN_BILLIONS else lineage.tokens_text(tokens)


def edit_of(checkpoint: Checkpoint | Patched) -> str:
    """What was done to the weights: `none`, `scale_transplant`, `rotate_restore attention in`; by another model than the base, that too."""
    if not isinstance(checkpoint, Patched):
        return "none"
    words = []
    for change in checkpoint.interventions:
        place = f" {change.part} {change.side}" if isinstance(change, Rotation) else ""
        other = f" from {change.name}" if isinstance(change, Rotation) and change.name != "base" else ""
        words.append(f"{change.kind}{place}{other}")
    return "+".join(words)


def accuracies(results: Results) -> Iterator[Measured]:
    """The first metric of every benchmark at every finished point, in percent; of several runs their spread, else the standard error."""
    for found in results.of_kind(Evaluation):
        metrics = read_json(found.product / "results.json")["metrics"]
        for task, name in _metrics_of(found):
            error = metrics[name].get("std", metrics[name]["stderr"])
            percent = None if error is None else 100 * error
            yield _point("accuracy", found, {"task": task}, 100 * metrics[name]["value"], percent, metrics[name]["n"])


def generated_tokens(results: Results) -> Iterator[Measured]:
    """The mean number of tokens of an answer, of chat tasks, as T counts them; the error is that of the mean."""
    for found in results.of_kind(Evaluation):
        chats = {task.name: task.repeats for task in found.spec.protocol.tasks if isinstance(task, ChatTask)}
        asked = [task for task, _ in _metrics_of(found) if task in chats]
        samples = results.documents(key(found.spec), ["task", "tokens"]) if asked else None
        for task in asked:
            if samples is not None:
                tokens = np.asarray(samples.loc[samples["task"] == task, "tokens"], float) / chats[task]
                yield _point("generated_tokens", found, {"task": task}, mean(tokens), standard_error(tokens), len(tokens))


def scalings(results: Results) -> Iterator[Measured]:
    """svsm_mean of every role over all layers with the spread over values and layers (T table 3), and alpha', its tenth (T table 4)."""
    for found in results.of_kind(Spectra):
        if found.spec.against is None or not {"svsm_mean", "svsm_std"} <= set(found.spec.measures):
            continue
        import pandas as pd

        table = pd.read_parquet(found.product / "table.parquet", columns=["role", "head", "svsm_mean", "svsm_std"])
        for role, rows in table[table["head"] == WHOLE].groupby("role", observed=True):
            factor = float(rows["svsm_mean"].mean())
            spread = float(np.sqrt((rows["svsm_std"] ** 2).mean() + rows["svsm_mean"].var(ddof=0)))
            of = {**of_checkpoint(found.spec.checkpoint), "role": str(role)}
            yield Measured("svsm_mean", of, factor, spread, len(rows), (found.point.name,))
            yield Measured("alpha", of, round(factor, 1), None, len(rows), (found.point.name,))


def rewinds(results: Results) -> Iterator[Measured]:
    """Of every metric's orders: AUC-diff (P eq. 18), the best gain at 15 %, and how much can be rewound without loss."""
    for task, metric, of in _of_rewinds(results):
        found = orders.orders(results, metric)
        for family, both in orders.directions(found).items():
            error = None if both.stderr is None else 100 * both.stderr
            points = _names(results, [keys for order in found if order.family == family for row in order.keys for keys in row])
            yield Measured("auc_difference", {**of, "task": task, "criterion": family}, abs(100 * both.mean), error, both.n, points)
        yield from _along(results, found, results.outcomes(metric), {**of, "task": task})


def truncations(results: Results) -> Iterator[Measured]:
    """The score at every share of singular values kept, against that of the unedited model, in percent of the latter."""
    for found in results.of_kind(Evaluation):
        checkpoint = found.spec.checkpoint
        if not isinstance(checkpoint, Patched) or len(checkpoint.interventions) != 1:
            continue
        (change,) = checkpoint.interventions
        unedited = key(found.spec.but(checkpoint=checkpoint.tuned))
        if not isinstance(change, Truncate) or not results.has(unedited):
            continue
        for task, metric in _metrics_of(found):
            outcomes = results.outcomes(metric)
            after, before = outcomes.of(key(found.spec)), outcomes.of(unedited)
            compared = test(after, before)
            if compared is not None and before is not None and before.mean() > 0:
                factor, of = 100 / float(before.mean()), {"task": task, "kept": f"{change.percent:g} %"}
                error = None if compared.stderr is None else factor * compared.stderr
                yield _point("truncation_relative_change", found, of, factor * compared.mean, error, compared.n)


def single_heads(results: Results) -> Iterator[Measured]:
    """The mean size of the change when a single head is rewound, in points, of greedy orders."""
    import pandas as pd

    for ranking, product in results.rankings:
        if ranking.criterion != "greedy" or ranking.unit != "head" or ranking.probe is None or ranking.probe.base is None:
            continue
        changes = 100 * np.abs(np.asarray(pd.read_parquet(product / "scores.parquet")["score"], float))
        task = (ranking.probe.metric or ranking.probe.protocol.tasks[0].name).split("/")[0]
        of = {**of_checkpoint(ranking.probe.tuned), "task": task}
        yield Measured("single_head_change", of, mean(changes), standard_error(changes), len(changes), ())


def correlations(results: Results) -> Iterator[Measured]:
    """Spearman's rho of layer importance by ablation and an alpha, with half of its 95 % interval / 1.96 as the error."""
    for found in results.of_kind(Correlation):
        criteria = {found.spec.one.criterion: found.spec.one, found.spec.other.criterion: found.spec.other}
        columns = {ranking.column or name for name, ranking in criteria.items()} & set(ALPHAS)
        said = read_json(found.product / "correlation.json")
        if "ablation" in criteria and columns and said.get("spearman") is not None:
            low, high = said["interval"]
            of = {"alpha": columns.pop()}
            yield Measured("alpha_importance_spearman", of, said["spearman"], (high - low) / (2 * 1.96), said["units"], (found.point.name,))


def prunings(results: Results) -> Iterator[Measured]:
    """How much more perplexity is lost without the last layers than without those that alpha chooses, at the most layers pruned (L)."""
    lost: dict[tuple[str, str], dict[str, dict[int, tuple[float, str]]]] = {}  # of every checkpoint and its model
    for found in results.of_kind(Evaluation):
        change = _pruned(found)
        metrics = read_json(found.product / "results.json")["metrics"]
        name = next((name for name in metrics if name.endswith("word_perplexity")), None)
        if change is None or name is None:
            continue
        unedited = results.store.root / Evaluation.FOLDER / key(found.spec.but(checkpoint=found.spec.loaded)) / "product" / "results.json"
        before = read_json(unedited).get("metrics", {}).get(name)
        if before:
            who, count = change
            worse = metrics[name]["value"] - before["value"]
            whole = found.spec.loaded
            mine = lost.setdefault((key(whole), whole.shape.name), {"last": {}, "alpha": {}})[who]
            mine[count] = min(mine.get(count, (math.inf, "")), (worse, found.point.name))
    for (_, model), of_model in lost.items():
        shared = sorted(of_model["last"].keys() & of_model["alpha"].keys())
        if not shared or of_model["alpha"][shared[-1]][0] <= 0:
            continue
        (last, one), (alpha, other) = of_model["last"][shared[-1]], of_model["alpha"][shared[-1]]
        yield Measured("pruning_gain", {"model": model, "pruned": f"{shared[-1]} layers"}, last / alpha, None, None, (one, other))


def depth_laws(results: Results) -> Iterator[Measured]:
    """The exponent of alpha's range over the number of layers, and the R2 of its logarithms (L), as the figure of them has them."""
    try:
        grown = scaling_laws.growth(results, figures.settings("scaling_laws"))
    except ValueError:  # says what is missing: watched runs of two depths
        return
    fit, names = grown.fit, tuple(run.label for run in grown.runs)
    error = fit.stderr if math.isfinite(fit.stderr) else None
    yield Measured("alpha_depth_exponent", {}, fit.exponent, error, len(fit.x), names)
    yield Measured("alpha_depth_r_squared", {}, fit.r_squared, None, len(fit.x), names)


QUANTITIES: dict[str, Callable[[Results], Iterator[Measured]]] = {
    "accuracy": accuracies,
    "generated_tokens": generated_tokens,
    "scalings": scalings,
    "rewinds": rewinds,
    "truncations": truncations,
    "single_head_change": single_heads,
    "alpha_importance_spearman": correlations,
    "pruning_gain": prunings,
    "alpha_depth": depth_laws,
}


def measured(results: Results) -> Iterator[Measured]:
    """Everything of QUANTITIES that these results hold."""
    for quantity in QUANTITIES.values():
        yield from quantity(results)


def _point(quantity: str, found: Found[Evaluation], of: dict[str, str], value: float, error: float | None, n: int) -> Measured:
    checkpoint = found.spec.checkpoint
    whole = {**of_checkpoint(found.spec.loaded), "edit": edit_of(checkpoint), **of}
    return Measured(quantity, whole, value, error, n, (found.point.name,))


def _metrics_of(found: Found[Evaluation]) -> list[tuple[str, str]]:
    """(task, its first metric) of the benchmarks that were scored whole."""
    metrics: dict[str, Any] = read_json(found.product / "results.json")["metrics"]
    first = {name.split("/")[0]: name for name in reversed(metrics)}
    return [(task, first[task]) for task in WHOLE_BENCHMARKS if task in first and "part" not in metrics[first[task]]]


def _of_rewinds(results: Results) -> list[tuple[str, str, dict[str, str | None]]]:
    """(task, metric, of which checkpoint) of what is rewound; nothing where several checkpoints are."""
    table = results.points
    rewound = set(table.loc[table["fraction"].notna() & table["criterion"].notna(), "name"])
    evaluations = [found for found in results.of_kind(Evaluation) if found.point.name in rewound]
    if not evaluations or len({key(found.spec.loaded) for found in evaluations}) > 1:
        return []
    of = of_checkpoint(evaluations[0].spec.loaded)
    return [(task, metric, of) for task, metric in _metrics_of(evaluations[0])]


def _along(results: Results, found: list[orders.Order], outcomes: Outcomes, of: dict[str, str | None]) -> Iterator[Measured]:
    """The best gain at GAIN_AT over all orders, and the largest share that an order bears without loss."""
    gains, shares = [], []
    for order in found:
        (row, *_) = order.keys
        at = dict(zip(order.fractions, row, strict=True))
        if 0.0 not in at:
            continue
        changes = {fraction: test(outcomes.of(each), outcomes.of(at[0.0])) for fraction, each in at.items()}
        shares.append((orders.carried(changes, sign=1, errors=WITHOUT_LOSS) or 0.0, at))
        if (gain := changes.get(GAIN_AT)) is not None:
            gains.append((gain, at[GAIN_AT]))
    if gains:
        best, key_of = max(gains, key=lambda each: each[0].mean)
        error = None if best.stderr is None else 100 * best.stderr
        yield Measured("rewind_gain", {**of, "rewound": "15 %"}, 100 * best.mean, error, best.n, _names(results, [key_of]))
    if shares:
        share, at = max(shares, key=lambda each: each[0])
        yield Measured("rewindable_share", of, 100 * share, None, None, _names(results, [at[share]] if share in at else []))


def _names(results: Results, keys: list[str]) -> tuple[str, ...]:
    table = results.points
    return tuple(str(name) for name in table.loc[table["key"].isin(set(keys)), "name"])


def _pruned(found: Found[Evaluation]) -> tuple[str, int] | None:
    """(`last` or `alpha`, how many layers) of a pruned point; None of others."""
    asked = found.point.spec
    checkpoint = asked.checkpoint if isinstance(asked, Evaluation) else None
    if not isinstance(checkpoint, Patched) or len(checkpoint.interventions) != 1:
        return None
    (change,) = checkpoint.interventions
    if not isinstance(change, PruneLayers):
        return None
    if isinstance(change.select, FirstLayers):
        ranking = change.select.ranking
        return ("alpha", change.select.count) if {ranking.criterion, ranking.column} & set(ALPHAS) else None
    layers = change.select.layers
    total = checkpoint.shape.num_layers
    return ("last", len(layers)) if sorted(layers) == list(range(total - len(layers), total)) else None
