"""Messages through a pipe: four bytes of length, then JSON."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

LENGTH = struct.Struct(">I")


def send(descriptor: int, message: Any) -> None:
    """Write a message whole; BrokenPipeError if nobody can read it any more."""
    text = json.dumps(message).encode()
    rest = memoryview(LENGTH.pack(len(text)) + text)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int) -> Any:
    """The next message; EOFError if there will be none."""
    (length,) = LENGTH.unpack(_exactly(descriptor, LENGTH.size))
    return json.loads(_exactly(descriptor, length))


def _exactly(descriptor: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = os.read(descriptor, count)
        if not part:
            raise EOFError("the pipe is closed")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
