"""The launcher and the sweeper as Hydra plugins: Hydra's own suites, and the union of grids."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite
from hydra.version import VersionBase
from packaging.version import Version

from hydra_plugins.cpt_packed.grid_sweeper import GridSweeper, expand
from hydra_plugins.cpt_packed.launcher import PackedLauncher

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Future Hydra versions will no longer change working directory"),
    pytest.mark.filterwarnings("ignore:\\s*The version_base parameter is not specified"),
]


@pytest.fixture(autouse=True)
def _version_base_of_hydras_own_tests() -> Iterator[None]:
    """They were written for the defaults of 1.1, which a test that ran the app before has changed for the whole process."""
    kept = VersionBase.instance()
    VersionBase.set_instance(VersionBase.__new__(VersionBase))
    VersionBase.instance().setbase(Version("1.1"))
    yield
    VersionBase.set_instance(kept)


def test_hydra_finds_the_launcher_and_the_sweeper() -> None:
    found = {plugin.__module__: plugin.__name__ for kind in (Launcher, Sweeper) for plugin in Plugins.instance().discover(kind)}
    assert found[PackedLauncher.__module__] == "PackedLauncher"
    assert found[GridSweeper.__module__] == "GridSweeper"


@pytest.mark.slow
@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", []), ("local", ["hydra.launcher.n_jobs=1"])])
class TestHydrasOwnSuite(LauncherTestSuite):
    """Every test of Hydra's LauncherTestSuite."""


@pytest.mark.slow
@pytest.mark.parametrize("task_launcher_cfg", [{}])
@pytest.mark.parametrize("extra_flags", [["-m", "hydra/launcher=local"]])
class TestHydrasIntegrationSuite(IntegrationTestSuite):
    """Every test of Hydra's IntegrationTestSuite."""


def test_grids_are_united_and_the_common_parameters_belong_to_each() -> None:
    points = expand(OverridesParser.create(), {"x": "1,2"}, [{"c": "a,b"}, {"c": "r", "s": "0,1"}], ["k=5"])
    assert len(points) == 2 * 2 + 2 * 2
    assert all("k=5" in point for point in points)
    assert {frozenset(point) for point in points} >= {frozenset({"k=5", "x=1", "c=a"}), frozenset({"k=5", "x=2", "c=r", "s=1"})}


def test_a_point_that_two_grids_name_stands_once() -> None:
    assert len(expand(OverridesParser.create(), {}, [{"c": "a,b"}, {"c": "b,d"}], [])) == 3


def test_what_stands_on_the_command_line_replaces_the_sweep_of_the_same_key() -> None:
    points = expand(OverridesParser.create(), {"x": "1,2,3"}, [{"c": "a,b"}], ["x=7", "+experiment=e"])
    assert sorted(map(sorted, points)) == [["+experiment=e", "c=a", "x=7"], ["+experiment=e", "c=b", "x=7"]]


def test_without_sweeps_there_is_one_point() -> None:
    assert expand(OverridesParser.create(), {}, [], ["a=1"]) == [["a=1"]]


def test_choosing_a_group_on_the_command_line_ends_the_sweep_of_its_members() -> None:
    points = expand(OverridesParser.create(), {}, [{"c": "a,b"}, {"c": "r", "c.seed": "0,1"}], ["c=mine"])
    assert points == [["c=mine"]]
