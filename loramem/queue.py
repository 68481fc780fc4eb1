"""The job queue. The job row is the authority; the doorbell only says that looking is worthwhile.

    queued ──claim──> running ──succeed──> succeeded
      ^ ^               │ │ └────fail────> failed      terminal, or dead when no attempt is left
      │ └──postpone, fail (retryable)      cancelled   cancel: a queued job at once, a running one when its worker stops
      └─────retry────── failed, dead, cancelled

A claim holds the row by a lease (until `lease_until`, by the database's clock) and a fence (a number that grows with
every claim). Whoever claims an expired lease gets a greater fence, so the write of a worker that froze and woke up
again matches no row: it raises `LeaseLost`. A worker's crash is a lease that expires, and costs one attempt. Attempts
are counted since the last one that got further: a long job outlives many crashes, one that ends its worker each time
at the same place does not.
"""

import logging

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from loramem import tracing, transitions
from loramem.database import Database, epoch_now, new_id
from loramem.doorbell import Doorbell
from loramem.errors import JobCancelled, LoramemError, WrongJobState
from loramem.records import Progress
from loramem.settings import Settings
from loramem.tables import (
    FINAL_JOB_STATES,
    Document,
    Job,
    JobEvent,
    JobKind,
    JobState,
    Revision,
    RevisionState,
)
from loramem.transitions import DONE, WAITING, Claim

__all__ = ["Claim", "JobQueue"]

log = logging.getLogger(__name__)

ANNOUNCE_AGAIN_S = 5.0
ANNOUNCE_AT_ONCE = 100  # a ring wakes a worker, and a worker that is awake drains the queue


class JobQueue:
    """Methods that take a session work in the caller's transaction; all others make their own."""

    def __init__(self, database: Database, doorbell: Doorbell, settings: Settings) -> None:
        self.database = database
        self.doorbell = doorbell
        self._settings = settings

    # the gateway's side

    def enqueue(self, session: Session, document_id: str, revision: int) -> Job:
        """Add a build to the caller's transaction; call `announce` once that is committed."""
        return self._enqueue(session, JobKind.BUILD, document_id, revision)

    def enqueue_preview(self, session: Session) -> Job:
        """The same for a preview; the caller adds its row."""
        return self._enqueue(session, JobKind.PREVIEW, None, None)

    def enqueue_mending(self, session: Session, document_id: str, revision: int) -> Job:
        """The same for weak adapters of a revision that is live."""
        return self._enqueue(session, JobKind.MEND, document_id, revision)

    def _enqueue(self, session: Session, kind: JobKind, document_id: str | None, revision: int | None) -> Job:
        now = transitions.now_of(session)
        job = Job(
            id=new_id("job"),
            kind=kind,
            document_id=document_id,
            revision=revision,
            state=JobState.QUEUED,
            max_attempts=self._settings.max_attempts,
            not_before=now,
            progress=WAITING.model_dump(),
            traceparent=tracing.traceparent(),
            created_at=now,
        )
        session.add(job)
        session.flush()
        transitions.record_state(session, job, now)
        return job

    def announce(self, job_id: str) -> None:
        """Ring for a committed job. A lost doorbell fails nobody: `reconcile` and polling find the row."""
        if not self.doorbell.ring(job_id):
            return
        waiting = update(Job).where(Job.id == job_id, Job.state == JobState.QUEUED)
        try:
            with self.database.write() as session:
                session.execute(waiting.values(announced_at=epoch_now()))
        except SQLAlchemyError as error:  # what was committed before stands: it is rung for once more, no harm
            log.warning("job %s: that it was announced is not stored: %s", job_id, error)

    def reconcile(self) -> int:
        """Ring again for due jobs that nobody took within 5 s of the last ring; returns how many. Call every 5 s."""
        stale = or_(Job.announced_at.is_(None), Job.announced_at < epoch_now() - ANNOUNCE_AGAIN_S)
        overdue = and_(transitions.is_due(), stale)
        with self.database.read() as session:
            first = select(Job.id).where(overdue).order_by(Job.not_before).limit(ANNOUNCE_AT_ONCE)
            wanted = session.scalars(first).all()
        if not wanted:
            return 0
        with self.database.write() as session:  # stamped first, so that of several processes only one rings
            stamp = update(Job).where(Job.id.in_(wanted), overdue).values(announced_at=epoch_now()).returning(Job.id)
            stamped = session.scalars(stamp, execution_options={"synchronize_session": False}).all()
        for job_id in stamped:
            self.doorbell.ring(job_id)
        return len(stamped)

    def get(self, job_id: str) -> Job:
        """Raises `NotFound`."""
        with self.database.read() as session:
            return transitions.existing(session.get(Job, job_id), job_id)

    def events(self, job_id: str, after: int = 0, limit: int | None = None) -> list[JobEvent]:
        """What happened after the event with the id `after`, oldest first; empty for an unknown job."""
        wanted = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after).order_by(JobEvent.id)
        with self.database.read() as session:
            return list(session.scalars(wanted.limit(limit)))

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, ask a running one to stop. Raises `NotFound`, `WrongJobState` if it is over."""
        with self.database.write() as session:
            job = transitions.locked(session, job_id)
            if job.state in FINAL_JOB_STATES:
                raise WrongJobState(f"job {job_id} is {job.state}: nothing is left to cancel", state=job.state)
            transitions.cancel(session, job)
            return job

    def cancel_of_document(self, session: Session, document_id: str) -> None:
        """Cancel all unfinished jobs of a document in the caller's transaction; after it, none of them can publish."""
        unfinished = Job.state.not_in(FINAL_JOB_STATES)
        wanted = select(Job).where(Job.document_id == document_id, unfinished).order_by(Job.id).with_for_update()
        for job in session.scalars(wanted).all():
            transitions.cancel(session, job)

    def retry(self, job_id: str) -> Job:
        """Queue a failed, dead or cancelled job anew, with all attempts. Raises `NotFound`, `WrongJobState`."""
        with self.database.write() as session:
            job = transitions.locked(session, job_id)
            if job.state not in FINAL_JOB_STATES - {JobState.SUCCEEDED}:
                detail = f"job {job_id} is {job.state}: only failed, dead and cancelled jobs can be retried"
                raise WrongJobState(detail, state=job.state)
            newest = session.scalar(select(Document.newest_revision).where(Document.id == job.document_id))
            if newest is None and job.document_id is not None:
                raise WrongJobState(f"job {job_id} is of document {job.document_id}, which was deleted")
            if newest != job.revision:  # of a preview both are None
                raise WrongJobState(f"job {job_id} is of revision {job.revision}, the document's is {newest}")
            if job.kind == JobKind.BUILD and _is_live(session, job):
                raise WrongJobState(f"job {job_id} is {job.state}, and another one made its revision live since")
            if (other := _rival(session, job)) is not None:
                raise WrongJobState(f"job {job_id} is {job.state}, and job {other} is at work on the same revision")
            job.attempts = 0
            job.error = None
            job.finished_at = None
            job.cancel_requested = False
            job.progress = WAITING.model_dump()
            transitions.requeue(session, job, delay_s=0, reason="retry")
        self.announce(job_id)
        return job

    def counts(self) -> dict[JobState, int]:
        """Jobs by state, zeros included."""
        with self.database.read() as session:
            rows = session.execute(select(Job.state, func.count().label("jobs")).group_by(Job.state))
            found = {row.state: row.jobs for row in rows}
        return {state: found.get(state, 0) for state in JobState}

    def oldest_queued_age_s(self) -> float:
        """Seconds that the job at the head of the queue has been due; 0 for an empty queue."""
        with self.database.read() as session:
            due = (transitions.is_due(), Job.kind != JobKind.MEND)  # a mending waits long by design
            age = session.scalar(select(epoch_now() - func.min(Job.not_before)).where(*due))
        return max(0.0, float(age or 0))

    # the worker's side

    def claim(self, owner: str) -> Claim | None:
        """Take the job that has been due the longest, or one whose worker's lease has expired; None: nothing to do.

        On the way, jobs that nobody may take any more come to their end: without attempts left (`dead`), or cancelled
        while their worker was gone.
        """
        with self.database.read() as session:  # an idle worker does not take SQLite's write lock
            if session.scalar(transitions.claimable().with_only_columns(Job.id)) is None:
                return None
        with self.database.write() as session:
            while (job := session.scalar(transitions.claimable().with_for_update(skip_locked=True))) is not None:
                if not transitions.bury(session, job):
                    return transitions.begin(session, job, owner, self._settings.lease_s)
        return None

    def is_wanted_elsewhere(self, waiting_s: float) -> bool:
        """Whether a mending has to make way: another job has waited this long for a worker, or has lost its own."""
        waits = and_(transitions.is_due(), Job.not_before < epoch_now() - waiting_s)
        wanted = select(Job.id).where(or_(waits, transitions.is_expired()), Job.kind != JobKind.MEND).limit(1)
        with self.database.read() as session:
            return session.scalar(wanted) is not None

    def renew(self, claim: Claim) -> bool:
        """Heartbeat: extend the lease; True when a user asked to cancel. Raises `LeaseLost`."""
        with self.database.write() as session:
            return transitions.write_fenced(session, claim, lease_until=epoch_now() + self._settings.lease_s)

    def report(self, claim: Claim, progress: Progress) -> bool:
        """Store progress and its event; True when a user asked to cancel. Raises `LeaseLost`.

        Every call is a durable write: call at most about once a second.
        """
        with self.database.write() as session:
            cancel_requested = transitions.write_fenced(session, claim, progress=progress.model_dump())
            transitions.record(session, claim.job_id, "progress", progress.model_dump(), transitions.now_of(session))
        return cancel_requested

    def count_anew(self, claim: Claim) -> bool:
        """Make this the first attempt, since no later one has to do again what it has done.

        True when a user asked to cancel. Raises `LeaseLost`.
        """
        with self.database.write() as session:
            return transitions.write_fenced(session, claim, attempts=1)

    def postpone(self, claim: Claim, delay_s: float, reason: str) -> None:
        """Give the job back without counting the attempt. Raises `LeaseLost`."""
        with self.database.write() as session:
            job = transitions.locked_by(session, claim)
            job.attempts -= 1
            transitions.requeue_unless_cancelled(session, job, delay_s, reason)
        if delay_s == 0:
            self.announce(claim.job_id)

    def succeed(self, session: Session, claim: Claim) -> None:
        """End the job in the transaction that publishes its output, which an error here must roll back.

        Raises `LeaseLost`, or `JobCancelled` when a user asked to cancel: a deleted document is never resurrected.
        """
        job = transitions.locked_by(session, claim)
        if job.cancel_requested:
            raise JobCancelled(f"job {job.id} was cancelled before it was published")
        job.error = None
        job.progress = DONE.model_dump()
        transitions.finish(session, job, JobState.SUCCEEDED)

    def fail(self, claim: Claim, error: LoramemError, *, retryable: bool) -> JobState:
        """Queue the job again after a pause that doubles each time, or end it: `failed`, `dead` after the last attempt.

        Gives the state that this leaves. Raises `LeaseLost`.
        """
        with self.database.write() as session:
            job = transitions.locked_by(session, claim)
            job.error = error.problem()
            if retryable and job.attempts < job.max_attempts:
                transitions.requeue_unless_cancelled(session, job, transitions.backoff_s(job.attempts), error.detail)
            elif retryable:
                job.error = transitions.exhausted(job)
                transitions.finish(session, job, JobState.DEAD)
            else:
                transitions.finish(session, job, JobState.FAILED)
            return JobState(job.state)

    def release_cancelled(self, claim: Claim) -> None:
        """End a job whose worker stopped because a user asked it to. Raises `LeaseLost`."""
        with self.database.write() as session:
            transitions.finish(session, transitions.locked_by(session, claim), JobState.CANCELLED)

    def holds(self, claim: Claim) -> bool:
        """Whether the claim is still the newest and its job unfinished."""
        with self.database.read() as session:
            return session.scalar(select(Job.id).where(transitions.held_by(claim))) is not None


def _rival(session: Session, job: Job) -> str | None:
    """Another unfinished job of the same kind on the same revision: the chunks of one would take the other's away."""
    if job.document_id is None:
        return None
    same = (Job.document_id == job.document_id, Job.revision == job.revision, Job.kind == job.kind, Job.id != job.id)
    return session.scalar(select(Job.id).where(*same, Job.state.not_in(FINAL_JOB_STATES)).limit(1))


def _is_live(session: Session, job: Job) -> bool:
    of_job = (Revision.document_id == job.document_id, Revision.number == job.revision)
    return session.scalar(select(Revision.state).where(*of_job)) == RevisionState.LIVE
