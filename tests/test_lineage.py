"""Where a point's checkpoint comes from, in columns."""

from __future__ import annotations

import pytest

import made_up_points as made
import made_up_study
from analysis.lineage import COLUMNS, called, columns, domain, exact, size, tokens_of_revision, tokens_text
from cpt_lab.specs import FolderCheckpoint, HubCheckpoint, Intermediate, key

MATH, CODE = made.tuned(), made.tuned(None, "code_320", code=320)
HUB = HubCheckpoint(id="allenai/OLMo-2-0425-1B", revision="stage1-step1907359-tokens4001B", shape=made_up_study.SHAPE.but(name="olmo2_1b"))


def test_a_tuned_model_knows_its_budgets_and_those_of_its_start() -> None:
    found = columns(made.evaluation(made.tuned(None, "mix", math=100, text=300)))
    assert set(found) == set(COLUMNS)
    assert (found["role"], found["mixture"], found["domain"], found["intervention"]) == ("tuned", "mix", "text", "none")
    assert (found["cpt_tokens"], found["math_tokens"], found["pretrain_tokens"]) == (400, 100, 320)


def test_cpt_of_a_cpt_adds_up_and_a_hub_revision_names_its_tokens() -> None:
    found = columns(made.evaluation(made.tuned(made.tuned(HUB), "more", text=80)))
    assert (found["cpt_tokens"], found["math_tokens"], found["pretrain_tokens"]) == (400, 320, 4001 * 10**9)
    assert columns(made.evaluation(HUB))["role"] == "base"
    assert (tokens_of_revision("main"), tokens_of_revision("stage1-step1-tokens20B")) == (None, 20 * 10**9)


def test_weights_on_the_way_have_seen_so_much_of_their_run_and_are_called_by_it() -> None:
    run = made.tuned(None, "mix", math=100, text=300)
    half = Intermediate(of=run, tokens=run.recipe.batch_tokens)
    assert half.tokens < run.mixture.tokens
    found = columns(made.evaluation(half))
    assert (found["role"], found["cpt_tokens"], found["pretrain_tokens"]) == ("tuned", half.tokens, 320)
    assert found["math_tokens"] == half.tokens // 4
    assert called(half) == f"mix at {half.tokens}"
    before = Intermediate(of=made.pretrained(), tokens=half.tokens)
    assert columns(made.evaluation(before))["pretrain_tokens"] == half.tokens


def test_interventions_give_their_settings_and_what_they_are_paired_with() -> None:
    plain = made.evaluation(MATH)
    truncated, soup, moved = (columns(spec) for spec in (made.truncated(MATH, 30), made.soup(MATH, CODE, 0.25), made.transplanted(MATH)))
    assert (truncated["role"], truncated["intervention"], truncated["percent"]) == ("edited", "truncate", 30)
    assert (soup["role"], soup["weight"], soup["partner"], soup["partner_domain"]) == ("soup", 0.25, "code_320", "code")
    assert (moved["intervention"], moved["source"]) == ("transplant", "pre")
    assert {each["unedited"] for each in (truncated, soup, moved, columns(plain))} == {key(plain)}
    assert {each["tuned"] for each in (truncated, soup, moved)} == {key(MATH)}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [({"math": 3, "text": 1}, "math"), ({"math": 2, "text": 2}, "math+text"), ({"text": 3, "math": 2}, "text+math"), ({"inst": 1}, "inst")],
)
def test_a_mixture_is_of_the_domain_that_most_of_it_is_of(tokens: dict[str, int], expected: str) -> None:
    assert domain(made.mixture("m", **tokens)) == expected


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("olmo2_7b", 1, "7B"),
        ("qwen25_math_1_5b", 1, "1.5B"),
        ("pythia_160m", 1, "160M"),
        ("mine", 279_616, "0.28M"),
        ("mine", 13 * 10**9, "13B"),
    ],
)
def test_a_size_is_what_a_model_is_called_or_else_what_it_is(name: str, parameters: int, expected: str) -> None:
    assert size(name, parameters) == expected


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        *((999_948_288, "1B"), (999_600, "1M"), (999.6, "1k"), (999_900_000_000, "1T")),
        *((999_500, "1M"), (999_499, "999k"), (999, "999"), (1000, "1k"), (1_000_000_000, "1B")),
    ],
)
def test_tokens_that_round_to_a_thousand_of_a_unit_are_one_of_the_next(tokens: float, text: str) -> None:
    assert tokens_text(tokens) == text


def test_a_checkpoint_in_a_caption_has_its_name_and_the_start_of_its_hash() -> None:
    folder = FolderCheckpoint(path="/data/mine/", weights_digest="0" * 16, shape=made_up_study.SHAPE)
    for checkpoint, name in ((MATH, "math_320"), (HUB, "OLMo-2-0425-1B stage1-step1907359-tokens4001B"), (folder, "mine")):
        assert exact(checkpoint) == f"{name} ({key(checkpoint).rsplit('-', 1)[1][:8]})"


def test_what_has_no_checkpoint_has_no_lineage() -> None:
    assert set(columns(made_up_study.ranking("random", "ascending", 0)).values()) == {None}
