"""What is in the finished results of a store, to be compared with another store's: all but the times that things took."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

TIMES = ("time", "seconds", "tokens_per_second", "mfu", "system/")


def contents(results: Path) -> dict[str, str]:
    """{kind/key/product/file: content} of all that is done: JSON as its text, weights, tables and whatever else as the digest of its bytes.

    The harness's task files name their items by whole paths: there the store's own is left out.
    """
    products = (done.parent / "product" for done in results.glob("*/*/DONE"))
    files = (path for product in products for path in product.rglob("*") if path.is_file())
    return {str(path.relative_to(results)): _content(path, str(results)) for path in files}


def _content(path: Path, store: str) -> str:
    if path.suffix == ".yaml":
        return path.read_text().replace(store, "")
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(path.read_text())))
    if path.suffix == ".jsonl":
        return "\n".join(json.dumps(_timeless(json.loads(line))) for line in path.read_text().splitlines())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if not name.startswith(TIMES)}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value
