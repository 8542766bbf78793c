"""The spectral lifecycle of a training run (L): functions of trajectories, which a run that was watched leaves in `spectra.parquet`.

    from cpt_lab import lifecycle
    rank = lifecycle.read("results/checkpoints/KEY/product", "stable_rank")
    lifecycle.wave(rank, "q").velocity

Functions return frozen values of plain arrays; nothing here draws, trains or knows where runs lie.
"""

from __future__ import annotations

from cpt_lab.lifecycle.alphas import AlphaGradient as AlphaGradient
from cpt_lab.lifecycle.alphas import Asymmetry as Asymmetry
from cpt_lab.lifecycle.alphas import Dissociation as Dissociation
from cpt_lab.lifecycle.alphas import alpha_gradient as alpha_gradient
from cpt_lab.lifecycle.alphas import asymmetry as asymmetry
from cpt_lab.lifecycle.alphas import depth_scaling as depth_scaling
from cpt_lab.lifecycle.alphas import dissociation as dissociation
from cpt_lab.lifecycle.compression import CompressionGradient as CompressionGradient
from cpt_lab.lifecycle.compression import Wave as Wave
from cpt_lab.lifecycle.compression import compression as compression
from cpt_lab.lifecycle.compression import compression_gradient as compression_gradient
from cpt_lab.lifecycle.compression import wave as wave
from cpt_lab.lifecycle.importance import Importance as Importance
from cpt_lab.lifecycle.importance import importance as importance
from cpt_lab.lifecycle.lines import PowerLaw as PowerLaw
from cpt_lab.lifecycle.lines import power_law as power_law
from cpt_lab.lifecycle.trajectories import HeadTrajectory as HeadTrajectory
from cpt_lab.lifecycle.trajectories import Trajectory as Trajectory
from cpt_lab.lifecycle.trajectories import measures as measures
from cpt_lab.lifecycle.trajectories import read as read
from cpt_lab.lifecycle.trajectories import read_heads as read_heads
