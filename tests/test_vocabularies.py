"""Tokenizers that differ are warned of before anything is built, and the warning stays with the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import here
from compositions import points
from cpt_lab import launch, model_card, preflight, report, roster
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.specs import HubCheckpoint, Patched
from cpt_lab.store import Store
from cpt_lab.study import Study, warnings
from cpt_lab.vocabularies import Vocabulary, difference
from cpt_lab.vocabularies import warnings as differences
from factory import tiny_checkpoint, tiny_shape, tiny_tokenizer
from spec_cases import SPECTRA, TUNED, rewound_heads
from toys import planned

NAMES = ("tuned", "base")
SOUP = ("target=materialize", "intervention=soup", "intervention.with=base", "intervention.weight=0.5")


@pytest.fixture(scope="module")
def written() -> str:
    """A whole tokenizer.json."""
    return str(tiny_tokenizer().backend_tokenizer.to_str())


def put(folder: Path, text: str, **changes: Any) -> Path:
    """A folder with this tokenizer.json, some of its parts replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({**json.loads(text), **changes}, indent=2) if changes else text)
    return folder


def said(tuned: Path | None, base: Path | None) -> list[str]:
    """What is said of a patch between two checkpoints in these folders."""
    spec = rewound_heads((0, 1))
    return differences(spec, lambda checkpoint: tuned if checkpoint == spec.tuned else base)


def changed_model(text: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads(text)["model"], **changes}


# -------------------------------------------------------------------------------------------------------- what differs


def test_one_tokenizer_in_two_folders_is_no_matter_however_it_is_written(tmp_path: Path, written: str) -> None:
    tuned = put(tmp_path / "tuned", written)
    merges = [" ".join(pair) for pair in json.loads(written)["model"]["merges"]]
    older = changed_model(written, merges=merges, ignore_merges=False)
    assert said(tuned, put(tmp_path / "base", written, model=older, truncation={"max_length": 5}, version="0.9")) == []


def test_a_token_with_another_id_is_named_with_both(tmp_path: Path, written: str) -> None:
    vocabulary = json.loads(written)["model"]["vocab"]
    swapped = {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}
    other = put(tmp_path / "base", written, model=changed_model(written, vocab=swapped))
    (sentence,) = said(put(tmp_path / "tuned", written), other)
    ids = f"({vocabulary['a']} in tuned, {vocabulary['b']} in base)"
    assert (
        sentence
        == f"the tokenizers of tuned and base differ: 2 tokens have not the same id in both, as 'a' {ids}; see that both were meant"
    )


def test_a_token_that_post_training_added_is_named(tmp_path: Path, written: str) -> None:
    added = [*json.loads(written)["added_tokens"], {"id": 320, "content": "<|im_start|>"}]
    (sentence,) = said(put(tmp_path / "tuned", written, added_tokens=added), put(tmp_path / "base", written))
    assert "1 tokens have not the same id in both, as '<|im_start|>' (320 in tuned, none in base)" in sentence


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer", "merges"])
def test_other_rules_for_the_same_tokens_are_a_difference(part: str, tmp_path: Path, written: str) -> None:
    merges = json.loads(written)["model"]["merges"]
    changes = {"pre_tokenizer": None, "normalizer": {"type": "NFC"}, "model": changed_model(written, merges=merges[::-1])}
    name = "model" if part == "merges" else part
    (sentence,) = said(put(tmp_path / "tuned", written), put(tmp_path / "base", written, **{name: changes[name]}))
    assert "their tokens are the same, and text is cut into them by other rules" in sentence


def test_a_unigram_model_counts_its_tokens_by_their_places(tmp_path: Path) -> None:
    for name, pieces in (("tuned", ["a", "b"]), ("base", ["b", "a"])):
        put(tmp_path / name, json.dumps({"model": {"type": "Unigram", "vocab": [[piece, -1.0] for piece in pieces]}}))
    (sentence,) = said(tmp_path / "tuned", tmp_path / "base")
    assert "2 tokens have not the same id in both, as 'a' (0 in tuned, 1 in base)" in sentence


@pytest.mark.parametrize("content", [None, "", "[]", '{"model": {}}', '{"model": {"vocab": [1]}}'])
def test_a_folder_without_a_tokenizer_that_can_be_read_says_nothing(content: str | None, tmp_path: Path, written: str) -> None:
    put(tmp_path / "tuned", written)
    (tmp_path / "base").mkdir()
    if content is not None:
        (tmp_path / "base" / "tokenizer.json").write_text(content)
    assert said(tmp_path / "tuned", tmp_path / "base") == said(tmp_path / "base", tmp_path / "tuned") == []
    assert said(tmp_path / "tuned", None) == []


def test_a_tokenizer_that_was_replaced_is_read_again(tmp_path: Path, written: str) -> None:
    tuned, base = put(tmp_path / "tuned", written), put(tmp_path / "base", written)
    assert said(tuned, base) == []
    put(base, written, normalizer={"type": "NFC"})
    assert len(said(tuned, base)) == 1


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9)), st.dictionaries(st.text(max_size=3), st.integers(0, 9)))
def test_vocabularies_differ_by_the_tokens_whose_ids_are_not_the_same(left: dict[str, int], right: dict[str, int]) -> None:
    found = difference(Vocabulary(left, ""), Vocabulary(right, ""), names=NAMES)
    apart = {token for token, number in {*left.items()} ^ {*right.items()}}
    assert found.startswith(f"{len(apart)} tokens") if apart else found == ""


def test_every_source_of_a_point_is_compared_and_a_checkpoint_alone_is_not(tmp_path: Path, written: str) -> None:
    mine, theirs = put(tmp_path / "a", written), put(tmp_path / "b", written, normalizer={"type": "NFC"})
    nothing = differences(TUNED, lambda _: mine)
    assert nothing == []
    of_table = differences(SPECTRA, lambda checkpoint: mine if checkpoint == SPECTRA.checkpoint else theirs)
    assert [sentence.partition(" differ")[0] for sentence in of_table] == ["the tokenizers of the checkpoint and its base"]


# ----------------------------------------------------------------------------------------------------------- where it goes


@pytest.fixture
def folders(tmp_path: Path, written: str) -> tuple[str, ...]:
    """The overrides of a tuned and a base checkpoint whose tokenizers differ."""
    for seed, name in enumerate(NAMES):
        tiny_checkpoint(tmp_path / name, seed=seed)
    put(tmp_path / "tuned", written)
    put(tmp_path / "base", written, normalizer={"type": "NFC"})
    return tuple(word for name in NAMES for word in (f"{name}.from=folder", f"{name}.path={tmp_path / name}"))


@pytest.mark.slow
def test_a_plan_warns_once_of_all_its_points(tmp_path: Path, folders: tuple[str, ...]) -> None:
    words = ("intervention=rewind", "criterion=delta_norm", "intervention.fraction=0.25,0.5")
    answer = here("plan", *folders, *words, f"results={tmp_path / 'results'}")
    assert " ".join(answer.out.split()).count("warning: the tokenizers of tuned and base differ") == 1
    same = here("plan", *folders, "base.path=" + str(tmp_path / "tuned"), *words, f"results={tmp_path / 'results'}")
    assert "warning" not in same.out


@pytest.mark.slow
def test_a_run_warns_before_it_launches_anything(tmp_path: Path, folders: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_launch(*_: Any, **__: Any) -> None:
        raise ValueError("it would launch now")

    monkeypatch.setattr(launch, "prepare", no_launch)
    answer = here("run", *folders, *SOUP, f"results={tmp_path / 'results'}", "tracking=off")
    first, last = answer.err.splitlines()
    assert first.startswith("warning: the tokenizers of tuned and base differ")
    assert last == "error: it would launch now"
    alike = here("run", *folders, "base.path=" + str(tmp_path / "tuned"), *SOUP, f"results={tmp_path / 'results'}", "tracking=off")
    assert alike.err.splitlines() == [last]


def test_the_warning_is_recorded_with_the_result_and_stands_in_status_and_card(
    tmp_path: Path, folders: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (point,) = points(*folders, *SOUP)
    workshop = Workshop(Store(tmp_path / "results"), Execution())
    ensure(workshop, point.spec)
    (warning,) = warnings(workshop.store, point.spec)
    assert warning.startswith("the tokenizers of tuned and base differ")
    report.show_status(workshop.store, roster.of(workshop.store, Study(name="soups", points=(point,))))
    assert f"warning: {warning} (1 result)" in capsys.readouterr().out
    assert isinstance(point.spec, Patched)
    assert f"## Warnings\n\n- {warning}\n" in model_card.text(point.spec, (), workshop.store, command="")


def test_checkpoints_of_the_hub_are_compared_where_its_cache_has_both(
    tmp_path: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    tuned = HubCheckpoint(id="owner/tuned", revision="main", shape=tiny_shape())
    spec = Patched(tuned=tuned, interventions=rewound_heads((0, 1)).interventions)
    store = Store(tmp_path / "results")
    put(tmp_path / "models--owner--tuned" / "snapshots" / "0123", written)
    put(tmp_path / "models--owner--model" / "snapshots" / "abc", written, normalizer={"type": "NFC"})
    assert preflight.warnings(planned(store, [spec]), store) == []  # nobody says which commit `main` is
    (tmp_path / "models--owner--tuned" / "refs").mkdir()
    (tmp_path / "models--owner--tuned" / "refs" / "main").write_text("0123")
    assert len(preflight.warnings(planned(store, [spec]), store)) == 1
