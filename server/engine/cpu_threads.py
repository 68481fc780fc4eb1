"""On which cores threads run, where vLLM binds its worker to the cores of its own threads; new ones inherit that."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

HELPERS = ("gloo_tcp_loop", "ZMQbg")
"""Threads of libraries that send and receive, by how their names begin; together they wake a thousand times a second.
The worker's first thread computes, and what runs beside it on its core keeps the others waiting at every barrier."""


def use_every_core() -> None:
    """For a thread of ours."""
    _run_on(0, _every_core())


def move_helpers() -> None:
    """Off the cores that the calling thread is bound to, as far as there are others."""
    if not hasattr(os, "sched_getaffinity"):
        return
    others = _every_core() - os.sched_getaffinity(0)
    for thread_id in _helpers():
        _run_on(thread_id, others or _every_core())


def _every_core() -> set[int]:
    return set(range(os.cpu_count() or 1))


def _helpers() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if (task / "comm").read_text().startswith(HELPERS):
                yield int(task.name)


def _run_on(thread_id: int, cores: Iterable[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended, or a container has fewer cores than the machine; then it stays there
            os.sched_setaffinity(thread_id, cores)
