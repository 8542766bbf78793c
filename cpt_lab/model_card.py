"""The model card of a checkpoint: how it was made, in words and exactly, for whoever finds the folder later."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from typing import Any

import cpt_lab
from cpt_lab import checkpoints, study, weights
from cpt_lab.specs import (
    BuiltinCorpus,
    Checkpoint,
    FilesCorpus,
    FolderCheckpoint,
    HubCheckpoint,
    HubCorpus,
    Intermediate,
    Intervention,
    OlmoCoreCheckpoint,
    Patched,
    Ranking,
    Recipe,
    Spec,
    SpectralWarmup,
    TrainedCheckpoint,
    closure,
    key,
)
from cpt_lab.store import Store, read_json

LONGEST_LINE = 100  # of the settings, as far as they can be broken


def text(made: Checkpoint | Patched, rankings: Iterable[Ranking], store: Store, *, command: str) -> str:
    """The card of a finished checkpoint in Markdown: what was done to which weights, where they are from, and with which code.

    `rankings` are those that its units were chosen by. It names no folder of this machine but those in the command.
    """
    sections = [
        _front_matter(made),
        f"# {key(made)}\n\n{_summary(made)}",
        *(_change(number, change) for number, change in enumerate(_changes(made), start=1)),
        _rankings(tuple(rankings)),
        _warnings(made, store),
        _sources(made, store),
        _origin(made, store, command),
        _use(made),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def words(spec: Checkpoint) -> str:
    """A checkpoint in words: where it is from, and if it was trained, on what and how."""
    if isinstance(spec, HubCheckpoint):
        return f"{spec.id} at revision {spec.revision}"
    if isinstance(spec, FolderCheckpoint):
        return f"a folder whose weights have the SHA-256 {spec.weights_digest}"
    if isinstance(spec, OlmoCoreCheckpoint):
        return f"a checkpoint of OLMo-core whose contents have the SHA-256 {spec.contents_digest}"
    if isinstance(spec, Intermediate):
        return f"`{key(spec.of)}` after {spec.tokens:,} of its tokens"
    if isinstance(spec, SpectralWarmup):
        return f"random matrices with {spec.scale:g} x the singular values of `{key(spec.reference)}` (seed {spec.seed})"
    parts = " and ".join(f"{part.tokens:,} tokens of {part.corpus.name}" for part in spec.mixture.parts)
    begun = "pre-trained from scratch" if spec.start is None else f"`{key(spec.start)}` after continual pre-training"
    if isinstance(spec.start, SpectralWarmup):
        begun = f"pre-trained from `{key(spec.start)}`"
    return f"{begun} on {parts} ({_recipe(spec.recipe)})"


def _recipe(recipe: Recipe) -> str:
    last = recipe.lr * recipe.lr_final_share
    return (
        f"learning rate {recipe.lr:g} to {last:g}, {recipe.schedule}; steps of {recipe.batch_sequences} sequences of "
        f"{recipe.sequence_length} tokens; {recipe.precision}; seed {recipe.seed}"
    )


def _front_matter(made: Checkpoint | Patched) -> str:
    """What the hub reads; JSON strings are YAML too."""
    ids = dict.fromkeys(spec.id for spec in closure([made]) if isinstance(spec, HubCheckpoint))
    lines = ["---", "library_name: transformers", "tags: [cpt_lab]"]
    return "\n".join([*lines, *([f"base_model: {json.dumps(list(ids))}"] if ids else []), "---"])


def _summary(made: Checkpoint | Patched) -> str:
    if not isinstance(made, Patched):
        return f"The unchanged weights of a checkpoint: {words(made)}."
    count = len(made.interventions)
    changes = "one change" if count == 1 else f"{count} changes in this order"
    return f"The checkpoint `{key(made.tuned)}`, which is {words(made.tuned)}, with {changes}."


def _changes(made: Checkpoint | Patched) -> tuple[Intervention, ...]:
    return made.interventions if isinstance(made, Patched) else ()


def _change(number: int, change: Intervention) -> str:
    what = inspect.cleandoc(type(change).__doc__ or "").partition("\n\n")[0]
    sources = "".join(f"\n\n`{name}` is `{key(source)}`." for name, source in change.sources().items())
    return f"## Change {number}: {change.kind}\n\n{what}{sources}\n\n```\n{_settings(change)}\n```"


def _settings(change: Intervention) -> str:
    """All fields of an intervention, one a line; checkpoints stand by their keys."""
    fields = ((name, getattr(change, name)) for name in type(change).model_fields if name != "kind")
    return "\n".join(f"{name}: {_broken(json.dumps(_plain(value)))}" for name, value in fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        fields = {name: _plain(getattr(value, name)) for name in type(value).model_fields if name != "kind"}
        return key(value) if value.FOLDER else fields
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _broken(line: str) -> str:
    """A long list over several lines, broken between its entries."""
    lines = [""]
    for piece in line.replace("], [", "],\n[").split("\n"):
        if lines[-1] and len(lines[-1]) + len(piece) > LONGEST_LINE:
            lines.append("")
        lines[-1] += f" {piece}" if lines[-1] else piece
    return "\n  ".join(lines)


def _rankings(rankings: tuple[Ranking, ...]) -> str:
    lines = [f"- `{key(ranking)}`: `{_plain_fields(ranking)}`" for ranking in rankings]
    return "## Orders that units were chosen by\n\n" + "\n".join(lines) if lines else ""


def _warnings(made: Checkpoint | Patched, store: Store) -> str:
    found = study.warnings(store, made)
    return "## Warnings\n\n" + "\n".join(f"- {warning}" for warning in found) if found else ""


def _plain_fields(ranking: Ranking) -> str:
    fields = {name: _plain(getattr(ranking, name)) for name in type(ranking).model_fields if name not in ("kind", "shape")}
    return json.dumps(fields)


def _sources(made: Checkpoint | Patched, store: Store) -> str:
    """Everything that comes from outside or was trained, with what identifies it."""
    rows = [f"| `{key(spec)}` | {found} |" for spec in closure([made]) if (found := _identified(spec, store))]
    return "## Sources\n\n| key | what it is |\n|---|---|\n" + "\n".join(rows)


def _identified(spec: Spec, store: Store) -> str:
    if isinstance(spec, HubCheckpoint):
        commit = read_json(store.product(spec) / "commit.json").get("commit") if store.is_done(spec) else None
        return words(spec) + (f", commit {commit}" if commit else "")
    if isinstance(spec, FolderCheckpoint | TrainedCheckpoint | OlmoCoreCheckpoint | Intermediate | SpectralWarmup):
        return words(spec)
    if isinstance(spec, HubCorpus):
        return f"data set {spec.id} at revision {spec.revision}" + (f", configuration {spec.config}" if spec.config else "")
    if isinstance(spec, FilesCorpus):
        return f"files whose contents have the SHA-256 {spec.files_digest}"
    return "made by cpt_lab itself" + f" from Python {spec.python}" * bool(spec.python) if isinstance(spec, BuiltinCorpus) else ""


def _origin(made: Checkpoint | Patched, store: Store, command: str) -> str:
    built = store.provenance(made)
    uncommitted = f", with uncommitted changes of digest {built['git_diff']}" if built.get("git_diff") else ""
    versions = ", ".join(f"{name} {version}" for name, version in built.get("versions", {}).items())
    rows = [
        ("key", f"`{key(made)}`"),
        ("SHA-256 of the weights", f"`{weights.weights_digest(store.product(made))}`"),
        ("edits", _edits(made)),
        ("cpt_lab", f"{cpt_lab.__version__}, commit {built.get('git') or 'unknown'}{uncommitted}, snapshot {built.get('code') or 'none'}"),
        ("packages", versions),
        ("command", f"`{command}`"),
    ]
    return "## Identity and code\n\n" + "\n".join(f"- {name}: {value}" for name, value in rows if value)


def _edits(made: Checkpoint | Patched) -> str:
    if not isinstance(made, Patched):
        return ""
    patch = checkpoints.patch_of(made)
    dropped = f" and {len(patch.drop.layers)} layers that go" if patch.drop else ""
    return f"{len(patch.edits)}{dropped}, in `patch.json`; the SHA-256 of the patch is `{patch.digest()}`"


def _use(made: Checkpoint | Patched) -> str:
    return (
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```\n\n'
        "```\nlm_eval run --model hf --model_args pretrained=FOLDER --tasks gsm8k\n```\n\n"
        f"Its context of {made.shape.context} tokens, its tokenizer and its settings are those of the checkpoint that was changed."
    )
