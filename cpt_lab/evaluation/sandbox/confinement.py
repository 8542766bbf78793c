"""One process gives up, for good, what a program has no need of: privileges, files, system calls, memory and time."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from cpt_lab.evaluation.sandbox.system_calls import Machine, machine, system_call_filter

# linux/prctl.h, linux/seccomp.h, linux/capability.h, linux/landlock.h
SET_PARENT_DEATH_SIGNAL, SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVILEGES, FILTER = 1, 4, 22, 38, 2
CAPABILITY_VERSION = 0x20080522
LANDLOCK_VERSION, PATH_BENEATH, READ_FILE, READ_FOLDER = 1, 1, 1 << 2, 1 << 3
# How many rights over files each version of Landlock knows, from the first on; later ones know no more.
LANDLOCK_RIGHTS = (13, 14, 15, 15, 16)
DESCRIPTORS = 64
READABLE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/urandom")


@dataclass(frozen=True)
class Limits:
    """What one process may use: bytes of address space, seconds of CPU, and seconds by the clock, which its tester watches."""

    memory: int
    seconds: int
    patience: float


class Unconfined(Exception):
    """This machine does not let a process confine itself."""


def die_with_parent() -> None:
    """The kernel kills this process when its parent dies; nobody but root looks into its memory from now on."""
    libc = _libc()
    libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)


def confine(limits: Limits, *, child: int | None = None) -> bool:
    """Whether files are out of reach too, once everything that can be given up is; only a `child` can still be waited for and killed.

    Unconfined if the system calls cannot be filtered: nothing else keeps a program from the network and from other processes.
    """
    try:
        here, libc = machine(), _libc()
    except (ValueError, OSError) as error:
        raise Unconfined(str(error)) from None
    _limit(limits)
    if libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise Unconfined(f"the kernel refuses PR_SET_NO_NEW_PRIVS ({os.strerror(ctypes.get_errno())})")
    _drop_capabilities(libc, here)
    files = _hide_files(libc, here)
    _filter_system_calls(libc, system_call_filter(here, child=child))
    return files


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _limit(limits: Limits) -> None:
    """Soft and hard limits; what the filter of system calls refuses is to change them."""
    for name, soft, hard in (
        (resource.RLIMIT_AS, limits.memory, limits.memory),
        (resource.RLIMIT_CPU, limits.seconds, limits.seconds + 1),  # a signal that says why, and death for who ignores it
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ):
        given = resource.getrlimit(name)[1]
        most = hard if given == resource.RLIM_INFINITY else min(hard, given)
        resource.setrlimit(name, (min(soft, most), most))


def _drop_capabilities(libc: ctypes.CDLL, here: Machine) -> None:
    """Root's powers over other people's files and processes; others have none to drop."""
    header, nothing = struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(24)
    if libc.syscall(ctypes.c_long(here.numbers["capset"]), header, nothing):
        raise Unconfined(f"privileges cannot be dropped ({os.strerror(ctypes.get_errno())})")


def _hide_files(libc: ctypes.CDLL, here: Machine) -> bool:
    """Leave the standard library and its shared objects to read, and nothing else; False where the kernel has no Landlock."""
    call = {name: ctypes.c_long(here.numbers[f"landlock_{name}"]) for name in ("create_ruleset", "add_rule", "restrict_self")}
    version = libc.syscall(call["create_ruleset"], None, ctypes.c_size_t(0), ctypes.c_uint32(LANDLOCK_VERSION))
    if version < 1:
        return False
    rights = (1 << LANDLOCK_RIGHTS[min(version, len(LANDLOCK_RIGHTS)) - 1]) - 1
    rules = libc.syscall(call["create_ruleset"], struct.pack("=Q", rights), ctypes.c_size_t(8), ctypes.c_uint32(0))
    if rules < 0:
        return False
    for path in _readable():
        _allow_reading(libc, call["add_rule"], rules, path)
    restricted = bool(libc.syscall(call["restrict_self"], ctypes.c_int(rules), ctypes.c_uint32(0)) == 0)
    os.close(rules)
    return restricted


def _readable() -> Iterator[str]:
    yield from READABLE
    yield from (os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib"), os.path.join(sys.base_exec_prefix, "lib"))
    yield from filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))


def _allow_reading(libc: ctypes.CDLL, add_rule: ctypes.c_long, rules: int, path: str) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not every system has all of them
        return
    rights = READ_FILE | READ_FOLDER if os.path.isdir(path) else READ_FILE
    libc.syscall(add_rule, ctypes.c_int(rules), ctypes.c_int(PATH_BENEATH), struct.pack("=Qi", rights, place), ctypes.c_uint32(0))
    os.close(place)


def _filter_system_calls(libc: ctypes.CDLL, lines: bytes) -> None:
    """Install the filter, and try whether it holds."""
    array = ctypes.create_string_buffer(lines, len(lines))
    program = struct.pack("@HP", len(lines) // 8, ctypes.addressof(array))
    if libc.prctl(SET_SECCOMP, FILTER, program, 0, 0):
        raise Unconfined(f"the kernel refuses a filter of system calls ({os.strerror(ctypes.get_errno())})")
    try:
        os.close(os.open(os.devnull, os.O_WRONLY))
    except OSError as error:
        if error.errno == errno.EPERM:
            return
    raise Unconfined("the kernel took a filter of system calls and does not hold to it")
