"""Figures and tables of finished studies, from the store alone."""
