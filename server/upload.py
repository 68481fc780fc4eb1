"""Takes in documents: rows for the text and its job are on disk before anybody gets an answer.

What a document is: the same content in a namespace is the same document, and so is the same external id; other content
under a known external id is a new revision. Uploads of one namespace go one at a time, so that two identical ones at
the same moment end in one document. Rows are locked in the worker's order: job, document, namespace.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from loramem.database import Database, epoch_now, new_id
from loramem.errors import Conflict, InvalidValue, NotFound
from loramem.queue import JobQueue
from loramem.records import QAPair, TrainingOptions
from loramem.tables import (
    Adapter,
    AdapterState,
    Document,
    Job,
    JobKind,
    JobState,
    Namespace,
    Preview,
    Question,
    Revision,
    RevisionState,
)
from loramem.transitions import now_of

TITLE_CHARS = 80
_ENDED_BADLY = (JobState.FAILED, JobState.DEAD, JobState.CANCELLED)
_LOCK_KEY = 0x6C6F7261  # tells these advisory locks from those of other programs


@dataclass(frozen=True)
class Upload:
    """One document as a user sent it, checked and parsed.

    An empty title takes the text's first line. No metadata leaves what a known document has. Without `names_namespace`
    the namespace is the default one, and nobody said it.
    """

    namespace: str
    title: str
    text: str
    media_type: str
    external_id: str | None
    metadata: Mapping[str, Any] | None
    qa: tuple[QAPair, ...]
    training: TrainingOptions
    names_namespace: bool = True

    @property
    def resolved_title(self) -> str:
        return self.title.strip() or _first_line(self.text)

    @property
    def qa_rows(self) -> list[dict[str, Any]]:
        return [pair.model_dump() for pair in self.qa]

    @cached_property
    def content_sha256(self) -> str:
        """Over all that changes what is learned: text, title, qa and training options; metadata does not."""
        content = [self.text, self.resolved_title, self.qa_rows, self.training.model_dump(exclude_defaults=True)]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Accepted:
    """`created`: a new document or a new revision; False when this content was there. `job` is the newest one."""

    document: Document
    job: Job | None
    created: bool


def create_document(database: Database, queue: JobQueue, upload: Upload) -> Accepted:
    """Add the document, or a revision to the one with its external id, or find the one with this content."""
    with database.write() as session:
        _enter_namespace(session, upload.namespace)
        document = _find(session, upload)
        accepted = _insert(session, queue, upload) if document is None else _revise(session, queue, document, upload)
    return _announced(queue, accepted)


def create_preview(database: Database, queue: JobQueue, upload: Upload) -> Job:
    """Ask for the training data of the upload's first chunk. No document comes of it, in no namespace."""
    with database.write() as session:
        job = queue.enqueue_preview(session)
        session.add(
            Preview(
                job_id=job.id,
                title=upload.resolved_title,
                text=upload.text,
                qa=upload.qa_rows,
                training=upload.training.model_dump(),
            )
        )
    queue.announce(job.id)
    return job


def replace_document(database: Database, queue: JobQueue, document_id: str, upload: Upload) -> Accepted:
    """Add a revision; the old one serves until the new one is live. The document stays in its own namespace.

    Raises `NotFound`, `InvalidValue` for another namespace, and `Conflict` when another document has the external id.
    """
    with database.write() as session:
        _enter_namespace_of(session, document_id)
        document = _existing(session, document_id)
        if upload.names_namespace and upload.namespace != document.namespace:
            raise InvalidValue(
                f"the document is in namespace {document.namespace!r} and stays there; upload it to another with POST",
                key="namespace",
                value=upload.namespace,
                allowed=document.namespace,
            )
        accepted = _revise(session, queue, document, upload)
    return _announced(queue, accepted)


def delete_document(database: Database, queue: JobQueue, document_id: str) -> None:
    """Remove a document and end its jobs: no query that starts after this returns can see it. Raises `NotFound`.

    Adapters are retired, not deleted: answers in flight may still read their files.
    """
    with database.write() as session:
        _enter_namespace_of(session, document_id)
        queue.cancel_of_document(session, document_id)
        document = _existing(session, document_id)
        live = (Adapter.document_id == document_id, Adapter.state != AdapterState.RETIRED)
        session.execute(update(Adapter).where(*live).values(state=AdapterState.RETIRED, retired_at=epoch_now()))
        of_document = select(Adapter.id).where(Adapter.document_id == document_id)
        session.execute(delete(Question).where(Question.adapter_id.in_(of_document)))
        session.execute(delete(Document).where(Document.id == document_id))
        session.execute(Namespace.changed(document.namespace))


def _enter_namespace(session: Session, name: str) -> None:
    """One upload at a time from here to the end of the transaction; creates the row at first use.

    SQLite writes one at a time anyway. On PostgreSQL an advisory lock and not the row's: workers, which hold a job's
    lock, update that row last, and the two orders together would be a deadlock.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key, hashtext(:name))"), {"key": _LOCK_KEY, "name": name})
    insert = text("INSERT INTO namespace (name, generation) VALUES (:name, 0) ON CONFLICT DO NOTHING")
    session.execute(insert, {"name": name})


def _enter_namespace_of(session: Session, document_id: str) -> None:
    namespace = session.scalar(select(Document.namespace).where(Document.id == document_id))
    if namespace is None:
        raise NotFound("document", document_id)
    _enter_namespace(session, namespace)


def _existing(session: Session, document_id: str) -> Document:
    """Asked inside the namespace: whoever was in it before may have deleted the document."""
    document = session.scalar(select(Document).where(Document.id == document_id))
    if document is None:
        raise NotFound("document", document_id)
    return document


def _find(session: Session, upload: Upload) -> Document | None:
    """By external id; else by content, where a document under another external id is another document."""
    mine = select(Document).where(Document.namespace == upload.namespace)
    same_content = mine.where(Document.content_sha256 == upload.content_sha256).order_by(Document.id).limit(1)
    if upload.external_id is None:
        return session.scalar(same_content)
    named = session.scalar(mine.where(Document.external_id == upload.external_id))
    return named or session.scalar(same_content.where(Document.external_id.is_(None)))


def _insert(session: Session, queue: JobQueue, upload: Upload) -> Accepted:
    now = now_of(session)
    document = Document(
        id=new_id("doc"),
        namespace=upload.namespace,
        external_id=upload.external_id,
        title=upload.resolved_title,
        meta=dict(upload.metadata or {}),
        content_sha256=upload.content_sha256,
        newest_revision=1,
        created_at=now,
        updated_at=now,
    )
    session.add(document)
    session.flush()
    return Accepted(document, _add_revision(session, queue, document, upload, now), created=True)


def _revise(session: Session, queue: JobQueue, document: Document, upload: Upload) -> Accepted:
    """New content is a new revision. For known content metadata and external id change, where given, and no more."""
    is_new = document.content_sha256 != upload.content_sha256
    if is_new:
        queue.cancel_of_document(session, document.id)
        _supersede_pending(session, document)
    now = now_of(session)
    _rename(session, document, upload.external_id)
    if upload.metadata is not None:
        document.meta = dict(upload.metadata)
    document.updated_at = now
    if not is_new:
        return Accepted(document, _job_for_known(session, queue, document), created=False)
    document.title = upload.resolved_title
    document.content_sha256 = upload.content_sha256
    document.newest_revision += 1
    return Accepted(document, _add_revision(session, queue, document, upload, now), created=True)


def _rename(session: Session, document: Document, external_id: str | None) -> None:
    if external_id is None or external_id == document.external_id:
        return
    same = (Document.namespace == document.namespace, Document.external_id == external_id)
    other = session.scalar(select(Document.id).where(*same))
    if other is not None:
        raise Conflict(f"external_id {external_id!r} is the document {other}'s", key="external_id", value=external_id)
    document.external_id = external_id


def _supersede_pending(session: Session, document: Document) -> None:
    """Revisions that never got to answer anything, and now never will."""
    waiting = (Revision.document_id == document.id, Revision.state == RevisionState.PENDING)
    session.execute(update(Revision).where(*waiting).values(state=RevisionState.SUPERSEDED))


def _add_revision(session: Session, queue: JobQueue, document: Document, upload: Upload, now: float) -> Job:
    revision = Revision(
        document_id=document.id,
        number=document.newest_revision,
        title=upload.resolved_title,
        text=upload.text,
        media_type=upload.media_type,
        qa=upload.qa_rows,
        training=upload.training.model_dump(),
        created_at=now,
    )
    session.add(revision)
    session.flush()
    return queue.enqueue(session, document.id, document.newest_revision)


def _job_for_known(session: Session, queue: JobQueue, document: Document) -> Job:
    """The newest revision's latest build; a new one when that ended without a result."""
    builds = (Job.kind == JobKind.BUILD, Job.document_id == document.id, Job.revision == document.newest_revision)
    job = session.scalar(select(Job).where(*builds).order_by(Job.created_at.desc(), Job.id.desc()).limit(1))
    if job is not None and job.state not in _ENDED_BADLY and not job.cancel_requested:
        return job
    return queue.enqueue(session, document.id, document.newest_revision)


def _announced(queue: JobQueue, accepted: Accepted) -> Accepted:
    """Rings after the commit; for a job that was waiting already, once too often, which harms nobody."""
    if accepted.job is not None and accepted.job.state == JobState.QUEUED:
        queue.announce(accepted.job.id)
    return accepted


def _first_line(content: str) -> str:
    line = next((line for line in content.splitlines() if line.strip()), "")
    return " ".join(line.lstrip("# \t").split())[:TITLE_CHARS].rstrip() or "untitled"
