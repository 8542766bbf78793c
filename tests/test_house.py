"""The house polices itself: which module may import which, what stays light, how long things are, and what every table must have."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from cpt_lab.architecture import FAMILIES
from cpt_lab.interventions import INTERVENTIONS
from cpt_lab.orderings import CRITERIA

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SOURCES = sorted(path for name in ("cpt_lab", "analysis", "launchers") for path in (ROOT / name).rglob("*.py"))

# From the ground up: a module imports from lower layers and from its own, wherever in the file the import stands.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"names", "partitions", "families", "specs", "lease", "execution", "site"})
    | frozenset({"tracking_settings", "failures", "deadline", "keeper", "gpus"}),
    frozenset({"architecture", "shards", "store", "provenance", "slurm"}),
    frozenset({"edits", "tensor_edits", "layers", "factors", "spectral_edits", "patch", "weights", "vocabularies", "study"}),
    frozenset({"interventions", "orderings", "spectra", "lifecycle", "data", "checkpoints", "rates", "disk", "packs", "plan", "costs"}),
    frozenset({"roster", "standing", "launches"}),
    frozenset({"training", "evaluation", "tracking_look", "tracking_records", "tracking_runs", "tracking_client", "tracking"}),
    frozenset({"internals"}),
    frozenset({"build", "launch"}),
    frozenset({"progress", "worker"}),
    frozenset({"local", "remote", "preflight", "export", "model_card"}),
    frozenset({"config"}),
    frozenset({"chain"}),
    frozenset({"points", "report"}),
    frozenset({"commands"}),
    frozenset({"app"}),
    frozenset({"__main__"}),
)
# Only when they are called: specs reads the kinds of interventions back, which build on specs, and knows the measures of spectra by name;
# the tables for notebooks are built where the call stands.
CIRCLES = frozenset({("specs", "interventions"), ("specs", "spectra"), ("spectra", "local")})
NEVER_EACH_OTHER = (("interventions", "orderings"), ("interventions", "spectra"), ("training", "evaluation"))

# Who alone may import what, wherever in the file.
OWNERS: dict[str, tuple[str, ...]] = {
    "lm_eval": ("cpt_lab/evaluation/",),
    "olmo_core": ("cpt_lab/training/", "analysis/plain_training.py"),
    "hydra": ("cpt_lab/app.py", "cpt_lab/config.py", "launchers/hydra_plugins/"),
    "omegaconf": ("cpt_lab/app.py", "cpt_lab/config.py", "cpt_lab/points.py", "cpt_lab/chain.py", "launchers/hydra_plugins/"),
    "mlflow": ("cpt_lab/tracking", "analysis/", "cpt_lab/training/callbacks.py"),
    "submitit": ("cpt_lab/slurm.py",),
}
HEAVY = ("torch", "numpy", "pandas", "transformers", "mlflow", "lm_eval", "olmo_core", "scipy", "datasets", "tokenizers", "matplotlib")
LIGHT = (
    "cpt_lab",
    *(f"cpt_lab.{name}" for name in ("specs", "store", "plan", "study", "interventions", "orderings", "launch", "report", "progress")),
    *(f"cpt_lab.{name}" for name in ("local", "remote", "config", "app", "spectra", "spectra.choice", "spectra.blocks")),
    *(f"cpt_lab.{name}" for name in ("roster", "standing", "launches")),
    *(f"cpt_lab.commands.{name}" for name in ("words", "logs", "relaunch", "cancel", "wait", "gc", "track", "ui", "report", "compare")),
)
LONGEST_FUNCTION, LONGEST_LAUNCHER = 60, 400


@cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """(module, line) of every import of a file, those inside functions too, those for the type checker alone not."""
    tree = ast.parse(path.read_text())
    for_types = {inner for node in ast.walk(tree) if is_type_checking(node) for inner in ast.walk(node)}
    return tuple(found for node in ast.walk(tree) if node not in for_types for found in imported(node))


def imported(node: ast.AST) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        package = node.module in ("cpt_lab", "hydra_plugins")  # `from cpt_lab import specs` imports a module
        yield from ((f"{node.module}.{alias.name}" if package else node.module, node.lineno) for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room(module: str) -> str:
    """`cpt_lab.evaluation.session` -> `evaluation`."""
    return module.split(".")[1] if "." in module else ""


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "cpt_lab").parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_ours(path: Path) -> bool:
    """A module of cpt_lab; cpt_lab/__init__.py itself is in no layer."""
    return path.is_relative_to(ROOT / "cpt_lab") and path != ROOT / "cpt_lab" / "__init__.py"


OURS = [path for path in SOURCES if is_ours(path)]
PARENTS = {room_name: level for level, rooms in enumerate(LAYERS) for room_name in rooms}


# ---------------------------------------------------------------------------------------------------------------- imports


def test_every_module_has_its_layer_and_every_layer_its_modules() -> None:
    assert {room_of(path) for path in OURS} == set(PARENTS)


@pytest.mark.parametrize("path", OURS, ids=name)
def test_imports_go_one_way(path: Path) -> None:
    own = room_of(path)
    wrong = [
        f"line {line}: {module}"
        for module, line in imports(path)
        if module.startswith("cpt_lab.")
        and (own, room(module)) not in CIRCLES
        and room(module) in PARENTS
        and PARENTS[room(module)] > PARENTS[own]
    ]
    assert wrong == []


@pytest.mark.parametrize(("left", "right"), NEVER_EACH_OTHER)
def test_neighbours_know_nothing_of_each_other(left: str, right: str) -> None:
    found = [(room_of(path), room(module)) for path in OURS for module, _ in imports(path) if module.startswith("cpt_lab.")]
    assert (left, right) not in found
    assert (right, left) not in found


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_by_its_owners_only(library: str) -> None:
    users = {name(path) for path in SOURCES for module, _ in imports(path) if module.split(".")[0] == library}
    assert users
    assert [user for user in sorted(users) if not user.startswith(OWNERS[library])] == []


def test_planning_and_status_import_nothing_heavy() -> None:
    code = (
        f"import sys, importlib\nfor module in {LIGHT}:\n    importlib.import_module(module)\n"
        f"    print(*[f'{{module}} imports {{name}}' for name in {HEAVY} if name in sys.modules])"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert asked.stdout.split() == []


# ------------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_function_is_longer_than_sixty_lines(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: length for node in functions if (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION}
    assert long == {}


def test_no_file_of_the_launchers_is_longer_than_four_hundred_lines() -> None:
    files = [path for path in (ROOT / "launchers").rglob("*") if path.is_file() and path.suffix in (".py", "")]
    long = {name(path): count for path in files if (count := len(path.read_text().splitlines())) > LONGEST_LAUNCHER}
    assert files
    assert long == {}


@pytest.mark.parametrize("folder", ["cpt_lab", "launchers", "analysis", "tests"])
def test_every_package_that_is_imported_is_declared(folder: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    more = [*extras["olmes"], *(extras["dev"] if folder in ("analysis", "tests") else ())]
    declared = {_distribution(asked) for asked in (*project["dependencies"], *more)}
    ours = {*sys.stdlib_module_names, "cpt_lab", "analysis", "hydra_plugins", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    used = {module.split(".")[0] for path in (ROOT / folder).rglob("*.py") for module, _ in imports(path)}
    known = packages_distributions()
    assert {module for module in used - ours if declared.isdisjoint(map(_distribution, known.get(module, ())))} == set()


def _distribution(asked: str) -> str:
    """The name in a requirement, as package indexes compare them."""
    found = re.match(r"[A-Za-z0-9._-]+", asked)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found.group()).lower()


def test_there_is_no_utils() -> None:
    assert [name(path) for path in SOURCES if path.stem in ("utils", "util", "helpers", "common", "misc")] == []


# ------------------------------------------------------------------------------------------------------- tables and conf/


def options(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def test_every_criterion_has_its_file_and_every_file_its_criterion() -> None:
    assert options("criterion") == set(CRITERIA)


def test_every_intervention_has_its_file_and_every_file_its_intervention() -> None:
    assert options("intervention") == {"none", *INTERVENTIONS}


def test_a_criterion_and_an_intervention_are_called_what_their_file_is_called() -> None:
    for group in ("criterion", "intervention"):
        for option in options(group):
            assert yaml.safe_load((CONF / group / f"{option}.yaml").read_text())["name"] == option


def test_every_model_is_of_a_known_family() -> None:
    families = {option: yaml.safe_load((CONF / "model" / f"{option}.yaml").read_text())["shape"]["family"] for option in options("model")}
    assert families
    assert set(families.values()) <= set(FAMILIES)
