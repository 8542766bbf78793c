"""Restoration of the rotation: singular vectors of one side are the base's, rotated as those of the other side were (T eq. 11, 12, 16)."""

from __future__ import annotations

from typing import Literal

from cpt_lab.architecture import Slice
from cpt_lab.interventions.rotation import Rotation
from cpt_lab.spectral_edits import Matrix, RotateVectors


class RotateRestore(Rotation):
    """U_post S_post (V_base U_base^T U_post)^T (side out, T eq. 11) or (U_base V_base^T V_post) S_post V_post^T (side in, T eq. 16).

    With a second post-trained model as the source it is T eq. 12. Signs of singular vectors cancel; where both sides have been rotated
    alike (Q = U_base^T U_post = V_base^T V_post) it gives the post-trained matrix back.
    """

    kind: Literal["rotate_restore"] = "rotate_restore"

    def rotate(self, target: Slice, parts: Matrix, axis: Literal[0, 1]) -> RotateVectors:
        return RotateVectors(target=target, parts=parts, source=self.name, axis=axis, restore=True)
