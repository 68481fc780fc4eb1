"""How workers die, and who takes their jobs: in real processes."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.queue import JobQueue
from loramem.tables import Namespace
from tests.backends import database, database_url
from tests.trainer_worker.jobs import SETTINGS, add, until
from trainer_worker.lease import EXIT_HUNG

__all__ = ["database", "database_url"]

PROCESS = Path(__file__).parent / "worker_process.py"


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, PollingDoorbell(0.02), SETTINGS)


class Workers:
    """Real worker processes over one database; the journal tells which of them started and published what."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._journal = folder / "journal"
        self._journal.touch()
        self._started: list[subprocess.Popen[bytes]] = []

    def start(
        self, *, steps: int = 10, hang_after_s: float = 600, until: Path | None = None
    ) -> subprocess.Popen[bytes]:
        arguments = [self._url, str(self._journal), str(steps), str(hang_after_s), *([str(until)] if until else [])]
        process = subprocess.Popen([sys.executable, str(PROCESS), *arguments], stderr=subprocess.DEVNULL)
        self._started.append(process)
        return process

    def builds(self) -> int:
        return self._journal.read_text().count("start")

    def is_publishing(self, process: subprocess.Popen[bytes]) -> bool:
        return f"publish {process.pid} " in self._journal.read_text()

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

    def test_a_frozen_worker_that_wakes_up_publishes_nothing(
        self, queue: JobQueue, workers: Workers, tmp_path: Path
    ) -> None:
        job_id = add(queue)
        frozen = workers.start(steps=1, until=tmp_path / "morning")
        until(lambda: queue.get(job_id).progress["phase"] == "train")
        freeze(frozen, queue.database)
        workers.start(steps=2)
        until(lambda: queue.get(job_id).state == "succeeded")
        assert not workers.is_publishing(frozen)
        (tmp_path / "morning").touch()
        frozen.send_signal(signal.SIGCONT)
        until(lambda: workers.is_publishing(frozen))
        frozen.send_signal(signal.SIGTERM)
        assert frozen.wait(60) == 0
        assert (workers.builds(), self.published(queue)) == (2, 1)
        assert queue.get(job_id).state == "succeeded"

    def test_a_hung_worker_ends_itself_and_the_next_takes_over(
        self, queue: JobQueue, workers: Workers, tmp_path: Path
    ) -> None:
        job_id = add(queue)
        hung = workers.start(hang_after_s=1, until=tmp_path / "never")
        assert hung.wait(60) == EXIT_HUNG
        workers.start(steps=2)
        until(lambda: queue.get(job_id).state == "succeeded")
        assert (workers.builds(), self.published(queue)) == (2, 1)

    def test_sigterm_hands_back_at_once(self, queue: JobQueue, workers: Workers) -> None:
        job_id = add(queue)
        worker = workers.start(steps=1000)
        until(lambda: workers.builds() == 1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        job = queue.get(job_id)
        assert (job.state, job.attempts) == ("queued", 0)
