"""Layers taken out of a model: of a mapping of weights, of a config.json, or of a live model and put back again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_validator

if TYPE_CHECKING:
    import torch

    from cpt_lab.weights import Weights

COUNT = "num_hidden_layers"  # transformers' name; attribute_map says what a family calls it
LAYER_INDEX = "layer_idx"  # by which attention finds its place in the cache of keys and values


class LayerDrop(BaseModel):
    """Which of a model's layers go, by the numbers they have while all are there. `prefix` is what the names in a layer begin with."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prefix: str
    num_layers: int
    layers: tuple[int, ...]

    @model_validator(mode="after")
    def _leaves_a_model(self) -> LayerDrop:
        for layer in self.layers:
            if not 0 <= layer < self.num_layers:
                raise ValueError(f"there is no layer {layer} to prune: the model has layers 0 to {self.num_layers - 1}")
        if not self.kept:
            raise ValueError(f"all {self.num_layers} layers would be pruned: leave one at least")
        return self

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that stay, in order: their places are their new numbers."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.layers)

    def also(self, other: LayerDrop) -> LayerDrop:
        """Both drops together; ValueError if they are of different models."""
        if (self.prefix, self.num_layers) != (other.prefix, other.num_layers):
            raise ValueError(f"layers of two models: one has {self.num_layers} layers, the other {other.num_layers}")
        return self.model_copy(update={"layers": tuple(sorted({*self.layers, *other.layers}))}).checked()

    def checked(self) -> LayerDrop:
        """The same, validated."""
        return LayerDrop.model_validate(self.model_dump())

    def renamed(self, name: str) -> str | None:
        """The new name of a parameter, None if it goes with its layer."""
        before, after = self.prefix.split("{layer}")
        number, _, inside = name.removeprefix(before).partition(after)
        if not (name.startswith(before) and inside and number.isdigit()):
            return name
        layer = int(number)
        return f"{before}{self.kept.index(layer)}{after}{inside}" if layer in self.kept else None


class Remaining(Mapping[str, "torch.Tensor"]):
    """The weights of the layers that stay, under their new names; the other parameters as they are."""

    def __init__(self, drop: LayerDrop, weights: Weights) -> None:
        self._weights = weights
        self._old = {new: old for old in weights if (new := drop.renamed(old)) is not None}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights[self._old[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._old)

    def __len__(self) -> int:
        return len(self._old)


def config_changes(drop: LayerDrop, config: Any) -> dict[str, Any]:
    """What changes in a transformers configuration, by the names it is stored under: the count of layers, and lists with one entry each.

    Lists that transformers fills in by layer number where a config.json has none are among them, as numbers change. ValueError if a layer
    would behave differently under its new number.
    """
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError("the model scales attention by the number of the layer (scale_attn_by_inverse_layer_idx): it cannot be pruned")
    lists = {name: value for name, value in config.to_dict().items() if _is_per_layer(name, value, drop.num_layers)}
    shorter = {name: [value[layer] for layer in drop.kept] for name, value in lists.items()}
    return {config.attribute_map.get(COUNT, COUNT): len(drop.kept), **shorter}


def _is_per_layer(name: str, value: Any, num_layers: int) -> bool:
    """Whether a setting has one entry per layer: a list that only happens to be as long, such as of token ids, has none."""
    return "layer" in name and isinstance(value, list) and len(value) == num_layers


class LiveLayers:
    """The layers of a transformers model, some of which can be taken out and put back."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._drop: LayerDrop | None = None
        self._whole: Any = None
        self._config: dict[str, Any] = {}

    def set(self, drop: LayerDrop | None) -> None:
        """Take out these layers and no others."""
        if drop == self._drop:
            return
        self._put_back()
        if drop is not None and drop.kept != tuple(range(drop.num_layers)):
            self._take_out(drop)

    def _take_out(self, drop: LayerDrop) -> None:
        import torch

        parent, name = self._place(drop)
        whole, config = getattr(parent, name), self._model.config
        if len(whole) != drop.num_layers:
            raise ValueError(f"the model has {len(whole)} layers and the patch is for one with {drop.num_layers}")
        changes = config_changes(drop, config)
        self._drop, self._whole = drop, whole
        self._config = {name: getattr(config, name) for name in changes}
        setattr(parent, name, torch.nn.ModuleList(whole[layer] for layer in drop.kept))
        self._settle(getattr(parent, name), changes)

    def _put_back(self) -> None:
        if self._drop is not None:
            parent, name = self._place(self._drop)
            setattr(parent, name, self._whole)
            self._settle(self._whole, self._config)
            self._drop = None

    def _place(self, drop: LayerDrop) -> tuple[Any, str]:
        """The module that holds the list of layers, and the list's name in it."""
        parent, _, name = drop.prefix.split(".{layer}")[0].rpartition(".")
        return self._model.get_submodule(parent), name

    def _settle(self, layers: Any, settings: Mapping[str, Any]) -> None:
        """Number the layers by their places and change the configuration, which all modules share."""
        for place, layer in enumerate(layers):
            for module in layer.modules():
                if isinstance(getattr(module, LAYER_INDEX, None), int):
                    setattr(module, LAYER_INDEX, place)
        for name, value in settings.items():
            setattr(self._model.config, name, value)
