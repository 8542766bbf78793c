"""Hydra for tests that compose hundreds of times in one process: a file is parsed once, and a command composed once."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from unittest import mock

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import OmegaConf

_parse = OmegaConf.load
_parsed: dict[tuple[str, int], Any] = {}


@contextmanager
def quick() -> Iterator[None]:
    """Parsing takes half of a composition's time; and Hydra composes a command once more to learn its mode, which is MULTIRUN always."""
    with mock.patch.object(OmegaConf, "load", _load), mock.patch.object(Hydra, "get_mode", return_value=RunMode.MULTIRUN):
        yield


def _load(file: IO[str]) -> Any:
    """What an open file holds; parsed again if it was written again."""
    known = (file.name, os.fstat(file.fileno()).st_mtime_ns)
    if known not in _parsed:
        _parsed[known] = _parse(file)
    return copy.deepcopy(_parsed[known])
