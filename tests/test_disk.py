"""How much room steps and plans take on the disk: by formula, and beside what a build really writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab import disk
from cpt_lab.data import files, formats, tokens
from cpt_lab.disk import MIXED, PIECES, STATES, TOKENS, WEIGHTS, Written
from cpt_lab.execution import Execution
from cpt_lab.specs import FilesCorpus, HubTokenizer, Intermediate, Mixture, Part, Spec, TrainedCheckpoint
from spec_cases import (
    BASE,
    BPE,
    EVALUATION,
    FILES,
    FOLDER,
    HUB,
    INTERMEDIATE,
    MATH,
    OLMO_CORE,
    PATCHED,
    PRETRAINED,
    READY,
    SHAPE,
    TEXT,
    TUNED,
    WARMED_UP,
)
from spec_cases import TOKENS as MATH_TOKENS

USUAL = Execution()
WEIGHT = SHAPE.parameters
PARTS = st.lists(st.builds(Written, st.sampled_from("abc"), st.integers(0, 1000), st.booleans()), max_size=3)


def bytes_of(spec: Spec, how: Execution = USUAL, **given: int) -> dict[str, int]:
    return {part.what: part.bytes for part in disk.written(spec, how, **given)}


# ---------------------------------------------------------------------------------------------------------------- of steps


def test_a_training_run_keeps_its_weights_and_has_its_mixed_tokens_and_one_state_more_than_it_keeps_beside_them() -> None:
    assert bytes_of(TUNED) == {WEIGHTS: 4 * WEIGHT, MIXED: 1000 * 4, STATES: 2 * 12 * WEIGHT}
    assert bytes_of(TUNED, Execution(keep_states=3))[STATES] == 4 * 12 * WEIGHT
    assert [part.what for part in disk.written(TUNED, USUAL) if part.stays] == [WEIGHTS]


def test_weights_that_a_run_keeps_on_its_way_count_once() -> None:
    batch = TUNED.recipe.batch_tokens
    often = Execution(keep_every=batch)  # three steps, the last of which is the run's own
    assert TUNED.steps == 3
    assert bytes_of(TUNED, often)[WEIGHTS] == 3 * 4 * WEIGHT
    assert bytes_of(INTERMEDIATE) == {WEIGHTS: 4 * WEIGHT}
    assert bytes_of(INTERMEDIATE, often) == {WEIGHTS: 0}
    assert bytes_of(Intermediate(of=TUNED, tokens=batch), Execution(keep_at=(2 * batch,))) == {WEIGHTS: 4 * WEIGHT}


def test_weights_on_the_way_of_a_finished_run_are_linked_or_trained_again_and_then_leave_no_other() -> None:
    often = Execution(keep_every=TUNED.recipe.batch_tokens)
    assert disk.written(INTERMEDIATE, often, kept=True) == ()
    again = disk.written(INTERMEDIATE, often, kept=False)
    assert {part.what: part.bytes for part in again} == {WEIGHTS: 4 * WEIGHT, MIXED: 1000 * 4, STATES: 2 * 12 * WEIGHT}
    assert [part.what for part in again if part.stays] == [WEIGHTS]


def test_edited_weights_have_the_type_of_those_they_come_from() -> None:
    assert bytes_of(PATCHED) == bytes_of(WARMED_UP) == bytes_of(OLMO_CORE) == {WEIGHTS: 4 * WEIGHT}
    assert bytes_of(PATCHED.but(tuned=FOLDER)) == {WEIGHTS: 2 * WEIGHT}
    assert bytes_of(EVALUATION) == bytes_of(BASE) == {}


def test_tokens_take_two_bytes_up_to_65536_of_a_vocabulary_and_four_above_or_where_it_is_not_known() -> None:
    large, largest = (MATH_TOKENS.but(tokenizer=BPE.but(vocab_size=size)) for size in (2**16, 2**16 + 1))
    hub = MATH_TOKENS.but(tokenizer=HubTokenizer(id="owner/model"))
    assert [disk.token_width(spec) for spec in (MATH_TOKENS, large, largest, hub)] == [2, 2, 4, 4]
    assert disk.token_width(MATH_TOKENS.but(corpus=READY)) == 4


def test_a_token_file_and_its_pieces_hold_what_is_used_of_the_corpus() -> None:
    assert bytes_of(MATH_TOKENS.but(corpus=HUB)) == {TOKENS: 20_000, PIECES: 20_000}
    assert bytes_of(MATH_TOKENS.but(corpus=HUB.but(sample_tokens=300)))[TOKENS] == 600
    assert bytes_of(MATH_TOKENS.but(corpus=READY)) == {TOKENS: 0, PIECES: 0}


def test_a_corpus_made_of_pythons_own_files_has_no_more_documents_than_those_however_many_are_asked_for() -> None:
    text, more = (disk.tokens_of(MATH_TOKENS.but(corpus=TEXT.but(documents=count))) for count in (10_000, 10**6))
    assert text == more == 8000 * 180 // 2
    assert disk.tokens_of(MATH_TOKENS) == 40 * 240 // 2


def test_a_corpus_of_unknown_size_has_at_least_what_the_mixtures_take_that_may_not_repeat_it() -> None:
    endless, known = HUB.but(available_tokens=None), HUB.but(name="other")
    parts = (Part(corpus=endless, tokens=4000), Part(corpus=known, tokens=500), Part(corpus=MATH, tokens=9000, oversample=True))
    run = PRETRAINED.but(mixture=Mixture(name="m", parts=parts))
    first, second, _ = run.mixture.token_files(run.tokenizer)
    least = disk.budgets([run, PRETRAINED, run.but(mixture=Mixture(name="less", parts=(parts[0].but(tokens=700),)))])
    assert set(least.values()) == {4000, 500, 800, 200}
    assert bytes_of(first, least=4000)[TOKENS] == 8000
    assert bytes_of(second, least=500)[TOKENS] == 20_000


@pytest.mark.parametrize(("name", "factor"), [("notes.jsonl", 1), ("notes.jsonl.gz", 4), ("notes.jsonl.zst", 4), ("notes.parquet", 4)])
def test_of_local_files_the_bytes_are_looked_at(tmp_path: Path, name: str, factor: int) -> None:
    (tmp_path / name).write_bytes(b"x" * 1000)
    corpus = FILES.but(files=(str(tmp_path / name), str(tmp_path / "gone.jsonl")))
    assert disk.tokens_of(MATH_TOKENS.but(corpus=corpus)) == 500 * factor
    assert disk.tokens_of(MATH_TOKENS.but(corpus=corpus.but(sample_tokens=70))) == 70


# ------------------------------------------------------------------------------------------------------------- of a plan


def test_a_disk_is_fullest_where_what_has_stayed_and_what_will_go_are_most() -> None:
    tokenised = [[Written(TOKENS, 100), Written(PIECES, 100, stays=False)], [Written(TOKENS, 10), Written(PIECES, 10, stays=False)]]
    trained = [[Written(WEIGHTS, 1), Written(STATES, 80, stays=False)], [Written(WEIGHTS, 1), Written(STATES, 60, stays=False)]]
    assert disk.fullest([(1, tokenised), (1, trained)]) == {TOKENS: 110, PIECES: 100}
    assert disk.fullest([(2, tokenised), (2, trained)]) == {STATES: 140, TOKENS: 110, WEIGHTS: 2}
    assert disk.fullest([(1, tokenised), (2, trained)]) == {STATES: 140, TOKENS: 110, WEIGHTS: 2}
    assert disk.fullest([(2, tokenised), (1, trained)]) == {TOKENS: 110, PIECES: 110}


@given(st.lists(st.lists(PARTS, max_size=4), max_size=4), st.integers(1, 5))
def test_no_disk_is_fuller_than_all_that_is_written_or_emptier_than_what_stays(stages: list[list[list[Written]]], workers: int) -> None:
    parts = [part for steps in stages for step in steps for part in step]
    size, with_one_more = (sum(disk.fullest([(count, steps) for steps in stages]).values()) for count in (workers, workers + 1))
    assert sum(part.bytes for part in parts if part.stays) <= size <= sum(part.bytes for part in parts)
    assert size <= with_one_more


def test_small_things_are_not_spoken_of() -> None:
    assert disk.words({TOKENS: 2 * 10**9, WEIGHTS: 10**9, STATES: 10**6}) == f"{TOKENS} 2.0 GB, {WEIGHTS} 1.0 GB"


# ---------------------------------------------------------------------------------------------------------- really written


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; what two names share counts once."""
    found = (path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_estimate_is_what_building_tokens_and_training_take_at_their_fullest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import training_cases as cases
    from cpt_lab.training.callbacks import TimedCheckpointer

    monkeypatch.setattr(formats, "PIECE", 2 * 10**4)
    made = cases.make(tmp_path / "made")
    text = tmp_path / "notes.jsonl"
    text.write_text("".join(json.dumps({"text": f"{number} apples and {number**2} pears"}) + "\n" for number in range(12_000)))
    digest = files.files_digest([str(text)])
    corpus = FilesCorpus(name="notes", files=(str(text),), files_digest=digest, held_out=20, sample_tokens=150_000)
    spec = MATH_TOKENS.but(corpus=corpus, tokenizer=cases.TOKENIZER)
    first, second = cases.workspace(tmp_path / "corpus"), cases.workspace(tmp_path / "tokens")
    files.build_corpus(corpus, first)
    tokens.build_tokens(spec, first.product, made.tokenizer, second)
    assert size_of(second.folder) == pytest.approx(sum(bytes_of(spec).values()), rel=0.2)

    shape = cases.SHAPE.but(vocab_size=6000)
    mixture = Mixture(name="notes", parts=(Part(corpus=corpus, tokens=24_000),))
    recipe = cases.RECIPE.but(sequence_length=48, batch_sequences=120)
    run = TrainedCheckpoint(shape=shape, tokenizer=cases.TOKENIZER, mixture=mixture, recipe=recipe)
    how = cases.ON_CPU.model_copy(
        update={"checkpoint_minutes": 1e-9, "keep_every": 2 * recipe.batch_tokens, "keep_states": 2, "micro_batch_sequences": 40}
    )
    sizes, remove, work = [], TimedCheckpointer._remove_old_checkpoints, cases.workspace(tmp_path / "run")

    def look_and_remove(keeper: Any) -> None:
        sizes.append(size_of(work.folder))
        remove(keeper)

    monkeypatch.setattr(TimedCheckpointer, "_remove_old_checkpoints", look_and_remove)
    replace(made, tokens=second.product).train(work, run, how=how)
    expected = bytes_of(run, how)
    last = expected[WEIGHTS] // 2  # written when the states are no longer added to
    assert run.steps == 4
    assert (work.scratch / "mixture.npy").stat().st_size == expected[MIXED]
    assert max(sizes) == pytest.approx(sum(expected.values()) - last, rel=0.2)
    assert size_of(work.product) == pytest.approx(2 * last, rel=0.2)
