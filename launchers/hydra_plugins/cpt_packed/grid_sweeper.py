"""Sweeps over a union of grids: `params` are common to all, each entry of `grids` adds its own product."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridSweeperConf:
    """params: {key: "a,b"}; grids: a list of such mappings, one product each. What stands on the command line wins over both."""

    _target_: str = "hydra_plugins.cpt_packed.grid_sweeper.GridSweeper"
    params: dict[str, str] = field(default_factory=dict)
    grids: list[dict[str, str]] = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="cpt_packed")


class GridSweeper(Sweeper):
    """Hands all points to the launcher in one batch; the launcher composes and validates them before anything starts."""

    def __init__(self, params: dict[str, str], grids: list[dict[str, str]]) -> None:
        self.params = params
        self.grids = grids
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        results = self.launcher.launch(expand(parser, self.params, list(self.grids), arguments), initial_job_idx=0)
        for result in results:
            _ = result.return_value  # raises what the point raised
        return [results]


def expand(parser: OverridesParser, params: dict[str, str], grids: Sequence[dict[str, str]], arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every point, each once: the products of `params` with each grid, the command line's values in place of theirs.

    Where choices of a group are swept a setting is of those that have it: criterion=random,delta_norm criterion.seed=1,2 are three points.
    """
    given = {place for override in parser.parse_overrides(list(arguments)) for place in _places(override)}
    points: dict[tuple[str, ...], None] = {}
    for grid in grids or [{}]:
        swept = [f"{key}={values}" for key, values in {**params, **grid}.items() if not _is_given(key, given)]
        (batch,) = BasicSweeper.split_arguments(parser.parse_overrides([*arguments, *swept]), max_batch_size=None)
        points.update(dict.fromkeys(map(tuple, batch)))
    return [list(point) for point in dict.fromkeys(_with_own_settings(parser, list(points)))]


def _places(override: Override) -> set[str]:
    """What an override sets: its key, and of a choice `group@package` the package too."""
    key = override.get_key_element().lstrip("+~")
    return {key, key.rpartition("@")[2]}


def _is_given(key: str, given: set[str]) -> bool:
    """Whether the command line sets this key, or chooses the group it belongs to: criterion=x replaces a sweep of criterion.seed."""
    parts = key.lstrip("+~").split(".")
    return any(".".join(parts[:length]) in given for length in range(1, len(parts) + 1))


def _with_own_settings(parser: OverridesParser, points: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The points without the settings that other choices of a group have and their own has not; what no choice has stays, to be refused."""
    parsed = {word: parser.parse_override(word) for word in {word for point in points for word in point}}
    choices = {word: choice for word, override in parsed.items() if (choice := _choice(parser.config_loader, override))}
    known: dict[str, set[str]] = defaultdict(set)
    for place, names in choices.values():
        known[place] |= names
    for point in points:
        own = dict(choices[word] for word in point if word in choices)
        yield tuple(word for word in point if not _is_of_another(parsed[word], own, known))


def _choice(loader: ConfigLoader | None, override: Override) -> tuple[str, frozenset[str]] | None:
    """Where an override puts a file of a group, and the settings of that file; None if it does no such thing."""
    group, choice = override.key_or_group, override.value()
    if loader is None or override.is_hydra_override() or choice not in loader.get_group_options(group):
        return None
    file = loader.repository.load_config(f"{group}/{choice}")  # type: ignore[attr-defined]
    return override.package or group, frozenset(map(str, file.config))


def _is_of_another(override: Override, own: Mapping[str, Set[str]], known: Mapping[str, Set[str]]) -> bool:
    """Whether it changes a setting that the point's choice has not and another choice for the same place has."""
    if override.is_add() or override.is_force_add() or override.is_delete():
        return False
    inside = {
        place: override.key_or_group.removeprefix(f"{place}.").split(".")[0]
        for place in own
        if override.key_or_group.startswith(f"{place}.")
    }
    return any(name in known[place] - own[place] for place, name in inside.items())
