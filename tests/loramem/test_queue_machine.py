"""The queue against a model of it: random histories of uploads, workers, crashes and cancellations."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule
from sqlalchemy import event, update

from loramem.database import Database, epoch_now
from loramem.doorbell import PollingDoorbell
from loramem.errors import JobCancelled, LeaseLost, LoramemError, WrongJobState
from loramem.queue import Claim, JobQueue
from loramem.settings import Settings
from loramem.tables import Base, Document, Job, Namespace

MAX_ATTEMPTS = 2
OVER = ("succeeded", "failed", "cancelled", "dead")
RETRIABLE = ("failed", "cancelled", "dead")


def _forget_durability(connection: Any, record: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")  # thousands of commits, and no power cut in this test


class Row:
    """What the model believes of one job."""

    def __init__(self, preview: bool) -> None:
        self.preview = preview
        self.state = "queued"
        self.attempts = 0
        self.holder: Claim | None = None
        self.expired = False
        self.cancel_requested = False
        self.published = 0

    def end(self, state: str) -> None:
        self.state = state
        self.holder = None
        self.expired = False

    def back_to_queue(self) -> None:
        self.end("cancelled" if self.cancel_requested else "queued")


class QueueMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.database = Database(f"sqlite:///{Path(self._folder.name) / 'queue.db'}")
        event.listen(self.database.engine, "connect", _forget_durability)
        Base.metadata.create_all(self.database.engine)
        self.queue = JobQueue(self.database, PollingDoorbell(1), Settings(max_attempts=MAX_ATTEMPTS))
        self.rows: dict[str, Row] = {}
        with self.database.write() as session:
            session.add(Namespace(name="default"))
            session.flush()
            common = {"title": "", "meta": {}, "content_sha256": "", "created_at": 0, "updated_at": 0}
            session.add(Document(id="doc", namespace="default", newest_revision=1, **common))

    def teardown(self) -> None:
        self.database.close()
        self._folder.cleanup()

    @precondition(lambda self: len(self.rows) < 3)  # few jobs, so that much happens to each
    @rule(target=jobs, preview=st.booleans())
    def upload(self, preview: bool) -> str:
        with self.database.write() as session:
            job = self.queue.enqueue_preview(session) if preview else self.queue.enqueue(session, "doc", 1)
        job_id = job.id
        self.rows[job_id] = Row(preview)
        return job_id

    @rule(target=claims)
    def claim(self) -> Any:
        claim = self.queue.claim("worker")
        claimable = self._bury_unclaimable()
        if claim is None:
            assert not claimable
            return multiple()
        row = self.rows[claim.job_id]
        assert claim.job_id in claimable
        assert row.holder is None or claim.fence > row.holder.fence
        row.state, row.holder, row.expired = "running", claim, False
        row.attempts += 1
        assert claim.attempts == row.attempts
        return claim

    def _bury_unclaimable(self) -> list[str]:
        """The queue buries on its way to a claim; here all of them, which `see_states` allows for."""
        waiting = [key for key, row in self.rows.items() if row.state == "queued" or row.expired]
        for key in waiting:
            row = self.rows[key]
            if row.cancel_requested and self.queue.get(key).state == "cancelled":
                row.end("cancelled")
            elif row.attempts >= MAX_ATTEMPTS and self.queue.get(key).state == "dead":
                row.end("dead")
        return [key for key in waiting if self.rows[key].state not in OVER]

    @rule(job=jobs)
    def let_lease_expire(self, job: str) -> None:
        row = self.rows[job]
        if row.state == "running":
            self._write(job, lease_until=epoch_now() - 10)
            row.expired = True

    @rule(claim=claims)
    def heartbeat(self, claim: Claim) -> None:
        row = self._holding(claim)
        if row is None:
            with pytest.raises(LeaseLost):
                self.queue.renew(claim)
        else:
            assert self.queue.renew(claim) == row.cancel_requested
            row.expired = False

    @rule(claim=claims)
    def get_further(self, claim: Claim) -> None:
        row = self._holding(claim)
        if row is None:
            with pytest.raises(LeaseLost):
                self.queue.count_anew(claim)
        else:
            assert self.queue.count_anew(claim) == row.cancel_requested
            row.attempts = 1

    @rule(claim=claims)
    def publish(self, claim: Claim) -> None:
        row = self._holding(claim)
        if row is None or row.cancel_requested:
            with pytest.raises(LeaseLost if row is None else JobCancelled):
                self._succeed(claim)
        else:
            self._succeed(claim)
            row.end("succeeded")
            row.published += 1

    @rule(claim=consumes(claims), retryable=st.booleans())
    def fail(self, claim: Claim, retryable: bool) -> None:
        row = self._holding(claim)
        if row is None:
            with pytest.raises(LeaseLost):
                self.queue.fail(claim, LoramemError("x"), retryable=retryable)
            return
        self.queue.fail(claim, LoramemError("x"), retryable=retryable)
        if retryable and row.attempts < MAX_ATTEMPTS:
            row.back_to_queue()
            self._write(claim.job_id, not_before=epoch_now() - 1)  # as if the pause were over
        else:
            row.end("dead" if retryable else "failed")

    @rule(claim=consumes(claims))
    def postpone(self, claim: Claim) -> None:
        row = self._holding(claim)
        if row is None:
            with pytest.raises(LeaseLost):
                self.queue.postpone(claim, 0, "stopping")
            return
        self.queue.postpone(claim, 0, "stopping")
        row.attempts -= 1
        row.back_to_queue()

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        row = self.rows[job]
        if row.state in OVER:
            with pytest.raises(WrongJobState):
                self.queue.cancel(job)
            return
        self.queue.cancel(job)
        if row.state == "queued" or row.expired:
            row.end("cancelled")
        else:
            row.cancel_requested = True

    @precondition(lambda self: any(row.state in RETRIABLE for row in self.rows.values()))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([key for key, row in self.rows.items() if row.state in RETRIABLE]))
        row = self.rows[job]
        unfinished = [other for other in self.rows.values() if not other.preview and other.state not in OVER]
        if unfinished and not row.preview:  # all builds are of one revision
            with pytest.raises(WrongJobState):
                self.queue.retry(job)
            return
        self.queue.retry(job)
        row.state, row.attempts, row.cancel_requested = "queued", 0, False

    @invariant()
    def see_states(self) -> None:
        for key, row in self.rows.items():
            job = self.queue.get(key)
            assert (job.state, job.attempts) == (row.state, row.attempts), key
            assert row.published <= 1
            assert (job.finished_at is not None) == (row.state in OVER)
            assert job.attempts <= job.max_attempts

    def _holding(self, claim: Claim) -> Row | None:
        row = self.rows[claim.job_id]
        return row if row.holder == claim and row.state == "running" else None

    def _succeed(self, claim: Claim) -> None:
        with self.database.write() as session:
            self.queue.succeed(session, claim)

    def _write(self, job_id: str, **values: object) -> None:
        with self.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**values))


QueueMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestQueueMachine = QueueMachine.TestCase
