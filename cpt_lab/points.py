"""Hydra's composed configuration -> points of a study, once, at the edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from pydantic import ValidationError

from cpt_lab import chain, specs
from cpt_lab.config import Config, CriterionConfig, MixtureConfig, ModelConfig, ProtocolConfig, SourceConfig, explain, parse, validated
from cpt_lab.names import unknown
from cpt_lab.study import Point, Value

# What post-training may change of a model without a change of the matrices' sizes: T compares such models.
MAY_DIFFER = specs.ModelShape.NOT_IDENTITY | {"context", "norm_eps", "tied_embeddings"}


def named(overrides: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Per point the swept choices by short column name: {"criterion": "random", "fraction": "0.5", "seed": "1"}."""
    rows = [dict(_split(override) for override in point) for point in overrides]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    swept = [key for key in keys if len({row.get(key) for row in rows}) > 1]
    short = {key: key.split(".")[-1] for key in swept}
    columns = {key: name if list(short.values()).count(name) == 1 else _apart(key) for key, name in short.items()}
    return [{columns[key]: row[key] for key in swept if key in row} for row in rows]


def point(data: dict[str, Any], varies: dict[str, str]) -> Point:
    """One composed configuration as a point; ValueError or KeyError in one sentence if it is wrong."""
    config = parse(data)
    values: dict[str, Value] = {name: _value(text) for name, text in varies.items()}
    name = " ".join(
        value if isinstance(value, str) else f"{column}={_short(value)}" for column, value in values.items() if value is not None
    )
    try:
        return Point(name=name or config.target["name"], varies=values, config=data, spec=_spec(config))
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def align(points: Iterable[Point]) -> list[Point]:
    """Points with the same columns each, every point once."""
    once = list({point.name: point for point in points}.values())
    columns = list(dict.fromkeys(column for point in once for column in point.varies))
    return [point.model_copy(update={"varies": {name: point.varies.get(name) for name in columns}}) for point in once]


# ---------------------------------------------------------------------------------------------------------- the nouns


def _spec(config: Config) -> specs.Spec:
    return _TARGETS[config.target["name"]](config)


def _materialized(config: Config) -> specs.Spec:
    patched = _patched(config)
    if not isinstance(patched, specs.Patched) and config.out is None:
        raise ValueError(
            "target=materialize with intervention=none would copy the tuned checkpoint: choose an intervention, or say where to "
            "with out=FOLDER"
        )
    return patched


def _evaluation(config: Config) -> specs.Evaluation:
    return specs.Evaluation(checkpoint=_patched(config), protocol=_protocol(config, config.protocol))


def _attention_entropy(config: Config) -> specs.AttentionEntropy:
    return specs.AttentionEntropy(checkpoint=_patched(config), prompts=_prompts(config))


def _attention_maps(config: Config) -> specs.AttentionMaps:
    asked = config.internals
    shown = {"layers": asked.layers, "heads": asked.heads, "cells": asked.cells}
    return validated(
        specs.AttentionMaps, {"checkpoint": _patched(config), "prompts": _prompts(config, count=asked.prompt), **shown}, "internals"
    )


def _layer_similarity(config: Config) -> specs.LayerSimilarity:
    against = _checkpoint(config, config.internals.against)
    return specs.LayerSimilarity(checkpoint=_patched(config), against=against, prompts=_prompts(config))


def _prompts(config: Config, *, count: int | None = None) -> specs.Prompts:
    asked = config.internals
    protocol = _protocol(config, config.protocol)
    names = [task.name for task in protocol.tasks]
    if asked.task is not None and asked.task not in names:
        raise ValueError(f"internals.task: {unknown(f'task of protocol {protocol.name}', asked.task, names)}")
    return specs.Prompts(protocol=protocol, task=asked.task, count=asked.prompts if count is None else count)


def _correlation(config: Config) -> specs.Correlation:
    if config.other_criterion is None:
        raise ValueError("target=correlate compares two criteria and there is one: add the other with +criterion@other_criterion=NAME")
    one, other = (_ranked(config, criterion) for criterion in (config.criterion, config.other_criterion))
    return specs.Correlation(one=one, other=other)


def _corpus(config: Config, name: str) -> specs.Corpus:
    if name not in config.corpora:
        raise KeyError(f"{unknown('corpus', name, config.corpora)}; add one with +corpus@corpora.{name}=FILE")
    data = config.corpora[name]
    kinds: dict[str, type[specs.BuiltinCorpus | specs.FilesCorpus | specs.HubCorpus | specs.TokenFilesCorpus]] = {
        "builtin_corpus": specs.BuiltinCorpus,
        "files_corpus": specs.FilesCorpus,
        "hub_corpus": specs.HubCorpus,
        "token_files_corpus": specs.TokenFilesCorpus,
    }
    if data.get("kind") not in kinds:
        raise ValueError(f"corpus {name}: unknown kind {data.get('kind')!r}; there are {', '.join(kinds)}")
    if data["kind"] in ("files_corpus", "token_files_corpus") and "files_digest" not in data:
        from cpt_lab.data.files import files_digest

        data = {**data, "files_digest": files_digest(data.get("files", ()))}
    return validated(kinds[data["kind"]], data, f"corpora.{name}")


def _mixture(config: Config, mixture: MixtureConfig) -> specs.Mixture:
    parts = []
    for part in mixture.parts:
        corpus = _corpus(config, part.corpus)
        available = getattr(corpus, "usable_tokens", None)
        if available is not None and part.tokens > available and not part.oversample:
            raise ValueError(
                f"mixture {mixture.name} asks for {part.tokens:,} tokens of {part.corpus}, which has {available:,}: "
                "lower tokens or set oversample: true to repeat it"
            )
        parts.append(specs.Part(corpus=corpus, tokens=part.tokens, oversample=part.oversample))
    clean_of = None if mixture.clean_of is None else _protocol(config, mixture.clean_of)
    return specs.Mixture(name=mixture.name, parts=tuple(parts), seed=mixture.seed, clean_of=clean_of)


def _contamination(config: Config) -> specs.Contamination:
    asked = config.contamination
    if asked.corpus is None:
        raise ValueError(
            f"target=contamination looks through one corpus: contamination.corpus=NAME, of {', '.join(sorted(config.corpora))}"
        )
    return validated(
        specs.Contamination,
        {"corpus": _corpus(config, asked.corpus), "protocol": _protocol(config, config.protocol), "words": asked.words},
        "contamination",
    )


def _tokenizer(config: Config) -> specs.Tokenizer:
    data = config.model.tokenizer
    if data.get("kind") == "hub_tokenizer":
        return validated(specs.HubTokenizer, data, "model.tokenizer")
    corpora = tuple(_corpus(config, name) for name in data.get("corpora", ()))
    return validated(specs.BpeTokenizer, {**data, "corpora": corpora}, "model.tokenizer")


def _shape(model: ModelConfig, place: str = "model") -> specs.ModelShape:
    return validated(specs.ModelShape, {"name": model.name, **model.shape}, f"{place}.shape")


def _checkpoint(config: Config, part: str) -> specs.Checkpoint:
    place, source = _source(config, part)
    made = _whole(config, part, place, source)
    if source.at is None:
        return made
    if not isinstance(made, specs.TrainedCheckpoint):
        raise ValueError(f"{place}.at={source.at} is for what is trained here, and {place}.from is {source.origin}: remove it")
    batch = made.recipe.batch_tokens
    return specs.Intermediate(of=made, tokens=max(1, round(source.at / batch)) * batch)


def _whole(config: Config, part: str, place: str, source: SourceConfig) -> specs.Checkpoint:
    match source.origin:
        case "folder":
            return _folder(place, source.path)
        case "olmo_core":
            return _olmo_core(config, place, source.path)
        case "hub":
            return _hub(config, place, source)
        case "pretrain":
            recipe = config.pretrain.training
            recipe = recipe if source.seed is None else recipe.but(seed=source.seed)
            return _trained(config, config.pretrain.mixture, recipe, start=_warmup(config))
        case "cpt":
            if part == "base":
                raise ValueError("base.from=cpt: the base is what CPT starts from; choose pretrain, hub or folder")
            mixture = config.mixture if part == "tuned" else source.mixture
            if mixture is None:
                raise ValueError(f"{place}.from=cpt needs a mixture: +mixture@{place}.mixture=NAME")
            return _trained(config, mixture, config.training, start=_checkpoint(config, "base"))


def _source(config: Config, part: str) -> tuple[str, SourceConfig]:
    """Where a checkpoint of this name stands in the configuration, and what is said there."""
    parts = {"base": config.base, "tuned": config.tuned, "reference": config.reference}
    if part in parts:
        return part, parts[part]
    if part in config.others:
        return f"others.{part}", config.others[part]
    known = unknown("checkpoint", part, [*parts, *config.others])
    raise KeyError(f"{known}; add one with +others.{part}={{from: folder, path: FOLDER}}")


def _hub(config: Config, place: str, source: SourceConfig) -> specs.HubCheckpoint:
    model, where = (source.model, f"{place}.model") if source.model else (config.model, "model")
    if source.id is not None:
        return specs.HubCheckpoint(id=source.id, revision=source.revision or "main", shape=_shape(model, where))
    if model.hub is None:
        raise ValueError(f"{place}.from=hub, but model {model.name} has no hub id: choose another model or {place}.from=folder")
    return specs.HubCheckpoint(id=model.hub.id, revision=source.revision or model.hub.revision, shape=_shape(model, where))


def _trained(config: Config, mixture: MixtureConfig, recipe: specs.Recipe, *, start: specs.Checkpoint | None) -> specs.TrainedCheckpoint:
    shape = start.shape if start is not None else _shape(config.model)
    parts = {"tokenizer": _tokenizer(config), "mixture": _mixture(config, mixture), "recipe": recipe}
    return specs.TrainedCheckpoint(shape=shape, start=start, **parts, watch=_watch(config))


def _watch(config: Config) -> specs.Watch | None:
    from cpt_lab.spectra.choice import chosen

    asked = config.watch
    if asked.every is None:
        return None
    given = {"every": asked.every, "measures": chosen(asked.measures, pair=False), "heads": asked.heads}
    return validated(specs.Watch, given, "watch")


def _warmup(config: Config) -> specs.SpectralWarmup | None:
    """What pre-training starts from if it is not chance alone; the reference itself has no such start."""
    if config.pretrain.start == "random":
        return None
    asked = config.pretrain.spectral_warmup
    plain = config.model_copy(update={"pretrain": config.pretrain.model_copy(update={"start": "random"})})
    return specs.SpectralWarmup(reference=_checkpoint(plain, asked.reference), scale=asked.scale, seed=asked.seed)


def _folder(part: str, path: str | None) -> specs.FolderCheckpoint:
    if not path:
        raise ValueError(f"{part}.from=folder needs a folder in Hugging Face format: {part}.path=FOLDER")
    from cpt_lab import checkpoints

    return checkpoints.in_folder(Path(path))


def _olmo_core(config: Config, place: str, path: str | None) -> specs.OlmoCoreCheckpoint:
    if not path:
        raise ValueError(f"{place}.from=olmo_core needs a checkpoint's folder as OLMo-core writes it: {place}.path=FOLDER/step1000")
    from cpt_lab.checkpoints import olmo_core_folder

    folder, contents = olmo_core_folder(Path(path))
    return specs.OlmoCoreCheckpoint(path=str(folder), contents_digest=contents, shape=_shape(config.model), tokenizer=_tokenizer(config))


def _ranked(config: Config, criterion: CriterionConfig) -> specs.Ranking:
    """The ranking by a criterion, in the direction that the intervention has, if it has one."""
    direction = str(config.intervention.get("direction", "descending"))
    return _ranking(config, direction, criterion, kv=config.intervention.get("kv"))


def _ranking(config: Config, direction: str, criterion: CriterionConfig, *, kv: str | None) -> specs.Ranking:
    from cpt_lab.orderings import CRITERIA, ranking

    rule = CRITERIA[criterion.name]
    tuned, base = _checkpoint(config, "tuned"), _checkpoint(config, "base")
    _same_shape(tuned, base)
    reference = None
    if any(table.of == "reference" for table in rule.reads):
        reference = _checkpoint(config, "reference")
        _same_shape(reference, base, names=("reference", "base"))
    given = {name: value for name, value in criterion.model_dump(exclude={"name", "protocol"}).items() if value != MISSING}
    if "protocol" in rule.settings:
        given["protocol"] = _protocol(config, criterion.protocol or config.protocol)
    if "kv" in rule.options:
        given["kv"] = kv
    return ranking(criterion.name, direction, tuned=tuned, base=base, reference=reference, **given)


def _spectra(config: Config) -> specs.Spectra:
    from cpt_lab.spectra.choice import chosen

    asked = config.spectra
    checkpoint, against = _compared(config)
    settings = asked.model_dump(exclude={"of", "against", "measures"})
    measures = chosen(asked.measures, pair=against is not None)
    return validated(specs.Spectra, {**settings, "checkpoint": checkpoint, "against": against, "measures": measures}, "spectra")


def _compared(config: Config) -> tuple[specs.Checkpoint, specs.Checkpoint | None]:
    """The checkpoint that `spectra` is of, and the other one, if there is one."""
    asked = config.spectra
    checkpoint = _checkpoint(config, asked.of)
    if asked.against is None:
        return checkpoint, None
    if asked.against == asked.of:
        raise ValueError(f"spectra.of and spectra.against are both {asked.of}: compare two checkpoints, or set spectra.against=null")
    against = _checkpoint(config, asked.against)
    _same_shape(checkpoint, against, names=(asked.of, asked.against))
    return checkpoint, against


def _fingerprint(config: Config) -> specs.Fingerprint:
    asked = config.fingerprint
    checkpoint, against, *controls = (_checkpoint(config, name) for name in (asked.of, asked.against, *asked.controls))
    for name, control in zip((asked.of, *asked.controls), (checkpoint, *controls), strict=True):
        _same_shape(control, against, names=(name, asked.against))
    settings = {"layers": asked.layers, "mismatches": asked.mismatches}
    return validated(
        specs.Fingerprint, {"checkpoint": checkpoint, "against": against, "controls": tuple(controls), **settings}, "fingerprint"
    )


def _rotations(config: Config) -> specs.Rotations:
    checkpoint, against = _compared(config)
    if against is None:
        raise ValueError(
            "target=rotations compares two checkpoints and spectra.against is null: name the other one, as spectra.against=base"
        )
    settings = {**config.rotations.model_dump(), "roles": config.spectra.roles}
    return validated(specs.Rotations, {"checkpoint": checkpoint, "against": against, **settings}, "rotations")


def _patched(config: Config) -> specs.Checkpoint | specs.Patched:
    tuned = _checkpoint(config, "tuned")
    changes = chain.interventions(config, lambda link: _Choices(config, link))
    for change in changes:
        for name, source in change.sources().items():
            _same_shape(tuned, source, names=("tuned", name))
            if not change.ANY_DTYPE:
                _same_dtype(tuned, source, names=("tuned", name))
    return specs.Patched(tuned=tuned, interventions=changes) if changes else tuned


class _Choices:
    """What an intervention may refer to, made when it asks."""

    def __init__(self, config: Config, link: chain.Link) -> None:
        self._config = config
        self._link = link

    def checkpoint(self, name: str) -> specs.Checkpoint:
        return _checkpoint(self._config, name)

    def ranking(self, direction: str) -> specs.Ranking:
        return _ranking(self._config, direction, self._link.criterion, kv=self._link.settings.get("kv"))


def _same_shape(left: specs.Checkpoint, right: specs.Checkpoint, names: tuple[str, str] = ("tuned", "base")) -> None:
    """ValueError naming the first difference: of the sizes, then, where both are local folders, of the parameters."""
    first, second = names
    for name in specs.ModelShape.model_fields:
        one, other = getattr(left.shape, name), getattr(right.shape, name)
        if one != other and name not in MAY_DIFFER:
            raise ValueError(
                f"{first} and {second} are different architectures: {name} is {one} in {first} and {other} in {second}: "
                "give two checkpoints of one model"
            )
    alike = left.shape.tied_embeddings == right.shape.tied_embeddings  # else only one has an output matrix, which few edits read
    if alike and isinstance(left, specs.FolderCheckpoint) and isinstance(right, specs.FolderCheckpoint):
        from cpt_lab.weights import check_same_headers

        check_same_headers(Path(left.path), Path(right.path), names=names)


def _same_dtype(left: specs.Checkpoint, right: specs.Checkpoint, names: tuple[str, str]) -> None:
    """ValueError if two local folders store a parameter in two dtypes; of others this is known when they are there."""
    if isinstance(left, specs.FolderCheckpoint) and isinstance(right, specs.FolderCheckpoint):
        from cpt_lab.weights import check_same_dtypes

        check_same_dtypes(Path(left.path), Path(right.path), names=names)


def _protocol(config: Config, chosen: ProtocolConfig) -> specs.Protocol:
    tasks = [_task(config, chosen, dict(task)) for task in chosen.tasks]
    shared = chosen.model_dump(include={"name", "dtype", "seed", "means", "primary"})
    return validated(specs.Protocol, {**shared, "tasks": tasks, "harness": _harness_version()}, "protocol")


def _task(config: Config, chosen: ProtocolConfig, task: dict[str, Any]) -> dict[str, Any]:
    """One task with what the protocol says of all of them; what the task says itself counts more."""
    shared = {name: value for name in ("limit", "subset") if (value := getattr(chosen, name)) is not None}
    if task.get("corpus") is not None:
        task["corpus"] = _corpus(config, task["corpus"]).model_dump()
    if task.get("kind") in ("olmes", "chat"):
        shared |= {name: value for name in ("source", "folder") if (value := getattr(chosen, name)) is not None}
    task = {**shared, **task}
    if _lies_in_folder(task):
        from cpt_lab.evaluation.items import files_digest

        folder = str(Path(task["folder"]).expanduser().absolute())
        task |= {"source": "files", "folder": folder, "data": files_digest(str(task["kind"]), str(task.get("name")), folder)}
    return task


def _lies_in_folder(task: dict[str, Any]) -> bool:
    """Whether a benchmark's items are to be read from the user's folder: he says so, or they are there and he does not say otherwise."""
    if not task.get("folder"):
        return False
    source, file = task.get("source", "auto"), Path(task["folder"]).expanduser() / f"{task.get('name')}.jsonl"
    return bool(source == "files" or (source == "auto" and file.exists()))


@cache
def _harness_version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


_TARGETS: dict[str, Callable[[Config], specs.Spec]] = {
    "train": lambda config: _checkpoint(config, "tuned"),
    "contamination": _contamination,
    "spectra": _spectra,
    "fingerprint": _fingerprint,
    "rank": lambda config: _ranked(config, config.criterion),
    "correlate": _correlation,
    "materialize": _materialized,
    "evaluate": _evaluation,
    "attention_entropy": _attention_entropy,
    "attention_maps": _attention_maps,
    "layer_similarity": _layer_similarity,
    "rotations": _rotations,
}


# ------------------------------------------------------------------------------------------------------------- helpers


def _split(override: str) -> tuple[str, str]:
    name, _, value = override.lstrip("+~").partition("=")
    return name, value


def _apart(key: str) -> str:
    """A column of a name that others have too: the whole key, of a choice `mixture@pretrain.mixture` its place as `pretrain_mixture`."""
    return key.partition("@")[2].replace(".", "_") or key


def _short(number: float) -> str:
    """A number in few digits, all of them where it takes them: two points must not get one name."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def _value(text: str) -> Value:
    try:
        number = float(text)
    except ValueError:
        return None if text == "null" else text.strip("'\"")
    return int(number) if number.is_integer() and "." not in text and "e" not in text.lower() else number
