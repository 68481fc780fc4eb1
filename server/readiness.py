"""Refuse a question that its memory cannot answer yet, and name the job to wait for."""

from sqlalchemy import ColumnElement, bindparam, func, select
from sqlalchemy.orm import Session

from loramem.database import Database
from loramem.errors import MemoryNotReady
from loramem.records import Mode
from loramem.tables import FINAL_JOB_STATES, Document, DocumentState, Job, JobKind, JobState
from server.ask import ADAPTER_MODES, Ask, Route

_NOT_YET = (
    select(Document.id)
    .where(Document.id.in_(bindparam("ids", expanding=True)))
    .where(Document.state.not_in(bindparam("needed", expanding=True)))
    .order_by(Document.id)
    .limit(1)
)


def check_ready(database: Database, ask: Ask, route: Route, mode: Mode | None = None) -> None:
    """Raises `MemoryNotReady` when a document named has no text or adapters live, or when nothing at all was routed;
    for hybrid by passages, when adapters or passages were not.

    `mode` is what answers, where it is not the mode asked for: then one of the documents named is enough.
    """
    if ask.document_ids is not None and ask.mode != "auto":
        _check_documents(database, ask, route.chosen or ask.document_ids)
    answers = mode or ask.mode
    by_adapters = answers in ADAPTER_MODES
    by_passages = not by_adapters or (answers == "hybrid" and ask.context == "rag")
    if (by_adapters and not route.adapters) or (by_passages and not route.passages):
        raise _nothing_routed(database, ask, route.chosen)


def unread(database: Database, namespace: str) -> int:
    """Of the namespace's documents, how many have no indexed text yet and a job that is to bring it."""
    at_work = select(Job.document_id).where(Job.state.not_in(FINAL_JOB_STATES))
    waiting = select(func.count()).select_from(Document).where(Document.namespace == namespace)
    waiting = waiting.where(Document.state == DocumentState.PENDING, Document.id.in_(at_work))
    with database.read() as session:
        return session.scalars(waiting).one()


def _check_documents(database: Database, ask: Ask, document_ids: tuple[str, ...]) -> None:
    needed = (DocumentState.LIVE,) if ask.mode in ADAPTER_MODES else (DocumentState.LIVE, DocumentState.INDEXED)
    with database.read() as session:
        missing = session.scalar(_NOT_YET, {"ids": list(document_ids), "needed": list(needed)})
        if missing is not None:
            job = _job_of(session, Job.document_id == missing)
            raise _not_ready(f"document {missing!r} cannot answer in mode {ask.mode} yet", job, missing)


def _nothing_routed(database: Database, ask: Ask, chosen: tuple[str, ...] | None) -> MemoryNotReady:
    with database.read() as session:
        documents = select(Document.id).where(Document.namespace == ask.namespace)
        documents = documents if chosen is None else documents.where(Document.id.in_(chosen))
        job = _job_of(session, Job.document_id.in_(documents))
    where = f"namespace {ask.namespace!r}" if chosen is None else "what was named or has the metadata"
    return _not_ready(f"{where} holds nothing that can answer in mode {ask.mode} yet", job, None)


def _job_of(session: Session, condition: ColumnElement[bool]) -> Job | None:
    """The newest build: one still at work before one that ended."""
    newest = (
        select(Job)
        .where(condition, Job.kind == JobKind.BUILD)
        .order_by(Job.state.in_(list(FINAL_JOB_STATES)), Job.created_at.desc(), Job.id.desc())
    )
    return session.scalars(newest.limit(1)).first()


def _not_ready(reason: str, job: Job | None, document_id: str | None) -> MemoryNotReady:
    extra = {} if document_id is None else {"document_id": document_id}
    if job is None:
        return MemoryNotReady(f"{reason}; upload a document with POST /documents first", **extra)
    if job.state == JobState.SUCCEEDED:
        way_out = (
            f"its job {job.id} succeeded, but with another base model or embedder: set LORAMEM_MODEL and "
            "LORAMEM_EMBEDDER back, or delete the document and upload it again"
        )
    elif job.state in FINAL_JOB_STATES:
        way_out = f"its job {job.id} ended as {job.state}: see GET /jobs/{job.id}, or POST /jobs/{job.id}/retry"
    else:
        way_out = f"its job {job.id} is {job.state}: follow GET /jobs/{job.id}/events"
    return MemoryNotReady(f"{reason}; {way_out}", job_id=job.id, job_state=job.state, **extra)
