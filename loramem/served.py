"""What a namespace serves, read from the database for the caches that are searched: vectors and words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import String, and_, bindparam, cast, select
from sqlalchemy.orm import Session

from loramem.lexical import Entry
from loramem.tables import Adapter, AdapterState, Chunk, Document, Namespace, Question, Revision, Window
from loramem.vector_set import Group

BATCH = 500
"""Keys in one `IN (...)`; every database takes as many."""
TEXTS = 16
"""Revisions held at once; one may be megabytes long."""

Vectors = NDArray[np.float32]

# Built once: putting a statement together takes longer than running it.
_GENERATION = select(Namespace.generation).where(Namespace.name == bindparam("namespace"))
_SPANS = select(Window.id, Window.document_id, Window.revision, Window.chunk_id, Window.start, Window.end).where(
    Window.id.in_(bindparam("ids", expanding=True))
)


def generation_of(session: Session, namespace: str) -> int | None:
    return session.scalar(_GENERATION, {"namespace": namespace})


def generations_of(session: Session) -> dict[str, int]:
    """Of every namespace."""
    return dict(session.execute(select(Namespace.name, Namespace.generation)).all())


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
    return _grouped(batched(session, wanted, Window.document_id, documents), documents, embedder, dim)


def questions_of(
    session: Session, adapters: Mapping[str, str], embedder: str, dim: int
) -> tuple[dict[str, Group], Vectors]:
    """Ids of the questions that these adapters learnt, and their vectors, as `windows_of`."""
    columns = select(Question.adapter_id, Question.id, Question.embedder, Question.embedding)
    wanted = columns.where(Question.held_out.is_(False)).order_by(Question.adapter_id, Question.id)
    return _grouped(batched(session, wanted, Question.adapter_id, adapters), adapters, embedder, dim)


def chunk_texts(session: Session, document_ids: Iterable[str]) -> Iterator[Entry]:
    """Title and text of each chunk that is served; a unit is the chunk's id."""
    for some in batches(document_ids, TEXTS):
        found = _texts(session, some)
        for document_id, chunk_id, start, end in _places(session, Chunk, Chunk.id, some):
            title, text = found[document_id]
            yield Entry(document_id, chunk_id, f"{title}\n{text[start:end]}")


def window_texts(session: Session, document_ids: Iterable[str]) -> Iterator[Entry]:
    """Text of each window that is served; a unit is `<chunk id> <window id>`; see `owner_of`."""
    for some in batches(document_ids, TEXTS):
        found = _texts(session, some)
        columns = Window.chunk_id + " " + cast(Window.id, String)
        for document_id, unit, start, end in _places(session, Window, columns, some):
            yield Entry(document_id, unit, found[document_id][1][start:end])


def _texts(session: Session, document_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Title and text that these documents serve."""
    read = and_(Document.id == Revision.document_id, Document.serving_revision == Revision.number)
    texts = select(Document.id, Revision.title, Revision.text).join(Revision, read)
    rows = session.execute(texts.where(Document.id.in_(document_ids)))
    return {document_id: (title, text) for document_id, title, text in rows}


def _places(session: Session, table: type[Chunk | Window], unit: Any, document_ids: Sequence[str]) -> Iterable[Any]:
    """Document, unit, start and end of the chunks or windows that these documents serve."""
    served = and_(Document.id == table.document_id, Document.serving_revision == table.revision)
    places = select(table.document_id, unit, table.start, table.end).join(Document, served)
    return session.execute(places.where(table.document_id.in_(document_ids)))


def question_texts(session: Session, adapter_ids: Iterable[str]) -> Iterator[Entry]:
    """Question and answer of what these adapters learnt; a unit is `question_unit`."""
    wanted = select(Question.adapter_id, Question.id, Question.question, Question.answer)
    wanted = wanted.where(Question.held_out.is_(False))
    for adapter_id, question_id, question, answer in batched(session, wanted, Question.adapter_id, adapter_ids):
        yield Entry(adapter_id, question_unit(adapter_id, question_id), f"{question} {answer}")


def question_unit(adapter_id: str, question_id: int) -> str:
    """`<adapter id> <question id>`: the name of a question in the lexical index; see `owner_of`."""
    return f"{adapter_id} {question_id}"


def owner_of(unit: str) -> str:
    """The adapter of a question's unit, the chunk of a window's."""
    return unit.split(" ")[0]


def spans_of(session: Session, window_ids: Sequence[int]) -> dict[int, tuple[str, int, str, int, int]]:
    """Document, revision, chunk, start and end by window id."""
    found: dict[int, tuple[str, int, str, int, int]] = {}
    for start in range(0, len(window_ids), BATCH):
        for row in session.execute(_SPANS, {"ids": window_ids[start : start + BATCH]}):
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


def batched(session: Session, statement: Any, column: Any, keys: Iterable[str]) -> Iterator[Any]:
    """Rows of the statement where the column is one of the keys, of which there may be any number."""
    for some in batches(keys):
        yield from session.execute(statement.where(column.in_(some)).execution_options(yield_per=BATCH))


def batches(keys: Iterable[str], size: int = BATCH) -> Iterator[list[str]]:
    """The keys in order, so many at a time."""
    ordered = sorted(keys)
    return (ordered[start : start + size] for start in range(0, len(ordered), size))
