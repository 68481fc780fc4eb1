"""Fixtures and steps that the tests of the queue share: each database with each doorbell."""

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import update

from loramem.database import Database, epoch_now
from loramem.doorbell import Doorbell, PollingDoorbell, RedisDoorbell
from loramem.errors import TrainingFailed
from loramem.queue import Claim, JobQueue
from loramem.records import Progress
from loramem.settings import Settings
from loramem.tables import Document, Job, Namespace
from tests.backends import database, database_url, shared_valkey

__all__ = ["database", "database_url"]

TRAIN = Progress(phase="train", step=3, total_steps=10, percent=40, loss=1.5)
BROKEN = TrainingFailed("loss is not finite")


@pytest.fixture(params=["polling", "valkey"])
def doorbell(request: pytest.FixtureRequest) -> Iterator[Doorbell]:
    bell: Doorbell = PollingDoorbell(0.05)
    if request.param == "valkey":
        url = shared_valkey().url
        with Redis.from_url(url) as redis:
            redis.flushall()
        bell = RedisDoorbell(url)
    yield bell
    bell.close()


@pytest.fixture
def settings() -> Settings:
    return Settings(max_attempts=2)


@pytest.fixture
def queue(database: Database, doorbell: Doorbell, settings: Settings) -> JobQueue:
    return JobQueue(database, doorbell, settings)


def add(queue: JobQueue, document_id: str = "doc_1", revision: int = 1) -> str:
    with queue.database.write() as session:
        job_id = queue.enqueue(session, document_id, revision).id
    queue.announce(job_id)
    return job_id


def add_preview(queue: JobQueue) -> str:
    with queue.database.write() as session:
        job_id = queue.enqueue_preview(session).id
    queue.announce(job_id)
    return job_id


def add_mending(queue: JobQueue, document_id: str = "doc_1", revision: int = 1) -> str:
    with queue.database.write() as session:
        return queue.enqueue_mending(session, document_id, revision).id


def add_document(queue: JobQueue, document_id: str = "doc_1", newest_revision: int = 1) -> None:
    with queue.database.write() as session:
        session.add(Namespace(name="default"))
        session.flush()
        fields: dict[str, Any] = {"title": "t", "meta": {}, "content_sha256": "0", "created_at": 0, "updated_at": 0}
        session.add(Document(id=document_id, namespace="default", newest_revision=newest_revision, **fields))


def take(queue: JobQueue, owner: str = "worker") -> Claim:
    claim = queue.claim(owner)
    assert claim is not None
    return claim


def let_lease_expire(queue: JobQueue, job_id: str) -> None:
    change(queue, job_id, lease_until=epoch_now() - 1)


def make_due(queue: JobQueue, job_id: str) -> None:
    change(queue, job_id, not_before=epoch_now() - 1)


def change(queue: JobQueue, job_id: str, **values: Any) -> None:
    with queue.database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def states(queue: JobQueue, job_id: str) -> list[str]:
    return [event.data["state"] for event in queue.events(job_id) if event.kind == "state"]


def succeed(queue: JobQueue, claim: Claim) -> None:
    with queue.database.write() as session:
        queue.succeed(session, claim)


def publish(queue: JobQueue, claim: Claim) -> None:
    with queue.database.write() as session:
        session.add(Namespace(name="published"))
        queue.succeed(session, claim)
