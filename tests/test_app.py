"""The command line from end to end: plan, run, status, compare and the targets, on tiny checkpoints in folders."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Answer, here, there
from cpt_lab import app
from cpt_lab.architecture import ATTENTION_ROLES, matrix
from cpt_lab.store import Store
from cpt_lab.study import load, resolved
from cpt_lab.weights import open_weights
from factory import tiny_checkpoint, tiny_shape

HEAVY = {"torch", "transformers", "lm_eval", "datasets", "mlflow", "olmo_core", "pandas", "matplotlib", "submitit"}
PROTOCOL = "protocol.tasks=[{kind:perplexity,name:text,corpus:text,split:validation,items:3}]"
SMALL = ("+corpora.text.documents=300", "+corpora.text.held_out=20", PROTOCOL, "tracking=off", "workers=1", "criterion=random")
REWIND = ("intervention=rewind", "intervention.fraction=0,0.25,0.5,1")


# --------------------------------------------------------------------------------------------- without torch or network


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answer, Path]:
    """What `plan +experiment=rewind_7b` says on a machine with no hub, no cache and no GPU, and where it was asked."""
    folder = tmp_path_factory.mktemp("bare")
    bare = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "CUDA_VISIBLE_DEVICES": "", "PYTHONPROFILEIMPORTTIME": "1"}
    return there("plan", "+experiment=rewind_7b", "results=results", cwd=folder, environment=bare), folder


@pytest.mark.slow
def test_the_plan_of_the_7b_rewind_says_what_is_to_do_and_what_is_missing(planned: tuple[Answer, Path]) -> None:
    answer, _ = planned
    assert answer.code == 0
    assert answer.out.startswith("study rewind_7b: 238 points, 0 done")
    assert "160 spectra, 10 tables, 1025 probe, 17 rank, 205 evaluate" in answer.out  # all curves share the point at 0, and the one at 1
    missing = [line for line in answer.out.splitlines() if line.startswith("missing here: ")]
    assert any("allenai/OLMo-2-1124-7B (stage1-step928646-tokens3896B)" in line for line in missing)
    assert any("allenai/dolmino-mix-1124" in line for line in missing)
    assert "GPU hours" in answer.out
    assert "packs: " in answer.out


def test_a_plan_imports_nothing_heavy_and_writes_nothing(planned: tuple[Answer, Path]) -> None:
    answer, folder = planned
    imported = set(re.findall(r"\| +([A-Za-z_0-9]+)$", answer.err, flags=re.MULTILINE))
    assert "cpt_lab" in imported
    assert not imported & HEAVY
    assert not list(folder.iterdir())


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("help",)])
def test_help_names_every_verb(words: tuple[str, ...]) -> None:
    answer = here(*words)
    assert answer.code == 0
    for verb in ("run", "plan", "status", "materialize", "compare", "data", "track"):
        assert f"\n  {verb} " in answer.out


def test_no_word_at_all_prints_the_help_and_is_no_success() -> None:
    answer = here()
    assert answer.code == 2
    assert answer.out.startswith("python -m cpt_lab [VERB]")


def test_the_command_that_is_kept_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_dispatch", lambda _: print(os.environ["CPT_LAB_COMMAND"]) or 0)
    answer = here("+experiment=quickstart", "question=Isn't it?", "fractions=[0,1]")
    assert shlex.split(answer.out) == ["python", "-m", "cpt_lab", "+experiment=quickstart", "question=Isn't it?", "fractions=[0,1]"]


def test_the_composed_configuration_can_be_printed() -> None:
    answer = here("--cfg", "job", "criterion=random", "workers=3")
    assert answer.code == 0, answer.err
    assert "workers: 3\n" in answer.out
    assert "criterion:\n  name: random\n  seed: 0\n" in answer.out


@pytest.mark.slow
def test_the_status_of_an_experiment_that_never_ran_is_that_of_planned_points(tmp_path: Path) -> None:
    answer = here("status", "+experiment=quickstart", f"results={tmp_path}")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("study quickstart: 49 points: 49 planned")


# ------------------------------------------------------------------------------------------------------- a whole study


@dataclass(frozen=True)
class Place:
    """A folder with two tiny checkpoints and the results of a study `small` of four points."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "results")

    def run(self, *words: str, tuned: str = "tuned") -> Answer:
        models = ("tuned.from=folder", f"tuned.path={tuned}", "base.from=folder", "base.path=base")
        return there(*models, *SMALL, "results=results", *words, cwd=self.folder)

    def ask(self, *words: str) -> Answer:
        return there(*words, "results=results", cwd=self.folder)

    def product(self, study: str, point: str) -> Path:
        return self.store.product(resolved(self.store, load(self.store, study).points)[point])

    def scores(self, study: str, point: str) -> Any:
        return json.loads((self.product(study, point) / "results.json").read_text())["metrics"]

    def finished(self) -> dict[Path, int]:
        """When each result was finished, in nanoseconds."""
        return {path: path.stat().st_mtime_ns for path in (self.folder / "results").glob("*/*/DONE")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("study")
    for seed, name in enumerate(("tuned", "base")):
        tiny_checkpoint(folder / name, seed=seed, tokenizer=True)
    made = Place(folder)
    answer = made.run(*REWIND, "study=small")
    assert answer.code == 0, answer.out + answer.err
    assert answer.out.startswith("study small: 4 points, 0 done, 9 to do: 4 data, 1 rank, 4 evaluate")
    assert "study small: 4 of 4 points done" in answer.out
    return made


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do_and_touches_nothing(place: Place) -> None:
    before = place.finished()
    answer = place.run(*REWIND, "study=small")
    assert answer.code == 0
    assert answer.out.startswith("study small: 4 points, 4 done, 0 to do\n")
    assert place.finished() == before


@pytest.mark.slow
def test_the_order_of_the_words_does_not_matter(place: Place) -> None:
    assert place.run("study=small", *reversed(REWIND)).out.startswith("study small: 4 points, 4 done, 0 to do\n")


@pytest.mark.slow
def test_rewinding_no_head_is_the_tuned_model_itself(place: Place) -> None:
    answer = place.run("intervention=none", "study=none")
    assert answer.out.startswith("study none: 1 points, 1 done, 0 to do\n")
    assert place.product("none", "evaluate") == place.product("small", "fraction=0")


@pytest.mark.slow
def test_a_deleted_result_is_the_only_one_that_is_computed_again(place: Place) -> None:
    score = place.scores("small", "fraction=0.5")
    lost = place.product("small", "fraction=0.5").parent
    before = place.finished()
    (lost / "DONE").unlink()
    answer = place.run(*REWIND, "study=small")
    assert answer.code == 0
    assert answer.out.startswith("study small: 4 points, 3 done, 1 to do: 1 evaluate")
    after = place.finished()
    assert {path for path in before if after[path] != before[path]} == {lost / "DONE"}
    assert place.scores("small", "fraction=0.5") == score


@pytest.mark.slow
def test_what_failed_is_tried_again_alone_from_any_folder_and_resume_builds_the_rest(place: Place, tmp_path: Path) -> None:
    failed, missing = (place.product("small", f"fraction={fraction}").parent for fraction in ("0.25", "1"))
    scores = {name: place.scores("small", f"fraction={name}") for name in ("0.25", "1")}
    for folder, state in ((failed, "failed"), (missing, "cancelled")):
        (folder / "DONE").unlink()
        (folder / "status.json").write_text(json.dumps({"state": state, "message": "told to"}))
    results = f"results={place.folder / 'results'}"
    told = there("status", "small", results, cwd=tmp_path)
    assert "  failed    fraction=0.25: told to" in told.out
    again = there("retry", "small", "--failed", results, cwd=tmp_path)
    assert again.code == 1, again.out + again.err  # the cancelled one has no result yet
    assert again.out.startswith("study small: 1 points, 0 done, 1 to do: 1 evaluate")
    assert ((failed / "DONE").exists(), (missing / "DONE").exists()) == (True, False)
    rest = there("resume", "small", results, cwd=tmp_path)
    assert rest.code == 0, rest.out + rest.err
    assert "study small: 4 of 4 points done" in rest.out
    assert {name: place.scores("small", f"fraction={name}") for name in ("0.25", "1")} == scores
    assert there("retry", "small", results, cwd=tmp_path).out.startswith("study small: nothing to try again")


@pytest.mark.slow
def test_status_and_compare_show_a_finished_study(place: Place) -> None:
    assert place.ask("status", "small").out == "study small: 4 points: 4 done\n"
    everything, one = place.ask("compare", "small"), place.ask("compare", "small", "fraction=1")
    assert everything.code == 0
    assert all(f"fraction={fraction} " in everything.out for fraction in ("0", "0.25", "0.5", "1"))
    assert "text/bits_per_byte, difference to the first" in everything.out
    assert one.refusal.startswith("compare needs two points or more, and 1 of study small")
    assert "small" in place.ask("status", "smal").refusal.partition("; there are: ")[2].split(", ")


@pytest.mark.slow
def test_a_point_whose_needs_fail_is_blocked_with_the_reason_and_the_exit_code_says_so(place: Place) -> None:
    answer = place.run(*REWIND, "study=short", PROTOCOL.replace("items:3", "items:21"))
    assert answer.code == 1
    assert "study short: 0 of 4 points done" in answer.out
    assert "python -m cpt_lab status short results=" in answer.out
    status = place.ask("status", "short").out
    assert status.startswith("study short: 4 points: 4 blocked\n")
    assert status.count("asks for 21 items of text/validation, which has 20") == 5


@pytest.mark.slow
def test_all_heads_rewound_is_the_attention_of_the_base_in_the_tuned_model_bit_for_bit(place: Place) -> None:
    answer = place.run("target=rank,spectra,materialize", "intervention=rewind", "intervention.fraction=1", "study=products")
    assert answer.code == 0, answer.out + answer.err
    for kind in ("ranking", "spectra table", "patched checkpoint"):
        assert f"\n{kind}: {place.folder / 'results'}" in answer.out
    folder = place.product("products", "materialize")
    patched, tuned, base = (open_weights(path) for path in (folder, place.folder / "tuned", place.folder / "base"))
    assert set(patched) == set(tuned)
    for name, tensor in patched.items():
        source = base if name in attention_parameters() else tuned
        assert torch.equal(tensor, source[name]), name
    assert json.loads((place.product("products", "rank") / "ranking.json").read_text())["criterion"] == "random"
    assert (place.product("products", "spectra") / "table.parquet").exists()

    check_it_is_a_model(folder, patched)
    score_of_the_copy = place.run("intervention=none", "study=copy", tuned=str(folder))
    assert score_of_the_copy.code == 0
    assert place.scores("copy", "evaluate") == place.scores("small", "fraction=1")


def check_it_is_a_model(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """transformers loads the folder, tokenizer and all, with these very weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 0


def attention_parameters() -> set[str]:
    """q, k, v, o and the two norms over the heads of q and k."""
    shape = tiny_shape()
    layers = range(shape.num_layers)
    matrices = {part.parameter for layer in layers for role in ATTENTION_ROLES for part in matrix(shape, layer, role)}
    return matrices | {f"model.layers.{layer}.self_attn.{name}.weight" for layer in layers for name in ("q_norm", "k_norm")}
