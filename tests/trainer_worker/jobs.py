"""Jobs for tests of the worker's loop, and the loop around one of them."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from loramem.queue import Claim, JobQueue
from loramem.records import Progress
from loramem.settings import Settings
from trainer_worker.consume import Hooks, Work, consume
from trainer_worker.lease import Lease

SETTINGS = Settings(lease_s=60, heartbeat_s=0.1, poll_s=0.02, max_attempts=2)
NO_HOOKS = Hooks()


def add(queue: JobQueue) -> str:
    with queue.database.write() as session:
        job_id = queue.enqueue(session, "doc_1", 1).id
    queue.announce(job_id)
    return job_id


def publish(queue: JobQueue, claim: Claim) -> None:
    with queue.database.write() as session:
        queue.succeed(session, claim)


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def step(number: int) -> Progress:
    return Progress(phase="train", step=number)


def work(queue: JobQueue, build: Work, *, hooks: Hooks = NO_HOOKS) -> list[str]:
    """Run the loop until one claimed job is settled; returns how it ended."""
    stop = threading.Event()
    outcomes: list[str] = []

    def observe(claim: Claim, outcome: str, seconds: float) -> None:
        outcomes.append(outcome)
        stop.set()

    consume(queue, build, SETTINGS, stop, hooks=replace(hooks, observe=observe))
    return outcomes


def raises(error: BaseException) -> None:
    raise error


def raising(error: BaseException) -> Work:
    def build(claim: Claim, lease: Lease) -> None:
        raise error

    return build
