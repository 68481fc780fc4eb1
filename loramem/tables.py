"""The database schema. The database is the authority for everything but bulk bytes.

Life of a document's content:

    document 1 ── n revision 1 ── n chunk 1 ── n window      text, and what the embedder read of it
                           │           └── 1 adapter         weights (one per chunk)
                           │                   └── n question   what it was asked, and the answers
                           └── 1 job 1 ── n job_event        the work that turns one into the other
    1 preview ── 1 job                                       a look at training data; of no document

`document.serving_revision` is what queries see; it moves in one transaction with the adapters' state and with the
namespace's generation, so an answer never mixes two revisions. Ids are ours; users' strings are metadata only.
All times are seconds since the epoch (UTC).
"""

from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint, Update, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class DocumentState(StrEnum):
    """What queries can get from a document now."""

    PENDING = "pending"  # nothing yet
    INDEXED = "indexed"  # text: rag and icl answer
    LIVE = "live"  # text and adapters: every mode answers


class RevisionState(StrEnum):
    PENDING = "pending"
    INDEXED = "indexed"
    LIVE = "live"
    SUPERSEDED = "superseded"


class AdapterState(StrEnum):
    LIVE = "live"
    RETIRED = "retired"  # no new query uses it; files stay for a grace period, then go


class JobKind(StrEnum):
    BUILD = "build"  # a revision becomes adapters
    PREVIEW = "preview"  # a text's first chunk becomes examples to look at
    MEND = "mend"  # weak adapters of a live revision are trained again, when nothing else is to be done


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the document's fault: a retry would fail the same way
    CANCELLED = "cancelled"
    DEAD = "dead"  # attempts exhausted


FINAL_JOB_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DEAD})


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {dict[str, Any]: JSON, list[Any]: JSON, bytes: LargeBinary}


class Namespace(Base):
    """Grows by one with every change that queries must see; caches compare it."""

    __tablename__ = "namespace"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    generation: Mapped[int] = mapped_column(default=0)

    @classmethod
    def changed(cls, name: str) -> Update:
        """To be executed in the transaction that makes the change."""
        return update(cls).where(cls.name == name).values(generation=cls.generation + 1)


class Installation(Base):
    """One row, made with the schema: which database this is. A folder of adapters says whose it is by the same id."""

    __tablename__ = "installation"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)


class Document(Base):
    __tablename__ = "document"
    __table_args__ = (
        UniqueConstraint("namespace", "external_id", name="uq_document_external_id"),
        Index("ix_document_content", "namespace", "content_sha256"),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    namespace: Mapped[str] = mapped_column(String(64), ForeignKey("namespace.name"))
    external_id: Mapped[str | None] = mapped_column(String(256))
    title: Mapped[str] = mapped_column(Text)
    meta: Mapped[dict[str, Any]] = mapped_column("metadata")
    content_sha256: Mapped[str] = mapped_column(String(64))  # of the newest revision and its options
    newest_revision: Mapped[int]
    serving_revision: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(16), default=DocumentState.PENDING)
    created_at: Mapped[float]
    updated_at: Mapped[float]


class Revision(Base):
    """What a document said, and how it was to be learnt. A superseded one goes some time after a later one is live."""

    __tablename__ = "revision"
    document_id: Mapped[str] = mapped_column(ForeignKey("document.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(String(128))
    qa: Mapped[list[Any]]  # [{"question", "answer"}] from the user
    training: Mapped[dict[str, Any]]  # options, see TrainingOptions in loramem/records.py
    state: Mapped[str] = mapped_column(String(16), default=RevisionState.PENDING)
    created_at: Mapped[float]


class Chunk(Base):
    """A stretch of one revision's text; `start` and `end` are character offsets into it."""

    __tablename__ = "chunk"
    __table_args__ = (UniqueConstraint("document_id", "revision", "ordinal", name="uq_chunk_ordinal"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    document_id: Mapped[str] = mapped_column(ForeignKey("document.id", ondelete="CASCADE"))
    revision: Mapped[int]
    ordinal: Mapped[int]
    start: Mapped[int]
    end: Mapped[int]
    tokens: Mapped[int]


class Window(Base):
    """What the embedder read at once; `embedding` is a unit vector, little-endian float32 of shape (dim,)."""

    __tablename__ = "window"
    __table_args__ = (Index("ix_window_document", "document_id", "revision"), Index("ix_window_chunk", "chunk_id"))
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    document_id: Mapped[str] = mapped_column(ForeignKey("document.id", ondelete="CASCADE"))
    revision: Mapped[int]
    chunk_id: Mapped[str] = mapped_column(ForeignKey("chunk.id", ondelete="CASCADE"))
    start: Mapped[int]
    end: Mapped[int]
    embedder: Mapped[str] = mapped_column(String(256))
    embedding: Mapped[bytes]


class Adapter(Base):
    """An immutable PEFT folder. Rows of retired adapters outlive their document until the files are gone."""

    __tablename__ = "adapter"
    __table_args__ = (
        Index("ix_adapter_document", "document_id", "revision"),
        Index("ix_adapter_chunk", "chunk_id"),
        Index("ix_adapter_namespace", "namespace", "state", "fingerprint"),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    document_id: Mapped[str] = mapped_column(String(32))
    namespace: Mapped[str] = mapped_column(String(64))
    revision: Mapped[int]
    chunk_id: Mapped[str] = mapped_column(String(32))
    ordinal: Mapped[int]
    fingerprint: Mapped[str] = mapped_column(String(64))  # of the base model it was trained on
    rank: Mapped[int]
    alpha: Mapped[int]
    path: Mapped[str] = mapped_column(Text)  # relative to HOME/adapters
    sha256: Mapped[str] = mapped_column(String(64))  # of adapter_model.safetensors
    size_bytes: Mapped[int]
    exam: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), default=AdapterState.LIVE)
    created_at: Mapped[float]
    retired_at: Mapped[float | None]


class Question(Base):
    """What a live adapter was taught to answer, or (`held_out`) was examined with: the router looks for its like.

    `embedding` is a unit vector, little-endian float32 of shape (dim,): of question and answer together, or, held out,
    of the question as a user would ask it.
    """

    __tablename__ = "question"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"), index=True)
    question: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    held_out: Mapped[bool]
    embedder: Mapped[str] = mapped_column(String(256))
    embedding: Mapped[bytes]


class Job(Base):
    """One build or mending of one revision, or one preview, which is of no document.

    `fence` grows with every claim; a write that names an older fence changes nothing.
    """

    __tablename__ = "job"
    __table_args__ = (Index("ix_job_state", "state", "not_before"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), default=JobKind.BUILD, server_default=JobKind.BUILD)
    document_id: Mapped[str | None] = mapped_column(String(32), index=True)
    revision: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(16), default=JobState.QUEUED)
    owner: Mapped[str | None] = mapped_column(String(128))
    fence: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)  # since the last one that got further, which is the first
    max_attempts: Mapped[int]
    lease_until: Mapped[float | None]
    not_before: Mapped[float]
    announced_at: Mapped[float | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    progress: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None]  # a problem document
    traceparent: Mapped[str | None] = mapped_column(String(64))  # W3C context of the request that asked for it
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class JobEvent(Base):
    """What happened to a job, in order: `state` and `progress` events, for SSE with Last-Event-ID.

    Those of progress go a day after the job's end.
    """

    __tablename__ = "job_event"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]


class Preview(Base):
    """What a preview was asked for and what came of it. The text goes when the job succeeds, the row with the job."""

    __tablename__ = "preview"
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    qa: Mapped[list[Any]]
    training: Mapped[dict[str, Any]]
    examples: Mapped[list[Any] | None]  # [PreviewExample]
