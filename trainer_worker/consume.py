"""The worker's loop: claim a job, do it, settle how it ended, again.

Three tiers of ends: expected (lost, cancelled, handed back) go to the log as debug, a declared `LoramemError` and a
service that is away as info, anything else as an error with its traceback. A job that ended any of these ways is
settled in the database; if even that fails, its lease runs out and the next worker takes it.
"""

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from loramem.durable import NO_ROOM
from loramem.errors import JobCancelled, LeaseLost, LoramemError, MakesWay, Unavailable
from loramem.queue import Claim, JobQueue
from loramem.records import Progress
from loramem.settings import Settings
from loramem.tables import JobState
from trainer_worker.lease import EXIT_HUNG, Lease, Observer, WorkerStopping

log = logging.getLogger(__name__)

Work = Callable[[Claim, Lease], None]
Chore = Callable[[], object]
Watch = Callable[[Claim], AbstractContextManager[Observer]]

POSTPONE_S = 5.0
NO_ROOM_S = 60.0
GPU_LOST = re.compile(r"CUDA error|CUBLAS_STATUS|CUDNN_STATUS")
"""After one of these every further call of the process fails too; out of memory is another."""
CHORES_EVERY_S = 30.0
RECONCILE_EVERY_S = 5.0
DATABASE_PAUSE_S = 2.0
OUTCOMES = (
    "succeeded",
    "failed",
    "cancelled",
    "error",
    "dead",
    "postponed",
    "made_way",
    "handed_back",
    "lease_lost",
    "unsettled",
)
FOR_GOOD = frozenset({"succeeded", "cancelled"})
"""Outcomes after which a job is never taken up where it was; one that failed or died may be retried."""


def observe_nothing(claim: Claim, outcome: str, seconds: float) -> None:
    pass


def forget_nothing(job_id: str) -> None:
    pass


@dataclass(frozen=True)
class Hooks:
    """Who is told about jobs; nobody unless given."""

    observe: Callable[[Claim, str, float], None] = observe_nothing
    """How a claimed job ended, and how many seconds it ran; for metrics."""
    watches: Sequence[Watch] = ()
    """Entered around a job's work, in order; what each gives is called with every progress."""
    forget: Callable[[str], None] = forget_nothing
    """The job ended for good: nobody needs what it kept for a later attempt."""


def consume(
    queue: JobQueue,
    work: Work,
    settings: Settings,
    stop: threading.Event,
    chores: Sequence[Chore] = (),
    hooks: Hooks = Hooks(),
) -> None:
    """Work until `stop` is set; a job that is running then is handed back at its next step of progress.

    `work` ends its job itself, with `queue.succeed` in the transaction that publishes, or raises. `chores` run between
    jobs, at most every 30 s; a failing chore is logged and tried again next time.
    """
    owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    upkeep = [_Periodic(chore, CHORES_EVERY_S) for chore in chores]
    upkeep.append(_Periodic(queue.reconcile, RECONCILE_EVERY_S))
    log.info("worker %s waits for jobs", owner)
    while not stop.is_set():
        claim = _claim(queue, owner, stop)
        if claim is not None:
            _settle(queue, work, claim, settings, stop, hooks)
        for task in upkeep:
            task.run_if_due()
        if claim is None and not stop.is_set():
            queue.doorbell.wait(settings.poll_s)
    log.info("worker %s stopped", owner)


def _claim(queue: JobQueue, owner: str, stop: threading.Event) -> Claim | None:
    try:
        return queue.claim(owner)
    except SQLAlchemyError as error:  # a state of the loop: wait and look again
        log.warning("no job can be claimed, the database does not answer: %s", error)
        stop.wait(DATABASE_PAUSE_S)
        return None


def _settle(queue: JobQueue, work: Work, claim: Claim, settings: Settings, stop: threading.Event, hooks: Hooks) -> None:
    """Do one job and write down how it ended."""
    log.info("job %s, %s of %s: attempt %d", claim.job_id, claim.kind, claim.document_id or "a text", claim.attempts)
    started = time.monotonic()
    try:
        outcome = _run(queue, work, claim, settings, stop, hooks.watches)
    except LeaseLost as error:
        log.debug("job %s: %s; its output is discarded", claim.job_id, error)
        outcome = "lease_lost"
    except SQLAlchemyError as error:
        log.warning("job %s: its end could not be stored, its lease runs out: %s", claim.job_id, error)
        outcome = "unsettled"
    seconds = time.monotonic() - started
    log.info("job %s: %s after %.1f s", claim.job_id, outcome, seconds)
    hooks.observe(claim, outcome, seconds)
    if outcome in FOR_GOOD:
        _forget(hooks, claim.job_id)


def _forget(hooks: Hooks, job_id: str) -> None:
    try:
        hooks.forget(job_id)
    except OSError as error:  # a chore sweeps what is left
        log.warning("job %s: what it kept could not be removed: %s", job_id, error)


def _run(
    queue: JobQueue, work: Work, claim: Claim, settings: Settings, stop: threading.Event, watches: Sequence[Watch]
) -> str:
    """The outcome of one job. Raises `LeaseLost` when it is no longer ours to settle."""
    try:
        with _watched(claim, watches) as show, Lease(queue, claim, settings, stop, show=show) as lease:
            work(claim, lease)
        if queue.holds(claim):
            raise RuntimeError("the work returned without ending its job")
        return "succeeded"
    except LeaseLost:
        raise
    except JobCancelled as error:
        log.debug("job %s: %s", claim.job_id, error)
        queue.release_cancelled(claim)
        return "cancelled"
    except WorkerStopping as error:
        log.debug("job %s: %s", claim.job_id, error)
        queue.postpone(claim, 0, error.detail)
        return "handed_back"
    except MakesWay as error:
        log.debug("job %s: %s", claim.job_id, error)
        queue.postpone(claim, POSTPONE_S, error.detail)
        return "made_way"
    except Unavailable as error:
        log.info("job %s waits: %s", claim.job_id, error)
        queue.postpone(claim, POSTPONE_S, error.detail)
        return "postponed"
    except LoramemError as error:
        log.info("job %s failed: %s", claim.job_id, error)
        queue.fail(claim, error, retryable=False)
        return "failed"
    except Exception as error:  # a boundary: the job is tried again, the worker lives on
        log.exception("job %s: unexpected error", claim.job_id)
        return _unexpected(queue, claim, error)


def _unexpected(queue: JobQueue, claim: Claim, error: Exception) -> str:
    """What no code of ours declared. Raises `SystemExit` where this process can do nothing more."""
    if NO_ROOM.search(str(error)):
        log.warning("job %s waits for room on the disk", claim.job_id)
        queue.postpone(claim, NO_ROOM_S, f"the disk is full: {error}")
        return "postponed"
    state = queue.fail(claim, LoramemError(f"{type(error).__name__}: {error}"), retryable=True)
    if GPU_LOST.search(str(error)):
        log.error("this process has lost the GPU and ends; another one begins afresh")
        raise SystemExit(EXIT_HUNG) from error
    return "error" if state == JobState.QUEUED else str(state)


@contextmanager
def _watched(claim: Claim, watches: Sequence[Watch]) -> Iterator[Observer]:
    with ExitStack() as stack:
        observers = [stack.enter_context(watch(claim)) for watch in watches]

        def show(progress: Progress) -> None:
            for observer in observers:
                observer(progress)

        yield show


class _Periodic:
    """A task that runs when asked, at most every `every_s` seconds."""

    def __init__(self, task: Callable[[], object], every_s: float) -> None:
        self._task = task
        self._every_s = every_s
        self._due = time.monotonic()

    def run_if_due(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._every_s
        try:
            self._task()
        except Exception:  # a boundary: upkeep must not stop the worker, and is due again soon
            log.exception("upkeep failed and is tried again in %.0f s", self._every_s)
