"""Evaluation: protocols as files of the harness, sessions that score live models, and the statistics of scores.

The only package that imports lm_eval, and nothing in it does so before it is used.
"""
