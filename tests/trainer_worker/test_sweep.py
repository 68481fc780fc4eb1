"""Progress events of old jobs go, in batches; what a job's states were stays to be read."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event, update

from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.errors import TrainingFailed
from loramem.queue import Claim, JobQueue
from loramem.records import Progress
from loramem.settings import Settings
from loramem.tables import Job
from tests.backends import database, database_url
from tests.rows import add_document, delete_document
from trainer_worker import sweep
from trainer_worker.sweep import sweep_events

__all__ = ["database", "database_url"]

OVER = ["queued", "running", "failed"]


@pytest.fixture
def queue(database: Database) -> JobQueue:
    add_document(database, "doc_1", "text")
    return JobQueue(database, PollingDoorbell(0.02), Settings())


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "BATCH", 4)
    monkeypatch.setattr(sweep, "PAUSE_S", 0)


def begin(queue: JobQueue, steps: int) -> Claim:
    with queue.database.write() as session:
        queue.enqueue(session, "doc_1", 1)
    return go_on(queue, steps)


def go_on(queue: JobQueue, steps: int) -> Claim:
    claim = queue.claim("worker")
    assert claim is not None
    for step in range(steps):
        queue.report(claim, Progress(phase="train", step=step, total_steps=steps))
    return claim


def end(queue: JobQueue, steps: int) -> str:
    claim = begin(queue, steps)
    queue.fail(claim, TrainingFailed("the loss is not finite"), retryable=False)
    return claim.job_id


def age(database: Database) -> None:
    """Two days pass for jobs that have ended."""
    with database.write() as session:
        session.execute(update(Job).values(finished_at=Job.finished_at - 172_800))


def steps_of(queue: JobQueue, job_id: str) -> list[int]:
    return [row.data["step"] for row in queue.events(job_id) if row.kind == "progress"]


def states_of(queue: JobQueue, job_id: str) -> list[str]:
    return [row.data["state"] for row in queue.events(job_id) if row.kind == "state"]


@contextmanager
def counted(database: Database, statement: str) -> Iterator[list[str]]:
    """Statements that begin so."""
    seen: list[str] = []

    def count(connection: object, cursor: object, text: str, *rest: object) -> None:
        if text.startswith(statement):
            seen.append(text)

    event.listen(database.engine, "before_cursor_execute", count)
    yield seen
    event.remove(database.engine, "before_cursor_execute", count)


def test_an_old_jobs_progress_goes_and_its_states_stay(database: Database, queue: JobQueue) -> None:
    old = end(queue, 3)
    assert sweep_events(database) == 0
    age(database)
    young = end(queue, 2)
    assert sweep_events(database) == 3
    assert (steps_of(queue, old), states_of(queue, old)) == ([], OVER)
    assert (steps_of(queue, young), states_of(queue, young)) == ([0, 1], OVER)
    job = queue.get(old)
    assert (job.state, job.progress["phase"]) == ("failed", "train")
    assert sweep_events(database) == 0


def test_the_progress_of_a_deleted_documents_job_goes_too(database: Database, queue: JobQueue) -> None:
    job_id = end(queue, 3)
    delete_document(database, "doc_1")
    age(database)
    assert sweep_events(database) == 3
    assert states_of(queue, job_id) == OVER


def test_a_job_that_is_not_over_keeps_its_progress(database: Database, queue: JobQueue) -> None:
    retried = end(queue, 2)
    age(database)
    queue.retry(retried)
    go_on(queue, 1)
    waiting = begin(queue, 2)
    queue.postpone(waiting, 60, "the writer is away")
    assert sweep_events(database) == 0
    assert (steps_of(queue, retried), steps_of(queue, waiting.job_id)) == ([0, 1, 0], [0, 1])


@pytest.mark.parametrize(("steps", "transactions"), [(3, 1), (4, 1), (10, 3)])
def test_a_transaction_removes_a_batch(database: Database, queue: JobQueue, steps: int, transactions: int) -> None:
    job_id = end(queue, steps)
    age(database)
    with counted(database, "DELETE") as deletions:
        assert sweep_events(database) == steps
    assert len(deletions) == transactions
    assert steps_of(queue, job_id) == []
    with counted(database, "DELETE") as deletions:
        assert sweep_events(database) == 0
    assert deletions == [], "an idle worker does not write"


def test_a_call_is_bounded_and_the_next_goes_on(
    database: Database, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "BATCHES", 2)
    end(queue, 11)
    age(database)
    assert [sweep_events(database) for _ in range(3)] == [8, 3, 0]


def test_a_job_that_is_retried_meanwhile_keeps_its_progress(database: Database, queue: JobQueue) -> None:
    job_id = end(queue, 2)
    age(database)
    found = sweep._find(database, sweep.KEEP_S, 0)
    queue.retry(job_id)
    assert len(found) == 2
    assert sweep._remove(database, sweep.KEEP_S, found) == 0
    assert steps_of(queue, job_id) == [0, 1]
