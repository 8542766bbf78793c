"""Figures, tables and the report of finished studies, from the store alone. `analysis.figures.REGISTRY` names them all."""
