"""What a plan costs, in words: packs, hours of GPUs or cores, time on the wall, disk; and the refusal of more than a budget."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from cpt_lab import disk, specs
from cpt_lab.names import unknown
from cpt_lab.plan import PACKED, Plan, Step
from cpt_lab.provenance import gpu_name
from cpt_lab.rates import CPU, DEVICES, H100, Speed
from cpt_lab.site import Site
from cpt_lab.study import Point

BIG_MODEL = 500_000_000  # weights; above this a CPU is no place to work, and whoever plans here will run elsewhere
LEAST_HOURS = 0.01  # that are worth a line
LEAST_BYTES = 50_000_000
GIVEN = "train_tokens_per_second"  # of the site
MOST_TRAININGS = 12  # that are told one by one


def device(site: Site, where: str, points: Sequence[Point]) -> str:
    """The device that estimates are for: the site's GPU, this machine's, or, to plan what neither has, an H100."""
    if site.gpu is not None:
        return site.gpu
    if where == "slurm":
        return H100.device.name if site.gpus_per_node else CPU
    here = gpu_name()
    if here:
        return next((name for name in DEVICES if name.lower() in here.lower()), H100.device.name)
    largest = max((_weights(point.spec) for point in points), default=0)
    return CPU if largest <= BIG_MODEL else H100.device.name


def check_speeds(given: Speed | None, wanted: Sequence[specs.Spec], models: Iterable[str]) -> None:
    """ValueError if a speed of training is given for a model that is neither among these nor trained for what is wanted."""
    if isinstance(given, Mapping):
        trained = (spec.shape.name for spec in specs.closure(list(wanted)) if isinstance(spec, specs.TrainedCheckpoint))
        known = {*models, *trained}
        for name in given:
            if name not in known:
                raise ValueError(f"site.{GIVEN}: {unknown('model', name, known)}")


def check_budget(todo: Plan, gpu_hours: float | None) -> None:
    """ValueError if the plan's estimate is above the budget."""
    if gpu_hours is not None and todo.gpu_hours > gpu_hours:
        raise ValueError(
            f"the plan needs about {todo.gpu_hours:,.1f} GPU hours and budget.gpu_hours allows {gpu_hours:,.1f}: "
            "raise it, or ask for fewer points, items or tokens"
        )


def lines(todo: Plan, workers: int) -> list[str]:
    """Packs, cost, time with so many workers at a time, and disk, each if there is something to say."""
    found = trainings(todo)
    found += [_packs(todo)] if todo.packs else []
    if todo.hours >= LEAST_HOURS:
        found += [_cost(todo), f"time: about {_hours(todo.wall_hours(workers))} with {workers} at a time, once they run"]
    return found + _disk(todo)


def trainings(todo: Plan) -> list[str]:
    """Of each training run that is to do: tokens of every source with epochs, where its size is known, steps, and hours."""
    kind = "core hours" if todo.rates.device.name == CPU else "GPU hours"
    found = []
    for step in todo.steps:
        if isinstance(step.spec, specs.TrainedCheckpoint):
            recipe, sources = step.spec.recipe, ", ".join(map(_source, step.spec.mixture.parts))
            steps = f"{step.spec.mixture.tokens // recipe.batch_tokens:,} steps of {recipe.batch_tokens:,} tokens"
            found.append(f"{step.key}: {sources}; {steps}; about {step.seconds / 3600:,.2f} {kind}, {_speed(todo, step)}")
    return found[:MOST_TRAININGS] + ([f"and {len(found) - MOST_TRAININGS} training runs more"] if len(found) > MOST_TRAININGS else [])


def _source(part: specs.Part) -> str:
    """`dolmino_math 16,000,000,000 tokens (1.50 epochs)`; what is left out of a sample for its overlap makes for a little more."""
    size = getattr(part.corpus, "usable_tokens", None)
    epochs = f" ({part.tokens / size:.2f} epochs)" if size else ""
    return f"{part.corpus.name} {part.tokens:,} tokens{epochs}"


def _packs(todo: Plan) -> str:
    """How many tasks share which stage, and how long the shortest, the middle and the longest of them take."""
    seconds = {step.key: step.seconds for step in todo.steps}
    said = []
    for stage, steps in todo.stages().items():
        if stage in PACKED:
            inside = {step.key for step in steps}
            shares = [share for names in todo.packs if (share := [name for name in names if name in inside])]
            sizes = [len(share) for share in shares]
            minutes = statistics.median(sum(seconds[name] for name in share) for share in shares) / 60
            span = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
            said.append(f"{stage} {len(shares)} of {span}" + (f" (about {minutes:,.0f} min each)" if minutes >= 1 else ""))
    return f"packs: {', '.join(said)}; points of one model and protocol lie together"


def _cost(todo: Plan) -> str:
    rate = todo.rates.device
    hours, kind = (todo.hours, "core hours") if rate.name == CPU else (todo.gpu_hours, "GPU hours")
    shares = (
        f"{100 * rate.train_share:g} % of its peak in training, {100 * rate.read_share:g} % in evaluation, "
        f"{100 * rate.spectra_share:g} % in eigenvalues"
    )
    name = "a CPU core" if rate.name == CPU else f"an {rate.name}"
    given, measured = todo.timed("given"), todo.timed("measured")
    known = [f"{given} of {todo.todo} steps at the speed given in site.{GIVEN}"] * bool(given)
    known += [f"{measured} of {todo.todo} steps as earlier ones took"] * bool(measured)
    rest = "".join(f"{said}, " for said in known) + ("the rest " if known else "")
    return f"cost: about {hours:,.2f} {kind}, {rest}from FLOP counts: {name} at {shares}"


def _speed(todo: Plan, step: Step) -> str:
    """How fast a training run goes and who says so: `40,000 tokens a second per GPU (measured)`."""
    assert isinstance(step.spec, specs.TrainedCheckpoint)
    speed = step.spec.mixture.tokens / step.seconds
    source = {"given": f"given by site.{GIVEN}", "measured": "measured: as earlier runs took", "FLOPs": "from FLOPs"}[step.source]
    return f"at {speed:,.{0 if speed >= 10 else 2}f} tokens a second per {'core' if todo.rates.device.name == CPU else 'GPU'} ({source})"


def _disk(todo: Plan) -> list[str]:
    """How much room is needed at the fullest and for what, how much stays, and which corpora are of unknown size."""
    needed = todo.room
    size = sum(needed.values())
    unknown = [step.spec.corpus for step in todo.steps if isinstance(step.spec, specs.Tokens) and not disk.tokens_of(step.spec)]
    endless = [corpus.name for corpus in unknown if isinstance(corpus, specs.HubCorpus)]
    said = [f"disk: about {disk.gigabytes(size)} GB at its fullest ({disk.words(needed)}), {disk.gigabytes(todo.kept)} GB of it stays"]
    return said * (size >= LEAST_BYTES) + [
        f"disk: nobody said how many tokens {name} has, and all of them will be written: +corpora.{name}.sample_tokens=N writes so many"
        for name in dict.fromkeys(endless)
    ]


def _hours(hours: float) -> str:
    return f"{hours * 60:,.0f} minutes" if hours < 2 else f"{hours:,.1f} hours"


def _weights(spec: specs.Spec) -> int:
    if isinstance(spec, specs.Evaluation):
        return spec.loaded.shape.parameters
    shape = getattr(spec, "shape", None) or getattr(getattr(spec, "checkpoint", None), "shape", None)
    return shape.parameters if isinstance(shape, specs.ModelShape) else 0
