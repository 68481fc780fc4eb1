"""Rows as gateway and worker write them, for tests that start from a document that is already there."""

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from loramem.database import Database, new_id
from loramem.records import ExamResult
from loramem.tables import Adapter, AdapterState, Chunk, Document, DocumentState, Namespace, Revision, Window

EXAM = ExamResult(questions=4, recall=0.75, base_recall=0.0, loss=0.5, weak=False)
FINGERPRINT = "f" * 64


def add_document(database: Database, document_id: str, text: str = "", namespace: str = "default") -> None:
    """A document whose revision 1 waits for its job."""
    with database.write() as session:
        if session.get(Namespace, namespace) is None:
            session.add(Namespace(name=namespace))
            session.flush()
        session.add(
            Document(
                id=document_id,
                namespace=namespace,
                title=f"Title of {document_id}",
                meta={},
                content_sha256="0" * 64,
                newest_revision=1,
                created_at=0,
                updated_at=0,
            )
        )
        session.flush()
        session.add(_revision(document_id, 1, text))


def add_revision(database: Database, document_id: str, text: str) -> int:
    """What PUT does; returns the new revision's number."""
    with database.write() as session:
        return _add_revision(session, session.get_one(Document, document_id), text)


def _add_revision(session: Session, document: Document, text: str) -> int:
    document.newest_revision += 1
    session.add(_revision(document.id, document.newest_revision, text))
    return document.newest_revision


def _revision(document_id: str, number: int, text: str) -> Revision:
    return Revision(
        document_id=document_id,
        number=number,
        title=f"Title of {document_id}",
        text=text,
        media_type="text/plain",
        qa=[],
        training={},
        created_at=0,
    )


def serve(
    database: Database, document_id: str, vectors: NDArray[np.float32], *, embedder: str = "test", per_chunk: int = 3
) -> list[int]:
    """Serve `vectors`, shape (n, dim), as the windows of the newest revision; returns their ids.

    Windows are ten characters long, `per_chunk` of them make a chunk.
    """
    with database.write() as session:
        document = session.get_one(Document, document_id)
        windows = _serve(session, document, vectors, embedder, per_chunk)
        _grow(session, document.namespace)
        return [window.id for window in windows]


def _serve(
    session: Session, document: Document, vectors: NDArray[np.float32], embedder: str, per_chunk: int
) -> list[Window]:
    for table in (Window, Chunk):
        session.execute(delete(table).where(table.document_id == document.id))
    number = {"document_id": document.id, "revision": document.newest_revision}
    windows = []
    for first in range(0, len(vectors), per_chunk):
        some = vectors[first : first + per_chunk]
        span = {"start": first * 10, "end": (first + len(some)) * 10}
        chunk = Chunk(id=new_id("chunk"), ordinal=first // per_chunk, tokens=1, **number, **span)
        session.add(chunk)
        session.flush()
        for i, vector in enumerate(some, start=first):
            place = {"chunk_id": chunk.id, "start": i * 10, "end": i * 10 + 10}
            windows.append(Window(embedder=embedder, embedding=vector.astype("<f4").tobytes(), **number, **place))
    session.add_all(windows)
    document.serving_revision = document.newest_revision
    document.state = DocumentState.INDEXED
    session.flush()
    return windows


def add_adapters(database: Database, document_id: str) -> None:
    """A live adapter for each chunk of the serving revision."""
    with database.write() as session:
        document = session.get_one(Document, document_id)
        _add_adapters(session, document)
        _grow(session, document.namespace)


def _add_adapters(session: Session, document: Document) -> None:
    chunks = select(Chunk).where(Chunk.document_id == document.id, Chunk.revision == document.serving_revision)
    session.add_all([_adapter(document, chunk) for chunk in session.scalars(chunks.order_by(Chunk.ordinal))])
    document.state = DocumentState.LIVE


def replace_revision(
    database: Database, document_id: str, text: str, vectors: NDArray[np.float32], embedder: str
) -> None:
    """A new revision goes live in one transaction: text, windows and adapters."""
    with database.write() as session:
        document = session.get_one(Document, document_id)
        _add_revision(session, document, text)
        retire = update(Adapter).where(Adapter.document_id == document_id)
        session.execute(retire.values(state=AdapterState.RETIRED, retired_at=0))
        _serve(session, document, vectors, embedder, per_chunk=1)
        _add_adapters(session, document)
        _grow(session, document.namespace)


def _adapter(document: Document, chunk: Chunk) -> Adapter:
    adapter_id = new_id("ada")
    return Adapter(
        id=adapter_id,
        document_id=document.id,
        namespace=document.namespace,
        revision=chunk.revision,
        chunk_id=chunk.id,
        ordinal=chunk.ordinal,
        fingerprint=FINGERPRINT,
        rank=16,
        alpha=32,
        path=adapter_id,
        sha256=f"weights of revision {chunk.revision}",
        size_bytes=1,
        exam=EXAM.model_dump(),
        state=AdapterState.LIVE,
        created_at=0,
    )


def delete_document(database: Database, document_id: str) -> None:
    """What DELETE does."""
    with database.write() as session:
        document = session.get_one(Document, document_id)
        retire = update(Adapter).where(Adapter.document_id == document_id)
        session.execute(retire.values(state=AdapterState.RETIRED, retired_at=0))
        session.delete(document)
        _grow(session, document.namespace)


def _grow(session: Session, namespace: str) -> None:
    session.execute(Namespace.changed(namespace))
