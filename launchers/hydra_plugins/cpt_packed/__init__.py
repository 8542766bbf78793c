"""Hydra launchers that pack the points of a sweep into workers, here or on SLURM, and a sweeper over unions of grids."""
