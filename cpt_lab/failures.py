"""What an error says of more than the point it came from: memory is short, the GPU's context is broken, the disk takes nothing more."""

from __future__ import annotations

import errno
from collections.abc import Iterator

SHORT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cublas_status_alloc_failed")
# After one of these, every further call on the GPU fails in the process that saw it.
BROKEN_CONTEXT = ("cuda error", "device-side assert", "cublas_status_execution_failed", "cudnn_status_execution_failed")
NOT_WRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE})


class ProcessLost(RuntimeError):
    """One of several processes that work as one died: killed, or with its node. Nothing is wrong with what they did."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: a GPU has an error of its own (a RuntimeError), a CPU only words."""
    return isinstance(error, MemoryError) or _says(error, SHORT_OF_MEMORY)


def is_broken_context(error: BaseException) -> bool:
    """Whether the GPU can be used again by a new process only."""
    return any(_says(one, BROKEN_CONTEXT) and not is_out_of_memory(one) for one in _chain(error))


def is_not_writable(error: BaseException) -> bool:
    """Whether the file system takes no more: full, over quota, read-only, or away."""
    return isinstance(error, OSError) and error.errno in NOT_WRITABLE


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
