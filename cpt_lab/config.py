"""Hydra's composed configuration -> points of a study, once, at the edge. The only reader of OmegaConf."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import MISSING
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cpt_lab import specs
from cpt_lab.execution import Execution
from cpt_lab.interventions import INTERVENTIONS
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.names import unknown
from cpt_lab.site import Site
from cpt_lab.study import Point, Value
from cpt_lab.tracking_settings import Tracking


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Part = TypeVar("_Part", bound=BaseModel)


class HubModel(_Model):
    id: str
    revision: str


class ModelConfig(_Model):
    name: str
    shape: dict[str, Any]
    hub: HubModel | None = None
    tokenizer: dict[str, Any]


class PartConfig(_Model):
    corpus: str
    tokens: int
    oversample: bool = False


class MixtureConfig(_Model):
    name: str
    seed: int = Field(default=0, ge=0)
    parts: tuple[PartConfig, ...]


class SourceConfig(_Model):
    """Where a checkpoint comes from."""

    origin: Literal["pretrain", "hub", "folder", "cpt"] = Field(alias="from")
    path: str | None = None
    mixture: MixtureConfig | None = None


class PretrainConfig(_Model):
    mixture: MixtureConfig
    training: specs.Recipe


class RewindConfig(_Model):
    name: Literal["rewind"]
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    direction: str
    kv: Literal["when_group_complete", "with_first", "never"]
    roles: tuple[str, ...]
    heads: tuple[specs.Head, ...] | None

    @field_validator("fraction", mode="before")
    @classmethod
    def _is_a_share(cls, fraction: Any) -> Any:
        number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if fraction not in (None, MISSING) and not (number and 0 <= fraction <= 1):
            raise ValueError(f"got {fraction!r}, allowed is a share of the heads between 0 and 1")
        return None if fraction == MISSING else fraction

    @model_validator(mode="after")
    def _says_which(self) -> RewindConfig:
        if self.heads is None and self.fraction is None:
            raise ValueError(
                "intervention=rewind must know which heads: set intervention.fraction=0.5, or intervention.heads=[[LAYER,HEAD],...]"
            )
        return self


class CriterionConfig(_Model):
    name: str
    seed: int | None = Field(default=None, ge=0)

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from cpt_lab.orderings import CRITERIA

        if name not in CRITERIA:
            raise ValueError(unknown("criterion", name, CRITERIA))
        return name


class ProtocolConfig(_Model):
    name: str
    dtype: str
    seed: int = 0
    tasks: tuple[dict[str, Any], ...]


class ExecutionConfig(_Model):
    device: Literal["auto", "cpu", "cuda"]
    threads: int | None
    micro_batch_sequences: int | None
    eval_batch: int
    checkpoint_minutes: float


class Config(_Model):
    """The whole configuration of one point; every key of `conf/` is declared here, and nothing else is allowed."""

    target: dict[Literal["name"], Literal["train", "spectra", "rank", "evaluate", "materialize"]]
    model: ModelConfig
    corpora: dict[str, dict[str, Any]]
    mixture: MixtureConfig
    reference: SourceConfig
    pretrain: PretrainConfig
    training: specs.Recipe
    intervention: dict[str, Any]
    criterion: CriterionConfig
    protocol: ProtocolConfig
    tracking: Tracking
    site: Site
    verb: str
    study: str | None
    question: str
    results: str
    base: SourceConfig
    tuned: SourceConfig
    workers: int | None = Field(ge=1)
    packs: int = Field(ge=1)
    max_attempts: int = Field(ge=1)
    wait: bool
    figures: tuple[str, ...]
    execution: ExecutionConfig


class Settings(_Model):
    """What a launch needs to know beside its points; the same for all of them."""

    study: str
    question: str
    results: Path
    verb: str
    workers: int | None
    packs: int
    max_attempts: int
    wait: bool
    figures: tuple[str, ...]
    execution: ExecutionConfig
    tracking: Tracking
    site: Site


def parse(data: dict[str, Any]) -> Config:
    """The typed configuration; ValueError in one sentence for the first thing that is wrong."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def explain(error: ValidationError, model: type[BaseModel] = Config, place: str = "") -> str:
    """The first problem of validating a model that stands at `place`, in one sentence: where, what was got, what is allowed."""
    first = error.errors()[0]
    inside = ".".join(map(str, first["loc"]))
    where = ".".join(filter(None, (place, inside))) or "the configuration"
    if first["type"] == "value_error":
        return f"{where}: {first['ctx']['error']}" if first["loc"] else str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        above = where.rpartition(".")[0]
        known = [f"{above}.{name}".lstrip(".") for name in known_settings(inside.rpartition(".")[0], model)]
        return unknown("setting", where, known) if known else f"unknown setting {where!r}: remove it"
    if first["type"] == "missing" or first["input"] == MISSING:
        return f"{where} is not given: set {where}=VALUE"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]} (got {first['input']!r})"


def known_settings(place: str, model: type[BaseModel] = Config) -> list[str]:
    """The settings that may stand at a dotted place of the configuration, whether its files have them or not."""
    for name in place.split(".") if place else []:
        inner = model.model_fields[name].annotation if name in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def settings(config: Config, experiment: str | None, cwd: Path) -> Settings:
    """The launch's settings; relative folders are meant from where the command was given."""
    study = config.study or experiment or "study"
    results = cwd / Path(config.results).expanduser()
    _check_results(results)
    _check_figures(config.figures)
    tracking = config.tracking.within(results)
    shared = {name: getattr(config, name) for name in Settings.model_fields if name not in ("study", "results", "tracking")}
    return Settings(study=study, results=results, tracking=tracking, **shared)


def execution(settings: Settings, *, cores: int) -> Execution:
    """How each worker computes, who has so many cores for itself."""
    how = settings.execution
    return Execution(**{**how.model_dump(), "threads": how.threads or max(1, cores)})


def named(overrides: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Per point the swept choices by short column name: {"criterion": "random", "fraction": "0.5", "seed": "1"}."""
    rows = [dict(_split(override) for override in point) for point in overrides]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    swept = [key for key in keys if len({row.get(key) for row in rows}) > 1]
    short = {key: key.split(".")[-1] for key in swept}
    columns = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
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
    match config.target["name"]:
        case "train":
            return _checkpoint(config, "tuned")
        case "spectra":
            from cpt_lab.orderings import DELTA_MEASURES

            tuned, base = _checkpoint(config, "tuned"), _checkpoint(config, "base")
            _same_shape(tuned, base)
            return specs.Spectra(checkpoint=tuned, against=base, measures=DELTA_MEASURES)
        case "rank":
            return _ranking(config, str(config.intervention.get("direction", "descending")))
        case "materialize":
            patched = _patched(config)
            if not isinstance(patched, specs.Patched):
                raise ValueError("target=materialize with intervention=none would copy the tuned checkpoint: choose an intervention")
            return patched
        case _:
            return specs.Evaluation(checkpoint=_patched(config), protocol=_protocol(config))


def _corpus(config: Config, name: str) -> specs.Corpus:
    if name not in config.corpora:
        raise KeyError(f"{unknown('corpus', name, config.corpora)}; add one with +corpus@corpora.{name}=FILE")
    data = config.corpora[name]
    kinds: dict[str, type[specs.BuiltinCorpus | specs.FilesCorpus | specs.HubCorpus]] = {
        "builtin_corpus": specs.BuiltinCorpus,
        "files_corpus": specs.FilesCorpus,
        "hub_corpus": specs.HubCorpus,
    }
    if data.get("kind") not in kinds:
        raise ValueError(f"corpus {name}: unknown kind {data.get('kind')!r}; there are {', '.join(kinds)}")
    return _validated(kinds[data["kind"]], data, f"corpora.{name}")


def _mixture(config: Config, mixture: MixtureConfig) -> specs.Mixture:
    parts = []
    for part in mixture.parts:
        corpus = _corpus(config, part.corpus)
        available = getattr(corpus, "available_tokens", None)
        if available is not None and part.tokens > available and not part.oversample:
            raise ValueError(
                f"mixture {mixture.name} asks for {part.tokens:,} tokens of {part.corpus}, which has {available:,}: "
                "lower tokens or set oversample: true to repeat it"
            )
        parts.append(specs.Part(corpus=corpus, tokens=part.tokens, oversample=part.oversample))
    return specs.Mixture(name=mixture.name, parts=tuple(parts), seed=mixture.seed)


def _tokenizer(config: Config) -> specs.Tokenizer:
    data = config.model.tokenizer
    if data.get("kind") == "hub_tokenizer":
        return _validated(specs.HubTokenizer, data, "model.tokenizer")
    corpora = tuple(_corpus(config, name) for name in data.get("corpora", ()))
    return _validated(specs.BpeTokenizer, {**data, "corpora": corpora}, "model.tokenizer")


def _shape(config: Config) -> specs.ModelShape:
    return _validated(specs.ModelShape, {"name": config.model.name, **config.model.shape}, "model.shape")


def _checkpoint(config: Config, part: Literal["base", "tuned", "reference"]) -> specs.Checkpoint:
    source: SourceConfig = getattr(config, part)
    match source.origin:
        case "folder":
            return _folder(part, source.path)
        case "hub":
            if config.model.hub is None:
                raise ValueError(
                    f"{part}.from=hub, but model {config.model.name} has no hub id: choose another model or {part}.from=folder"
                )
            return specs.HubCheckpoint(id=config.model.hub.id, revision=config.model.hub.revision, shape=_shape(config))
        case "pretrain":
            return _trained(config, config.pretrain.mixture, config.pretrain.training, start=None)
        case "cpt":
            if part == "base":
                raise ValueError("base.from=cpt: the base is what CPT starts from; choose pretrain, hub or folder")
            mixture = config.mixture if part == "tuned" else source.mixture
            if mixture is None:
                raise ValueError(f"{part}.from=cpt needs a mixture: mixture@{part}.mixture=NAME")
            return _trained(config, mixture, config.training, start=_checkpoint(config, "base"))


def _trained(config: Config, mixture: MixtureConfig, recipe: specs.Recipe, *, start: specs.Checkpoint | None) -> specs.TrainedCheckpoint:
    shape = start.shape if start is not None else _shape(config)
    return specs.TrainedCheckpoint(shape=shape, start=start, tokenizer=_tokenizer(config), mixture=_mixture(config, mixture), recipe=recipe)


def _folder(part: str, path: str | None) -> specs.FolderCheckpoint:
    if not path:
        raise ValueError(f"{part}.from=folder needs a folder in Hugging Face format: {part}.path=FOLDER")
    from cpt_lab.architecture import shape_from_config
    from cpt_lab.weights import weights_digest

    folder = Path(path).expanduser().absolute()
    digest = weights_digest(folder)
    shape = shape_from_config(_read_config(folder)).but(name=folder.name)
    return specs.FolderCheckpoint(path=str(folder), weights_digest=digest, shape=shape)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no config.json that can be read ({error}): give the folder of a model in Hugging Face format"
        ) from None
    if not isinstance(data, dict):
        raise ValueError(f"{folder}/config.json is no JSON object: give the folder of a model in Hugging Face format")
    return data


def _ranking(config: Config, direction: str) -> specs.Ranking:
    from cpt_lab.orderings import CRITERIA, ranking

    criterion = config.criterion
    tuned, base = _checkpoint(config, "tuned"), _checkpoint(config, "base")
    _same_shape(tuned, base)
    reference = None
    if "reference" in CRITERIA[criterion.name].reads:
        reference = _checkpoint(config, "reference")
        _same_shape(reference, base, names=("reference", "base"))
    return ranking(
        criterion.name,
        direction,
        tuned=tuned,
        base=base,
        reference=reference,
        seed=criterion.seed,
        roles=tuple(config.intervention.get("roles", ("q", "k", "v", "o"))),
    )


def _patched(config: Config) -> specs.Checkpoint | specs.Patched:
    tuned = _checkpoint(config, "tuned")
    name = config.intervention.get("name")
    if name == "none":
        return tuned
    if name not in INTERVENTIONS:
        raise KeyError(unknown("intervention", str(name), ["none", *INTERVENTIONS]))
    base = _checkpoint(config, "base")
    _same_shape(tuned, base)
    return specs.Patched(tuned=tuned, interventions=(_BUILD[name](config, base),))


def _rewind(config: Config, base: specs.Checkpoint) -> Rewind:
    chosen = _validated(RewindConfig, config.intervention, "intervention")
    if chosen.heads is not None:
        heads = specs.Heads(heads=chosen.heads)
        _heads_exist(heads, base.shape)
        select: specs.Selection = heads
    else:
        assert chosen.fraction is not None
        select = specs.TopOf(ranking=_ranking(config, chosen.direction), fraction=chosen.fraction)
    return Rewind(base=base, select=select, kv=chosen.kv)


_BUILD = {"rewind": _rewind}


def _heads_exist(select: specs.Heads, shape: specs.ModelShape) -> None:
    for layer, head in select.heads:
        if not (0 <= layer < shape.num_layers and 0 <= head < shape.num_heads):
            raise ValueError(
                f"head [{layer}, {head}] does not exist: the model has layers 0 to {shape.num_layers - 1}, heads 0 to {shape.num_heads - 1}"
            )


def _same_shape(left: specs.Checkpoint, right: specs.Checkpoint, names: tuple[str, str] = ("tuned", "base")) -> None:
    """ValueError naming the first difference: of the sizes, then, where both are local folders, of the parameters."""
    first, second = names
    for name in specs.ModelShape.model_fields:
        one, other = getattr(left.shape, name), getattr(right.shape, name)
        if one != other and name not in specs.ModelShape.NOT_IDENTITY:
            raise ValueError(
                f"{first} and {second} are different architectures: {name} is {one} in {first} and {other} in {second}: "
                "give two checkpoints of one model"
            )
    if isinstance(left, specs.FolderCheckpoint) and isinstance(right, specs.FolderCheckpoint):
        from cpt_lab.weights import check_same_headers

        check_same_headers(Path(left.path), Path(right.path), names=names)


def _protocol(config: Config) -> specs.Protocol:
    from importlib.metadata import version

    chosen = config.protocol
    tasks = []
    for task in chosen.tasks:
        corpus = task.get("corpus")
        tasks.append({**task, "corpus": _corpus(config, corpus).model_dump()} if corpus is not None else task)
    data = {**chosen.model_dump(), "tasks": tasks, "harness": version("lm_eval")}
    return _validated(specs.Protocol, data, "protocol")


# ------------------------------------------------------------------------------------------------------------- helpers


def _validated(model: type[_Part], data: dict[str, Any], place: str) -> _Part:
    """A model that stands at this place of the configuration; ValueError in one sentence."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ValueError(explain(error, model, place)) from None


def _check_results(results: Path) -> None:
    """ValueError if a file stands where the results folder, or one above it, should be."""
    nearest = next(place for place in (results, *results.parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f"results folder {results} cannot be made, for {nearest} is a file: choose another with results=FOLDER")


def _check_figures(figures: Sequence[str]) -> None:
    from analysis import FIGURES

    for name in figures:
        if name not in FIGURES:
            raise ValueError(unknown("figure", name, FIGURES))


def _split(override: str) -> tuple[str, str]:
    name, _, value = override.lstrip("+~").partition("=")
    return name, value


def _short(number: float) -> str:
    """A number in few digits, all of them where it takes them: two points must not get one name."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def _value(text: str) -> Value:
    try:
        number = float(text)
    except ValueError:
        return None if text == "null" else text.strip("'\"")
    return int(number) if number.is_integer() and "." not in text and "e" not in text.lower() else number
