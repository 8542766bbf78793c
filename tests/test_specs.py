"""Specs and their keys: what changes an identity, what does not, and the simplest form of a point."""

from __future__ import annotations

import json
import math
import platform
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import spec_cases as cases
from cpt_lab.interventions import (
    INTERVENTIONS,
    Dare,
    PruneLayers,
    Rewind,
    RotateAblate,
    RotateRestore,
    ScaleTransplant,
    Soup,
    TaskArithmetic,
    Ties,
    Transplant,
    Truncate,
)
from cpt_lab.interventions.members import Member
from cpt_lab.interventions.prune_layers import FirstLayers, Layers
from cpt_lab.interventions.soup import RoleWeights
from cpt_lab.specs import (
    SCHEMA,
    STORED,
    BuiltinCorpus,
    Heads,
    Matrices,
    Mixture,
    Patched,
    Probe,
    Recipe,
    ScoresFile,
    Spec,
    Spectra,
    TopOf,
    canonical_json,
    digest,
    identity,
    key,
    parse,
)
from spec_cases import BASE, DELTA_NORM, EVALUATION, ONE_OF_EACH, PROTOCOL, RANDOM, SHAPE, TUNED, rewound

# A change of any of these is a deliberate act: every result that is stored under the old key would be computed again.
PINNED = {
    "math-eab1a334cccc9d3d": cases.MATH,
    "notes-89e0c3cd1e1d5067": cases.FILES,
    "dclm-5a8c28f203993540": cases.HUB,
    "ready-2922c7f63459c2fa": cases.READY,
    "bpe-320-fc5fd645b714978a": cases.BPE,
    "owner-model-main-759de25834b1b746": cases.HUB_TOKENIZER,
    "math-train-c4359f9f74b2bdae": cases.TOKENS,
    "math-train-clean-163dd595397e6809": cases.TOKENS.but(clean_of=cases.PROTOCOL),
    "math-tiny-8e884ef7e05adea2": cases.CONTAMINATION,
    "model-abc-baac9f3de3946ea1": cases.BASE,
    "folder-9c09b7362081b1d0": cases.FOLDER,
    "olmo-core-26827dc64c0dba8d": cases.OLMO_CORE,
    "cpt-math-text-1000-at-512-9caaa027ed39f830": cases.INTERMEDIATE,
    "pretrain-math-text-1000-23bd8883f0001cfd": cases.PRETRAINED,
    "cpt-math-text-1000-265611edf0e14166": cases.TUNED,
    "pretrain-math-text-1000-5f9234b400b8c402": cases.WATCHED,
    "spectral_warmup-1-seed0-eff7a69545115d7e": cases.WARMED_UP,
    "null-heads-layer0-cpt-math-text-1000-delta-fda3c3f172fe9e65": cases.SPECTRAL_PART,
    "norms-heads-cpt-math-text-1000-delta-40d480ad48932690": cases.SPECTRAL_COLUMNS,
    "cpt-math-text-1000-delta-971ba2f4169e5a34": cases.SPECTRA,
    "cpt-math-text-1000-from-model-abc-8e28e1a8da30ae31": cases.FINGERPRINT,
    "cpt-math-text-1000-against-model-abc-a00891070aae9f9a": cases.ROTATIONS,
    "delta_norm-ascending-cf2119c590c191c8": cases.DELTA_NORM,
    "random-descending-seed0-30556564cf758625": cases.RANDOM,
    "rewind-delta_norm-ascending-0.25-0d0c506275d5f8aa": cases.PATCHED,
    "tiny-079f76e2f4532f91": cases.PROTOCOL,
    "tiny-rewind-delta_norm-ascending-0.25-d0eae1450cd3e5b2": cases.EVALUATION,
    "delta_norm-ascending-and-random-descending-seed0-92bda88847dfcfb6": cases.CORRELATION,
    "entropy-sums-100-rewind-delta_norm-ascending-0.25-5b591a39623e705e": cases.ATTENTION_ENTROPY,
    "attention-sums-100-rewind-delta_norm-ascending-0.25-bf5c0250063fe404": cases.ATTENTION_MAPS,
    "cka-sums-100-rewind-delta_norm-ascending-0.25-cb8d19513d36a1dd": cases.LAYER_SIMILARITY,
}
PART = cases.MIXTURE.parts[0]
HEADS = Heads(heads=((0, 1), (1, 2)))
MATRICES = Matrices(matrices=((0, "q"), (1, "down")))
PROBE = Probe(tuned=TUNED, base=BASE, protocol=PROTOCOL)
FILE = ScoresFile(path="/orders/mine.json", contents_digest="ab12")
TOP_OF = TopOf(ranking=RANDOM, fraction=0.25)
REWIND = Rewind(base=BASE, select=HEADS)
MEMBERS = (Member(name="tuned", weight=0.5), Member(name="reference", checkpoint=cases.FOLDER, weight=0.5))
QUERIES = RoleWeights(role="q", weights=(0.5, 0.5))
FIRST_LAYERS = FirstLayers(ranking=RANDOM, count=1)

# For every spec another value of every field.
CHANGES: tuple[tuple[Spec, dict[str, Any]], ...] = (
    (cases.MATH, {"name": "inst", "documents": 41, "held_out": 5, "seed": 1, "python": "3.11.0"}),
    (
        cases.FILES,
        {"name": "memos", "files": ("/b",), "files_digest": "ef", "field": "content", "held_out": 5, "seed": 1}
        | {"filter": (cases.RULE,), "sample_tokens": 100, "licence": "CC-BY"},
    ),
    (cases.READY, {"name": "made", "files": ("/b",), "files_digest": "ef", "dtype": "uint16", "licence": "CC-BY"}),
    (cases.RULE, {"field": "score", "at_least": 3.0, "at_most": 9.0, "one_of": ("en",), "matches": "a+"}),
    (cases.CONTAMINATION, {"corpus": cases.TEXT, "protocol": cases.PROTOCOL.but(seed=1), "words": 8}),
    (
        cases.HUB,
        {"name": "flan", "id": "owner/flan", "revision": "v2", "config": "clean", "data_files": "*.gz", "split": "test", "field": "content"}
        | {"available_tokens": 20_000, "filter": (cases.RULE,), "sample_tokens": 100, "licence": "CC-BY"},
    ),
    (cases.BPE, {"corpora": (cases.MATH,), "vocab_size": 321}),
    (cases.HUB_TOKENIZER, {"id": "owner/other", "revision": "v2"}),
    (cases.TOKENS, {"corpus": cases.TEXT, "split": "test", "tokenizer": cases.HUB_TOKENIZER, "clean_of": cases.PROTOCOL}),
    (PART, {"corpus": cases.TEXT, "tokens": 801, "oversample": True}),
    (cases.MIXTURE, {"name": "another name", "parts": (PART,), "seed": 1, "clean_of": cases.PROTOCOL}),
    (
        SHAPE,
        {"name": "another name", "family": "llama", "hidden_size": 40, "num_layers": 3, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16}
        | {"mlp_size": 64, "vocab_size": 321, "context": 64, "rope_theta": 1e4, "norm_eps": 1e-5, "tied_embeddings": True},
    ),
    (
        cases.RECIPE,
        {"sequence_length": 64, "batch_sequences": 4, "lr": 2e-3, "schedule": "cosine", "lr_final_share": 0.1, "warmup_tokens": 100}
        | {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0, "z_loss": 0.0, "max_grad_norm": None, "precision": "fp32", "seed": 1},
    ),
    (BASE, {"id": "owner/other", "revision": "v2", "shape": SHAPE.but(context=64)}),
    (cases.FOLDER, {"path": "/elsewhere", "weights_digest": "ef", "shape": SHAPE.but(rope_theta=1e4)}),
    (
        cases.OLMO_CORE,
        {"path": "/elsewhere", "contents_digest": "cd", "shape": SHAPE.but(rope_theta=1e4), "tokenizer": cases.BPE},
    ),
    (cases.INTERMEDIATE, {"of": cases.PRETRAINED, "tokens": cases.RECIPE.batch_tokens}),
    (
        TUNED,
        {"shape": SHAPE.but(mlp_size=64), "start": None, "tokenizer": cases.BPE, "mixture": cases.MIXTURE.but(seed=1)}
        | {"recipe": cases.RECIPE.but(seed=1), "watch": cases.WATCH},
    ),
    (cases.WATCH, {"every": 50, "measures": ("stable_rank",), "heads": True}),
    (cases.WARMED_UP, {"reference": cases.PRETRAINED, "scale": 0.5, "seed": 1}),
    (
        cases.SPECTRAL_PART,
        {"checkpoint": cases.PRETRAINED, "against": None, "layer": 1, "scope": "mlp", "of": "pair", "seed": 1},
    ),
    (
        cases.SPECTRAL_COLUMNS,
        {"checkpoint": cases.PRETRAINED, "against": None, "scope": "mlp", "family": "power_law", "measures": ("pl_ks",), "min_tail": 12}
        | {"ks": "two_sided", "null_model": "permute", "samples": 10, "seed": 1},
    ),
    (
        cases.SPECTRA,
        {"checkpoint": cases.PRETRAINED, "against": None, "measures": ("stable_rank",), "blocks": "heads", "roles": ("q",), "min_tail": 12}
        | {"ks": "two_sided", "null_model": "permute", "samples": 10, "seed": 1, "indices": True},
    ),
    (cases.FINGERPRINT, {"checkpoint": BASE, "against": TUNED, "controls": (cases.FOLDER,), "layers": None, "mismatches": 1}),
    (
        DELTA_NORM,
        {"criterion": "random", "direction": "descending", "shape": SHAPE.but(num_layers=3), "unit": "layer", "roles": ("q",), "seed": 1}
        | {"column": "stable_rank", "spectra": (), "probe": PROBE, "file": FILE},
    ),
    (PROBE, {"tuned": cases.FOLDER, "base": cases.FOLDER, "protocol": PROTOCOL.but(seed=1), "metric": "sums/exact_match", "kv": "never"}),
    (cases.CORRELATION, {"one": RANDOM, "other": DELTA_NORM}),
    (cases.PROMPTS, {"protocol": PROTOCOL.but(seed=1), "task": "sums", "count": 7}),
    (cases.ATTENTION_ENTROPY, {"checkpoint": TUNED, "prompts": cases.PROMPTS.but(count=7)}),
    (
        cases.ATTENTION_MAPS,
        {"checkpoint": TUNED, "prompts": cases.PROMPTS.but(count=7), "layers": (1,), "heads": (0,), "cells": 64},
    ),
    (
        cases.ROTATIONS,
        {"checkpoint": BASE, "against": TUNED, "layers": (1,), "roles": ("q",), "corner": 3, "blocks": 8},
    ),
    (cases.LAYER_SIMILARITY, {"checkpoint": TUNED, "against": BASE, "prompts": cases.PROMPTS.but(count=7)}),
    (FILE, {"path": "/elsewhere.json", "contents_digest": "ef"}),
    (HEADS, {"heads": ((0, 1),)}),
    (MATRICES, {"matrices": ((0, "q"),)}),
    (TOP_OF, {"ranking": DELTA_NORM, "fraction": 0.5}),
    (REWIND, {"base": cases.FOLDER, "select": TOP_OF, "kv": "never"}),
    (Truncate(base=BASE, percent=50, roles=("q",)), {"base": cases.FOLDER, "percent": 25, "roles": ("k",)}),
    (Transplant(name="base", source=BASE, roles=("q",)), {"name": "reference", "source": cases.FOLDER, "roles": ("k",)}),
    (
        ScaleTransplant(base=BASE, roles=("q",), alpha=(0.9,)),
        {"base": cases.FOLDER, "roles": ("k",), "alpha": (0.8,), "tuned": TUNED},
    ),
    (
        RotateAblate(name="base", source=BASE, side="in", part="mlp"),
        {"name": "reference", "source": cases.FOLDER, "side": "out", "part": "attention", "signs": "own"},
    ),
    (
        RotateRestore(name="base", source=BASE, side="in", part="mlp"),
        {"name": "reference", "source": cases.FOLDER, "side": "out", "part": "attention"},
    ),
    (MEMBERS[1], {"name": "inst", "checkpoint": TUNED, "weight": 0.25}),
    (QUERIES, {"role": "k", "weights": (0.2, 0.8)}),
    (Soup(members=MEMBERS), {"members": MEMBERS[:1], "roles": (QUERIES,)}),
    (TaskArithmetic(base=BASE, members=MEMBERS), {"base": cases.FOLDER, "members": MEMBERS[:1]}),
    (Dare(base=BASE, members=MEMBERS, drop=0.5, seed=0), {"base": cases.FOLDER, "members": MEMBERS[:1], "drop": 0.9, "seed": 1}),
    (Ties(base=BASE, members=MEMBERS, keep=0.5), {"base": cases.FOLDER, "members": MEMBERS[:1], "keep": 0.2, "scale": 0.5}),
    (Layers(layers=(0,)), {"layers": (1,)}),
    (FIRST_LAYERS, {"ranking": DELTA_NORM, "count": 2, "protect": 1}),
    (PruneLayers(select=Layers(layers=(0,))), {"select": FIRST_LAYERS}),
    (cases.PATCHED, {"tuned": cases.FOLDER, "interventions": (REWIND,)}),
    (
        cases.SUMS,
        {"name": "sum", "corpus": cases.TEXT, "split": "validation", "items": 5, "shots": 1, "max_new_tokens": 9}
        | {"limit": 3, "subset": "seeded"},
    ),
    (cases.PROSE, {"name": "poem", "corpus": cases.MATH, "split": "test", "items": 5, "limit": 3, "subset": "seeded"}),
    (cases.HARNESS, {"name": "drop", "shots": 0, "limit": 10, "subset": "seeded"}),
    (
        cases.OLMES,
        {"name": "hellaswag", "items": "all", "version": 2, "data": "ab12", "source": "olmes", "folder": "/data"}
        | {"limit": 10, "subset": "seeded"},
    ),
    (
        cases.CHAT,
        {"name": "gsm8k", "version": 2, "data": "ab12", "source": "olmes", "folder": "/data", "limit": 10, "subset": "seeded"}
        | {"temperature": 0.5, "top_p": 0.9, "max_new_tokens": 512, "repeats": 1},
    ),
    (cases.MEAN, {"name": "two", "metric": "average", "of": ("sums/exact_match_strict", "sums/exact_match_flexible")}),
    (
        PROTOCOL,
        {"name": "full", "tasks": (cases.SUMS,), "means": (cases.MEAN,), "primary": "prose/bits_per_byte"}
        | {"dtype": "bfloat16", "harness": "0.5", "seed": 1},
    ),
    (EVALUATION, {"checkpoint": TUNED, "protocol": PROTOCOL.but(seed=1)}),
)
EVERY_CHANGE = [(spec, name, value) for spec, changes in CHANGES for name, value in changes.items()]


def ids(value: object) -> str:
    return type(value).__name__ if isinstance(value, Spec) else str(value) if isinstance(value, str) else ""


# ---------------------------------------------------------------------------------------------------------------- keys


def test_the_keys_of_representative_specs_are_what_they_always_were() -> None:
    assert {name: key(spec) for name, spec in PINNED.items()} == {name: name for name in PINNED}


def test_text_and_code_belong_to_the_version_of_python_that_they_document() -> None:
    assert BuiltinCorpus(name="code", documents=5, held_out=1).python == platform.python_version()
    assert BuiltinCorpus(name="math", documents=5, held_out=1).python == ""


def test_every_stored_kind_has_a_pinned_key() -> None:
    assert {type(spec) for spec in PINNED.values()} == set(STORED) == {type(spec) for spec in ONE_OF_EACH}


def test_the_table_of_changes_has_every_field_of_every_kind_of_spec() -> None:
    for spec, changes in CHANGES:
        assert set(changes) == set(type(spec).model_fields) - {"kind"}, type(spec).__name__
    assert {type(spec) for spec, _ in CHANGES} >= set(STORED) | set(INTERVENTIONS.values())


@pytest.mark.parametrize(("spec", "name", "value"), EVERY_CHANGE, ids=ids)
def test_a_field_changes_the_key_unless_it_only_says_where_or_how_something_is_found(spec: Spec, name: str, value: Any) -> None:
    changed = spec.but(**{name: value})
    assert getattr(changed, name) != getattr(spec, name)
    assert (digest(changed) == digest(spec)) == (name in spec.NOT_IDENTITY)
    assert (key(changed) == key(spec)) == (name in spec.NOT_IDENTITY)


def test_what_is_left_out_of_the_identity_is_named_here() -> None:
    left_out = {type(spec).__name__: set(spec.NOT_IDENTITY) for spec, _ in CHANGES if spec.NOT_IDENTITY}
    assert left_out == {
        "FilesCorpus": {"files", "licence"},
        "HubCorpus": {"licence"},
        "TokenFilesCorpus": {"files", "licence"},
        "Mixture": {"name"},
        "ModelShape": {"name"},
        "HubCheckpoint": {"shape"},
        "FolderCheckpoint": {"path"},
        "OlmoCoreCheckpoint": {"path"},
        "ScoresFile": {"path"},
        "OlmesTask": {"source", "folder"},
        "ChatTask": {"source", "folder"},
        **{merge: {"name"} for merge in ("Member", "RotateAblate", "RotateRestore", "Transplant")},
    }


def test_a_change_deep_inside_changes_the_key_of_all_that_contains_it() -> None:
    hotter = TUNED.but(recipe=cases.RECIPE.but(lr=2e-3))
    spectra = cases.SPECTRA.but(checkpoint=hotter)
    ranking = DELTA_NORM.but(spectra=(spectra,))
    patched = rewound(ranking)
    point = EVALUATION.but(checkpoint=patched)
    old = {key(spec) for spec in ONE_OF_EACH}
    assert not old & {key(spec) for spec in (hotter, spectra, ranking, patched, point)}


def test_names_and_paths_deep_inside_do_not_change_the_key() -> None:
    renamed = cases.MIXTURE.but(name="math_80_20")
    moved = cases.FOLDER.but(path="/elsewhere", shape=SHAPE.but(name="another"))
    assert key(TUNED.but(mixture=renamed)) == key(TUNED)
    assert key(EVALUATION.but(checkpoint=moved)) == key(EVALUATION.but(checkpoint=cases.FOLDER))


@pytest.mark.parametrize(("left", "right"), [(1, 1.0), (0, 0.0), (0.0, -0.0)])
def test_a_number_has_one_key_however_it_is_written(left: float, right: float) -> None:
    assert key(TOP_OF.but(fraction=left)) == key(TOP_OF.but(fraction=right))
    assert digest(cases.RECIPE.but(weight_decay=left)) == digest(cases.RECIPE.but(weight_decay=right))


def test_whole_numbers_written_as_floats_have_the_same_key() -> None:
    assert key(BuiltinCorpus.model_validate({"name": "math", "documents": 40.0, "held_out": 4.0, "seed": 0.0})) == key(cases.MATH)
    assert digest(cases.RECIPE.but(max_grad_norm=1)) == digest(cases.RECIPE)


def test_a_list_and_a_tuple_have_the_same_key() -> None:
    assert digest(cases.RECIPE.but(betas=[0.9, 0.95])) == digest(cases.RECIPE)
    assert key(cases.BPE.but(corpora=[cases.MATH, cases.TEXT])) == key(cases.BPE)


def test_sets_have_one_key_whatever_the_order_and_the_repetitions() -> None:
    assert digest(Heads(heads=((1, 2), (0, 1), (1, 2)))) == digest(HEADS)
    one = Spectra(checkpoint=BASE, measures=("stable_rank",), roles=("q", "up"))
    assert key(one) == key(one.but(roles=("up", "q", "q"), measures=("stable_rank", "stable_rank")))


def test_the_order_of_measures_is_that_of_the_columns_and_changes_the_key_of_the_table_alone() -> None:
    one = Spectra(checkpoint=BASE, measures=("stable_rank", "frobenius_norm"))
    other = one.but(measures=("frobenius_norm", "stable_rank"))
    assert key(one) != key(other)
    assert [key(need) for need in one.needs()] == [key(need) for need in other.needs()]


@given(st.permutations(list(EVALUATION.model_dump())), st.permutations(list(SHAPE.model_dump())))
def test_the_order_of_names_in_json_does_not_change_the_key(outer: list[str], inner: list[str]) -> None:
    written = EVALUATION.model_dump(mode="json")
    written["checkpoint"]["tuned"]["shape"] = {name: written["checkpoint"]["tuned"]["shape"][name] for name in inner}
    assert key(parse({name: written[name] for name in outer})) == key(EVALUATION)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0, exclude_min=True), st.floats(0, 1))
def test_any_finite_number_survives_being_written_and_read(lr: float, share: float) -> None:
    tuned = TUNED.but(recipe=cases.RECIPE.but(lr=lr, lr_final_share=share))
    assert key(parse(json.loads(tuned.model_dump_json()))) == key(tuned)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(ValidationError):
        Recipe(sequence_length=32, batch_sequences=8, lr=number, schedule="linear", lr_final_share=0)
    with pytest.raises(ValidationError):
        SHAPE.but(rope_theta=number)
    with pytest.raises(ValueError, match="give a finite number"):
        identity({"lr": number})


def test_a_key_is_a_plain_folder_name_with_readable_words_and_64_bits_of_hash() -> None:
    spoken = cases.HUB.but(name="../my corpus: part 1/2 " + "x" * 100)
    label, _, tail = key(spoken).rpartition("-")
    assert label == "my-corpus-part-1-2-" + "x" * 41
    assert tail == digest(spoken)[:16]


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())
CONTENT = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner).map(tuple), st.dictionaries(st.text(), inner)), max_leaves=12)


class Anything(Spec):
    """A spec of any content."""

    content: Any


@given(CONTENT)
def test_the_canonical_json_is_the_sorted_json_of_the_identity(content: Any) -> None:
    spec = Anything(content=content)
    whole = {"schema": SCHEMA, "spec": identity(spec)}
    assert canonical_json(spec) == json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)


def test_the_canonical_json_states_the_schema_and_the_content_sorted_and_without_blanks() -> None:
    assert canonical_json(cases.MATH) == (
        '{"schema":1,"spec":{"documents":40,"held_out":4,"kind":"builtin_corpus","name":"math","python":"","seed":0}}'
    )


# -------------------------------------------------------------------------------------------------- reading and checks


@pytest.mark.parametrize("spec", ONE_OF_EACH, ids=ids)
def test_a_spec_that_is_written_and_read_again_is_the_same_and_keeps_its_key(spec: Spec) -> None:
    read = parse(json.loads(spec.model_dump_json()))
    assert read == spec
    assert key(read) == key(spec)


@pytest.mark.parametrize("spec", [spec for spec, _ in CHANGES], ids=ids)
def test_a_field_that_does_not_exist_is_refused(spec: Spec) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        spec.but(no_such_field=1)


def test_a_spec_cannot_be_changed_or_copied_with_a_stale_key() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        cases.MATH.seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"use BuiltinCorpus\.but"):
        cases.MATH.model_copy(update={"seed": 1})


def test_an_unknown_kind_is_refused_with_the_kinds_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown kind of spec 'ranking2'; this version knows .*ranking"):
        parse({"kind": "ranking2"})
    written = cases.PATCHED.model_dump(mode="json")
    written["interventions"][0]["kind"] = "rewnd"
    with pytest.raises(ValidationError, match="did you mean rewind"):
        parse(written)


@pytest.mark.parametrize("fraction", [-0.01, 1.01])
def test_a_fraction_outside_0_and_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValidationError):
        TOP_OF.but(fraction=fraction)


def test_heads_that_cannot_share_their_kv_heads_evenly_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_kv_heads must divide num_heads"):
        SHAPE.but(num_kv_heads=3)


def test_a_corpus_that_stands_twice_in_a_mixture_is_refused() -> None:
    with pytest.raises(ValidationError, match="corpus math stands twice in the mixture"):
        Mixture(name="m", parts=(PART, PART))


def test_sequences_longer_than_the_context_and_mixtures_below_one_batch_are_refused() -> None:
    with pytest.raises(ValidationError, match="do not fit a context of 128"):
        TUNED.but(recipe=cases.RECIPE.but(sequence_length=129))
    with pytest.raises(ValidationError, match="less than one batch of 2,048"):
        TUNED.but(recipe=cases.RECIPE.but(batch_sequences=64))


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ValidationError, match="does not end within"):
        TUNED.but(recipe=TUNED.recipe.but(warmup_tokens=TUNED.mixture.tokens))
    assert TUNED.but(recipe=TUNED.recipe.but(warmup_tokens=TUNED.mixture.tokens - 1))


def test_two_interventions_cannot_take_different_weights_by_one_name() -> None:
    other = REWIND.but(base=cases.FOLDER, select=Heads(heads=((0, 0),)))
    with pytest.raises(ValidationError, match="call two checkpoints by the name base"):
        Patched(tuned=TUNED, interventions=(REWIND, other))
