"""Sweeps over a union of grids: `params` are common to all, each entry of `grids` adds its own product."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
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
    """The overrides of every point, each once: the products of `params` with each grid, the command line's values in place of theirs."""
    given = {place for override in parser.parse_overrides(list(arguments)) for place in _places(override)}
    points: dict[tuple[str, ...], None] = {}
    for grid in grids or [{}]:
        swept = [f"{key}={values}" for key, values in {**params, **grid}.items() if not _is_given(key, given)]
        (batch,) = BasicSweeper.split_arguments(parser.parse_overrides([*arguments, *swept]), max_batch_size=None)
        points.update(dict.fromkeys(map(tuple, batch)))
    return [list(point) for point in points]


def _places(override: Override) -> set[str]:
    """What an override sets: its key, and of a choice `group@package` the package too."""
    key = override.get_key_element().lstrip("+~")
    return {key, key.rpartition("@")[2]}


def _is_given(key: str, given: set[str]) -> bool:
    """Whether the command line sets this key, or chooses the group it belongs to: criterion=x replaces a sweep of criterion.seed."""
    parts = key.lstrip("+~").split(".")
    return any(".".join(parts[:length]) in given for length in range(1, len(parts) + 1))
