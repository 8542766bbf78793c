"""Names that a user gives: what to say when nobody knows them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence for an unknown name: what was got, the nearest valid names and the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    guess = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"unknown {what} {name!r}{guess}; there are {', '.join(names)}"
