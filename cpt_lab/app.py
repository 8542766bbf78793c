"""The command line: `python -m cpt_lab [VERB] ...`. Hydra composes the points; here they become specs, a plan and a launch."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cpt_lab import config, costs, export, launch, local, plan, points, preflight, rates, remote, report, roster, specs, study
from cpt_lab.commands import cancel, compare, figure, gc, logs, relaunch, track, ui, wait, words
from cpt_lab.commands import report as reporting
from cpt_lab.commands.words import Words
from cpt_lab.config import Settings
from cpt_lab.names import unknown
from cpt_lab.store import Store
from cpt_lab.study import Point, Study

BAD_INPUT, SOME_FAILED = 2, 1
MOST_PACKS = 1000  # of a stage, where neither the user nor the site says how many run side by side
NO_PLACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM))  # of writing: the user's to mend
HELP = """\
python -m cpt_lab [VERB] [+experiment=NAME] [KEY=VALUE ...]     (cpt-lab is the same)

  run          (no verb) compose the points, build what is missing, draw the figures
  plan         what would be done, why, in which packs; needs no GPU, no network, no torch
  status       points by state, pace, time left, failures, jobs:  status STUDY [--watch], or status +experiment=NAME
  logs         what the build of a point wrote: logs [STUDY] POINT [--follow]; POINT is its name, words of it, or any key
  wait         until nobody works on the study any more: wait STUDY; exit code 1 unless all its points are done
  cancel       end the jobs and workers of a study: cancel STUDY
  resume       launch the study again as its last launch was, for what is missing: resume STUDY
  retry        the same for what failed or was lost with its worker: retry STUDY [--failed] [--lost]
  gc           what nothing refers to any more: gc [--delete] [quota=GB]
  materialize  the weights of one point as a checkpoint folder of your own: materialize +experiment=NAME KEY=VALUE ... out=FOLDER
  compare      points side by side with paired standard errors: compare STUDY [WORD ...], points whose name has all the words,
               or compare STUDY "NAME" "NAME" ...; studies of this results folder or another: compare A B[@FOLDER] [WORD ...];
               format=csv, latex or markdown
  report       a study as one page, complete in itself: report STUDY [STUDY ...]; its answer, tests, figures, cost, failures
  figure       figures and tables of finished studies: figure STUDY [STUDY ...] [NAME ...] [KEY=VALUE ...]; figure --list says which
  data         data check protocol=NAME ...: where the items of every task come from, and what to do where they are missing
  track        track sync [STUDY ...]: bring MLflow up to the store; track reconcile [STUDY ...]: close runs that died, mend what differs;
               track init [STUDY ...]: make database and experiment
  ui           MLflow's own pages over the runs of the store, until Ctrl-C: ui [STUDY] [port=5000]

  --config-dir DIR    keep experiments of your own in DIR/experiment
  --cfg job           print the composed configuration
"""
COMPOSED_VERBS = ("run", "plan", "status", "compare", "materialize", "data")
OTHER_MODES = frozenset(("--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--run", "-r"))  # these of Hydra's do not sweep
OF_A_CHOICE = ("intervention.", "then.", "criterion.", "other_criterion.")  # settings of groups whose files have different ones
FLAGS: dict[str, tuple[str, ...]] = {  # of the verbs that read the store and compose nothing
    "logs": logs.FLAGS,
    "wait": (),
    "cancel": (),
    "resume": (),
    "retry": relaunch.FLAGS,
    "gc": gc.FLAGS,
    "track": (),
    "figure": figure.FLAGS,
    "report": (),
    "ui": (),
}
VERBS = (*COMPOSED_VERBS, *FLAGS)


def _conf() -> str:
    inside = Path(__file__).parent / "conf"  # a wheel carries it in the package, a checkout beside it
    return str(inside if inside.is_dir() else Path(__file__).parent.parent / "conf")


@hydra.main(version_base="1.3", config_path=_conf(), config_name="config")
def main(_: DictConfig) -> None:
    """Hydra's entry; the launcher sees all points at once and calls `act`."""
    raise AssertionError("conf/config.yaml sets hydra.mode=MULTIRUN and a launcher of cpt_packed: nothing else runs a study")


def run(arguments: list[str] | None = None) -> None:
    """The console script: exit code 0 if all is well, 1 if points failed, 2 for bad input, said in one sentence."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("help", "-h", "--help"):
        print(HELP, end="")
        sys.exit(0 if given else BAD_INPUT)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors come here, to be said in our words
    os.environ.setdefault("CPT_LAB_COMMAND", shlex.join(["python", "-m", "cpt_lab", *given]))
    try:
        code = _dispatch(given)
    except (HydraException, OmegaConfBaseException, ValueError, KeyError) as error:
        print(f"error: {report.sentence(error)}", file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `... | head` has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the interpreter flushes it at exit)
        code = 0
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        print(f"error: {report.sentence(error)}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)


def _dispatch(given: list[str]) -> int:
    verb = given[0] if "=" not in given[0] and not given[0].startswith(("-", "+", "~")) else "run"
    if verb not in VERBS:
        raise KeyError(unknown("verb", verb, VERBS))
    if verb in FLAGS:
        return _on_store(verb, words.parse(verb, given[1:], FLAGS[verb]))
    names, overrides, options = words.divided(given[1:] if given[0] == verb else given)
    if verb == "data":
        if names != ["check"]:
            raise ValueError(f"data {' '.join(names)}: the one thing to do is `data check protocol=NAME`")
        names = []
    if verb == "status" and names:
        return _status(words.parse(verb, given[1:], wait.FLAGS))
    if verb == "compare" and names:
        store = Store(words.results(overrides))
        return compare.run(given[1:], store)
    if names:
        raise ValueError(f"{names[0]!r} is neither KEY=VALUE nor a verb; verbs come first: {', '.join(VERBS)}")
    if OTHER_MODES.isdisjoint(option.partition("=")[0] for option in options):
        overrides, options = in_each_point(overrides), [*options, "--multirun"]  # else Hydra hides what is wrong behind advice to say so
    sys.argv = ["cpt_lab", *overrides, f"verb={verb}", *options]
    main()
    return 0


def in_each_point(overrides: Sequence[str]) -> list[str]:
    """The overrides with plain settings of an intervention or a criterion as sweeps over one value.

    Hydra puts a plain setting into the choice that stands there before any sweep, which may have none of this name.
    """
    parser = OverridesParser.create()
    return [_as_sweep(parser, word) if word.startswith(OF_A_CHOICE) else word for word in overrides]


def _as_sweep(parser: OverridesParser, word: str) -> str:
    name, _, value = word.partition("=")
    sweep = f"{name}=choice({value})"
    try:
        given, swept = (parser.parse_override(text).value() for text in (word, sweep))
    except HydraException:
        return word  # Hydra says best what is wrong
    return sweep if isinstance(swept, ChoiceSweep) and swept.list == [given] else word


def _on_store(verb: str, given: Words) -> int:
    """What reads the store and composes nothing."""
    commands = {
        "logs": logs.run,
        "wait": wait.run,
        "cancel": cancel.run,
        "gc": gc.run,
        "track": track.run,
        "figure": figure.run,
        "report": reporting.run,
        "ui": ui.run,
    }
    return commands[verb](given) if verb in commands else _relaunch(verb, given)


def _status(given: Words) -> int:
    name = given.one("status")
    if given.flags:
        return wait.watch(given.store, name)
    report.show_status(given.store, roster.read(given.store, name))
    return 0


def _relaunch(verb: str, given: Words) -> int:
    """The study's last launch once more: for all that is missing, or for what failed or was lost."""
    asked, chosen, where = relaunch.last(given.store, given.one(verb))
    among = relaunch.among(given, given.store, asked) if verb == "retry" else None
    if among == []:
        print(f"study {asked.name}: nothing to try again; `python -m cpt_lab resume {asked.name}` goes on with what is missing")
        return 0
    if chosen.out is not None and not export.is_taken(chosen.out):
        return _materialize(asked, chosen, where)
    return _run(asked, chosen, where, among=among, saved=True)


# ---------------------------------------------------------------------------------------------------- what a launch does


def act(composed: Sequence[tuple[dict[str, Any], str | None]], overrides: Sequence[Sequence[str]], *, where: str) -> None:
    """Do what the verb says with the composed points; SystemExit with the exit code unless it is 0. The launcher calls this."""
    names = points.named(overrides)
    composed_points = points.align(points.point(data, varies) for (data, _), varies in zip(composed, names, strict=True))
    first, experiment = composed[0]
    chosen = config.settings(config.parse(first), experiment, Path.cwd())
    verb = _verb(chosen, str(first["target"]["name"]))
    name, figures = chosen.study, chosen.figures
    if verb == "materialize":  # a study of its own: the experiment's keeps its points and figures
        composed_points, name, figures = [export.only(composed_points, overrides)], f"{name}_materialized", ()
    asked = Study(
        name=name,
        question=chosen.question,
        command=os.environ.get("CPT_LAB_COMMAND", ""),
        points=tuple(composed_points),
        figures=figures,
        report=chosen.report and verb != "materialize",
        tracking=chosen.tracking,
    )
    verbs = {"plan": _plan, "run": _run, "materialize": _materialize}
    code = verbs[verb](asked, chosen, where) if verb in verbs else _show(verb, Store(chosen.results), asked)
    if code:
        raise SystemExit(code)


def _verb(chosen: Settings, target: str) -> str:
    """What is to be done: a run that says where to materialize is the verb of that name."""
    if chosen.verb == "run" and chosen.out is not None:
        if target != "materialize":
            raise ValueError(f"out={chosen.out} is for checkpoints, and target={target} writes none: say `materialize` first")
        return "materialize"
    return chosen.verb


def _plan(asked: Study, chosen: Settings, where: str) -> int:
    store = Store(chosen.results)
    todo = _planned(store, asked.points, chosen, where)
    report.show_plan(
        asked,
        todo,
        store,
        missing=preflight.missing_here(todo, where),
        warnings=preflight.warnings(todo, store),
        workers=min(_workers(chosen, where), chosen.site.max_parallel or MOST_PACKS),
    )
    return 0


def _run(asked: Study, chosen: Settings, where: str, *, among: Sequence[Point] | None = None, saved: bool = False) -> int:
    """Build what is missing of the study, or of some of its points; then the figures."""
    store, wanted = Store(chosen.results), asked.points if among is None else among
    store.check_writable()
    todo = _planned(store, wanted, chosen, where)
    preflight.check_consent(todo, allowed=chosen.execution.allow_code_execution, where=where)
    preflight.check(todo, store, where=where)
    for warning in preflight.warnings(todo, store):
        print(f"warning: {warning}", file=sys.stderr)
    if not saved:
        roster.write(store, asked, study.save(store, asked), todo.resolved)
    report.show_summary(asked, todo)
    if not todo.steps:
        return _finish(store, asked)
    costs.check_budget(todo, chosen.budget.gpu_hours)
    gpus = _gpus(todo, chosen, where)
    workers = min(_workers(chosen, where, gpus), todo.todo)
    how = config.execution(chosen, cores=local.cores() // workers if where == "local" else chosen.site.cpus_per_task)
    cap = remote.gpus_to_spread(chosen.site, gpus, chosen.execution.gpus) if where == "slurm" else gpus
    how = how.model_copy(update={"gpus": cap})
    preflight.check_budgets(todo, store, how)
    if where == "slurm":
        remote.check(todo, chosen.site, gpus)
    told = launch.prepare(todo, asked, store, where=where, how=how, max_attempts=chosen.max_attempts)
    relaunch.keep(told.folder, chosen)
    if where == "slurm":
        remote.submit(told, chosen.site, gpus)
        if not chosen.wait:
            return 0
        remote.wait(told)
        return _finish(store, asked)
    with local.tracking_in_background(store, asked):
        local.work(told, workers)
    return _finish(store, asked)


def _materialize(asked: Study, chosen: Settings, where: str) -> int:
    """Build the one point as a run would, then write its weights to `out`; place and room are looked at first."""
    out, (point,) = chosen.out, asked.points
    if out is None:
        raise ValueError("materialize must know where to: give a new folder with out=FOLDER")
    if where == "slurm" and not chosen.wait:
        raise ValueError(f"{out} is written when the build is done: with hydra/launcher=slurm add wait=true")
    spec = export.weights_of(point.spec)
    export.check_place(out)
    export.check_room(out, export.LEAST_BYTES * spec.shape.parameters)
    if code := _run(asked.model_copy(update={"points": (point.model_copy(update={"spec": spec}),)}), chosen, where):
        return code
    from cpt_lab import model_card

    store = Store(chosen.results)
    made = export.weights_of(specs.settled(spec, study.orders(store, [spec])))
    export.write(store.product(made), out, model_card.text(made, specs.rankings_of(spec), store, command=asked.command))
    print(f"checkpoint: {out}")
    return 0


def _planned(store: Store, wanted: Sequence[Point], chosen: Settings, where: str) -> plan.Plan:
    asked, speeds = [point.spec for point in wanted], chosen.site.train_tokens_per_second
    costs.check_speeds(speeds, asked, (path.stem for path in Path(_conf(), "model").glob("*.yaml")))
    how = config.execution(chosen, cores=1)
    todo = plan.make(
        wanted,
        status=store.status,
        orders=study.orders(store, asked),
        workers=_workers(chosen, where),
        rates=rates.known(store, costs.device(chosen.site, where, wanted), speeds),
        pack_minutes=chosen.site.pack_minutes if where == "slurm" and chosen.packs is None else None,
        how=how,
        most_tasks=chosen.site.max_parallel or MOST_PACKS if where == "slurm" else None,
        kept=lambda spec: preflight.kept(spec, store),
    )
    if where == "slurm":
        return replace(todo, devices=remote.devices(chosen.site, chosen.execution.ranks))
    return replace(todo, devices=local.devices(how, max(1, min(todo.workers, todo.todo))))


def _workers(chosen: Settings, where: str, gpus: int = 1) -> int:
    return chosen.packs or MOST_PACKS if where == "slurm" else chosen.workers or local.default_workers(gpus)


def _gpus(todo: plan.Plan, chosen: Settings, where: str) -> int:
    """How many GPUs each worker that evaluates shall have."""
    if where == "slurm":
        return remote.gpus_to_evaluate(todo, chosen.site, chosen.execution.gpus)
    return 1 if chosen.execution.device == "cpu" else local.gpus_to_evaluate(todo, chosen.execution.gpus)


def _finish(store: Store, asked: Study) -> int:
    """Figures, summary, MLflow; then how it went."""
    files = [*report.draw(store, asked), *reporting.at_end(store, asked)]
    command = local.synchronise(store, asked, report.figure_files(store, asked.name))
    return SOME_FAILED if report.show_end(store, asked, files, command) else 0


def _show(verb: str, store: Store, asked: Study) -> int:
    if verb == "status":
        report.show_status(store, roster.of(store, asked))
        return 0
    if verb == "compare":
        compare.show(store, asked, ())
        return 0
    if verb == "data":
        return _check_data(asked)
    raise KeyError(unknown("verb", verb, VERBS))


def _check_data(asked: Study) -> int:
    from cpt_lab.evaluation import data_check

    wanted = specs.closure([point.spec for point in asked.points])
    found = {specs.key(protocol): data_check.look(protocol) for protocol in wanted if isinstance(protocol, specs.Protocol)}
    if not found:
        raise ValueError(f"no point of {asked.name} is scored by a protocol: choose target=evaluate")
    print("\n\n".join(map(data_check.text, found.values())))
    return 0 if all(looked.complete for looked in found.values()) else SOME_FAILED


__all__ = ["act", "main", "run"]
