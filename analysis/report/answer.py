"""The answer in words made from numbers: what is best, by how much, whether that is noise, what it cost, how to run it elsewhere."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from analysis.orders import Order, carried, scale
from analysis.paired import test
from analysis.report.cost import Cost
from analysis.report.verdicts import Compared, OrderVerdict, PointVerdict, p_text
from analysis.results import STDERR, Results, gaps, is_share, rewound_units
from cpt_lab.report import duration
from cpt_lab.study import Study

TWO_ERRORS = 2.0  # paired standard errors below the unedited model that are not yet called a loss
CHECKPOINTS = ("base", "tuned", "reference")

ONE_TRAINING = (
    "The noise is that of the documents. The weights come from one training run: of another run, with another seed, the order of the "
    "criteria may be another, and nothing here measures that."
)


@dataclass(frozen=True)
class Answer:
    """A headline, the sentences that explain it, and the command for a model of one's own."""

    headline: str
    sentences: tuple[str, ...]
    command: str


def of_orders(results: Results, verdict: OrderVerdict, cost: Cost) -> Answer:
    """Of a rewind study: the best order, its lead over the next criterion and over random ones, and how far it carries."""
    best = verdict.best
    factor, unit = _unit(results, verdict.metric)
    units = rewound_units(results.points)
    sentences = [
        f"Averaged over all shares of {units} rewound, {best.label} keeps {factor * best.area:.3g}{unit} of {_metric(verdict.metric)} "
        f"over {len(best.areas):,} documents."
    ]
    if verdict.others:
        sentences.append(_lead(verdict.others[0], len(verdict.others), factor, _points(results, verdict.metric)))
    random = next((compared for compared in verdict.others[1:] if compared.name.startswith("random")), None)
    if random is not None:
        sentences.append(_lead(random, len(verdict.others), factor, _points(results, verdict.metric)))
    carried = _carried(results, best, verdict.metric)
    sentences += [carried] if carried else []
    if verdict.others and results.points["tuned"].nunique() == 1:
        sentences.append(ONE_TRAINING)
    return Answer(f"Best order: {best.label}.", (*sentences, *_rest(results, cost)), command(results.studies[0]))


def of_points(results: Results, metric: str, verdict: PointVerdict | None, cost: Cost) -> Answer:
    """Of any other study with scores: the best point, and its difference to the unedited model."""
    table, (factor, unit) = results.points, _unit(results, metric)
    done = table[table[metric].notna()]
    better = bool(table.attrs["higher_is_better"].get(metric, True))
    scores = done[metric].to_numpy(float)
    row = done.iloc[int(scores.argmax() if better else scores.argmin())]
    error = row[f"{metric}{STDERR}"]
    spread = f" ± {factor * error:.2g}" if error == error else ""
    sentences = [f"Of {len(done)} finished points {row['name']} has the best {_metric(metric)}: {factor * row[metric]:.4g}{spread}{unit}."]
    compared = next((each for each in verdict.found if each.name == row["name"]), None) if verdict else None
    if verdict and compared:
        sentences.append(
            f"That is {_signed(compared, factor)} {_points(results, metric)} against {verdict.against} "
            f"({_p(compared)}, Holm over {verdict.tests}): {_noise(compared)}."
        )
    elif verdict and (row["key"] == row["unedited"] or row["name"] == verdict.against):
        sentences.append(f"It is {verdict.against} itself: no edit is better.")
    return Answer(f"Best point: {row['name']}.", (*sentences, *_rest(results, cost)), command(results.studies[0]))


def of_products(results: Results, cost: Cost) -> Answer:
    """Of a study without scores: how much is there."""
    done = int((results.points["state"] == "done").sum())
    kinds = sorted({point.spec.PRODUCT for study in results.studies for point in study.points})
    headline = f"{done} of {len(results.points)} points are done: {', '.join(kinds)}."
    return Answer(headline, tuple(_rest(results, cost)), command(results.studies[0]))


def command(study: Study) -> str:
    """The study's own command with checkpoints of one's own in the place of its own."""
    words = shlex.split(study.command) or ["python", "-m", "cpt_lab", f"+experiment={study.name}"]
    if "cpt_lab" not in words and not words[0].endswith("cpt-lab"):
        words = ["python", "-m", "cpt_lab", f"+experiment={study.name}"]
    verbs = ("run", "resume", "retry", study.name)
    own = [word for word in words if not word.startswith(tuple(f"{name}." for name in CHECKPOINTS)) and word not in verbs]
    own = [word for word in own if not word.startswith(("study=", "results=", "--"))]
    if not any("=" in word for word in own):
        own.append(f"+experiment={study.name}")
    folders = [f"{name}.from=folder {name}.path={name.upper()}_FOLDER" for name in _needed(study)]
    return " ".join([*map(shlex.quote, own), f"study={study.name}_mine", *folders])


def _needed(study: Study) -> list[str]:
    """Which checkpoints the study names: the reference only where a criterion compares with it."""
    with_reference = any(
        str(name).endswith("diff") for point in study.points for name in (point.varies.get("criterion"), _criterion(point.config))
    )
    return [name for name in CHECKPOINTS if name != "reference" or with_reference]


def _criterion(config: dict[str, object]) -> str:
    criterion = config.get("criterion")
    return str(criterion.get("name", "")) if isinstance(criterion, dict) else ""


def _lead(compared: Compared, tests: int, factor: float, points: str) -> str:
    return (
        f"Against {compared.name} that is {_signed(compared, factor)} {points} "
        f"({_p(compared)}, Holm over {tests} {'criterion' if tests == 1 else 'criteria'}): {_noise(compared)}."
    )


def _carried(results: Results, best: Order, metric: str) -> str:
    """How large a share the best order rewinds before the loss is more than two standard errors."""
    outcomes, (factor, unit) = results.outcomes(metric), _unit(results, metric)
    at = dict(zip(best.fractions, best.keys[0], strict=True))
    if 0.0 not in at:
        return ""
    sign = 1 if results.points.attrs["higher_is_better"].get(metric, True) else -1
    changes = {share: test(outcomes.of(of), outcomes.of(at[0.0])) for share, of in at.items() if share > 0}
    largest = carried(changes, sign=sign, errors=TWO_ERRORS)
    units = rewound_units(results.points)
    if largest is None:
        return f"Already {100 * min(changes):g} % of the {units} rewound cost more than two standard errors." if changes else ""
    change, untouched = changes[largest], outcomes.of(at[0.0])
    assert change is not None
    assert untouched is not None
    before = float(untouched.mean())
    return (
        f"With it up to {100 * largest:g} % of the {units} can be rewound within two standard errors of the unedited model: "
        f"{factor * (before + change.mean):.3g}{unit} against {factor * before:.3g}{unit}."
    )


def _rest(results: Results, cost: Cost) -> list[str]:
    missing = gaps(results.points)
    spent = f"All of it took {duration(cost.seconds)} of work" + (
        f" and {cost.gpu_hours:.3g} GPU hours." if cost.gpu_hours else ", none of it on a GPU."
    )
    return [spent, *([f"Not all is there: {missing}."] if missing else [])]


def _signed(compared: Compared, factor: float) -> str:
    error = "" if compared.test.stderr is None else f" ± {factor * compared.test.stderr:.2g}"
    return f"{factor * compared.test.mean:+.2g}{error}"


def _p(compared: Compared) -> str:
    """`p = 0.03`, `p < 0.001`."""
    text = p_text(compared.p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _noise(compared: Compared) -> str:
    return "more than noise" if compared.more_than_noise else "not more than noise"


def _unit(results: Results, metric: str) -> tuple[float, str]:
    return (scale(results, metric), " %") if is_share(results.points, metric) else (1.0, "")


def _points(results: Results, metric: str) -> str:
    return "points" if is_share(results.points, metric) else "units of the metric"


def _metric(metric: str) -> str:
    task, _, name = metric.partition("/")
    return f"{name.replace('_', ' ')} on {task}" if name else metric
