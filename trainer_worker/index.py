"""Make a revision's text findable: cut chunks into windows, embed them, store both in one transaction.

What is embedded is the title and one or two sentences: the window that answers is found more often by these than by
longer stretches. Titles help texts that go on as "it" and "the machine", and are kept for those; SQuAD's paragraphs
are found a little less often with them (measured once, not kept).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from loramem.chunk import Span, window_spans
from loramem.database import Database, new_id
from loramem.embed import Embedder
from loramem.errors import JobCancelled
from loramem.tables import Chunk, Document, DocumentState, JobKind, Question, Revision, RevisionState, Window
from loramem.transitions import Claim, locked_by
from trainer_worker.claimed import document_of, show
from trainer_worker.examples import Asked
from trainer_worker.words import size_of

BATCH = 64
TITLE_CHARS = 120
"""Of the title before each window; the rest of a long one says little and takes the window's room."""
NAME_WORDS = 8
"""A title of more words that the text's first line begins with is that line, cut, not a name."""
MARGIN_TOKENS = 4
"""Special tokens and the break between title and window."""


@dataclass(frozen=True)
class _Piece:
    """A window of the chunk with this ordinal."""

    ordinal: int
    start: int
    end: int


def index_text(
    database: Database,
    claim: Claim,
    embedder: Embedder,
    revision: Revision,
    spans: Sequence[Span],
    *,
    window_tokens: int,
    step: Callable[[int, int], None] = lambda done, total: None,
    also: Callable[[Session, Sequence[Chunk]], None] = lambda session, chunks: None,
) -> list[Chunk]:
    """Store the chunks at `spans` and their windows, in place of what an earlier attempt stored for this revision,
    unless it is the same; `also` does what has to happen in the same transaction.

    A document that serves nothing yet serves this revision from now on: `rag` and `icl` answer. Otherwise the old
    revision goes on serving until `publish`. `step` gets (windows embedded, windows) and may raise to stop.
    Raises `LeaseLost`, and `JobCancelled` when the document was deleted or another job built the revision meanwhile.
    """
    title = heading(revision.title, revision.text)
    room = embedder.max_tokens - embedder.count_tokens(title) - MARGIN_TOKENS
    pieces = _cut(revision.text, spans, embedder, min(window_tokens, room))
    if (stored := _stored(database, claim, spans, pieces, embedder.name)) is not None:
        with database.write() as session:
            _still_wanted(session, claim)
            also(session, stored)
        return stored
    vectors = _embed(embedder, [f"{title}\n{revision.text[piece.start : piece.end]}" for piece in pieces], step)
    chunks = [_chunk(claim, ordinal, span) for ordinal, span in enumerate(spans)]
    rows = [
        _window(chunks[piece.ordinal], piece, embedder.name, vector)
        for piece, vector in zip(pieces, vectors, strict=True)
    ]
    with database.write() as session:
        _store(session, claim, chunks, rows)
        also(session, chunks)
    return chunks


def index_questions(embedder: Embedder, adapter_id: str, asked: Sequence[Asked]) -> list[Question]:
    """Rows to be stored with the adapter.

    Taught questions are embedded with their answers, by which a few more of PaperQA's questions come to their paper
    than by questions alone (measured once, not kept). Those held out are embedded as a user's question would be.
    """
    taught = embedder.embed([f"{one.question} {one.answer}" for one in asked if not one.held_out])
    held_out = [embedder.embed_query(one.question) for one in asked if one.held_out]
    vectors = iter([*taught, *held_out])  # in the order of `asked`, where those held out come last
    return [
        Question(
            adapter_id=adapter_id,
            question=one.question,
            answer=one.answer,
            held_out=one.held_out,
            embedder=embedder.name,
            embedding=next(vectors).astype("<f4").tobytes(),
        )
        for one in sorted(asked, key=lambda one: one.held_out)
    ]


def heading(title: str, text: str) -> str:
    """What is embedded before each window: the title, unless it is the cut beginning of a text that has none.

    Such a beginning stands in its own window already; before all others it drew questions to the wrong document (three
    untitled texts, 26 of 30 questions to their own with it, 29 without).
    """
    first_line = " ".join(text.lstrip("# \t\n").split("\n", 1)[0].split())
    goes_on = first_line.startswith(title) and len(first_line) > len(title)
    return "" if goes_on and size_of(title.split()) > NAME_WORDS else title[:TITLE_CHARS]


def _cut(text: str, spans: Sequence[Span], embedder: Embedder, max_tokens: int) -> list[_Piece]:
    return [
        _Piece(ordinal, window.start, window.end)
        for ordinal, span in enumerate(spans)
        for window in window_spans(text, span.start, span.end, embedder.tokenizer_path, max_tokens=max_tokens)
    ]


def _stored(
    database: Database, claim: Claim, spans: Sequence[Span], pieces: Sequence[_Piece], embedder: str
) -> list[Chunk] | None:
    """The revision's chunks, if these and their windows are what would be stored now."""
    of_revision = (Chunk.document_id == claim.document_id, Chunk.revision == claim.revision)
    windows = select(Chunk.ordinal, Window.start, Window.end, Window.embedder).join(Chunk, Chunk.id == Window.chunk_id)
    with database.read() as session:
        chunks = list(session.scalars(select(Chunk).where(*of_revision).order_by(Chunk.ordinal)))
        rows = [tuple(row) for row in session.execute(windows.where(*of_revision).order_by(Window.id))]
    same_chunks = [(chunk.start, chunk.end) for chunk in chunks] == [(span.start, span.end) for span in spans]
    same_windows = rows == [(piece.ordinal, piece.start, piece.end, embedder) for piece in pieces]
    return chunks if chunks and same_chunks and same_windows else None


def _embed(embedder: Embedder, texts: Sequence[str], step: Callable[[int, int], None]) -> NDArray[np.float32]:
    """Unit vectors, shape (n, dim)."""
    batches = [np.zeros((0, embedder.dim), dtype=np.float32)]
    for start in range(0, len(texts), BATCH):
        batches.append(embedder.embed(texts[start : start + BATCH]))
        step(min(start + BATCH, len(texts)), len(texts))
    return np.concatenate(batches)


def _chunk(claim: Claim, ordinal: int, span: Span) -> Chunk:
    return Chunk(
        id=new_id("chunk"),
        document_id=claim.document_id,
        revision=claim.revision,
        ordinal=ordinal,
        start=span.start,
        end=span.end,
        tokens=span.tokens,
    )


def _window(chunk: Chunk, piece: _Piece, embedder: str, vector: NDArray[np.float32]) -> dict[str, object]:
    return {
        "document_id": chunk.document_id,
        "revision": chunk.revision,
        "chunk_id": chunk.id,
        "start": piece.start,
        "end": piece.end,
        "embedder": embedder,
        "embedding": vector.astype("<f4").tobytes(),
    }


def _still_wanted(session: Session, claim: Claim) -> Document:
    """Raises `LeaseLost` and `JobCancelled`. Only a mending works on a revision that is live."""
    if locked_by(session, claim).cancel_requested:
        raise JobCancelled(f"job {claim.job_id} was cancelled before its text was indexed")
    document = document_of(session, claim)
    live = session.get_one(Revision, (claim.document_id, claim.revision)).state == RevisionState.LIVE
    if live and claim.kind == JobKind.BUILD:
        raise JobCancelled(f"another job has made revision {claim.revision} of document {document.id} live")
    return document


def _store(session: Session, claim: Claim, chunks: Sequence[Chunk], windows: Sequence[dict[str, object]]) -> None:
    document = _still_wanted(session, claim)
    for table in (Window, Chunk):
        session.execute(delete(table).where(table.document_id == claim.document_id, table.revision == claim.revision))
    session.add_all(chunks)
    session.flush()
    session.execute(insert(Window), windows)
    if document.serving_revision is None:
        document.serving_revision = claim.revision
        document.state = DocumentState.INDEXED
    revision = session.get_one(Revision, (claim.document_id, claim.revision))
    if revision.state != RevisionState.LIVE:
        revision.state = RevisionState.INDEXED
    if document.serving_revision == claim.revision:
        show(session, document)
