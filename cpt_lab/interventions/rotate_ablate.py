"""Ablation of the rotation: singular vectors of one side are put back to the base's (T eq. 10 and 15)."""

from __future__ import annotations

from typing import Literal

from cpt_lab.architecture import Slice
from cpt_lab.interventions.rotation import Rotation, RotationSettings
from cpt_lab.spectral_edits import Matrix, RotateVectors


class RotateAblateSettings(RotationSettings):
    """What is exchanged, and which of the two signs each pair of singular vectors has."""

    signs: Literal["aligned", "own"]


class RotateAblate(Rotation):
    """U_post S_post V_base^T (side out, T eq. 10) or U_base S_post V_post^T (side in, T eq. 15).

    A decomposition leaves the sign of each pair of singular vectors open, the result depends on it, and T does not say what was taken:
    `aligned` takes the sign by which the pairs of base and post are most alike, so that nothing but the rotation is taken away; `own` fixes
    the signs in each checkpoint for itself, as two separate decompositions would, so that about half of the pairs of unlike vectors are
    turned round too.
    """

    SETTINGS = RotateAblateSettings
    kind: Literal["rotate_ablate"] = "rotate_ablate"
    signs: Literal["aligned", "own"] = "aligned"

    def rotate(self, target: Slice, parts: Matrix, axis: Literal[0, 1]) -> RotateVectors:
        return RotateVectors(target=target, parts=parts, source=self.name, axis=axis, restore=False, signs=self.signs)
