"""Exact nearest windows of a namespace: a FAISS cache of the `window` rows that are served now.

A view is one database transaction and the `State` of vectors that fits it exactly, so everything that one answer reads
is of one generation. When the namespace has moved on, the next state is made from a copy, and a search never meets half
of it. States are compared document by document, by the id of the served revision's first chunk, which is new whenever
a text is indexed (window ids may be used again after a deletion).
"""

import hashlib
import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, and_, select
from sqlalchemy.orm import Session

from loramem import vector_state
from loramem.database import Database
from loramem.tables import Chunk, Document, Namespace, Window
from loramem.vector_state import Served, State

log = logging.getLogger(__name__)

BATCH = 500
"""Keys in one `IN (...)`; every database takes as many."""


@dataclass(frozen=True)
class Hit:
    """A window near the question. `score` is the cosine; `start` and `end` are offsets into the revision's text."""

    window_id: int
    document_id: str
    revision: int
    chunk_id: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class View:
    """What is served at one moment; `session` and the vectors show the same generation."""

    session: Session
    state: State

    def search(self, vector: NDArray[np.float32], limit: int, document_ids: Collection[str] | None = None) -> list[Hit]:
        """The `limit` windows with the greatest inner product, best first, of all documents or of those named."""
        nearest = self.state.nearest(vector, limit, document_ids)
        spans = _spans(self.session, [window_id for window_id, _ in nearest])
        return [Hit(window_id, *spans[window_id], score=score) for window_id, score in nearest]


class VectorIndex:
    """All namespaces' vectors, brought up to date by whoever looks; safe to use from several threads."""

    def __init__(self, database: Database, *, dim: int, embedder_name: str, snapshot_dir: Path) -> None:
        self._database = database
        self._dim = dim
        self._embedder_name = embedder_name
        self._snapshot_dir = snapshot_dir
        self._states: dict[str, State] = {}
        self._saved: dict[str, int] = {}  # namespace to generation
        self._changing = threading.Lock()

    @contextmanager
    def view(self, namespace: str) -> Iterator[View]:
        """Open a read transaction and the vectors that fit it. An unknown namespace is an empty one."""
        with self._database.read() as session:
            yield View(session, self._state_at(session, namespace))

    def search(
        self,
        namespace: str,
        vector: NDArray[np.float32],
        limit: int,
        document_ids: Collection[str] | None = None,
    ) -> list[Hit]:
        """One search in a view of its own; see `View.search`."""
        with self.view(namespace) as view:
            return view.search(vector, limit, document_ids)

    def stale_documents(self, namespace: str) -> int:
        """Served documents that cannot be found, because another embedder made their vectors."""
        with self.view(namespace) as view:
            return sum(1 for served in view.state.documents.values() if not len(served.window_ids))

    def snapshot(self) -> None:
        """Write every namespace that changed since the last time to disk, for the next start."""
        for namespace, state in list(self._states.items()):
            if self._saved.get(namespace) != state.generation:
                vector_state.save(self._folder(namespace), state, self._embedder_name)
                self._saved[namespace] = state.generation

    def _state_at(self, session: Session, namespace: str) -> State:
        generation = session.scalar(select(Namespace.generation).where(Namespace.name == namespace))
        if generation is None:
            return State.empty(self._dim)
        published = self._states.get(namespace)
        if published is not None and published.generation == generation:
            return published
        with self._changing:
            return self._changed_to(session, namespace, generation)

    def _changed_to(self, session: Session, namespace: str, generation: int) -> State:
        """Make the state of this transaction and publish it, unless a later transaction's is published already."""
        base = self._states.get(namespace) or self._loaded(namespace)
        if base.generation == generation:  # another thread was faster
            return base
        served = _served_first_chunks(session, namespace)
        gone = {key for key, entry in base.documents.items() if served.get(key) != entry.first_chunk}
        wanted = {key: chunk for key, chunk in served.items() if key not in base.documents or key in gone}
        new, vectors = self._read(session, namespace, wanted)
        state = base.changed(generation, gone, new, vectors)
        if generation > base.generation:
            self._states[namespace] = state
        return state

    def _loaded(self, namespace: str) -> State:
        loaded = vector_state.load(self._folder(namespace), self._dim, self._embedder_name)
        return loaded or State.empty(self._dim)

    def _read(
        self, session: Session, namespace: str, wanted: dict[str, str]
    ) -> tuple[dict[str, Served], NDArray[np.float32]]:
        """Window ids of the documents `wanted` (id to first chunk), and their vectors in the same order."""
        ids: dict[str, list[int]] = {document_id: [] for document_id in wanted}
        blobs: dict[str, list[bytes]] = {document_id: [] for document_id in wanted}
        for row in _windows(session, sorted(wanted)):
            if row.embedder == self._embedder_name and len(row.embedding) == 4 * self._dim:
                ids[row.document_id].append(row.id)
                blobs[row.document_id].append(row.embedding)
        self._complain(namespace, sum(1 for found in ids.values() if not found))
        joined = b"".join(blob for found in blobs.values() for blob in found)
        vectors = np.frombuffer(joined, dtype="<f4").reshape(-1, self._dim).astype(np.float32)
        return {key: Served(chunk, np.array(ids[key], dtype=np.int64)) for key, chunk in wanted.items()}, vectors

    def _complain(self, namespace: str, stale: int) -> None:
        if stale:
            log.error(
                "namespace %s: %d documents were indexed by another embedder than %s and cannot be found; "
                "set LORAMEM_EMBEDDER back, or delete them and upload them again",
                namespace,
                stale,
                self._embedder_name,
            )

    def _folder(self, namespace: str) -> Path:
        return self._snapshot_dir / hashlib.sha256(namespace.encode()).hexdigest()[:32]  # users choose the names


def _served_first_chunks(session: Session, namespace: str) -> dict[str, str]:
    first_chunk = and_(
        Chunk.document_id == Document.id, Chunk.revision == Document.serving_revision, Chunk.ordinal == 0
    )
    wanted = select(Document.id, Chunk.id).join(Chunk, first_chunk).where(Document.namespace == namespace)
    return dict(session.execute(wanted).all())


def _windows(session: Session, document_ids: Sequence[str]) -> Iterator[Row[int, str, str, bytes]]:
    """Id, document, embedder and embedding of the served revisions' windows."""
    columns = select(Window.id, Window.document_id, Window.embedder, Window.embedding)
    served = and_(Document.id == Window.document_id, Document.serving_revision == Window.revision)
    for start in range(0, len(document_ids), BATCH):
        some = document_ids[start : start + BATCH]
        wanted = columns.join(Document, served).where(Window.document_id.in_(some)).order_by(Window.id)
        yield from session.execute(wanted.execution_options(yield_per=BATCH))


def _spans(session: Session, window_ids: Sequence[int]) -> dict[int, tuple[str, int, str, int, int]]:
    """Document, revision, chunk, start and end by window id."""
    columns = select(Window.id, Window.document_id, Window.revision, Window.chunk_id, Window.start, Window.end)
    found: dict[int, tuple[str, int, str, int, int]] = {}
    for start in range(0, len(window_ids), BATCH):
        for row in session.execute(columns.where(Window.id.in_(window_ids[start : start + BATCH]))):
            found[row[0]] = row[1:]
    return found
