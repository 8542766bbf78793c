"""cpt_lab: experiment orchestration for continual pre-training studies of language models."""

__version__ = "0.1.0"
