"""The worker's loop, in this process: how builds end. How workers die is in `test_processes`."""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.errors import (
    EngineUnavailable,
    JobCancelled,
    LeaseLost,
    LoramemError,
    TrainingFailed,
    WriterUnavailable,
)
from loramem.queue import Claim, JobQueue
from loramem.records import Progress
from loramem.tables import Job
from tests.backends import database, database_url
from tests.trainer_worker.jobs import SETTINGS, add, publish, raises, raising, step, until, work
from trainer_worker import consume as consume_module
from trainer_worker.consume import Hooks, consume
from trainer_worker.lease import EXIT_HUNG, REPORT_EVERY_S, Lease, WorkerStopping, remaining_s

__all__ = ["database", "database_url"]

PATIENT = SETTINGS.model_copy(update={"lease_s": 3})


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, PollingDoorbell(0.02), SETTINGS)


class TestEnds:
    def test_success(self, queue: JobQueue) -> None:
        job_id = add(queue)
        assert work(queue, lambda claim, lease: publish(queue, claim)) == ["succeeded"]
        assert queue.get(job_id).state == "succeeded"

    @pytest.mark.parametrize(
        ("build", "over"),
        [
            (lambda queue, claim: publish(queue, claim), True),
            (lambda queue, claim: raises(JobCancelled("asked for")), True),
            (lambda queue, claim: raises(TrainingFailed("loss is not finite")), False),  # it may be retried
            (lambda queue, claim: raises(ZeroDivisionError("by zero")), False),
            (lambda queue, claim: raises(WriterUnavailable("no writer")), False),
            (lambda queue, claim: raises(WorkerStopping("the worker is stopping")), False),
            (lambda queue, claim: raises(LeaseLost("taken over")), False),
        ],
    )
    def test_what_a_job_kept_goes_when_it_is_over_for_good(
        self, queue: JobQueue, build: Callable[[JobQueue, Claim], None], over: bool
    ) -> None:
        forgotten: list[str] = []
        job_id = add(queue)
        work(queue, lambda claim, lease: build(queue, claim), hooks=Hooks(forget=forgotten.append))
        assert forgotten == ([job_id] if over else [])

    def test_what_cannot_be_removed_stops_nobody(self, queue: JobQueue, caplog: pytest.LogCaptureFixture) -> None:
        def forget(job_id: str) -> None:
            raise OSError("disk")

        add(queue)
        hooks = Hooks(forget=forget)
        assert work(queue, lambda claim, lease: publish(queue, claim), hooks=hooks) == ["succeeded"]
        assert "what it kept could not be removed: disk" in caplog.text

    @pytest.mark.parametrize("error", [WriterUnavailable("no writer"), EngineUnavailable("no engine")])
    def test_a_service_that_is_away_counts_no_attempt(self, queue: JobQueue, error: LoramemError) -> None:
        job_id = add(queue)
        assert work(queue, raising(error)) == ["postponed"]
        job = queue.get(job_id)
        assert (job.state, job.attempts) == ("queued", 0)
        last = queue.events(job_id)[-1]
        assert job.not_before - last.at == pytest.approx(5)
        assert last.data["reason"] == error.detail

    def test_a_declared_error_ends_the_job_without_a_traceback(
        self, queue: JobQueue, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        job_id = add(queue)
        assert work(queue, raising(TrainingFailed("loss is not finite"))) == ["failed"]
        job = queue.get(job_id)
        assert job.state == "failed"
        assert job.error is not None
        assert job.error["code"] == "training-failed"
        assert "loss is not finite" in caplog.text
        assert not [record for record in caplog.records if record.exc_info]

    def test_an_unknown_error_is_tried_again_with_its_traceback_in_the_log(
        self, queue: JobQueue, caplog: pytest.LogCaptureFixture
    ) -> None:
        job_id = add(queue)
        assert work(queue, raising(ZeroDivisionError("by zero"))) == ["error"]
        job = queue.get(job_id)
        assert (job.state, job.attempts) == ("queued", 1)
        assert job.error is not None
        assert job.error["detail"] == "ZeroDivisionError: by zero"
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.exc_info

    def test_the_last_attempt_ends_in_death(self, queue: JobQueue) -> None:
        job_id = add(queue)
        with queue.database.write() as session:
            session.get_one(Job, job_id).max_attempts = 1
        assert work(queue, raising(ZeroDivisionError("by zero"))) == ["dead"]
        assert queue.get(job_id).state == "dead"

    def test_a_build_that_forgets_to_publish_is_an_error(self, queue: JobQueue) -> None:
        job_id = add(queue)
        assert work(queue, lambda claim, lease: None) == ["error"]
        assert "without ending its job" in str(queue.get(job_id).error)

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "adapter_model.safetensors"),
            RuntimeError('IoError(Os { code: 28, message: "No space left on device" })'),
            OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        ],
        ids=["the system's", "a library's", "a quota"],
    )
    def test_a_full_disk_counts_no_attempt(self, queue: JobQueue, error: Exception) -> None:
        job_id = add(queue)
        assert work(queue, raising(error)) == ["postponed"]
        job, last = queue.get(job_id), queue.events(job_id)[-1]
        assert (job.state, job.attempts) == ("queued", 0)
        assert job.not_before - last.at == pytest.approx(60)
        assert last.data["reason"] == f"the disk is full: {error}"

    @pytest.mark.parametrize("max_attempts", [1, 2])
    def test_a_lost_gpu_counts_an_attempt_and_ends_the_process(self, queue: JobQueue, max_attempts: int) -> None:
        job_id = add(queue)
        with queue.database.write() as session:
            session.get_one(Job, job_id).max_attempts = max_attempts
        with pytest.raises(SystemExit) as ended:
            work(queue, raising(RuntimeError("CUDA error: an illegal memory access was encountered")))
        assert ended.value.code == EXIT_HUNG
        job = queue.get(job_id)
        assert (job.state, job.attempts) == ("queued" if max_attempts > 1 else "dead", 1)

    def test_a_gpu_without_room_is_not_lost(self, queue: JobQueue) -> None:
        add(queue)
        assert work(queue, raising(RuntimeError("CUDA out of memory. Tried to allocate 20 MiB"))) == ["error"]

    def test_an_interrupt_is_not_settled_as_a_failure(self, queue: JobQueue) -> None:
        job_id = add(queue)
        with pytest.raises(KeyboardInterrupt):
            work(queue, raising(KeyboardInterrupt()))
        assert queue.get(job_id).state == "running"


class TestStopping:
    def test_a_cancelled_job_stops_where_it_reports_next(self, queue: JobQueue) -> None:
        job_id = add(queue)
        steps: list[int] = []

        def build(claim: Claim, lease: Lease) -> None:
            lease.progress(step(0))
            queue.cancel(job_id)
            for number in range(1, 1000):
                time.sleep(0.01)
                steps.append(number)
                lease.progress(step(number))

        assert work(queue, build) == ["cancelled"]
        assert len(steps) <= REPORT_EVERY_S / 0.01 + 1
        assert queue.get(job_id).state == "cancelled"

    def test_a_cancel_during_the_last_step_wins_over_the_publication(self, queue: JobQueue) -> None:
        job_id = add(queue)

        def build(claim: Claim, lease: Lease) -> None:
            queue.cancel(job_id)
            publish(queue, claim)

        assert work(queue, build) == ["cancelled"]

    def test_a_lost_lease_discards_the_build(self, queue: JobQueue) -> None:
        job_id = add(queue)

        def build(claim: Claim, lease: Lease) -> None:
            with queue.database.write() as session:
                session.get_one(Job, job_id).fence += 1  # another worker
            for number in range(1000):
                time.sleep(0.01)
                lease.progress(step(number))

        assert work(queue, build) == ["lease_lost"]
        assert queue.get(job_id).state == "running"

    def test_sigterm_hands_the_job_back_and_claims_nothing_more(self, queue: JobQueue) -> None:
        job_id, waiting = add(queue), add(queue)
        stop = threading.Event()

        def build(claim: Claim, lease: Lease) -> None:
            stop.set()
            lease.progress(step(0))

        consume(queue, build, SETTINGS, stop)
        assert [queue.get(wanted).attempts for wanted in (job_id, waiting)] == [0, 0]
        assert queue.claim("next") is not None


class TestProgress:
    def test_all_of_it_is_shown_from_the_builds_beginning_to_its_end(self, queue: JobQueue) -> None:
        shown: list[Progress | str] = []

        @contextmanager
        def watch(claim: Claim) -> Iterator[Callable[[Progress], None]]:
            shown.append(claim.job_id)
            yield shown.append
            shown.append("end")

        def build(claim: Claim, lease: Lease) -> None:
            for number in range(3):
                lease.progress(step(number))
            publish(queue, claim)

        job_id = add(queue)
        work(queue, build, hooks=Hooks(watches=(watch,)))
        assert shown == [job_id, step(0), step(1), step(2), "end"]

    def test_several_that_watch_are_all_told_and_all_end(self, queue: JobQueue) -> None:
        told: list[tuple[str, str]] = []

        @contextmanager
        def watch(name: str, claim: Claim) -> Iterator[Callable[[Progress], None]]:
            yield lambda progress: told.append((name, progress.phase))
            told.append((name, "end"))

        def build(claim: Claim, lease: Lease) -> None:
            lease.progress(step(1))
            publish(queue, claim)

        add(queue)
        work(queue, build, hooks=Hooks(watches=(partial(watch, "a"), partial(watch, "b"))))
        assert told == [("a", "train"), ("b", "train"), ("b", "end"), ("a", "end")]

    def test_the_rest_takes_as_long_as_the_share_that_was_paid_for(self) -> None:
        assert remaining_s(30, 25) == 90
        assert remaining_s(30, 75, free_percent=50) == 30

    @pytest.mark.parametrize(("percent", "free"), [(0, 0), (50, 50)])
    def test_nobody_knows_how_long_it_takes_before_anything_was_paid_for(self, percent: float, free: float) -> None:
        assert remaining_s(30, percent, free) is None


class TestLease:
    """Of three seconds: a machine at work may well not let a heartbeat through for one."""

    @pytest.fixture
    def queue(self, database: Database) -> JobQueue:
        return JobQueue(database, PollingDoorbell(0.02), PATIENT)

    @pytest.fixture
    def claim(self, queue: JobQueue) -> Claim:
        add(queue)
        claim = queue.claim("w")
        assert claim is not None
        return claim

    @pytest.fixture
    def lease(self, queue: JobQueue, claim: Claim) -> Iterator[Lease]:
        with Lease(queue, claim, PATIENT, threading.Event()) as lease:
            yield lease

    def test_outlasts_its_time_while_the_heartbeat_runs(self, queue: JobQueue, lease: Lease) -> None:
        time.sleep(PATIENT.lease_s * 1.1)
        assert queue.claim("thief") is None
        lease.check()

    def test_stores_each_phase_at_once_and_steps_once_a_second(self, queue: JobQueue, lease: Lease) -> None:
        for number in range(50):
            lease.progress(step(number))
        lease.progress(Progress(phase="examine"))
        stored = [
            (entry.data["phase"], entry.data["step"])
            for entry in queue.events(lease.claim.job_id)
            if entry.kind == "progress"
        ]
        assert stored[0] == ("train", 0)
        assert stored[-1] == ("examine", 0)
        assert len(stored) <= 3

    def test_a_hung_build_loses_its_lease_and_ends_the_process(self, queue: JobQueue, claim: Claim) -> None:
        settings = SETTINGS.model_copy(update={"lease_s": 1, "hang_after_s": 0.2})
        exited = threading.Event()
        with Lease(queue, claim, settings, threading.Event(), on_hang=exited.set) as lease:
            for _ in range(5):
                lease.progress(step(1))  # the same step over and over is no advance
                time.sleep(0.1)
            until(lambda: queue.claim("heir") is not None)
            until(exited.is_set)

    def test_progress_that_cannot_be_stored_ends_nothing(self, queue: JobQueue, claim: Claim, lease: Lease) -> None:
        with away(queue.database):
            lease.progress(step(1))
        lease.progress(Progress(phase="examine"))
        assert [event.data["phase"] for event in queue.events(claim.job_id) if event.kind == "progress"] == ["examine"]

    def test_so_does_getting_further(self, queue: JobQueue, claim: Claim, lease: Lease) -> None:
        with queue.database.write() as session:
            session.get_one(Job, claim.job_id).attempts = 2
        with away(queue.database):
            lease.kept()
        assert queue.get(claim.job_id).attempts == 2
        lease.kept()
        assert queue.get(claim.job_id).attempts == 1

    def test_a_database_that_is_away_for_a_moment_does_not_lose_the_job(self, queue: JobQueue, lease: Lease) -> None:
        with away(queue.database):
            time.sleep(0.3)
        time.sleep(PATIENT.lease_s)
        assert queue.claim("thief") is None
        lease.check()


class TestLoop:
    def test_survives_a_database_that_is_away(
        self, queue: JobQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(consume_module, "DATABASE_PAUSE_S", 0.05)
        job_id = add(queue)
        outage = away(queue.database)
        outage.__enter__()
        threading.Timer(0.2, outage.__exit__).start()
        assert work(queue, lambda claim, lease: publish(queue, claim)) == ["succeeded"]
        assert queue.get(job_id).state == "succeeded"
        assert "no job can be claimed" in caplog.text

    def test_chores_run_between_jobs_and_a_broken_one_stops_nobody(
        self, queue: JobQueue, caplog: pytest.LogCaptureFixture
    ) -> None:
        ran: list[str] = []

        def broken() -> None:
            ran.append("broken")
            raise OSError("disk")

        stop = threading.Event()
        chores = [broken, lambda: ran.append("fine")]
        worker = threading.Thread(target=consume, args=(queue, raising(OSError()), SETTINGS, stop, chores))
        worker.start()
        until(lambda: len(ran) == 2)
        time.sleep(0.2)
        stop.set()
        worker.join()
        assert ran == ["broken", "fine"]  # once each in this time
        assert "upkeep failed" in caplog.text

    def test_rings_again_for_a_job_whose_ring_was_lost(self, queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        rung, taken, stop = list[str](), list[str](), threading.Event()
        monkeypatch.setattr(queue.doorbell, "ring", rung.append)
        with queue.database.write() as session:
            jobs = [queue.enqueue(session, "doc_1", 1).id for _ in range(2)]  # never announced

        def build(claim: Claim, lease: Lease) -> None:
            taken.append(claim.job_id)
            publish(queue, claim)
            stop.set()

        consume(queue, build, SETTINGS, stop)
        assert len(taken) == 1
        assert {*taken, *rung} == set(jobs), "for the other one, between jobs"


class away:  # noqa: N801 - reads as `with away(database)`
    """The database answers nothing while this is entered."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        event.listen(self._database.engine, "before_cursor_execute", self._refuse)

    def __exit__(self, *exception: object) -> None:
        event.remove(self._database.engine, "before_cursor_execute", self._refuse)

    def _refuse(self, *arguments: object) -> None:
        raise OperationalError("SELECT", None, Exception("connection refused"))
