"""Layer pruning: k layers are taken out whole, chosen by a list, from the end, at random or by a ranking (L)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cpt_lab.families import family
from cpt_lab.layers import LayerDrop
from cpt_lab.patch import Patch
from cpt_lab.specs import Choices, Intervention, ModelShape, Ranking, Spec, Unit

By = Literal["last_n", "random", "ranking"]


class PruneLayersSettings(BaseModel):
    """How many layers and which: an explicit list, the last ones, random ones, or the first of a ranking."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    count: int | None = Field(default=None, ge=0)
    by: By
    direction: str
    seed: int = Field(ge=0)
    protect: int = Field(ge=0)
    layers: tuple[int, ...] | None

    @model_validator(mode="after")
    def _says_which(self) -> PruneLayersSettings:
        if (self.layers is None) == (self.count is None):
            got = "both count and layers" if self.layers is not None else "neither count nor layers"
            raise ValueError(
                f"intervention=prune_layers got {got}: set intervention.count=4 to choose by intervention.by, "
                "or intervention.layers=[LAYER,...]"
            )
        return self


class Layers(Spec):
    """An explicit set of layers."""

    kind: Literal["layers"] = "layers"
    layers: tuple[int, ...] = ()

    @field_validator("layers")
    @classmethod
    def _as_a_set(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(layers)))

    def label(self) -> str:
        return f"{len(self.layers)}layers"


class FirstLayers(Spec):
    """The first `count` layers of a ranking, the first and last `protect` layers of the model not counted.

    A ranking of heads or matrices ranks a layer by the mean place of what it has; equal means by layer.
    """

    kind: Literal["first_layers"] = "first_layers"
    ranking: Ranking
    count: int = Field(ge=0)
    protect: int = Field(default=0, ge=0)

    def needs(self) -> tuple[Spec, ...]:
        return (self.ranking,)

    def label(self) -> str:
        zone = f"-protect{self.protect}" if self.protect else ""
        return f"{self.ranking.label()}-{self.count}layers{zone}"


class PruneLayers(Intervention):
    """The chosen layers go, the rest follow one another: the model has fewer layers, which its config.json says.

    In a chain all interventions mean layers by the numbers that the checkpoint has before any of them goes.
    """

    SETTINGS = PruneLayersSettings
    kind: Literal["prune_layers"] = "prune_layers"
    select: Annotated[Layers | FirstLayers, Field(discriminator="kind")]

    @classmethod
    def chosen(cls, settings: PruneLayersSettings, choices: Choices) -> PruneLayers:
        shape = choices.checkpoint("tuned").shape
        if settings.layers is not None:
            LayerDrop(prefix=_prefix(shape), num_layers=shape.num_layers, layers=settings.layers)
            return cls(select=Layers(layers=settings.layers))
        assert settings.count is not None  # the settings say so
        free = unprotected(shape.num_layers, settings.protect)
        if settings.count > len(free) or settings.count == shape.num_layers:
            raise ValueError(
                f"intervention.count is {settings.count}, but {min(len(free), shape.num_layers - 1)} of {shape.num_layers} layers may go "
                f"with protect={settings.protect}: lower one of them"
            )
        if settings.by == "ranking":
            ranking = choices.ranking(settings.direction)
            return cls(select=FirstLayers(ranking=ranking, count=settings.count, protect=settings.protect))
        order = list(reversed(free)) if settings.by == "last_n" else _shuffled(free, settings.seed)
        return cls(select=Layers(layers=tuple(order[: settings.count])))

    def needs(self) -> tuple[Spec, ...]:
        return self.rankings()

    def rankings(self) -> tuple[Ranking, ...]:
        return (self.select.ranking,) if isinstance(self.select, FirstLayers) else ()

    def with_ranking(self, order: tuple[Unit, ...]) -> PruneLayers:
        assert isinstance(self.select, FirstLayers)
        free = set(unprotected(self.select.ranking.shape.num_layers, self.select.protect))
        ranked = [layer for layer in by_mean_place(order) if layer in free]
        return self.but(select=Layers(layers=tuple(ranked[: self.select.count])))

    def settled(self) -> PruneLayers | None:
        nothing = self.select.count == 0 if isinstance(self.select, FirstLayers) else not self.select.layers
        return None if nothing else self

    def patch(self, shape: ModelShape) -> Patch:
        """The layers to leave out; ValueError while a ranking still stands for them."""
        if not isinstance(self.select, Layers):
            raise ValueError(f"{self.label()} needs the order of its ranking first: rank, then give the order with with_ranking")
        return Patch(drop=LayerDrop(prefix=_prefix(shape), num_layers=shape.num_layers, layers=self.select.layers))

    def label(self) -> str:
        return f"prune-{self.select.label()}"


def unprotected(num_layers: int, protect: int) -> list[int]:
    """The layers between the first and the last `protect` ones."""
    return list(range(num_layers))[protect : max(protect, num_layers - protect)]


def by_mean_place(order: tuple[Unit, ...]) -> list[int]:
    """Layers by the mean place of their units in an order; equal means by layer. An order of one unit per layer stays as it is."""
    places: dict[int, list[int]] = {}
    for place, (layer, _) in enumerate(order):
        places.setdefault(layer, []).append(place)
    return sorted(places, key=lambda layer: (sum(places[layer]) / len(places[layer]), layer))


def _shuffled(layers: list[int], seed: int) -> list[int]:
    import numpy as np

    return [int(layer) for layer in np.random.default_rng(seed).permutation(layers)]


def _prefix(shape: ModelShape) -> str:
    row = family(shape.family)
    return row.prefix + row.layer
