"""What a namespace serves, read from the database for the caches that are searched: vectors and words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from loramem.lexical import Entry
from loramem.tables import Adapter, AdapterState, Chunk, Document, Namespace, Question, Revision, Window
from loramem.vector_set import Group

BATCH = 500
"""Keys in one `IN (...)`; every database takes as many."""
TEXTS = 16
"""Revisions held at once; one may be megabytes long."""

Vectors = NDArray[np.float32]


def generation_of(session: Session, namespace: str) -> int | None:
    return session.scalar(select(Namespace.generation).where(Namespace.name == namespace))


def documents_of(session: Session, namespace: str) -> dict[str, str]:
    """Documents that serve a revision, with its first chunk's id, which is new whenever a text is indexed."""
    first_chunk = and_(
        Chunk.document_id == Document.id, Chunk.revision == Document.serving_revision, Chunk.ordinal == 0
    )
    wanted = select(Document.id, Chunk.id).join(Chunk, first_chunk).where(Document.namespace == namespace)
    return dict(session.execute(wanted).all())


def adapters_of(session: Session, namespace: str) -> dict[str, str]:
    """Live adapters; they never change, so their version is the empty string."""
    wanted = select(Adapter.id).where(Adapter.namespace == namespace, Adapter.state == AdapterState.LIVE)
    return dict.fromkeys(session.scalars(wanted), "")


def windows_of(
    session: Session, documents: Mapping[str, str], embedder: str, dim: int
) -> tuple[dict[str, Group], Vectors]:
    """Window ids of these documents, and their vectors in the same order, shape (n, dim); none of other embedders."""
    columns = select(Window.document_id, Window.id, Window.embedder, Window.embedding)
    served = and_(Document.id == Window.document_id, Document.serving_revision == Window.revision)
    wanted = columns.join(Document, served).order_by(Window.document_id, Window.id)
    return _grouped(_batched(session, wanted, Window.document_id, documents), documents, embedder, dim)


def questions_of(
    session: Session, adapters: Mapping[str, str], embedder: str, dim: int
) -> tuple[dict[str, Group], Vectors]:
    """Ids of the questions that these adapters learnt, and their vectors, as `windows_of`."""
    columns = select(Question.adapter_id, Question.id, Question.embedder, Question.embedding)
    wanted = columns.where(Question.held_out.is_(False)).order_by(Question.adapter_id, Question.id)
    return _grouped(_batched(session, wanted, Question.adapter_id, adapters), adapters, embedder, dim)


def chunk_texts(session: Session, document_ids: Iterable[str]) -> Iterator[Entry]:
    """Title and text of each chunk that is served; a unit is the chunk's id."""
    served = and_(Document.id == Chunk.document_id, Document.serving_revision == Chunk.revision)
    places = select(Chunk.document_id, Chunk.id, Chunk.start, Chunk.end).join(Document, served)
    read = and_(Document.id == Revision.document_id, Document.serving_revision == Revision.number)
    texts = select(Document.id, Revision.title, Revision.text).join(Revision, read)
    for some in _batches(document_ids, TEXTS):
        found = {row[0]: row[1:] for row in session.execute(texts.where(Document.id.in_(some)))}
        for document_id, chunk_id, start, end in session.execute(places.where(Chunk.document_id.in_(some))):
            title, text = found[document_id]
            yield Entry(document_id, chunk_id, f"{title}\n{text[start:end]}")


def question_texts(session: Session, adapter_ids: Iterable[str]) -> Iterator[Entry]:
    """Question and answer of what these adapters learnt; a unit is `question_unit`."""
    wanted = select(Question.adapter_id, Question.id, Question.question, Question.answer)
    wanted = wanted.where(Question.held_out.is_(False))
    for adapter_id, question_id, question, answer in _batched(session, wanted, Question.adapter_id, adapter_ids):
        yield Entry(adapter_id, question_unit(adapter_id, question_id), f"{question} {answer}")


def question_unit(adapter_id: str, question_id: int) -> str:
    return f"{adapter_id} {question_id}"


def adapter_of_unit(unit: str) -> str:
    return unit.split(" ")[0]


def spans_of(session: Session, window_ids: Sequence[int]) -> dict[int, tuple[str, int, str, int, int]]:
    """Document, revision, chunk, start and end by window id."""
    columns = select(Window.id, Window.document_id, Window.revision, Window.chunk_id, Window.start, Window.end)
    found: dict[int, tuple[str, int, str, int, int]] = {}
    for start in range(0, len(window_ids), BATCH):
        for row in session.execute(columns.where(Window.id.in_(window_ids[start : start + BATCH]))):
            found[row[0]] = row[1:]
    return found


def _grouped(
    rows: Iterable[Any], wanted: Mapping[str, str], embedder: str, dim: int
) -> tuple[dict[str, Group], Vectors]:
    """`rows` are key, id, embedder and embedding, those of a key together; `wanted` gives each key's version."""
    ids: dict[str, list[int]] = {}
    embeddings = bytearray()  # a million vectors take gigabytes: they are not held twice
    for key, row_id, made_by, embedding in rows:
        if made_by == embedder and len(embedding) == 4 * dim:
            ids.setdefault(key, []).append(row_id)
            embeddings += embedding
    for key in wanted:
        ids.setdefault(key, [])
    vectors = np.frombuffer(embeddings, dtype="<f4").reshape(-1, dim).astype(np.float32, copy=False)
    return {key: Group(wanted[key], np.array(found, dtype=np.int64)) for key, found in ids.items()}, vectors


def _batched(session: Session, statement: Any, column: Any, keys: Iterable[str]) -> Iterator[Any]:
    for some in _batches(keys, BATCH):
        yield from session.execute(statement.where(column.in_(some)).execution_options(yield_per=BATCH))


def _batches(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    ordered = sorted(keys)
    return (ordered[start : start + size] for start in range(0, len(ordered), size))
