"""The untrusted side: a process that holds a program, and answers calls to its functions until it is killed.

Nothing here is relied upon: the program shares the process and may change all of it. All it can do with that is to answer wrongly.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any, NoReturn

from cpt_lab.evaluation.sandbox.confinement import Limits, Unconfined, confine, die_with_parent
from cpt_lab.evaluation.sandbox.frames import receive, send
from cpt_lab.evaluation.sandbox.values import packed, unpacked

MODULE = "program"


def serve(requests: int, replies: int, output: int, limits: Limits) -> NoReturn:
    """Confine this process, read a program and its requests, and answer each."""
    try:
        die_with_parent()
        _keep_only(requests, replies, output)
        try:
            files_hidden = confine(limits)
        except Unconfined as error:
            send(replies, {"unconfined": str(error)})
            os._exit(1)
        os.environ.clear()  # not before: it says where shared objects lie
        send(replies, {"confined": True, "files_hidden": files_hidden})
        _answer(requests, replies)
    finally:  # never back into the code of the process this one was forked from
        os._exit(1)


def _keep_only(requests: int, replies: int, output: int) -> None:
    """Nothing on stdin, one pipe on stdout and stderr, and no descriptor that is not ours."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    first = 3
    for kept in sorted((requests, replies)):
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _answer(requests: int, replies: int) -> NoReturn:
    program = ModuleType(MODULE)
    sys.modules[MODULE] = program  # where dataclasses and typing look for the names of a class
    while True:
        request = receive(requests)
        try:
            answer: Any = {"value": _packed(_perform(program, request))}
        except BaseException as error:
            answer = {"raised": [type(error).__name__, str(error)[:500]]}
        send(replies, {"id": request["id"], **answer})


def _perform(program: ModuleType, request: dict[str, Any]) -> Any:
    if "source" in request:
        seed_draws(request["source"])
        return exec(compile(request["source"], f"<{MODULE}>", "exec"), program.__dict__)
    arguments, named = unpacked(request["arguments"]), unpacked(request["named"])
    return getattr(program, request["name"])(*arguments, **named)


def _packed(result: Any) -> Any:
    try:
        return packed(result)
    except TypeError:
        return ["NoData", type(result).__name__]


def seed_draws(code: str) -> None:
    """Where the code draws random numbers without a seed of its own, it draws the same every time."""
    if "random" in code:
        import random

        random.seed(0)
