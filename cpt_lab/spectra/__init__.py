"""Spectral measures of weights: `measures.py`, `fits.py` and `pairs.py` are the mathematics, `table.py` walks a checkpoint.

The names stand here so that planning can check them without torch.
"""

from __future__ import annotations

NORMS = ("frobenius_norm", "spectral_norm", "stable_rank", "effective_rank", "spectral_entropy", "hard_rank")
FITS = ("pl_alpha", "pl_ks", "pl_xmin", "pl_tail", "pl_stderr")
AGREEMENTS = (
    *("agreement_residual_max", "agreement_residual_diagonal", "agreement_residual_noise"),
    *("agreement_head_max", "agreement_head_diagonal", "agreement_head_noise"),
)
NAMES = (*NORMS, *FITS, *AGREEMENTS)
