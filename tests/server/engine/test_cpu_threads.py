"""Real threads of this process, bound as vLLM binds its worker's."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from server.engine import cpu_threads


@cache
def cores() -> set[int]:
    """All that a thread of this process may run on."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(os.sched_setaffinity, 0, range(os.cpu_count() or 1)).result()
        return pool.submit(os.sched_getaffinity, 0).result()


def workers() -> set[int]:
    return {min(cores())}


def others() -> set[int]:
    return cores() - workers() or cores()


@contextmanager
def thread(name: str) -> Iterator[int]:
    """A thread of this name on the worker's core, by its id."""
    ids: list[int] = []
    named, ends = threading.Event(), threading.Event()

    def run() -> None:
        ids.append(threading.get_native_id())
        Path(f"/proc/self/task/{ids[0]}/comm").write_text(name)
        os.sched_setaffinity(0, workers())
        named.set()
        ends.wait()

    running = threading.Thread(target=run)
    running.start()
    named.wait()
    try:
        yield ids[0]
    finally:
        ends.set()
        running.join()


@pytest.fixture
def worker() -> Iterator[None]:
    """The thread of a test is bound to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, workers())
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("name", ["gloo_tcp_loop", "ZMQbg/IO/0", "ZMQbg/Reaper"])
def test_helpers_leave_the_core_that_computes(name: str) -> None:
    with thread(name) as helper:
        cpu_threads.move_helpers()
        assert os.sched_getaffinity(helper) == others()


@pytest.mark.usefixtures("worker")
def test_all_other_threads_stay_where_they_are() -> None:
    with thread("python") as other:
        cpu_threads.move_helpers()
        assert os.sched_getaffinity(other) == workers()
        assert os.sched_getaffinity(0) == workers()


@pytest.mark.usefixtures("worker")
def test_a_worker_on_every_core_leaves_helpers_there() -> None:
    os.sched_setaffinity(0, cores())
    with thread("gloo_tcp_loop") as helper:
        cpu_threads.move_helpers()
        assert os.sched_getaffinity(helper) == cores()


@pytest.mark.usefixtures("worker")
def test_a_helper_that_has_ended_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after its name was read."""
    with thread("gloo_tcp_loop") as ended:
        pass
    with thread("gloo_tcp_loop") as helper:
        monkeypatch.setattr(cpu_threads, "_helpers", lambda: [ended, helper])
        cpu_threads.move_helpers()
        assert os.sched_getaffinity(helper) == others()


@pytest.mark.usefixtures("worker")
def test_a_thread_of_ours_takes_every_core() -> None:
    cpu_threads.use_every_core()
    assert os.sched_getaffinity(0) == cores()
