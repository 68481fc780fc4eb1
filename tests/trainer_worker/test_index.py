"""Indexing a text, with the real embedder and both databases."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select, update

from loramem.chunk import Span, chunk_text
from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.embed import Embedder, load_embedder
from loramem.errors import JobCancelled, LeaseLost
from loramem.queue import Claim, JobQueue
from loramem.settings import Settings
from loramem.tables import Chunk, Document, Namespace, Revision, RevisionState, Window
from tests.backends import database, database_url
from tests.rows import add_document, add_revision, delete_document
from trainer_worker.index import heading, index_text

__all__ = ["database", "database_url"]

TEXT = " ".join(f"The lighthouse number {number} is kept by a keeper called Brandt {number}." for number in range(40))
SETTINGS = Settings()


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(SETTINGS, device="cpu")


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, PollingDoorbell(0.05), SETTINGS)


def claim_job(queue: JobQueue, document_id: str = "doc_1", revision: int = 1) -> Claim:
    with queue.database.write() as session:
        queue.enqueue(session, document_id, revision)
    claim = queue.claim("worker")
    assert claim is not None
    return claim


Index = Callable[..., list[Chunk]]


@pytest.fixture
def index(database: Database, embedder: Embedder) -> Index:
    def run(claim: Claim, *, max_tokens: int = 200, **options: object) -> list[Chunk]:
        with database.read() as session:
            revision = session.get_one(Revision, (claim.document_id, claim.revision))
        spans = chunk_text(revision.text, embedder.tokenizer_path, max_tokens=max_tokens, overlap_tokens=30)
        return index_text(database, claim, embedder, revision, spans, window_tokens=40, **options)  # type: ignore[arg-type]

    return run


def rows(database: Database) -> tuple[list[Chunk], list[Window], Document, int]:
    with database.read() as session:
        chunks = session.scalars(select(Chunk).order_by(Chunk.revision, Chunk.ordinal)).all()
        windows = session.scalars(select(Window).order_by(Window.id)).all()
        generation = session.scalars(select(Namespace.generation)).one()
        return list(chunks), list(windows), session.scalars(select(Document)).one(), generation


def test_windows_tile_their_chunks_and_hold_unit_vectors(
    database: Database, queue: JobQueue, index: Index, embedder: Embedder
) -> None:
    add_document(database, "doc_1", TEXT)
    returned = index(claim_job(queue))
    chunks, windows, _, _ = rows(database)
    assert [chunk.id for chunk in returned] == [chunk.id for chunk in chunks]
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert len(chunks) > 2
    for chunk in chunks:
        spans = [(window.start, window.end) for window in windows if window.chunk_id == chunk.id]
        assert (spans[0][0], spans[-1][1]) == (chunk.start, chunk.end)
        assert all(TEXT[end:start].strip() == "" for (_, end), (start, _) in pairwise(spans))
    vectors = np.stack([np.frombuffer(window.embedding, dtype="<f4") for window in windows])
    assert vectors.shape == (len(windows), embedder.dim)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(windows)), abs=1e-5)
    assert {window.embedder for window in windows} == {embedder.name}


def test_the_first_text_answers_at_once(database: Database, queue: JobQueue, index: Index) -> None:
    add_document(database, "doc_1", TEXT)
    index(claim_job(queue))
    _, _, document, generation = rows(database)
    assert (document.serving_revision, document.state, generation) == (1, "indexed", 1)
    assert document.updated_at > 0


def test_a_new_revision_does_not_serve_before_it_is_published(
    database: Database, queue: JobQueue, index: Index
) -> None:
    add_document(database, "doc_1", TEXT)
    claim = claim_job(queue)
    index(claim)
    with database.write() as session:
        queue.succeed(session, claim)
    add_revision(database, "doc_1", TEXT.replace("lighthouse", "windmill"))
    index(claim_job(queue, revision=2))
    chunks, windows, document, generation = rows(database)
    assert {chunk.revision for chunk in chunks} == {window.revision for window in windows} == {1, 2}
    assert (document.serving_revision, generation) == (1, 1)
    with database.read() as session:
        assert set(session.scalars(select(Revision.state))) == {"indexed"}


def test_a_second_attempt_replaces_what_the_first_stored(database: Database, queue: JobQueue, index: Index) -> None:
    add_document(database, "doc_1", TEXT)
    claim = claim_job(queue)
    first = index(claim)
    second = index(claim, max_tokens=100)
    chunks, windows, _, generation = rows(database)
    assert {chunk.id for chunk in chunks} == {chunk.id for chunk in second}
    assert {chunk.id for chunk in chunks}.isdisjoint(chunk.id for chunk in first)
    assert {window.chunk_id for window in windows} == {chunk.id for chunk in chunks}
    assert generation == 2, "the revision is served, so searches must see the new windows"


def test_what_is_stored_already_is_neither_embedded_nor_written_again(
    database: Database, queue: JobQueue, index: Index
) -> None:
    add_document(database, "doc_1", TEXT)
    claim = claim_job(queue)
    first = index(claim)
    before = rows(database)
    steps, given = list[int](), list[list[str]]()
    second = index(
        claim,
        step=lambda done, total: steps.append(done),
        also=lambda session, chunks: given.append([chunk.id for chunk in chunks]),
    )
    assert [chunk.id for chunk in second] == [chunk.id for chunk in first]
    assert (steps, given) == ([], [[chunk.id for chunk in first]])
    after = rows(database)
    assert [window.id for window in after[1]] == [window.id for window in before[1]]
    assert after[3] == before[3]


def test_a_build_leaves_a_revision_alone_that_another_one_made_live(
    database: Database, queue: JobQueue, index: Index
) -> None:
    add_document(database, "doc_1", TEXT)
    claim = claim_job(queue)
    before = {chunk.id for chunk in index(claim)}
    with database.write() as session:
        session.execute(update(Revision).values(state=RevisionState.LIVE))
    for max_tokens in (200, 100):
        with pytest.raises(JobCancelled, match="another job has made revision 1 of document doc_1 live"):
            index(claim, max_tokens=max_tokens)
    assert {chunk.id for chunk in rows(database)[0]} == before


def test_a_worker_that_lost_its_lease_writes_nothing(database: Database, queue: JobQueue, index: Index) -> None:
    add_document(database, "doc_1", TEXT)
    claim = claim_job(queue)
    queue.postpone(claim, 0, "handed on")
    assert queue.claim("another") is not None
    with pytest.raises(LeaseLost):
        index(claim)
    assert rows(database)[0] == []


@pytest.mark.parametrize("how", ["cancelled", "deleted"])
def test_a_job_that_nobody_wants_any_more_stores_nothing(
    database: Database, queue: JobQueue, index: Index, how: str, embedder: Embedder
) -> None:
    add_document(database, "doc_1", TEXT)
    claim = claim_job(queue)

    def meanwhile(done: int, total: int) -> None:
        if done < total:
            return
        if how == "cancelled":
            queue.cancel(claim.job_id)
        else:
            delete_document(database, "doc_1")

    with pytest.raises(JobCancelled):
        index(claim, step=meanwhile)
    with database.read() as session:
        assert session.scalars(select(Window)).all() == []


def test_steps_count_windows_and_may_stop_the_work(
    database: Database, queue: JobQueue, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_worker.index.BATCH", 8)
    add_document(database, "doc_1", TEXT)
    claim = claim_job(queue)
    steps: list[tuple[int, int]] = []
    index(claim, step=lambda done, total: steps.append((done, total)))
    total = len(rows(database)[1])
    assert steps == [(min(done, total), total) for done in range(8, total + 8, 8)]


def test_a_long_title_leaves_room_for_the_window(
    database: Database, queue: JobQueue, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_document(database, "doc_1", TEXT)
    with database.read() as session:
        revision = session.get_one(Revision, ("doc_1", 1))
    revision.title = "Überlänge " * 500
    embedded: list[str] = []
    original = embedder.embed

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        embedded.extend(texts)
        return original(texts)

    monkeypatch.setattr(embedder, "embed", embed)
    index_text(database, claim_job(queue), embedder, revision, [Span(0, len(TEXT), 900)], window_tokens=10_000)
    assert max(embedder.count_tokens(text) for text in embedded) <= embedder.max_tokens - 2
    assert min(embedder.count_tokens(text) for text in embedded) > 30


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Port Sarrow", "Port Sarrow is a harbour town on the shore of Velm.", "Port Sarrow"),
        ("Port Sarrow", "A harbour town.", "Port Sarrow"),
        (
            "The mill is a machine that grinds seaweed into fl",
            "The mill is a machine that grinds seaweed into flour.",
            "",
        ),
        (
            "A heading of its own line that has very many words",
            "# A heading of its own line that has very many words\n\nText.",
            "A heading of its own line that has very many words",
        ),
        ("", "Some text.", ""),
        (("哈德尔磨坊建于一八二〇年，它的屋顶是铜的。" * 9)[:80], "哈德尔磨坊建于一八二〇年，它的屋顶是铜的。" * 9, ""),
        ("哈德尔磨坊", "哈德尔磨坊建于一八二〇年。", "哈德尔磨坊"),
    ],
)
def test_the_cut_beginning_of_a_text_is_no_heading(title: str, text: str, expected: str) -> None:
    assert heading(title, text) == expected
