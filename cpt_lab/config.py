"""The configuration, typed: every key of `conf/` is declared here, and nothing else is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import MISSING
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from cpt_lab import specs
from cpt_lab.execution import Execution
from cpt_lab.names import unknown
from cpt_lab.site import Site
from cpt_lab.tracking_settings import Tracking

TOKEN_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def _in_letters(tokens: Any) -> Any:
    """`5B` as 5,000,000,000; what is no such word is left to pydantic."""
    if not isinstance(tokens, str) or tokens[-1:].upper() not in TOKEN_UNITS:
        return tokens
    try:
        return round(float(tokens[:-1]) * TOKEN_UNITS[tokens[-1].upper()])
    except ValueError:
        return tokens


Tokens = Annotated[int, BeforeValidator(_in_letters), Field(gt=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


TargetName = Literal[
    "train",
    "contamination",
    "spectra",
    "fingerprint",
    "rank",
    "correlate",
    "evaluate",
    "materialize",
    "attention_entropy",
    "attention_maps",
    "layer_similarity",
    "rotations",
]
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
    clean_of: ProtocolConfig | None = None  # documents that overlap its items are left out: +protocol@mixture.clean_of=NAME


class SourceConfig(_Model):
    """Where a checkpoint comes from."""

    origin: Literal["pretrain", "hub", "folder", "olmo_core", "cpt"] = Field(alias="from")
    path: str | None = None
    at: Tokens | None = None  # of a run that is trained here: its weights after so many tokens, not its last
    id: str | None = None
    revision: str | None = None
    model: ModelConfig | None = None  # of `hub`, where it is not the study's
    mixture: MixtureConfig | None = None
    seed: int | None = Field(default=None, ge=0)  # of `pretrain`: the same training from another start, to compare bases with


class SpectralWarmupConfig(_Model):
    """Pre-training from random matrices with the spectra of a trained model, in place of random ones (L F)."""

    reference: str
    scale: float = Field(gt=0)
    seed: int = Field(ge=0)


class PretrainConfig(_Model):
    mixture: MixtureConfig
    training: specs.Recipe
    start: Literal["random", "spectral_warmup"]
    spectral_warmup: SpectralWarmupConfig


class ProtocolConfig(_Model):
    """Tasks, and what is said of all of them together: how many items, and where a benchmark's come from."""

    name: str
    dtype: str
    seed: int = 0
    limit: int | None = Field(default=None, gt=0)
    subset: Literal["first", "seeded"] | None = None
    source: Literal["auto", "olmes", "hub", "files"] | None = None
    folder: str | None = None
    task: str | None = None  # of protocol=harness: what its one task is called, and its shots
    shots: int | None = None
    tasks: tuple[dict[str, Any], ...]
    means: tuple[dict[str, Any], ...] = ()
    primary: str | None = None


class InternalsConfig(_Model):
    """What a model reads while it is watched; of target=attention_entropy, attention_maps and layer_similarity."""

    prompts: int = Field(gt=0)
    task: str | None = None
    against: str
    prompt: int = Field(gt=0)
    layers: tuple[int, ...] | None
    heads: tuple[int, ...]
    cells: int = Field(gt=0)


class RotationsConfig(_Model):
    """Which matrices are kept as pictures of how their vectors turned; of target=rotations. `spectra` says of which checkpoints."""

    layers: tuple[int, ...] | None
    corner: int = Field(gt=0)
    blocks: int = Field(gt=0)


class WatchConfig(_Model):
    """Spectra while the study's models train."""

    every: int | None = Field(gt=0)
    measures: str | tuple[str, ...]
    heads: bool


class ContaminationConfig(_Model):
    """Which corpus is looked through for the protocol's items; of target=contamination."""

    corpus: str | None
    words: int = Field(ge=8)


class FingerprintConfig(_Model):
    """Whether one checkpoint descends from another; of target=fingerprint."""

    of: str
    against: str
    controls: tuple[str, ...]
    layers: int | None = Field(ge=2)
    mismatches: int = Field(ge=1)


class CriterionConfig(_Model):
    """What gives units their scores; each criterion takes some of these settings and says so (see `orderings`)."""

    name: str
    unit: str = "head"
    roles: tuple[str, ...] | None = None
    seed: int | None = Field(default=None, ge=0)
    column: str | None = None
    of: str | None = None
    file: str | None = None
    metric: str | None = None
    protocol: ProtocolConfig | None = None

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from cpt_lab.orderings import CRITERIA

        if name not in CRITERIA:
            raise ValueError(unknown("criterion", name, CRITERIA))
        return name


class SpectraConfig(_Model):
    """What a table of spectra is of, and what it measures; of target=spectra."""

    measures: str | tuple[str, ...]
    of: str
    against: str | None
    blocks: Literal["all", "heads", "matrices"]
    roles: tuple[str, ...] | None
    null_model: Literal["analytic", "permute"]
    seed: int = Field(ge=0)
    min_tail: int | None = Field(ge=5)
    ks: Literal["clauset", "two_sided"]
    samples: int = Field(ge=1)
    indices: bool

    @field_validator("measures")
    @classmethod
    def _are_known(cls, measures: str | tuple[str, ...]) -> str | tuple[str, ...]:
        from cpt_lab.spectra.choice import chosen

        chosen(measures, pair=True)
        return measures


class ExecutionConfig(_Model):
    device: Literal["auto", "cpu", "cuda"]
    threads: int | None
    micro_batch_sequences: int | None
    mode: Literal["fast", "reference"]
    eval_batch: int | Literal["auto"]
    allow_code_execution: bool
    compile: bool
    activation_checkpointing: Literal["none", "half", "full"]
    fused_loss: Literal["auto", "on", "off"]
    ranks: int | None = Field(ge=1)
    validations: int = Field(ge=0)
    keep_every: Tokens | None
    keep_at: tuple[Tokens, ...]
    keep_states: int = Field(ge=1)
    checkpoint_minutes: float
    spectra_share: float = Field(gt=0, lt=1)
    point_minutes: float | None
    gpus: int | None = Field(default=None, ge=1)


class BudgetConfig(_Model):
    """What a launch may cost, by its plan's estimate; more is refused."""

    gpu_hours: float | None = Field(default=None, gt=0)


class Config(_Model):
    """The whole configuration of one point."""

    target: dict[Literal["name"], TargetName]
    model: ModelConfig
    corpora: dict[str, dict[str, Any]]
    mixture: MixtureConfig
    reference: SourceConfig
    pretrain: PretrainConfig
    training: specs.Recipe
    intervention: dict[str, Any]
    then: dict[str, dict[str, Any]] = {}
    criterion: CriterionConfig
    spectra: SpectraConfig
    watch: WatchConfig
    fingerprint: FingerprintConfig
    rotations: RotationsConfig
    internals: InternalsConfig
    contamination: ContaminationConfig
    other_criterion: CriterionConfig | None = None
    protocol: ProtocolConfig
    tracking: Tracking
    site: Site
    verb: str
    study: str | None
    question: str
    results: str
    out: str | None
    base: SourceConfig
    tuned: SourceConfig
    others: dict[str, SourceConfig] = {}
    workers: int | None = Field(ge=1)
    packs: int | None = Field(ge=1)
    budget: BudgetConfig
    max_attempts: int = Field(ge=1)
    wait: bool
    figures: tuple[str, ...]
    report: bool
    execution: ExecutionConfig


class Settings(_Model):
    """What a launch needs to know beside its points; the same for all of them."""

    study: str
    question: str
    results: Path
    verb: str
    out: Path | None
    workers: int | None
    packs: int | None
    budget: BudgetConfig
    max_attempts: int
    wait: bool
    figures: tuple[str, ...]
    report: bool
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
    out = None if config.out is None else cwd / Path(config.out).expanduser()
    apart = ("study", "results", "out", "tracking")
    shared = {name: getattr(config, name) for name in Settings.model_fields if name not in apart}
    return Settings(study=study, results=results, out=out, tracking=tracking, **shared)


def execution(settings: Settings, *, cores: int) -> Execution:
    """How each worker computes, who has so many cores for itself."""
    how = settings.execution
    return Execution(**{**how.model_dump(), "threads": how.threads or max(1, cores), "gpus": how.gpus or 1})


def validated(model: type[_Part], data: dict[str, Any], place: str) -> _Part:
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
    from analysis import figure_names

    known = figure_names.names()
    for name in figures:
        if name not in known:
            raise ValueError(unknown("figure", name, known))
