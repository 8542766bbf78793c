"""Names that a user gives: what to say when nobody knows them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence for an unknown name: what was got, the nearest valid names and the whole list."""
    names = sorted(known)
    return f"unknown {what} {name!r}{nearest(name, names)}; there are {', '.join(names)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean this or that?)`, or nothing if no name is near."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
