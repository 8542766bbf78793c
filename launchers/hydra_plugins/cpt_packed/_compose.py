"""The points of a sweep, composed by Hydra once per choice of groups: plain values are put into that composition directly.

Composing a point whole takes about 0.1 s; points of a sweep mostly differ in a few plain values, which need no new composition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, ValueNode

OF_THE_ENVIRONMENT = re.compile(r"\$\{oc\.env:[^${}]*\}")
Composed = tuple[dict[str, Any], str | None]  # the resolved configuration without hydra's own, and the chosen experiment


@dataclass(frozen=True)
class Base:
    """One composition of Hydra's and what is needed to put values into it."""

    nodes: DictConfig
    catalogue: DictConfig

    @cached_property
    def resolved(self) -> Composed:
        return _resolved(self.nodes, self.catalogue)

    @cached_property
    def words(self) -> frozenset[str]:
        """What all its interpolations are made of, those of the environment left out."""
        raw = OmegaConf.to_container(self.nodes, resolve=False)
        assert isinstance(raw, dict)
        texts = (OF_THE_ENVIRONMENT.sub("", text) for name, value in raw.items() if name != "hydra" for text in _texts(value))
        return frozenset(word for text in texts if "${" in text for word in re.findall(r"\w+", text))


def compose(loader: ConfigLoader, master: DictConfig, sweep: Sequence[Sequence[str]]) -> list[Composed]:
    """One resolved configuration per list of overrides; the same as composing each of them whole. Points share what they have in common."""
    parser = OverridesParser.create(config_loader=loader)
    parsed = {text: parser.parse_override(text) for text in {text for overrides in sweep for text in overrides}}
    options = cache(loader.get_group_options)
    plain = {text: override.value() for text, override in parsed.items() if _is_plain(override, options)}
    command = OmegaConf.to_container(master.hydra.overrides.task, resolve=False)  # a value may refer to what is still ???
    applied = {text for text in parsed if text in (command or ()) and not parsed[text].is_sweep_override()}
    catalogue = _catalogue(loader)
    bases: dict[tuple[str, ...], Base] = {}
    composed = []
    for overrides in sweep:
        whole = tuple(text for text in overrides if text not in plain)
        if whole not in bases:  # what all points share is in the command's own composition
            bases[whole] = Base(master if applied.issuperset(whole) else loader.load_sweep_config(master, list(whole)), catalogue)
        values = {parsed[text].get_key_element(): plain[text] for text in overrides if text in plain}
        if all(_is_free(bases[whole], key, value) for key, value in values.items()):
            composed.append(_with_values(bases[whole].resolved, values))
        else:  # interpolations may look at the value, or Hydra says best what is wrong with it
            composed.append(_resolved(loader.load_sweep_config(master, list(overrides)), catalogue))
    return composed


def _is_plain(override: Override, options: Callable[[str], Sequence[str]]) -> bool:
    """Whether it only sets a value: no choice of a group, nothing added or deleted, nothing of Hydra's own."""
    special = override.is_add() or override.is_force_add() or override.is_delete() or override.is_hydra_override()
    if special or override.package is not None or isinstance(override.value(), dict | list):
        return False
    return not options(override.get_key_element())


def _texts(value: Any) -> Iterator[str]:
    """All strings of a container."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _is_free(base: Base, key: str, value: Any) -> bool:
    """Whether this value can simply be put at a dotted key: a plain value stands there that no interpolation refers to."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(base.nodes, parent) if parent else base.nodes
    if not isinstance(node, DictConfig) or name not in list(node):  # `in node` says no to a value that is still ???
        return False
    interpolated = "${" in str(value) or not base.words.isdisjoint(key.split("."))
    return isinstance(node._get_node(name), ValueNode) and not interpolated


def _with_values(composed: Composed, values: Mapping[str, Any]) -> Composed:
    """The composition with other values at some keys; the rest is shared."""
    data, experiment = composed
    data = dict(data)
    for key, value in values.items():
        place = data
        *parents, name = key.split(".")
        for parent in parents:
            place[parent] = dict(place[parent])
            place = place[parent]
        place[name] = value
    return data, experiment


def _catalogue(loader: ConfigLoader) -> DictConfig:
    """Every file of the group `corpus` by its name: mixtures, tokenizers and protocols name corpora, they do not choose one.

    Hydra has no way to load the same file for two of them ("appears more than once in the final defaults list").
    """
    known = {}
    for name in loader.get_group_options("corpus"):
        loaded = loader.repository.load_config(f"corpus/{name}")  # type: ignore[attr-defined]
        known[name] = loaded.config
    return OmegaConf.create(known)


def _resolved(config: DictConfig, catalogue: DictConfig) -> Composed:
    data = {str(name): _plain_value(config[name]) for name in config if name != "hydra"}
    data["corpora"] = OmegaConf.to_container(OmegaConf.merge(catalogue, data["corpora"]))
    return data, config.hydra.runtime.choices.get("experiment")


def _plain_value(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
