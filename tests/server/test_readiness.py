"""Which questions are refused before their memory is there, and which job the refusal names."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import update

from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.errors import MemoryNotReady
from loramem.queue import JobQueue
from loramem.settings import Settings
from loramem.tables import Job, JobState
from server.ask import Ask, Passage, Route, RoutedAdapter
from server.engine.engine import Sampling
from server.readiness import check_ready, unread
from tests.rows import add_adapters, add_document, serve

PASSAGE = Passage("doc_a", 1, 0, 0, 10, "text", "title", 0.5)
ADAPTER = RoutedAdapter("ada_a", "0" * 64, 16, "doc_a", "title", 0, 0.5, 1.0)
NOTHING = Route((), (), {}, {}, {})
FOUND = Route((ADAPTER,), (PASSAGE,), {"doc_a": 0.5}, {"doc_a": 1}, {})
TEXT_ONLY = Route((), (PASSAGE,), {"doc_a": 0.5}, {"doc_a": 1}, {})


@pytest.fixture
def database(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{shutil.copy(migrated, tmp_path / 'loramem.db')}")
    yield opened
    opened.close()


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, PollingDoorbell(0.1), Settings())


def enqueue(queue: JobQueue, document_id: str) -> str:
    with queue.database.write() as session:
        return queue.enqueue(session, document_id, 1).id


def pending(database: Database, queue: JobQueue, document_id: str = "doc_a", namespace: str = "default") -> str:
    add_document(database, document_id, "text", namespace)
    return enqueue(queue, document_id)


def indexed(database: Database, document_id: str = "doc_a") -> None:
    serve(database, document_id, np.eye(4, dtype=np.float32)[:1])


def ask(mode: str, *document_ids: str, namespace: str = "default") -> Ask:
    return Ask("Why?", mode, namespace, Sampling(8), document_ids=document_ids or None)  # type: ignore[arg-type]


def refusal(database: Database, wanted: Ask, route: Route) -> MemoryNotReady:
    with pytest.raises(MemoryNotReady) as refused:
        check_ready(database, wanted, route)
    return refused.value


@pytest.mark.parametrize("mode", ["lora", "rag", "icl", "hybrid"])
def test_an_empty_namespace_says_what_to_do(database: Database, mode: str) -> None:
    error = refusal(database, ask(mode), NOTHING)
    assert "upload a document with POST /documents first" in error.detail
    assert mode in error.detail
    assert not error.extra


@pytest.mark.parametrize("mode", ["lora", "rag", "icl", "hybrid"])
def test_before_indexing_every_mode_names_the_job(database: Database, queue: JobQueue, mode: str) -> None:
    job_id = pending(database, queue)
    for wanted in (ask(mode), ask(mode, "doc_a")):
        error = refusal(database, wanted, NOTHING)
        assert f"its job {job_id} is queued: follow GET /jobs/{job_id}/events" in error.detail
        assert (error.extra["job_id"], error.extra["job_state"]) == (job_id, "queued")


def test_a_document_named_is_named_in_the_refusal(database: Database, queue: JobQueue) -> None:
    pending(database, queue)
    error = refusal(database, ask("lora", "doc_a"), NOTHING)
    assert error.extra["document_id"] == "doc_a"
    assert "'doc_a'" in error.detail


@pytest.mark.parametrize(("mode", "ready"), [("rag", True), ("icl", True), ("lora", False), ("hybrid", False)])
def test_indexed_text_answers_rag_and_icl_only(database: Database, queue: JobQueue, mode: str, ready: bool) -> None:
    job_id = pending(database, queue)
    indexed(database)
    for wanted in (ask(mode), ask(mode, "doc_a")):
        if ready:
            check_ready(database, wanted, TEXT_ONLY)
        else:
            assert refusal(database, wanted, TEXT_ONLY).extra["job_id"] == job_id


@pytest.mark.parametrize("mode", ["lora", "rag", "icl", "hybrid"])
def test_a_live_document_answers_every_mode(database: Database, queue: JobQueue, mode: str) -> None:
    pending(database, queue)
    indexed(database)
    add_adapters(database, "doc_a")
    check_ready(database, ask(mode), FOUND)
    check_ready(database, ask(mode, "doc_a"), FOUND)


def test_hybrid_needs_the_passages_that_it_puts_into_the_prompt(database: Database, queue: JobQueue) -> None:
    pending(database, queue)
    by_words_alone = Route((ADAPTER,), (), {"doc_a": 0.5}, {"doc_a": 1}, {})
    check_ready(database, ask("lora"), by_words_alone)
    check_ready(database, replace(ask("hybrid"), context="icl"), by_words_alone)
    assert "in mode hybrid" in refusal(database, ask("hybrid"), by_words_alone).detail


def test_one_of_several_named_that_is_not_ready_stops_the_question(database: Database, queue: JobQueue) -> None:
    pending(database, queue)
    indexed(database)
    job_id = pending(database, queue, "doc_b")
    assert refusal(database, ask("rag", "doc_a", "doc_b"), TEXT_ONLY).extra == {
        "job_id": job_id,
        "job_state": "queued",
        "document_id": "doc_b",
    }
    check_ready(database, ask("rag", "doc_a"), TEXT_ONLY)  # not asked, so not waited for


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.DEAD, JobState.CANCELLED])
def test_a_job_that_ended_badly_points_to_its_retry(database: Database, queue: JobQueue, state: JobState) -> None:
    job_id = pending(database, queue)
    with database.write() as session:
        session.execute(update(Job).values(state=state))
    error = refusal(database, ask("lora"), NOTHING)
    assert f"its job {job_id} ended as {state}" in error.detail
    assert f"POST /jobs/{job_id}/retry" in error.detail


def test_a_job_at_work_is_named_before_a_newer_one_that_ended(database: Database, queue: JobQueue) -> None:
    working = pending(database, queue)
    ended = pending(database, queue, "doc_b")
    with database.write() as session:
        session.execute(update(Job).where(Job.id == ended).values(state=JobState.FAILED))
    assert refusal(database, ask("lora"), NOTHING).extra["job_id"] == working


def test_jobs_of_other_namespaces_are_not_named(database: Database, queue: JobQueue) -> None:
    pending(database, queue, namespace="other")
    assert "job_id" not in refusal(database, ask("lora"), NOTHING).extra


def test_a_job_that_succeeded_is_not_offered_for_a_retry(database: Database, queue: JobQueue) -> None:
    """Adapters of another base model: their job succeeded, and a retry of it would be refused."""
    job_id = pending(database, queue)
    indexed(database)
    add_adapters(database, "doc_a")
    with database.write() as session:
        session.execute(update(Job).values(state=JobState.SUCCEEDED))
    error: Any = refusal(database, ask("lora"), TEXT_ONLY)
    assert "retry" not in error.detail
    assert job_id in error.detail
    assert "another base model" in error.detail


def test_unread_is_what_has_no_text_yet_and_a_job_at_work(database: Database, queue: JobQueue) -> None:
    pending(database, queue)
    pending(database, queue, "doc_read")
    indexed(database, "doc_read")
    ended = pending(database, queue, "doc_failed")
    with database.write() as session:
        session.execute(update(Job).where(Job.id == ended).values(state=JobState.FAILED))
    assert unread(database, "default") == 1
    for number in range(2):
        pending(database, queue, f"doc_{number}", namespace="other")
    assert (unread(database, "default"), unread(database, "other"), unread(database, "empty")) == (1, 2, 0)
