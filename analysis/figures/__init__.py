"""Every figure and table that a study can show, by name: one module each, its defaults in the YAML file beside it."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import yaml

from analysis.drawing import Drawing, Sheet
from analysis.figures import (
    agreement_layers,
    alpha_loss,
    alpha_profiles,
    attention_maps,
    auc_diff,
    cka_maps,
    compression_gradient,
    compression_waves,
    delta_norms,
    depth_profile,
    dissociation,
    entropy_layers,
    entropy_maps,
    fit_distances,
    head_map,
    head_map_difference,
    hyper_parameters,
    interpolation,
    layer_importance,
    layer_trajectories,
    lifecycle_table,
    math_share,
    matrix_asymmetry,
    mixtures,
    pruning_bars,
    pruning_lines,
    pruning_synthesis,
    pruning_table,
    quartets,
    replaced_lengths,
    replaced_scores,
    restored_lengths,
    restored_scores,
    rewind_curve,
    rotation_layers,
    scaling_laws,
    similarity_matrices,
    single_head,
    singular_values,
    sparklines,
    spectra_bars,
    spectra_boxes,
    spectral_evolution,
    spectral_warmup,
    svsm_bands,
    svsm_maps,
    svsm_table,
    trade_off,
    transplantation,
    truncation,
    violin_matrix,
)
from analysis.results import Results
from cpt_lab.names import unknown


class Figure(Protocol):
    """What a module of this package says and does."""

    @property
    def SHOWS(self) -> str:
        """In one line."""

    @property
    def PAPERS(self) -> tuple[str, ...]:
        """`P figure 5`, `T table 3`."""

    @property
    def NEEDS(self) -> str:
        """What a study must contain, in one line."""

    def build(self, results: Results, settings: Mapping[str, Any]) -> Drawing | Sheet | Sequence[Drawing | Sheet]:
        """The figures, each with a name of its own; ValueError in one sentence if the study lacks what they need."""


REGISTRY: dict[str, Figure] = {
    # the main paper's points (P)
    "trade_off": trade_off,
    "math_share": math_share,
    "rewind_curve": rewind_curve,
    "auc_diff": auc_diff,
    "single_head": single_head,
    "head_map": head_map,
    "head_map_difference": head_map_difference,
    "truncation": truncation,
    "interpolation": interpolation,
    "transplantation": transplantation,
    "mixtures": mixtures,
    "hyper_parameters": hyper_parameters,
    # the main paper's spectra (P, S)
    "spectral_evolution": spectral_evolution,
    "singular_values": singular_values,
    "delta_norms": delta_norms,
    "depth_profile": depth_profile,
    "agreement_layers": agreement_layers,
    "fit_distances": fit_distances,
    "spectra_boxes": spectra_boxes,
    "spectra_bars": spectra_bars,
    "sparklines": sparklines,
    "quartets": quartets,
    "violin_matrix": violin_matrix,
    # the second paper (T)
    "svsm_maps": svsm_maps,
    "svsm_bands": svsm_bands,
    "svsm_table": svsm_table,
    "rotation_layers": rotation_layers,
    "similarity_matrices": similarity_matrices,
    "entropy_layers": entropy_layers,
    "entropy_maps": entropy_maps,
    "attention_maps": attention_maps,
    "cka_maps": cka_maps,
    "replaced_scores": replaced_scores,
    "replaced_lengths": replaced_lengths,
    "restored_scores": restored_scores,
    "restored_lengths": restored_lengths,
    # the third paper (L)
    "compression_waves": compression_waves,
    "compression_gradient": compression_gradient,
    "layer_trajectories": layer_trajectories,
    "alpha_profiles": alpha_profiles,
    "dissociation": dissociation,
    "matrix_asymmetry": matrix_asymmetry,
    "scaling_laws": scaling_laws,
    "alpha_loss": alpha_loss,
    "spectral_warmup": spectral_warmup,
    "layer_importance": layer_importance,
    "pruning_lines": pruning_lines,
    "pruning_bars": pruning_bars,
    "pruning_synthesis": pruning_synthesis,
    "pruning_table": pruning_table,
    "lifecycle_table": lifecycle_table,
}


def find(name: str) -> Figure:
    """The figure of this name; KeyError with the nearest names and the list."""
    if name not in REGISTRY:
        raise KeyError(unknown("figure", name, REGISTRY))
    return REGISTRY[name]


def settings(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The defaults of figures/<name>.yaml with these changes; KeyError for a setting that the figure does not have."""
    find(name)
    file = importlib.resources.files(__name__) / f"{name}.yaml"
    defaults: dict[str, Any] = (yaml.safe_load(file.read_text()) or {}) if file.is_file() else {}
    for key in changes or {}:
        if key not in defaults:
            raise KeyError(
                unknown(f"setting of figure {name}", key, defaults) if defaults else f"figure {name} has no settings: drop {key!r}"
            )
    return {**defaults, **(changes or {})}


def build(name: str, results: Results, changes: Mapping[str, Any] | None = None) -> list[Drawing | Sheet]:
    """What a figure draws of these results; ValueError in one sentence if they lack what it needs."""
    drawn = find(name).build(results, settings(name, changes))
    return [drawn] if isinstance(drawn, Drawing | Sheet) else list(drawn)


def available(results: Results) -> Iterator[tuple[str, list[Drawing | Sheet] | str]]:
    """Every figure's name with what it draws of these results, or with the reason why it draws nothing."""
    for name in REGISTRY:
        try:
            yield name, build(name, results)
        except ValueError as error:
            yield name, str(error)
