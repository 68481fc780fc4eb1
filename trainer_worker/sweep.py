"""Progress events, one for every second of training: what goes of them, and when."""

import time
from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, delete, select

from loramem.database import Database, epoch_now
from loramem.tables import Job, JobEvent

KEEP_S = 86_400.0
"""A day to look at how a job went."""
BATCH = 1000
"""Events of one transaction, so that SQLite's write lock is held for milliseconds."""
BATCHES = 100
"""Of one call, so that a worker with months of events to remove claims jobs in between."""
PAUSE_S = 0.05
"""Between two: whoever waits for SQLite's write lock looks at it only now and then."""


def sweep_events(database: Database, keep_s: float = KEEP_S) -> int:
    """Remove `progress` events of jobs that ended more than `keep_s` seconds ago; jobs and `state` events stay.

    Returns how many. What is beyond `BATCHES` waits for the next call.
    """
    removed = last = 0
    for _ in range(BATCHES):
        ids = _find(database, keep_s, last)
        if ids:  # an idle worker does not take SQLite's write lock
            removed += _remove(database, keep_s, ids)
        if len(ids) < BATCH:
            break
        last = ids[-1]
        time.sleep(PAUSE_S)
    return removed


def _find(database: Database, keep_s: float, after: int) -> Sequence[int]:
    wanted = select(JobEvent.id).where(JobEvent.id > after, _goes(keep_s)).order_by(JobEvent.id).limit(BATCH)
    with database.read() as session:
        return session.scalars(wanted).all()


def _remove(database: Database, keep_s: float, ids: Sequence[int]) -> int:
    """Those of `ids` that still go: a job may be retried meanwhile, and SQLite gives the ids of removed rows again."""
    removed = delete(JobEvent).where(JobEvent.id.in_(ids), _goes(keep_s)).returning(JobEvent.id)
    with database.write() as session:
        return len(session.scalars(removed, execution_options={"synchronize_session": False}).all())


def _goes(keep_s: float) -> ColumnElement[bool]:
    """Looked up job by job: SQLite would go through all jobs for each event, given `job_id IN (SELECT ...)`."""
    ended = select(Job.id).where(Job.id == JobEvent.job_id, Job.finished_at < epoch_now() - keep_s)
    return and_(JobEvent.kind == "progress", ended.exists())
