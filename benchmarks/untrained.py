"""A memory whose adapters are never trained: the database and the index of a server, for what routing alone decides.

Text is cut, windowed and embedded by the worker's own steps, and each chunk gets an adapter's row, published as the
worker publishes one, with the questions that are given for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loramem.chunk import Span, chunk_text
from loramem.database import Database, new_id
from loramem.doorbell import PollingDoorbell
from loramem.embed import Embedder
from loramem.migrate import migrate
from loramem.queue import JobQueue
from loramem.records import AdapterManifest, ExamResult
from loramem.settings import Settings
from loramem.store import Stored
from loramem.tables import Chunk, Document, Namespace, Revision
from loramem.vectors import VectorIndex
from server.route import Router
from trainer_worker.examples import Asked
from trainer_worker.index import index_questions, index_text
from trainer_worker.publish import NewAdapter, publish

EXAM = ExamResult(questions=0, recall=0.0, base_recall=0.0, loss=0.0, weak=False)
FINGERPRINT = "0" * 64
NAMESPACE = "default"
Questioner = Callable[[str, str, Span], Sequence[Asked]]
"""(title, text of the chunk, where it is) to what its adapter would have been asked."""


@dataclass(frozen=True)
class Untrained:
    """Keeps its files under `home`; `tokenizer` is the base model's, which chunks are counted in."""

    home: Path
    settings: Settings
    embedder: Embedder
    tokenizer: Path

    @cached_property
    def database(self) -> Database:
        database = Database(f"sqlite:///{self.home / 'loramem.db'}")
        migrate(database)
        with database.write() as session:
            session.add(Namespace(name=NAMESPACE))
        return database

    @cached_property
    def queue(self) -> JobQueue:
        return JobQueue(self.database, PollingDoorbell(self.settings.poll_s), self.settings)

    @cached_property
    def router(self) -> Router:
        index = VectorIndex(
            self.database, dim=self.embedder.dim, embedder_name=self.embedder.name, snapshot_dir=self.home
        )
        return Router(index, self.embedder, FINGERPRINT)

    def learn(self, title: str, text: str, ask: Questioner) -> str:
        """Index a document and publish an adapter for each chunk; returns the document's id."""
        document_id = self._uploaded(title, text)
        claim = self.queue.claim("benchmark")
        assert claim is not None
        with self.database.read() as session:
            revision = session.get_one(Revision, (document_id, 1))
        settings = self.settings
        spans = chunk_text(
            text, str(self.tokenizer), max_tokens=settings.chunk_tokens, overlap_tokens=settings.chunk_overlap_tokens
        )
        chunks = index_text(self.database, claim, self.embedder, revision, spans, window_tokens=settings.window_tokens)
        adapters = [
            self._adapter(document_id, chunk, ask(title, text[span.start : span.end], span))
            for chunk, span in zip(chunks, spans, strict=True)
        ]
        publish(self.database, self.queue, claim, adapters)
        return document_id

    def _uploaded(self, title: str, text: str) -> str:
        document_id = new_id("doc")
        with self.database.write() as session:
            row = {"id": document_id, "namespace": NAMESPACE, "title": title, "meta": {}, "content_sha256": "0" * 64}
            session.add(Document(**row, newest_revision=1, created_at=0, updated_at=0))
            session.flush()
            content = {"title": title, "text": text, "media_type": "text/plain", "qa": [], "training": {}}
            session.add(Revision(document_id=document_id, number=1, created_at=0, **content))
            self.queue.enqueue(session, document_id, 1)
        return document_id

    def _adapter(self, document_id: str, chunk: Chunk, asked: Sequence[Asked]) -> NewAdapter:
        adapter_id = new_id("ada")
        manifest = AdapterManifest(
            adapter_id=adapter_id,
            document_id=document_id,
            revision=1,
            chunk=chunk.ordinal,
            base_model="none",
            fingerprint=FINGERPRINT,
            rank=16,
            alpha=32,
            sha256={},
            exam=EXAM,
            training={},
        )
        questions = index_questions(self.embedder, adapter_id, asked)
        return NewAdapter(manifest, chunk.id, Stored(adapter_id, "0" * 64, 0), questions)
