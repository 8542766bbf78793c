"""Spectral measures of weights: `measures.py` is the mathematics, `table.py` walks a checkpoint."""
