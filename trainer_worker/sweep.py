"""What a worker removes between jobs: adapters, revisions, previews and progress events, each after its time."""

import logging
import time
from collections.abc import Sequence
from functools import cache

from sqlalchemy import ColumnElement, and_, delete, select

from loramem.database import Database, epoch_now
from loramem.errors import StoredDataDamaged
from loramem.store import OWNER, AdapterStore
from loramem.tables import Adapter, AdapterState, Installation, Job, JobEvent, JobKind, JobState, Revision
from loramem.transitions import is_resumable

log = logging.getLogger(__name__)

ORPHAN_AFTER_S = 3600.0
SUPERSEDED_AT_ONCE = 100
"""Revisions of one call, so that a worker with many to remove claims jobs in between."""
KEEP_S = 86_400.0
"""A day to look at how a job went, or at a preview."""
BATCH = 1000
"""Events of one transaction, so that SQLite's write lock is held for milliseconds."""
BATCHES = 100
"""Of one call, so that a worker with months of events to remove claims jobs in between."""
PAUSE_S = 0.05
"""Between two: whoever waits for SQLite's write lock looks at it only now and then."""


def sweep_retired(database: Database, store: AdapterStore, grace_s: float) -> int:
    """Remove what was retired more than `grace_s` ago, files first, then rows; and orphans. Returns how many adapters.

    An orphan is a folder older than an hour that no row names and no job is going to publish, unfinished or still to be
    retried. Where the store is another database's, it has none: that one's adapters are not in this one's rows. A
    folder that cannot be removed is logged and tried again the next time, and keeps nothing else from going.
    """
    with database.read() as session:
        expired = Adapter.retired_at < epoch_now() - grace_s
        wanted = select(Adapter.id).where(Adapter.state == AdapterState.RETIRED, expired)
        retired = session.scalars(wanted).all()
    gone = [adapter_id for adapter_id in retired if _removed(store, adapter_id)]
    for adapter_id in gone:
        with database.write() as session:
            session.execute(delete(Adapter).where(Adapter.id == adapter_id))
    orphans = _orphans(database, store) if _owns(database, store) else []
    return len(gone) + sum(_removed(store, adapter_id) for adapter_id in orphans)


def _owns(database: Database, store: AdapterStore) -> bool:
    """Whether the store is this database's, which it becomes where nobody has said so and most of it is."""
    with database.read() as session:
        own = session.scalars(select(Installation.id)).one()
        if store.owner == own:
            return True
        stored = set(store.ids())
        known = stored & set(session.scalars(select(Adapter.id)))
    mostly = 2 * len(known) >= len(stored)  # of a folder of before there were owners; another's may be among them
    if not store.owner and mostly:
        store.own(own)
        return True
    _say_once(
        f"{store.root} holds adapters of another database than LORAMEM_DATABASE_URL names: none of them is removed. "
        f"Give each database a LORAMEM_HOME of its own, or, if these adapters are nobody's, write {own} into "
        f"{store.root / OWNER}"
    )
    return False


@cache
def _say_once(text: str) -> None:
    log.error("%s", text)


def _removed(store: AdapterStore, adapter_id: str) -> bool:
    """Whether the adapter's files are gone now."""
    try:
        store.remove(adapter_id)
    except OSError as error:
        log.warning("adapter %s cannot be removed: %s", adapter_id, error)
        return False
    return True


def _orphans(database: Database, store: AdapterStore) -> list[str]:
    old = [adapter_id for adapter_id in store.ids() if store.age_s(adapter_id) > ORPHAN_AFTER_S]
    with database.read() as session:  # after listing: what a job published meanwhile has its row by now
        known = set(session.scalars(select(Adapter.id)))
        building = set(session.execute(select(Job.document_id, Job.revision).where(is_resumable())))
    return [adapter_id for adapter_id in old if adapter_id not in known and _is_of(store, adapter_id) not in building]


def _is_of(store: AdapterStore, adapter_id: str) -> tuple[str, int] | None:
    """Document and revision by the manifest; None when it cannot be read, and nobody can publish it then."""
    try:
        manifest = store.manifest(adapter_id)
    except StoredDataDamaged:
        return None
    return manifest.document_id, manifest.revision


def sweep_superseded(database: Database, grace_s: float) -> int:
    """Remove revisions, with text and pairs, that a later one replaced more than `grace_s` ago: until then answers in
    flight may read them. Returns how many; what is beyond `SUPERSEDED_AT_ONCE` waits for the next call.
    """
    # by the job, and not by the revision's state, for which SQLite would read past every text
    later = select(Job.id).where(Job.document_id == Revision.document_id, Job.revision > Revision.number)
    later = later.where(Job.state == JobState.SUCCEEDED, Job.finished_at < epoch_now() - grace_s)
    wanted = select(Revision.document_id, Revision.number).where(later.exists()).limit(SUPERSEDED_AT_ONCE)
    with database.read() as session:
        replaced = session.execute(wanted).all()
    for document_id, number in replaced:
        with database.write() as session:
            session.execute(delete(Revision).where(Revision.document_id == document_id, Revision.number == number))
    return len(replaced)


def sweep_previews(database: Database, keep_s: float = KEEP_S) -> int:
    """Remove previews that ended more than `keep_s` seconds ago, job, events and all. Returns how many."""
    ended = (Job.kind == JobKind.PREVIEW, Job.finished_at < epoch_now() - keep_s)
    with database.read() as session:  # an idle worker does not take SQLite's write lock
        if session.scalar(select(Job.id).where(*ended).limit(1)) is None:
            return 0
    with database.write() as session:
        return len(session.scalars(delete(Job).where(*ended).returning(Job.id)).all())


def sweep_events(database: Database, keep_s: float = KEEP_S) -> int:
    """Remove `progress` events of jobs that ended more than `keep_s` seconds ago; jobs and `state` events stay.

    There is one for every second of training. Returns how many went. What is beyond `BATCHES` waits for the next call.
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
