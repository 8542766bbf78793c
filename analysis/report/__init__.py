"""A study as one page that is complete in itself: the answer in words, what it rests on, and how to get every number again."""

from __future__ import annotations

from analysis.report.page import NAME, render, write

__all__ = ["NAME", "render", "write"]
