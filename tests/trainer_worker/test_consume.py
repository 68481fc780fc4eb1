"""The worker's loop: in this process for how builds end, in real processes for how workers die."""

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.errors import EngineUnavailable, LoramemError, TrainingFailed, WriterUnavailable
from loramem.queue import Claim, JobQueue
from loramem.records import Progress
from loramem.settings import Settings
from loramem.tables import Job, Namespace
from tests.backends import database, database_url
from trainer_worker import consume as consume_module
from trainer_worker.consume import Build, consume
from trainer_worker.lease import EXIT_HUNG, Lease

__all__ = ["database", "database_url"]

PROCESS = Path(__file__).parent / "worker_process.py"
SETTINGS = Settings(lease_s=1, heartbeat_s=0.1, poll_s=0.02, max_attempts=2)


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, PollingDoorbell(0.02), SETTINGS)


def add(queue: JobQueue) -> str:
    with queue.database.write() as session:
        job_id = queue.enqueue(session, "doc_1", 1).id
    queue.announce(job_id)
    return job_id


def publish(queue: JobQueue, claim: Claim) -> None:
    with queue.database.write() as session:
        queue.succeed(session, claim)


def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def step(number: int) -> Progress:
    return Progress(phase="train", step=number)


def work(queue: JobQueue, build: Build, *, settings: Settings = SETTINGS, **options: Any) -> list[str]:
    """Run the loop until one claimed job is settled; returns how it ended."""
    stop = threading.Event()
    outcomes: list[str] = []

    def observe(outcome: str, seconds: float) -> None:
        outcomes.append(outcome)
        stop.set()

    consume(queue, build, settings, stop, observe=observe, **options)
    return outcomes


def raising(error: BaseException) -> Build:
    def build(claim: Claim, lease: Lease) -> None:
        raise error

    return build


class TestEnds:
    def test_success(self, queue: JobQueue) -> None:
        job_id = add(queue)
        assert work(queue, lambda claim, lease: publish(queue, claim)) == ["succeeded"]
        assert queue.get(job_id).state == "succeeded"

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

    def test_a_build_that_forgets_to_publish_is_an_error(self, queue: JobQueue) -> None:
        job_id = add(queue)
        assert work(queue, lambda claim, lease: None) == ["error"]
        assert "without ending its job" in str(queue.get(job_id).error)

    def test_an_interrupt_is_not_settled_as_a_failure(self, queue: JobQueue) -> None:
        job_id = add(queue)
        with pytest.raises(KeyboardInterrupt):
            work(queue, raising(KeyboardInterrupt()))
        assert queue.get(job_id).state == "running"


class TestStopping:
    def test_a_cancelled_job_stops_within_a_step(self, queue: JobQueue) -> None:
        job_id = add(queue)

        def build(claim: Claim, lease: Lease) -> None:
            lease.progress(step(0))
            queue.cancel(job_id)
            for number in range(1, 1000):
                time.sleep(0.01)
                lease.progress(step(number))

        started = time.monotonic()
        assert work(queue, build) == ["cancelled"]
        assert time.monotonic() - started < 5
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


class TestLease:
    @pytest.fixture
    def claim(self, queue: JobQueue) -> Claim:
        add(queue)
        claim = queue.claim("w")
        assert claim is not None
        return claim

    @pytest.fixture
    def lease(self, queue: JobQueue, claim: Claim) -> Iterator[Lease]:
        with Lease(queue, claim, SETTINGS, threading.Event()) as lease:
            yield lease

    def test_outlasts_its_time_while_the_heartbeat_runs(self, queue: JobQueue, lease: Lease) -> None:
        time.sleep(SETTINGS.lease_s * 1.3)
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
        settings = SETTINGS.model_copy(update={"hang_after_s": 0.2})
        exited = threading.Event()
        with Lease(queue, claim, settings, threading.Event(), on_hang=exited.set) as lease:
            for _ in range(5):
                lease.progress(step(1))  # the same step over and over is no advance
                time.sleep(0.1)
            until(lambda: queue.claim("heir") is not None)
            until(exited.is_set)

    def test_a_database_that_is_away_for_a_moment_does_not_lose_the_job(self, queue: JobQueue, lease: Lease) -> None:
        with away(queue.database):
            time.sleep(0.3)
        time.sleep(SETTINGS.lease_s)
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

    def test_reconciles(self, queue: JobQueue) -> None:
        stop = threading.Event()
        worker = threading.Thread(target=consume, args=(queue, raising(WriterUnavailable("x")), SETTINGS, stop))
        worker.start()
        with queue.database.write() as session:
            job_id = queue.enqueue(session, "doc_1", 1).id  # never announced
        until(lambda: queue.get(job_id).state == "queued" and len(queue.events(job_id)) >= 3)
        stop.set()
        worker.join()


class Workers:
    """Real worker processes over one database; the journal tells which of them started what."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._journal = folder / "journal"
        self._journal.touch()
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *, steps: int = 10, step_s: float = 0.1, hang: bool = False) -> subprocess.Popen[bytes]:
        arguments = [self._url, str(self._journal), str(steps), str(step_s), *(["hang"] if hang else [])]
        process = subprocess.Popen([sys.executable, str(PROCESS), *arguments], stderr=subprocess.DEVNULL)
        self._started.append(process)
        return process

    def builds(self) -> int:
        return self._journal.read_text().count("start")

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


def freeze(process: subprocess.Popen[bytes], database: Database) -> None:
    """Stop it wherever it stands; only not while it holds SQLite's one write lock, which nothing could take from it."""
    process.send_signal(signal.SIGSTOP)
    while database.is_sqlite and _is_locked(database):
        process.send_signal(signal.SIGCONT)
        time.sleep(0.03)
        process.send_signal(signal.SIGSTOP)


def _is_locked(database: Database) -> bool:
    with closing(sqlite3.connect(str(database.engine.url.database), timeout=0.3, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


class TestProcesses:
    @pytest.fixture
    def workers(self, database_url: str, tmp_path: Path) -> Iterator[Workers]:
        workers = Workers(database_url, tmp_path)
        yield workers
        workers.end()

    @pytest.fixture(autouse=True)
    def counter(self, database: Database) -> None:
        with database.write() as session:
            session.add(Namespace(name="published"))

    def published(self, queue: JobQueue) -> int:
        with queue.database.read() as session:
            return session.get_one(Namespace, "published").generation

    def test_a_killed_workers_job_is_done_once_by_the_next(self, queue: JobQueue, workers: Workers) -> None:
        job_id = add(queue)
        first = workers.start()
        until(lambda: workers.builds() == 1)
        first.send_signal(signal.SIGKILL)
        first.wait()
        workers.start(steps=2)
        until(lambda: queue.get(job_id).state == "succeeded")
        assert (workers.builds(), self.published(queue), queue.get(job_id).attempts) == (2, 1, 2)

    def test_a_frozen_worker_that_wakes_up_publishes_nothing(self, queue: JobQueue, workers: Workers) -> None:
        job_id = add(queue)
        frozen = workers.start()
        until(lambda: workers.builds() == 1)
        freeze(frozen, queue.database)
        workers.start(steps=2)
        until(lambda: queue.get(job_id).state == "succeeded")
        frozen.send_signal(signal.SIGCONT)
        frozen.send_signal(signal.SIGTERM)
        assert frozen.wait(20) == 0
        assert (workers.builds(), self.published(queue)) == (2, 1)
        assert queue.get(job_id).state == "succeeded"

    def test_a_hung_worker_ends_itself_and_the_next_takes_over(self, queue: JobQueue, workers: Workers) -> None:
        job_id = add(queue)
        hung = workers.start(hang=True)
        assert hung.wait(30) == EXIT_HUNG
        workers.start(steps=2)
        until(lambda: queue.get(job_id).state == "succeeded")
        assert (workers.builds(), self.published(queue)) == (2, 1)

    def test_sigterm_hands_back_at_once(self, queue: JobQueue, workers: Workers) -> None:
        job_id = add(queue)
        worker = workers.start(steps=1000)
        until(lambda: workers.builds() == 1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        job = queue.get(job_id)
        assert (job.state, job.attempts) == ("queued", 0)


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
