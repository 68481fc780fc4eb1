"""A running job as its build sees it: somewhere to report progress to, and to learn that it must stop.

A thread renews the lease while the build advances. It stops doing so after `hang_after_s` without a step, because a
thread goes on beating while a GPU call hangs; the lease then expires and the job is somebody else's. A hung call cannot
be interrupted, so the process ends itself and gives the GPU back; whoever started it starts it again.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from loramem.errors import JobCancelled, JobError, LeaseLost
from loramem.queue import Claim, JobQueue
from loramem.records import Progress
from loramem.settings import Settings

log = logging.getLogger(__name__)

REPORT_EVERY_S = 1.0
EXIT_HUNG = 75  # EX_TEMPFAIL of sysexits.h


class WorkerStopping(JobError):
    """The process was asked to end; the job goes back to the queue and no attempt is counted."""

    code = "worker-stopping"
    title = "The worker is stopping"


Observer = Callable[[Progress], None]


def exit_hung() -> None:
    os._exit(EXIT_HUNG)


def show_nobody(progress: Progress) -> None:
    """The observer that shows nothing; others get every progress of a job."""


def remaining_s(elapsed_s: float, percent: float, free_percent: float = 0.0) -> float | None:
    """Seconds until 100 percent at the pace so far; None before there is one.

    `free_percent` of it cost none of `elapsed_s`, because an earlier attempt had done it: counted in, they would make
    the rest of a resumed job look short.
    """
    paid = percent - free_percent
    return elapsed_s * (100 - percent) / paid if paid > 0 else None


class Lease:
    """Use as a context manager around the build; the heartbeat runs inside it."""

    def __init__(
        self,
        queue: JobQueue,
        claim: Claim,
        settings: Settings,
        stop: threading.Event,
        on_hang: Callable[[], None] = exit_hung,
        show: Observer = show_nobody,
    ) -> None:
        self.claim = claim
        self._queue = queue
        self._settings = settings
        self._stop = stop
        self._on_hang = on_hang
        self._show = show
        self._lost = threading.Event()
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._latest: Progress | None = None
        self._idle_beats = 0
        self._reported_at = 0.0
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job was claimed."""
        return time.monotonic() - self._started

    def check(self) -> None:
        """Raises `LeaseLost`, `JobCancelled` or `WorkerStopping` when the build must stop here. Costs nothing."""
        if self._lost.is_set():
            raise LeaseLost(f"job {self.claim.job_id} was taken over")
        if self._cancelled.is_set():
            raise JobCancelled(f"job {self.claim.job_id} was cancelled")
        if self._stop.is_set():
            raise WorkerStopping("the worker is stopping")

    def progress(self, progress: Progress) -> None:
        """Say that the build advanced, and `check`. Call at every step; stored for a new phase and once a second.

        Progress equal to the last one does not count as an advance.
        """
        self.check()
        now = time.monotonic()
        new_phase = self._latest is None or progress.phase != self._latest.phase
        if progress != self._latest:
            self._idle_beats = 0
        self._latest = progress
        self._show(progress)
        if new_phase or now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            self._report(progress)
            self.check()

    def kept(self) -> None:
        """Say that no later attempt does again what was done by now: attempts are counted anew. Raises `LeaseLost`."""
        try:
            self._note(self._queue.count_anew(self.claim))
        except SQLAlchemyError as error:  # one more attempt may count; the work is done all the same
            log.warning("job %s: that it got further was not stored: %s", self.claim.job_id, error)

    def _report(self, progress: Progress) -> None:
        try:
            self._note(self._queue.report(self.claim, progress))
        except SQLAlchemyError as error:  # it is only shown; whether the lease holds is the heartbeat's to find out
            log.warning("job %s: its progress was not stored: %s", self.claim.job_id, error)

    def _beat(self) -> None:
        settings = self._settings
        while not self._ended.wait(settings.heartbeat_s):
            # Counted in beats, not by the clock: a process that was frozen for an hour did not hang for an hour.
            self._idle_beats += 1
            idle_s = self._idle_beats * settings.heartbeat_s
            if idle_s > settings.hang_after_s + settings.lease_s:
                log.error("job %s: no progress in %.0f s, the worker ends itself", self.claim.job_id, idle_s)
                self._on_hang()
                return
            if idle_s <= settings.hang_after_s and not self._lost.is_set():
                self._renew()

    def _renew(self) -> None:
        try:
            self._note(self._queue.renew(self.claim))
        except LeaseLost:
            self._lost.set()
        except SQLAlchemyError as error:  # the database is away: the lease holds for a while, the next beat tries again
            log.warning("job %s: heartbeat failed: %s", self.claim.job_id, error)

    def _note(self, cancel_requested: bool) -> None:
        if cancel_requested:
            self._cancelled.set()
