"""Which system calls a confined process may make, as a seccomp filter: a list of what is allowed, everything else is refused.

The list is what one Python process needs to compute, to import from the standard library and to read and write pipes it already has. It has
no way to make a process, a thread, a socket or a file, to send a signal to another process or to look into one; the kernel holds to it
whatever the process does afterwards, and no privilege is needed to ask for it. Linux only, seccomp(2) and linux/filter.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

ALLOWED = (
    *("read", "pread64", "write", "lseek", "close", "fstat", "newfstatat", "stat", "lstat", "statx"),
    *("access", "faccessat", "faccessat2", "readlink", "readlinkat", "getcwd", "getdents64", "poll", "ppoll", "select", "pselect6"),
    *("mmap", "munmap", "mprotect", "mremap", "madvise", "brk", "futex", "sched_yield", "sched_getaffinity"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "setitimer", "getitimer", "alarm", "pause", "restart_syscall"),
    *("getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getgroups", "uname", "sysinfo", "getrandom"),
    *("getrlimit", "getrusage", "time", "times", "gettimeofday", "clock_gettime", "clock_getres", "nanosleep", "clock_nanosleep"),
    *("exit", "exit_group"),
)
# Opening for anything but reading: writing, creating, emptying, and files without a name, whose flag says folder too.
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_TMPFILE & ~os.O_DIRECTORY
# Not F_SETOWN: it would have the kernel send signals to others on the program's behalf.
DESCRIPTOR_COMMANDS = (fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC)
# Whether a file is a terminal, and closing on exec. Not TIOCSTI: it types into the user's terminal.
DEVICE_COMMANDS = (termios.TCGETS, termios.FIOCLEX, termios.FIONCLEX)


@dataclass(frozen=True)
class Machine:
    """An architecture: its AUDIT_ARCH of linux/audit.h and its numbers of system calls, which differ from all others'."""

    audit: int
    numbers: Mapping[str, int]


def machine() -> Machine:
    """This machine's system calls; ValueError if they are not known."""
    system = os.uname()
    if system.sysname != "Linux" or system.machine not in MACHINES:
        raise ValueError(
            f"there is no sandbox for {system.sysname} on {system.machine}: evaluate code on Linux, on {' or '.join(MACHINES)}"
        )
    return MACHINES[system.machine]


def system_call_filter(here: Machine, *, child: int | None) -> bytes:
    """The filter as an array of `struct sock_filter`; with a child, the process may also wait for it and send signals to it."""
    rules: dict[str, tuple[Check, ...]] = dict.fromkeys(ALLOWED, ())
    rules |= {
        "open": (Check(1, mask=WRITING),),
        "openat": (Check(2, mask=WRITING),),
        "fcntl": (Check(1, among=DESCRIPTOR_COMMANDS),),
        "ioctl": (Check(1, among=DEVICE_COMMANDS),),
        "prlimit64": (Check(0), Check(2), Check(2, high=True)),  # one's own limits, and only to read them
        "tgkill": (Check(0, among=(os.getpid(),)),),  # abort() sends itself a signal
    }
    if child is not None:
        rules |= {"wait4": (Check(0, among=(child,)),), "kill": (Check(0, among=(child,)),)}
    return b"".join(struct.pack("=HBBI", *line) for line in _lines(here, rules))


@dataclass(frozen=True)
class Check:
    """What the low (or high) 32 bits of an argument of a system call must be under a mask: one of a few numbers."""

    argument: int
    among: tuple[int, ...] = (0,)
    mask: int = 0xFFFFFFFF
    high: bool = False


Line = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
LOAD, AND, JUMP_IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06  # linux/bpf_common.h
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000  # linux/seccomp.h
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def _lines(here: Machine, rules: Mapping[str, Iterable[Check]]) -> Iterator[Line]:
    yield (LOAD, 0, 0, ARCHITECTURE)
    yield (JUMP_IF_EQUAL, 1, 0, here.audit)  # the same number means another call in another mode of the processor
    yield (RETURN, 0, 0, KILL)
    yield (LOAD, 0, 0, NUMBER)
    for name, checks in rules.items():
        if name in here.numbers:
            block = [line for check in checks for line in _checked(check)] + [(RETURN, 0, 0, ALLOW)]
            yield (JUMP_IF_EQUAL, 0, len(block), here.numbers[name])
            yield from block
    yield (RETURN, 0, 0, REFUSE)


def _checked(check: Check) -> Iterator[Line]:
    """Go on behind these lines if the check holds, refuse if it does not."""
    yield (LOAD, 0, 0, ARGUMENTS + 8 * check.argument + 4 * check.high)  # both machines put the low half first
    yield (AND, 0, 0, check.mask)
    for place, value in enumerate(check.among):
        yield (JUMP_IF_EQUAL, len(check.among) - place, 0, value)
    yield (RETURN, 0, 0, REFUSE)


# fmt: off
X86_64 = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10,
    "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "access": 21,
    "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "pause": 34, "nanosleep": 35, "getitimer": 36, "alarm": 37,
    "setitimer": 38, "getpid": 39, "exit": 60, "wait4": 61, "kill": 62, "uname": 63, "fcntl": 72, "getcwd": 79, "readlink": 89,
    "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107,
    "getegid": 108, "getppid": 110, "getgroups": 115, "capset": 126, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "tgkill": 234, "openat": 257, "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "pselect6": 270, "ppoll": 271,
    "prlimit64": 302, "getrandom": 318, "statx": 332, "faccessat2": 439, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}
AARCH64 = {
    "getcwd": 17, "fcntl": 25, "ioctl": 29, "faccessat": 48, "openat": 56, "close": 57, "getdents64": 61, "lseek": 62, "read": 63,
    "write": 64, "pread64": 67, "pselect6": 72, "ppoll": 73, "readlinkat": 78, "newfstatat": 79, "fstat": 80, "capset": 91, "exit": 93,
    "exit_group": 94, "futex": 98, "nanosleep": 101, "getitimer": 102, "setitimer": 103, "clock_gettime": 113, "clock_getres": 114,
    "clock_nanosleep": 115, "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128, "kill": 129, "tgkill": 131,
    "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "times": 153, "getgroups": 158, "uname": 160,
    "getrlimit": 163, "getrusage": 165, "gettimeofday": 169, "getpid": 172, "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176,
    "getegid": 177, "gettid": 178, "sysinfo": 179, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233,
    "wait4": 260, "prlimit64": 261, "getrandom": 278, "statx": 291, "faccessat2": 439, "landlock_create_ruleset": 444,
    "landlock_add_rule": 445, "landlock_restrict_self": 446,
}
# fmt: on
MACHINES = {"x86_64": Machine(0xC000003E, X86_64), "aarch64": Machine(0xC00000B7, AARCH64)}
