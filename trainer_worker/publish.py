"""The one transaction in which a revision's adapters and vectors become what queries see, and what comes after it."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from loramem.chunk import Span
from loramem.database import Database, epoch_now
from loramem.errors import JobCancelled, StoredDataDamaged
from loramem.queue import JobQueue
from loramem.records import AdapterManifest, ExamResult
from loramem.store import OWNER, AdapterStore, Stored
from loramem.tables import (
    FINAL_JOB_STATES,
    Adapter,
    AdapterState,
    Chunk,
    Document,
    DocumentState,
    Installation,
    Job,
    JobState,
    Question,
    Revision,
    RevisionState,
    Window,
)
from loramem.transitions import Claim, locked_by, now_of
from trainer_worker.claimed import document_of, show
from trainer_worker.study import Published

log = logging.getLogger(__name__)

ORPHAN_AFTER_S = 3600.0
SUPERSEDED_AT_ONCE = 100
"""Revisions of one call, so that a worker with many to remove claims jobs in between."""


@dataclass(frozen=True)
class NewAdapter:
    """An adapter whose files are in the store, the chunk it remembers, and the questions to find it by."""

    manifest: AdapterManifest
    chunk_id: str
    stored: Stored
    questions: Sequence[Question] = ()


def publish(
    database: Database, queue: JobQueue, claim: Claim, adapters: Sequence[NewAdapter], *, mend: bool = False
) -> str | None:
    """Make `adapters`, one for each chunk of the claim's revision, and its vectors live; end the job.

    With `mend` a job is left to the queue that trains weak ones again; returns its id, to be announced.

    All or nothing: `LeaseLost`, or `JobCancelled` when a user asked to cancel, the document was deleted or a newer
    revision is live, leave everything as it was. The files must be stored before.
    """
    with database.write() as session:
        queue.succeed(session, claim)
        document = document_of(session, claim)
        _retire_others(session, claim)
        now = now_of(session)
        for adapter in adapters:
            _add(session, adapter, document, now)
        _supersede_older(session, claim)
        document.serving_revision = claim.revision
        document.state = DocumentState.LIVE
        session.get_one(Revision, (claim.document_id, claim.revision)).state = RevisionState.LIVE
        show(session, document)
        return queue.enqueue_mending(session, claim.document_id, claim.revision).id if mend else None


def republish(
    session: Session, claim: Claim, chunks: Sequence[Chunk], adapters: Sequence[Published | NewAdapter]
) -> None:
    """In the transaction that stored `chunks` anew: give each its adapter, retire those not named.

    Raises `LeaseLost`, and `JobCancelled` when a user asked to cancel or another revision serves by now.
    """
    document = _serving(session, claim)
    now = now_of(session)
    _retire_others(session, claim, [adapter.adapter_id for adapter in adapters if isinstance(adapter, Published)])
    for chunk, adapter in zip(chunks, adapters, strict=True):
        if isinstance(adapter, NewAdapter):
            _add(session, replace(adapter, chunk_id=chunk.id), document, now)
        else:
            _change(session, adapter, chunk_id=chunk.id, ordinal=chunk.ordinal)
    show(session, document)


def note_exam(database: Database, claim: Claim, adapter: Published) -> None:
    """Store what was tried on an adapter that stays as it is. Raises as `republish`."""
    with database.write() as session:
        _serving(session, claim)
        _change(session, adapter)


def _serving(session: Session, claim: Claim) -> Document:
    if locked_by(session, claim).cancel_requested:
        raise JobCancelled(f"job {claim.job_id} was cancelled before it was published")
    document = document_of(session, claim)
    if document.serving_revision != claim.revision:
        raise JobCancelled(f"document {document.id} does not serve revision {claim.revision} any more")
    return document


def _change(session: Session, adapter: Published, **values: object) -> None:
    changed = update(Adapter).where(Adapter.id == adapter.adapter_id, Adapter.state == AdapterState.LIVE)
    changed = changed.values(exam=adapter.exam.model_dump(mode="json"), **values)
    if session.scalar(changed.returning(Adapter.id)) is None:
        raise JobCancelled(f"adapter {adapter.adapter_id} is not live any more")


def live_adapters(database: Database, claim: Claim) -> list[Published]:
    """Of the claim's revision, in the order of its text."""
    of_revision = (Adapter.document_id == claim.document_id, Adapter.revision == claim.revision)
    wanted = select(Adapter, Chunk).join(Chunk, Chunk.id == Adapter.chunk_id)
    wanted = wanted.where(*of_revision, Adapter.state == AdapterState.LIVE).order_by(Adapter.ordinal)
    with database.read() as session:
        return [
            Published(
                row.id,
                Span(chunk.start, chunk.end, chunk.tokens),
                row.rank,
                row.fingerprint,
                ExamResult.model_validate(row.exam),
            )
            for row, chunk in session.execute(wanted)
        ]


def sweep_retired(database: Database, store: AdapterStore, grace_s: float) -> int:
    """Remove what was retired more than `grace_s` ago, files first, then rows; and orphans. Returns how many adapters.

    An orphan is a folder older than an hour that no row names and no unfinished job is going to publish. Where the
    store is another database's, it has none: that one's adapters are not in this one's rows. A folder that cannot be
    removed is logged and tried again the next time, and keeps nothing else from going.
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


def _retire_others(session: Session, claim: Claim, kept: Collection[str] = ()) -> None:
    others = update(Adapter).where(Adapter.document_id == claim.document_id, Adapter.state == AdapterState.LIVE)
    if kept:
        others = others.where(Adapter.id.not_in(kept))
    session.execute(others.values(state=AdapterState.RETIRED, retired_at=epoch_now()))
    retired = select(Adapter.id).where(Adapter.document_id == claim.document_id, Adapter.state == AdapterState.RETIRED)
    session.execute(delete(Question).where(Question.adapter_id.in_(retired)))


def _add(session: Session, adapter: NewAdapter, document: Document, now: float) -> None:
    session.add(_row(adapter, document, now))
    session.flush()  # questions refer to it
    session.add_all(adapter.questions)


def _row(adapter: NewAdapter, document: Document, now: float) -> Adapter:
    manifest = adapter.manifest
    return Adapter(
        id=manifest.adapter_id,
        document_id=document.id,
        namespace=document.namespace,
        revision=manifest.revision,
        chunk_id=adapter.chunk_id,
        ordinal=manifest.chunk,
        fingerprint=manifest.fingerprint,
        rank=manifest.rank,
        alpha=manifest.alpha,
        path=adapter.stored.path,
        sha256=adapter.stored.sha256,
        size_bytes=adapter.stored.size_bytes,
        exam=manifest.exam.model_dump(mode="json"),
        state=AdapterState.LIVE,
        created_at=now,
    )


def _supersede_older(session: Session, claim: Claim) -> None:
    """Older revisions keep their text for answers in flight; their chunks and vectors go."""
    for table in (Window, Chunk):
        session.execute(delete(table).where(table.document_id == claim.document_id, table.revision < claim.revision))
    older = update(Revision).where(Revision.document_id == claim.document_id, Revision.number < claim.revision)
    session.execute(older.values(state=RevisionState.SUPERSEDED))


def _orphans(database: Database, store: AdapterStore) -> list[str]:
    old = [adapter_id for adapter_id in store.ids() if store.age_s(adapter_id) > ORPHAN_AFTER_S]
    with database.read() as session:  # after listing: what a job published meanwhile has its row by now
        known = set(session.scalars(select(Adapter.id)))
        unfinished = select(Job.document_id, Job.revision).where(Job.state.not_in(FINAL_JOB_STATES))
        building = set(session.execute(unfinished))
    return [adapter_id for adapter_id in old if adapter_id not in known and _is_of(store, adapter_id) not in building]


def _is_of(store: AdapterStore, adapter_id: str) -> tuple[str, int] | None:
    """Document and revision by the manifest; None when it cannot be read, and nobody can publish it then."""
    try:
        manifest = store.manifest(adapter_id)
    except StoredDataDamaged:
        return None
    return manifest.document_id, manifest.revision
