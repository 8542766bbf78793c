"""Spectral measures of weights by family: the names, the presets, and which of them compare two checkpoints.

`families.py` says which functions compute them. The names stand here so that planning can check them without torch.
"""

from __future__ import annotations

from cpt_lab.spectra.notebook import indices as indices
from cpt_lab.spectra.notebook import table as table

MEASURES: dict[str, tuple[str, ...]] = {
    "norms": (
        *("frobenius_norm", "spectral_norm", "stable_rank", "effective_rank", "spectral_entropy", "hard_rank"),
        *("spectral_gap", "rank_decay_alpha"),
    ),
    "power_law": ("pl_alpha", "pl_ks", "pl_xmin", "pl_tail", "pl_stderr", "pl_rank", "pl_suspect", "weighted_alpha"),
    "tails": (
        "pl_p_value",
        *("pl_lr_exponential", "pl_lr_exponential_p", "pl_lr_lognormal", "pl_lr_lognormal_p", "pl_lr_truncated", "pl_lr_truncated_p"),
    ),
    "marchenko_pastur": ("mp_edge", "mp_sigma", "mp_outliers", "mp_outlier_share", "mp_ks", "mp_ks_full", "mp_tracy_widom"),
    "agreement": (
        *("agreement_residual_max", "agreement_residual_diagonal", "agreement_residual_noise"),
        *("agreement_head_max", "agreement_head_diagonal", "agreement_head_noise"),
    ),
    "svsm": ("svsm_mean", "svsm_std"),
    "rotation": ("rotation_nf",),
}
PAIR_FAMILIES = ("agreement", "svsm", "rotation")  # what they measure is how two checkpoints differ
FAMILY_OF: dict[str, str] = {name: family for family, names in MEASURES.items() for name in names}
NAMES = tuple(FAMILY_OF)
NORMS = MEASURES["norms"]
FITS = MEASURES["power_law"]
AGREEMENTS = MEASURES["agreement"]

PRESETS: dict[str, tuple[str, ...]] = {  # what compares two checkpoints is left out where there is one
    "paper": (*NORMS, *FITS, *MEASURES["marchenko_pastur"], *AGREEMENTS),
    "post_training": (*MEASURES["svsm"], *MEASURES["rotation"], *AGREEMENTS),
    "lifecycle": ("pl_alpha", "weighted_alpha", "rank_decay_alpha", "spectral_entropy", "effective_rank", "spectral_gap", "stable_rank"),
    # A bootstrap fits each spectrum a thousand times, which takes longer than all else: `tails` is for those who name it.
    "all": tuple(name for name, family in FAMILY_OF.items() if family != "tails"),
}
