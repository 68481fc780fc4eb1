"""The one transaction in which a revision's adapters and vectors become what queries see."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from loramem.chunk import Span
from loramem.database import Database, epoch_now
from loramem.errors import JobCancelled
from loramem.queue import JobQueue
from loramem.records import AdapterManifest, ExamResult
from loramem.store import Stored
from loramem.tables import (
    Adapter,
    AdapterState,
    Chunk,
    Document,
    DocumentState,
    Question,
    Revision,
    RevisionState,
    Window,
)
from loramem.transitions import Claim, locked_by, now_of
from trainer_worker.claimed import document_of, show
from trainer_worker.study import Published


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
