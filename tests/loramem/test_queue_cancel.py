"""What users may ask of a job: cancel and retry. Part of the queue's conformance suite."""

from typing import Any

import pytest
from sqlalchemy import delete, select

from loramem.database import epoch_now
from loramem.errors import JobCancelled, LoramemError, NotFound, WrongJobState
from loramem.queue import Claim, JobQueue
from loramem.tables import Document, Job, JobState, Revision, RevisionState
from loramem.transitions import KEEP_ENDED_S, is_resumable
from tests.backends import database, database_url
from tests.loramem.queue_steps import (
    BROKEN,
    TRAIN,
    add,
    add_document,
    add_mending,
    add_preview,
    change,
    doorbell,
    let_lease_expire,
    queue,
    settings,
    states,
    succeed,
    take,
)

__all__ = ["database", "database_url", "doorbell", "queue", "settings"]


def take_after_cancel(queue: JobQueue) -> Claim:
    job_id = add(queue)
    claim = take(queue)
    queue.cancel(job_id)
    return claim


class TestCancel:
    def test_a_queued_job_is_cancelled_at_once(self, queue: JobQueue) -> None:
        job_id = add(queue)
        assert queue.cancel(job_id).state == JobState.CANCELLED
        assert queue.claim("w") is None

    def test_a_running_job_learns_it_by_heartbeat_and_by_report(self, queue: JobQueue) -> None:
        job_id = add(queue)
        claim = take(queue)
        assert queue.cancel(job_id).state == JobState.RUNNING
        queue.cancel(job_id)  # asking twice is asking once
        assert queue.renew(claim) is True
        assert queue.report(claim, TRAIN) is True
        queue.release_cancelled(claim)
        assert states(queue, job_id) == ["queued", "running", "running", "cancelled"]

    def test_a_cancelled_job_cannot_publish(self, queue: JobQueue) -> None:
        claim = take_after_cancel(queue)
        with pytest.raises(JobCancelled):
            succeed(queue, claim)

    @pytest.mark.parametrize("end", ["postpone", "fail"])
    def test_a_cancelled_job_is_not_queued_again(self, queue: JobQueue, end: str) -> None:
        claim = take_after_cancel(queue)
        if end == "postpone":
            queue.postpone(claim, 0, "stopping")
        else:
            queue.fail(claim, LoramemError("lost"), retryable=True)
        assert queue.get(claim.job_id).state == JobState.CANCELLED

    def test_a_job_whose_worker_died_is_cancelled_not_redone(self, queue: JobQueue) -> None:
        first = take_after_cancel(queue)
        let_lease_expire(queue, first.job_id)
        assert queue.claim("heir") is None
        assert queue.get(first.job_id).state == JobState.CANCELLED
        second = add(queue)
        take(queue)
        let_lease_expire(queue, second)
        assert queue.cancel(second).state == JobState.CANCELLED

    def test_what_is_over_cannot_be_cancelled(self, queue: JobQueue) -> None:
        job_id = add(queue)
        succeed(queue, take(queue))
        with pytest.raises(WrongJobState, match="succeeded"):
            queue.cancel(job_id)
        with pytest.raises(NotFound):
            queue.cancel("job_unknown")

    def test_all_unfinished_jobs_of_a_document(self, queue: JobQueue) -> None:
        done, running = add(queue), add(queue)
        succeed(queue, take(queue))
        claim = take(queue)
        queued, other, preview = add(queue), add(queue, "doc_2"), add_preview(queue)
        with queue.database.write() as session:
            queue.cancel_of_document(session, "doc_1")
        found = {job_id: queue.get(job_id).state for job_id in (done, running, queued, other, preview)}
        assert list(found.values()) == ["succeeded", "running", "cancelled", "queued", "queued"]
        with pytest.raises(JobCancelled):
            succeed(queue, claim)


class TestRetry:
    def test_gives_all_attempts_back(self, queue: JobQueue) -> None:
        add_document(queue)
        job_id = add(queue)
        queue.report(claim := take(queue), TRAIN)
        queue.fail(claim, BROKEN, retryable=False)
        job = queue.retry(job_id)
        assert (job.state, job.attempts, job.error, job.finished_at) == (JobState.QUEUED, 0, None, None)
        assert queue.get(job_id).progress["phase"] == "waiting"
        assert take(queue).attempts == 1

    def test_a_cancelled_job_can_be_wanted_again(self, queue: JobQueue) -> None:
        add_document(queue)
        claim = take_after_cancel(queue)
        queue.release_cancelled(claim)
        queue.retry(claim.job_id)
        assert queue.renew(take(queue)) is False

    def test_a_preview_needs_no_document_for_it(self, queue: JobQueue) -> None:
        job_id = add_preview(queue)
        queue.cancel(job_id)
        assert queue.retry(job_id).state == JobState.QUEUED
        assert take(queue).job_id == job_id

    def test_only_what_ended_without_success(self, queue: JobQueue) -> None:
        add_document(queue)
        job_id = add(queue)
        for step in (lambda: None, lambda: take(queue)):
            step()
            with pytest.raises(WrongJobState):
                queue.retry(job_id)
        let_lease_expire(queue, job_id)
        succeed(queue, take(queue))
        with pytest.raises(WrongJobState):
            queue.retry(job_id)

    def test_not_for_a_build_whose_revision_another_one_made_live(self, queue: JobQueue) -> None:
        add_document(queue)
        build, mending = add(queue), add_mending(queue)
        with queue.database.write() as session:
            session.add(live_revision())
        for job_id in (build, mending):
            queue.cancel(job_id)
        with pytest.raises(WrongJobState, match="live"):
            queue.retry(build)
        assert queue.retry(mending).state == JobState.QUEUED

    def test_not_beside_another_build_of_the_same_revision(self, queue: JobQueue) -> None:
        add_document(queue)
        first = add(queue)
        queue.cancel(first)
        second, mending = add(queue), add_mending(queue)
        with pytest.raises(WrongJobState, match=f"job {second} is at work on the same revision"):
            queue.retry(first)
        queue.cancel(mending)
        assert queue.retry(mending).state == JobState.QUEUED
        queue.cancel(second)
        assert queue.retry(first).state == JobState.QUEUED

    def test_not_for_a_revision_that_was_replaced_or_a_document_that_is_gone(self, queue: JobQueue) -> None:
        add_document(queue, newest_revision=2)
        replaced, gone = add(queue, "doc_1", 1), add(queue, "doc_gone", 1)
        for job_id in (replaced, gone):
            queue.cancel(job_id)
            with pytest.raises(WrongJobState, match=r"revision 1, the document's is 2|doc_gone, which was deleted"):
                queue.retry(job_id)


class TestResuming:
    """What a job has done is kept for as long as it may go on, which a failed or dead one may for a day."""

    @pytest.fixture
    def failed(self, queue: JobQueue) -> str:
        add_document(queue)
        job_id = add(queue)
        queue.fail(take(queue), BROKEN, retryable=False)
        return job_id

    def resumable(self, queue: JobQueue) -> list[str]:
        with queue.database.read() as session:
            return list(session.scalars(select(Job.id).where(is_resumable()).order_by(Job.id)))

    def test_unfinished_jobs_and_those_that_failed_or_died(self, queue: JobQueue, failed: str) -> None:
        dead = add(queue)
        change(queue, dead, attempts=2)
        assert queue.claim("w") is None
        running = add(queue)
        take(queue)
        waiting, preview = add(queue, "doc_unknown"), add_preview(queue)
        assert queue.get(dead).state == JobState.DEAD
        assert self.resumable(queue) == sorted([failed, dead, running, waiting, preview])

    def test_none_that_succeeded_or_was_cancelled(self, queue: JobQueue) -> None:
        add_document(queue)
        queue.cancel(add(queue))
        add(queue)
        succeed(queue, take(queue))
        assert self.resumable(queue) == []

    def test_for_a_day(self, queue: JobQueue, failed: str) -> None:
        for passed, kept in ((60, [failed]), (-60, [])):
            change(queue, failed, finished_at=epoch_now() - KEEP_ENDED_S + passed)
            assert self.resumable(queue) == kept

    @pytest.mark.parametrize("why", ["replaced", "deleted", "live"])
    def test_none_that_cannot_be_retried(self, queue: JobQueue, failed: str, why: str) -> None:
        with queue.database.write() as session:
            if why == "replaced":
                session.get_one(Document, "doc_1").newest_revision = 2
            elif why == "deleted":
                session.execute(delete(Document).where(Document.id == "doc_1"))
            else:
                session.add(live_revision())
        assert self.resumable(queue) == []
        with pytest.raises(WrongJobState):
            queue.retry(failed)

    def test_a_mending_of_what_is_live(self, queue: JobQueue) -> None:
        add_document(queue)
        with queue.database.write() as session:
            session.add(live_revision())
        mending = add_mending(queue)
        queue.fail(take(queue), BROKEN, retryable=False)
        assert self.resumable(queue) == [mending]


def live_revision() -> Revision:
    fields: dict[str, Any] = {"title": "t", "text": "", "media_type": "text/plain", "qa": [], "training": {}}
    return Revision(document_id="doc_1", number=1, state=RevisionState.LIVE, created_at=0, **fields)
