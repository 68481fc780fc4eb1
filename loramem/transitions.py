"""How a job row goes from one state to the next, inside somebody's transaction; `queue` says who may ask for what.

A row is locked before it is read for a change: by SELECT FOR UPDATE on PostgreSQL, by the one write lock on SQLite.
Every change of state leaves a `state` event in the same transaction.
"""

import random
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, not_, or_, select, update
from sqlalchemy.orm import Session

from loramem.database import epoch_now
from loramem.errors import AttemptsExhausted, LeaseLost, NotFound
from loramem.records import Progress
from loramem.tables import FINAL_JOB_STATES, Document, Job, JobEvent, JobKind, JobState, Revision, RevisionState

BACKOFF_S = (5.0, 300.0)  # before the second attempt, and at most
KEEP_ENDED_S = 86_400.0
"""A day in which a failed or dead job that is retried goes on from what it had done."""
WAITING = Progress(phase="waiting")
DONE = Progress(phase="done", percent=100)


@dataclass(frozen=True)
class Claim:
    """The right to work on a job for as long as no greater fence exists."""

    job_id: str
    kind: str
    document_id: str  # empty for a preview, whose revision is 0
    revision: int
    fence: int
    attempts: int  # this one included
    owner: str
    waited_s: float = 0.0  # since it was due
    traceparent: str = ""  # W3C context of the request that asked for it; empty: not traced


# which rows


IS_MENDING = case((Job.kind == JobKind.MEND, 1), else_=0)


def is_due() -> ColumnElement[bool]:
    return and_(Job.state == JobState.QUEUED, Job.not_before <= epoch_now())


def is_expired() -> ColumnElement[bool]:
    return and_(Job.state == JobState.RUNNING, Job.lease_until < epoch_now())


def is_resumable() -> ColumnElement[bool]:
    """Unfinished, or failed or dead for less than a day and not refused by `retry`: what it has done is kept."""
    lately = Job.finished_at >= epoch_now() - KEEP_ENDED_S
    newest = select(Document.id).where(Document.id == Job.document_id, Document.newest_revision == Job.revision)
    of_job = (Revision.document_id == Job.document_id, Revision.number == Job.revision)
    live = select(Revision.number).where(*of_job, Revision.state == RevisionState.LIVE)
    may_be_retried = and_(newest.exists(), or_(Job.kind != JobKind.BUILD, not_(live.exists())))
    ended = and_(Job.state.in_((JobState.FAILED, JobState.DEAD)), lately, may_be_retried)
    return or_(Job.state.not_in(FINAL_JOB_STATES), ended)


def held_by(claim: Claim) -> ColumnElement[bool]:
    return and_(Job.id == claim.job_id, Job.fence == claim.fence, Job.state == JobState.RUNNING)


def claimable() -> Select[Job]:
    """The job that has been due the longest, whether it waits or its worker is gone; mendings come last."""
    return select(Job).where(or_(is_due(), is_expired())).order_by(IS_MENDING, Job.not_before, Job.id).limit(1)


def existing(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise NotFound("job", job_id)
    return job


def locked(session: Session, job_id: str) -> Job:
    """Raises `NotFound`."""
    return existing(session.scalar(select(Job).where(Job.id == job_id).with_for_update()), job_id)


def locked_by(session: Session, claim: Claim) -> Job:
    """The row, provided that the claim still holds it; raises `LeaseLost`."""
    job = session.scalar(select(Job).where(held_by(claim)).with_for_update())
    if job is None:
        raise _lease_lost(claim)
    return job


def write_fenced(session: Session, claim: Claim, **values: Any) -> bool:
    """Compare-and-set on the fence; returns whether a user asked to cancel. Raises `LeaseLost`."""
    write = update(Job).where(held_by(claim)).values(**values).returning(Job.cancel_requested)
    cancel_requested = session.scalar(write, execution_options={"synchronize_session": False})
    if cancel_requested is None:
        raise _lease_lost(claim)
    return cancel_requested


def _lease_lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"job {claim.job_id} is no longer held by fence {claim.fence} of {claim.owner}")


# what happens to them


def begin(session: Session, job: Job, owner: str, lease_s: float) -> Claim:
    """queued, or running with an expired lease -> running for `owner`."""
    now = now_of(session)
    waited_s = max(0.0, now - job.not_before)
    job.state = JobState.RUNNING
    job.owner = owner
    job.fence += 1
    job.attempts += 1
    job.lease_until = now + lease_s
    job.started_at = job.started_at or now
    record_state(session, job, now, owner=owner)
    what = (job.kind, job.document_id or "", job.revision or 0)
    return Claim(job.id, *what, job.fence, job.attempts, owner, waited_s, job.traceparent or "")


def bury(session: Session, job: Job) -> bool:
    """End a claimable job that nobody may take: cancelled while its worker was gone, or without attempts left."""
    if job.cancel_requested:
        finish(session, job, JobState.CANCELLED)
    elif job.attempts >= job.max_attempts:
        job.error = exhausted(job)
        finish(session, job, JobState.DEAD)
    return job.state in FINAL_JOB_STATES


def requeue_unless_cancelled(session: Session, job: Job, delay_s: float, reason: str) -> None:
    if job.cancel_requested:
        finish(session, job, JobState.CANCELLED)
    else:
        job.progress = {**(job.progress or WAITING.model_dump()), "message": reason}
        requeue(session, job, delay_s, reason)


def requeue(session: Session, job: Job, delay_s: float, reason: str) -> None:
    """running or final -> queued, not to be claimed before `delay_s` seconds from now."""
    now = now_of(session)
    job.state = JobState.QUEUED
    job.owner = None
    job.lease_until = None
    job.not_before = now + delay_s
    job.announced_at = None
    record_state(session, job, now, reason=reason)


def cancel(session: Session, job: Job) -> None:
    """queued -> cancelled; running -> asked to stop, or cancelled when its worker's lease has expired."""
    now = now_of(session)
    if job.state == JobState.QUEUED or (job.lease_until or 0) < now:
        finish(session, job, JobState.CANCELLED)
    elif not job.cancel_requested:
        job.cancel_requested = True
        record_state(session, job, now, cancel_requested=True)


def finish(session: Session, job: Job, state: JobState) -> None:
    """queued or running -> `state`, which is final."""
    now = now_of(session)
    job.state = state
    job.lease_until = None
    job.finished_at = now
    record_state(session, job, now)


def exhausted(job: Job) -> dict[str, Any]:
    """The problem document of a dead job; the last declared error goes into its detail."""
    last = job.error["detail"] if job.error else "the worker stopped without a word (killed, crashed or hung)"
    return AttemptsExhausted(f"gave up after {job.attempts} of {job.max_attempts} attempts: {last}").problem()


def backoff_s(attempts: int) -> float:
    """Seconds before the next attempt: doubling, capped, and spread so that failed jobs do not return in step."""
    first, longest = BACKOFF_S
    return min(longest, first * 2.0 ** (attempts - 1)) * random.uniform(0.5, 1.0)


# events


def record_state(session: Session, job: Job, now: float, **details: Any) -> None:
    data = {"state": job.state, "attempts": job.attempts, "max_attempts": job.max_attempts, "error": job.error}
    record(session, job.id, "state", data | details, now)


def record(session: Session, job_id: str, kind: str, data: dict[str, Any], now: float) -> None:
    session.add(JobEvent(job_id=job_id, at=now, kind=kind, data=data))
    session.flush()  # the row is locked by now, so ids of one job's events grow in the order of their commits


def now_of(session: Session) -> float:
    """The database's clock."""
    return float(session.execute(select(epoch_now())).scalar_one())
