"""vLLM's own queue in shared memory, read by a thread whose processor time is counted."""

import threading
import time
from collections.abc import Iterator

import pytest
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition

from server.engine.cpu_wait import install

GAP_S = 0.5
"""Between two messages; shorter than the second for which the stock method spins."""


@pytest.fixture
def stock() -> Iterator[None]:
    kept = SpinCondition.wait
    yield
    SpinCondition.wait = kept


def seconds_read(count: int) -> tuple[list[object], float, float]:
    """(messages, the reader's processor time, time) of a reader that is sent a message after each gap."""
    writer = MessageQueue(1, 1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    read: list[object] = []
    used: list[float] = []

    def follow() -> None:
        reader.wait_until_ready()
        started = time.thread_time()
        read.extend(reader.dequeue(timeout=30) for _ in range(count))
        used.append(time.thread_time() - started)

    thread = threading.Thread(target=follow)
    thread.start()
    writer.wait_until_ready()
    started = time.monotonic()
    for number in range(count):
        if number:
            time.sleep(GAP_S)
        writer.enqueue(number)
    thread.join()
    return read, used[0], time.monotonic() - started


@pytest.mark.usefixtures("stock")
def test_who_waits_for_a_message_takes_no_core() -> None:
    install()
    read, used, _ = seconds_read(3)
    assert read == [0, 1, 2]
    assert used < 0.3 * 2 * GAP_S  # the stock method takes all of it, as far as there is a core


@pytest.mark.usefixtures("stock")
def test_a_message_whose_signal_was_lost_is_read_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setattr(SpinCondition, "notify", lambda self: None)
    read, _, seconds = seconds_read(3)
    assert (read, seconds < 2 * GAP_S + 5) == ([0, 1, 2], True)


@pytest.mark.usefixtures("stock")
def test_it_is_installed_once() -> None:
    install()
    ours = SpinCondition.wait
    install()
    assert SpinCondition.wait is ours
