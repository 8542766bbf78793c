"""Bad input ends before anything starts: one sentence with what to do on stderr, exit code 2, no traceback."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml

from command_line import here, there
from compositions import refused
from cpt_lab.specs import BuiltinCorpus
from cpt_lab.store import Store
from factory import tiny_checkpoint
from long_tables import rest_slow
from refusals import REWIND, folders, refusal

CONF = Path(__file__).parent.parent / "conf"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tuned")


# ---------------------------------------------------------------------------------------------------- names and values


@pytest.mark.parametrize(
    ("group", "given", "nearest", "others"),
    rest_slow(
        [
            ("criterion", "scaled_norm_dif", "scaled_norm_diff", ("delta_norm", "random")),
            ("model", "olmo2_7", "olmo2_7b", ("olmo2_1b", "olmo2_32b", "olmo2_tiny")),
            ("protocol", "gms8k", "gsm8k", ("perplexity", "tiny")),
            ("mixture", "math_20", "math_20b", ("text_20b", "tiny_math")),
            ("intervention", "rewnd", "rewind", ("none",)),
            ("target", "evalute", "evaluate", ("materialize", "rank", "spectra", "train")),
            ("training", "ctp", "cpt", ("pretrain", "tiny_cpt")),
            ("tracking", "sqlit", "sqlite", ("off", "server")),
            ("site", "example", "example_h100", ("devcluster", "local")),
            ("+experiment", "rewind7b", "rewind_7b", ("quickstart", "rewind_1b")),
            ("hydra/launcher", "slrum", "slurm", ("local",)),
        ],
        fast=3,
    ),
)
def test_an_unknown_choice_of_a_group_is_answered_with_the_nearest_one_and_the_list(
    tmp_path: Path, group: str, given: str, nearest: str, others: tuple[str, ...]
) -> None:
    said = refusal(tmp_path, f"{group}={given}")
    assert said.startswith(f"unknown choice of {group.lstrip('+')} {given!r} (did you mean {nearest}")
    known = said.partition("there are ")[2].split(", ")
    assert {nearest, *others} <= set(known)


@pytest.mark.parametrize(
    ("word", "given", "nearest"),
    rest_slow(
        [
            ("intervention.fracton=0.5", "intervention.fracton", "intervention.fraction"),
            ("+intervention.fracton=0.5", "intervention.fracton", "intervention.fraction"),
            ("modle=olmo2_1b", "modle", "model"),
            ("+figurs=[rewind_curve]", "figurs", "figures"),
            ("training.learning_rat=1", "training.learning_rat", "training.lr"),
            ("model.shape.num_head=2", "model.shape.num_head", "model.shape.num_heads"),
            ("execution.threds=2", "execution.threds", "execution.threads"),
            ("+execution.threds=2", "execution.threds", "execution.threads"),
            ("+tuned.form=folder", "tuned.form", "tuned.from"),
            ("+corpora.math.documnts=5", "corpora.math.documnts", "corpora.math.documents"),
            ("+model.shape.num_head=5", "model.shape.num_head", "model.shape.num_heads"),
            ("+model.tokenizer.vocabulary=5", "model.tokenizer.vocabulary", "model.tokenizer.vocab_size"),
        ],
        fast=3,
    ),
)
def test_an_unknown_setting_is_answered_with_the_nearest_one_and_the_list(word: str, given: str, nearest: str) -> None:
    said = refused("intervention=rewind", "criterion=random", word)
    assert said.startswith(f"unknown setting {given!r}")
    assert nearest in said.partition("there are ")[2].split(", ")


def test_a_setting_that_no_choice_of_a_sweep_has_is_refused_as_unknown(tmp_path: Path) -> None:
    said = refusal(tmp_path, "intervention=none,truncate", "intervention.percent=50", "intervention.fraction=0.5")
    assert said.startswith("unknown setting 'intervention.fraction'")


def test_a_mistake_beside_a_sweep_is_the_one_that_is_told(tmp_path: Path) -> None:
    said = refusal(tmp_path, "intervention=none,truncate", "intervention.percent=50", "execution.eval_bach=3")
    assert said.startswith("unknown setting 'execution.eval_bach' (did you mean execution.eval_batch")


def test_a_setting_that_is_known_but_stands_in_no_file_says_how_to_add_it(tmp_path: Path) -> None:
    assert refusal(tmp_path, "site.partition=gpu").endswith("add it with +site.partition=VALUE")


def test_an_unknown_criterion_by_name_is_refused_even_where_none_is_used(tmp_path: Path) -> None:
    assert "unknown criterion 'delta_nrm' (did you mean delta_norm?)" in refusal(tmp_path, "criterion.name=delta_nrm")


@pytest.mark.parametrize("fraction", rest_slow(["1.01", "-0.1", "nan", "inf", "half", "true", "[0.5]"], fast=2))
def test_a_fraction_that_is_no_share_is_refused(fraction: str) -> None:
    said = refused(*REWIND, f"intervention.fraction={fraction}")
    assert said.startswith("intervention.fraction: got ")
    assert said.endswith("allowed is a share of the heads between 0 and 1")


@pytest.mark.slow
def test_one_bad_fraction_among_good_ones_refuses_the_whole_sweep(tmp_path: Path) -> None:
    assert "got 5" in refusal(tmp_path, *REWIND, "intervention.fraction=0,0.5,5", verb="run")


def test_a_rewind_without_fraction_and_heads_says_how_to_give_either(tmp_path: Path) -> None:
    said = refusal(tmp_path, *REWIND)
    assert "intervention.fraction=" in said
    assert "intervention.heads=" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    rest_slow(
        [
            (("workers=0",), "workers: input should be greater than or equal to 1 (got 0)"),
            (("workers=two",), "workers: input should be a valid integer"),
            (("tracking=server",), "tracking=server needs http://HOST:PORT"),
            (("execution.device=gpu",), "execution.device: input should be 'auto', 'cpu' or 'cuda' (got 'gpu')"),
            (("base.from=hub",), "model olmo2_tiny has no hub id: choose another model or base.from=folder"),
            (("tuned.from=folder",), "tuned.path=FOLDER"),
            (("tuned.from=folder", "tuned.path=/nowhere/at/all"), "there is no folder /nowhere/at/all"),
            (("training.lr=-1",), "training.lr: input should be greater than 0 (got -1)"),
            (("training.sequence_length=4096",), "lower training.sequence_length"),
            (("target=materialize",), "choose an intervention"),
            ((*REWIND, "intervention.heads=[[9,0]]"), "head [9, 0] does not exist: the model has layers 0 to 3, heads 0 to 3"),
            ((*REWIND, "intervention.heads=[[0,-1]]"), "head [0, -1] does not exist"),
            ((*REWIND, "intervention.heads=[3]"), "intervention.heads: got [3], allowed is a list of pairs"),
            ((*REWIND, "intervention.heads=[[0,1]]", "intervention.fraction=0.5"), "got both fraction and heads"),
            (("intervention=prune_layers", "intervention.layers=[7]"), "there is no layer 7 to prune: the model has layers 0 to 3"),
            (("intervention=prune_layers", "intervention.layers=[0,1,2,3]"), "all 4 layers would be pruned: leave one at least"),
            ((*REWIND, "intervention.fraction=0.5", "intervention.kv=no"), "'when_group_complete', 'with_first' or 'never' (got 'no')"),
            (
                (*REWIND, "intervention.fraction=0.5", "intervention.direction=up"),
                "unknown direction 'up'; there are ascending, descending",
            ),
            ((*REWIND, "intervention.fraction=0.5", "criterion.roles=[x]"), "unknown role of a head 'x'"),
            ((*REWIND, "intervention.fraction=0.5", "criterion.seed=null"), "set criterion.seed"),
            (
                (*REWIND, "intervention.fraction=0.5", "criterion.seed=-1"),
                "criterion.seed: input should be greater than or equal",
            ),
            (("protocol.tasks=[]",), "protocol.tasks: "),
            (("protocol.tasks=[{kind:perplexty,name:x}]",), "'generate', 'perplexity', 'harness'"),
            (("~training.lr",), "training.lr is not given: set training.lr=VALUE"),
            (("mixture.parts=[{corpus:maths,tokens:10000}]",), "unknown corpus 'maths' (did you mean math?)"),
        ],
        fast=5,
    ),
)
def test_a_value_that_makes_no_sense_is_refused_with_what_is_allowed(words: tuple[str, ...], expected: str) -> None:
    said = refused(*words)
    assert expected in said
    assert "validation error" not in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("figures=[rewind_curv]",), "unknown figure 'rewind_curv' (did you mean rewind_curve?)"),
        (("study=a/b",), "use letters, digits"),
        (("intervention=[",), "cannot be read as KEY=VALUE"),
        (("modle",), "'modle' is neither KEY=VALUE nor a verb"),
        (("--config-dir", "/nowhere"), "'/nowhere' not found"),
    ],
)
def test_a_launch_that_makes_no_sense_is_refused_with_what_is_allowed(tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    assert expected in refusal(tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("pla", "+experiment=rewind_1b"),
            "unknown verb 'pla' (did you mean plan?); there are cancel, compare, data, figure, gc, logs, materialize, ",
        ),
        (("status", "nobody"), "no study 'nobody' in"),
        (("compare", "nobody"), "no study 'nobody' in"),
        (("track", "sink"), "unknown thing to track 'sink' (did you mean sync or init?); there are init, reconcile, sync"),
    ],
)
def test_an_unknown_verb_or_study_is_refused_with_the_known_ones(tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    assert expected in here(*words, f"results={tmp_path}").refusal


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("criterion=scaled_norm_dif",),
        ("results=/proc/nowhere",),
        *(pytest.param(words, marks=pytest.mark.slow) for words in (("+experiment=nothing",), ("intervention.fracton=0.5",))),
        pytest.param(("status", "nobody"), marks=pytest.mark.slow),
    ],
)
def test_bad_input_on_a_real_command_line_is_one_sentence_and_exit_code_2(tmp_path: Path, words: tuple[str, ...]) -> None:
    answer = there(*words, cwd=tmp_path)
    assert answer.refusal
    assert answer.out == ""
    assert not (tmp_path / "results").exists()


# ---------------------------------------------------------------------------------------------------------------- data


def test_a_mixture_beyond_a_hub_corpus_is_refused_when_it_is_composed(tmp_path: Path) -> None:
    said = refusal(tmp_path, "+experiment=transplant_1b", "mixture.parts=[{corpus:dolmino_math,tokens:20000000000}]")
    assert said == (
        "mixture math_20b asks for 20,000,000,000 tokens of dolmino_math, which has 10,700,000,000: "
        "lower tokens or set oversample: true to repeat it"
    )


@pytest.mark.slow
def test_a_mixture_beyond_a_builtin_corpus_is_refused_before_the_training_starts(tmp_path: Path) -> None:
    small = ("+corpora.math.documents=200", "model.tokenizer.corpora=[math]", "model.tokenizer.vocab_size=400")
    pretrain = "pretrain.mixture.parts=[{corpus:math,tokens:1000000,oversample:true}]"
    said = refusal(tmp_path, "target=train", *small, pretrain, "mixture.parts=[{corpus:math,tokens:1000000}]", verb="run")
    assert "1,000,000 tokens of corpus math, which has " in said
    assert said.endswith("set oversample: true to repeat it")
    assert not list((tmp_path / "results" / "checkpoints").glob("*"))


# --------------------------------------------------------------------------------------------------- places to write to


@pytest.mark.parametrize("verb", rest_slow(["plan", "run"], fast=1))
@pytest.mark.parametrize("below", ["", "further/below"])
def test_a_file_in_the_place_of_the_results_folder_is_refused(tmp_path: Path, verb: str, below: str) -> None:
    (tmp_path / "taken").write_text("")
    said = here(verb, f"results={tmp_path / 'taken' / below}", "tracking=off").refusal
    assert f"{tmp_path / 'taken'} is a file" in said
    assert said.endswith("choose another with results=FOLDER")


def test_a_results_folder_that_cannot_be_made_is_refused(checkpoint: Path) -> None:
    said = here("run", "results=/proc/nowhere/results", "target=spectra", *folders(checkpoint, checkpoint)).refusal
    assert said.startswith("results folder /proc/nowhere/results cannot be written")


def test_a_nearly_full_disk_is_refused_with_what_is_needed(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    said = refusal(tmp_path, "target=rank", "criterion=random", *folders(checkpoint, checkpoint), verb="run")
    assert "has 0.0 GB free" in said
    assert "results=FOLDER" in said


@pytest.mark.slow
@pytest.mark.parametrize("writes", ["write_bytes", "write_text"])
def test_a_full_disk_is_one_sentence_wherever_it_is_met(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, writes, full)
    said = refusal(tmp_path, "target=rank", "criterion=random", *folders(checkpoint, checkpoint), verb="run")
    assert "No space left on device" in said
    assert "results=FOLDER" in said


def test_two_specs_under_one_key_are_refused_with_their_difference(tmp_path: Path) -> None:
    corpus = BuiltinCorpus.model_validate(yaml.safe_load((CONF / "corpus" / "math.yaml").read_text()))
    stored = Store(tmp_path / "results").describe(corpus) / "spec.json"
    stored.write_text(json.dumps({**json.loads(stored.read_text()), "held_out": 7}))
    said = refusal(tmp_path, "target=train", verb="run")
    assert said.startswith("two different specs under the key math-")
    assert f"held_out is 7 in the store and {corpus.held_out} here" in said


def test_a_launch_on_slurm_without_sbatch_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    words = ("hydra/launcher=slurm", "target=rank", "criterion=random", *folders(checkpoint, checkpoint))
    said = refusal(tmp_path, *words, verb="run", PATH=str(tmp_path))
    assert said.startswith("hydra/launcher=slurm, but there is no sbatch here")
