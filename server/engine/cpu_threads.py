"""On which cores threads run, where vLLM binds its worker to the cores of its own threads; new ones inherit that."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

HELPERS = ("gloo_tcp_loop", "ZMQbg")
"""Threads of libraries that send and receive, by how their names begin; together they wake a thousand times a second.
The worker's first thread computes, and waits for its core whenever one of them is awake there."""


def use_every_core() -> None:
    """For a thread of ours."""
    _run_on(0, _every_core())


def move_helpers() -> None:
    """Off the cores that the calling thread is bound to, as far as there are others."""
    if not hasattr(os, "sched_getaffinity"):
        return
    others = _every_core() - os.sched_getaffinity(0)
    for thread_id in _helpers():
        _run_on(thread_id, others, _every_core())


def _every_core() -> set[int]:
    return set(range(os.cpu_count() or 1))


def _helpers() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if (task / "comm").read_text().startswith(HELPERS):
                yield int(task.name)


def _run_on(thread_id: int, *choices: Iterable[int]) -> None:
    """The first choice with a core that there is: a container may have fewer than the machine."""
    for cores in choices if hasattr(os, "sched_setaffinity") else ():
        with suppress(OSError):  # none of these, or the thread has ended
            os.sched_setaffinity(thread_id, cores)
            return
