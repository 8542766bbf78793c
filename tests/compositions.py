"""Compositions for tests: the points of a command as the launcher gets them, and the same points composed whole by Hydra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cpt_lab import points as points_of
from cpt_lab import report
from cpt_lab.app import in_each_point
from cpt_lab.study import Point
from hydra_plugins.cpt_packed._compose import compose
from hydra_plugins.cpt_packed.grid_sweeper import expand
from quick_hydra import quick

CONF = Path(__file__).parent.parent / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))

Data = dict[str, Any]


@contextmanager
def hydra(*words: str) -> Iterator[tuple[ConfigLoader, DictConfig, list[list[str]]]]:
    """Hydra's loader, the composition of a command, and the overrides of each of its points."""
    with quick(), initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = tuple(in_each_point(words))
        master = loader.load_configuration("config", list(words), run_mode=RunMode.MULTIRUN)
        sweeper = master.hydra.sweeper
        parser = OverridesParser.create(config_loader=loader)
        yield loader, master, expand(parser, dict(sweeper.params), [dict(grid) for grid in sweeper.grids], words)


def composed(*words: str) -> list[Data]:
    """The configurations of a command's points."""
    with hydra(*words) as (loader, master, sweep):
        return [data for data, _ in compose(loader, master, sweep)]


def whole(loader: ConfigLoader, master: DictConfig, overrides: list[str]) -> Data:
    """One point composed by Hydra alone, without the corpora, which are no choice of a group."""
    point = loader.load_sweep_config(master, overrides)
    return {str(name): _resolved(point[name]) for name in point if name not in ("hydra", "corpora")}


def refused(*words: str) -> str:
    """What the app says of a command whose points cannot be made; AssertionError if they can."""
    try:
        made = points(*words)
    except (HydraException, OmegaConfBaseException, ValueError, KeyError) as error:
        return report.sentence(error)
    raise AssertionError(f"{words} make {len(made)} points")


def _resolved(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


@cache
def points(*words: str) -> tuple[Point, ...]:
    """The points of a command, as the app makes them; made once for all tests that ask."""
    with hydra(*words) as (loader, master, sweep):
        configurations = [data for data, _ in compose(loader, master, sweep)]
    return tuple(
        points_of.align(points_of.point(data, varies) for data, varies in zip(configurations, points_of.named(sweep), strict=True))
    )
