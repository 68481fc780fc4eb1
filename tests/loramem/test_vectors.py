"""The vector index against brute force, across changes, embedders and threads."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from loramem import served, vector_lists
from loramem.database import Database
from loramem.errors import NamespaceBusy
from loramem.vectors import VectorIndex
from tests.backends import database, database_url
from tests.rows import add_document, add_revision, delete_document, serve

__all__ = ["database", "database_url"]

DIM = 8
RANDOM = np.random.default_rng(0)

Open = Callable[[], VectorIndex]


def vectors(count: int) -> NDArray[np.float32]:
    drawn = RANDOM.standard_normal((count, DIM)).astype(np.float32)
    unit: NDArray[np.float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


@pytest.fixture
def open_index(database: Database, tmp_path: Path) -> Open:
    """Opens the index as a process does at its start."""
    return lambda: VectorIndex(database, dim=DIM, embedder_name="test", snapshot_dir=tmp_path / "snapshots")


def found(index: VectorIndex, vector: NDArray[np.float32], limit: int = 100, namespace: str = "default") -> list[int]:
    return [hit.window_id for hit in index.search(namespace, vector, limit)]


def test_best_windows_come_first_with_their_place_in_the_text(database: Database, open_index: Open) -> None:
    add_document(database, "doc_1")
    stored = vectors(7)
    ids = serve(database, "doc_1", stored)
    hits = open_index().search("default", stored[4], 3)
    assert hits[0].window_id == ids[4]
    assert hits[0].score == pytest.approx(1.0, abs=1e-6)
    assert (hits[0].document_id, hits[0].revision, hits[0].start, hits[0].end) == ("doc_1", 1, 40, 50)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(hits) == 3


def test_empty_and_unknown_namespaces_give_nothing(database: Database, open_index: Open) -> None:
    add_document(database, "doc_1")
    index = open_index()
    assert found(index, vectors(1)[0]) == []
    assert found(index, vectors(1)[0], namespace="nobody's") == []


def test_a_namespace_never_shows_anothers_windows(database: Database, open_index: Open) -> None:
    for name in ("a", "b"):
        add_document(database, f"doc_{name}", namespace=name)
        serve(database, f"doc_{name}", vectors(4))
    hits = open_index().search("a", vectors(1)[0], 100)
    assert {hit.document_id for hit in hits} == {"doc_a"}
    assert open_index().search("a", vectors(1)[0], 100, {"doc_b"}) == []


def test_a_filter_is_exact_however_far_its_documents_are(database: Database, open_index: Open) -> None:
    for number in range(6):
        add_document(database, f"doc_{number}")
    question = vectors(1)[0]
    for number in range(5):
        serve(database, f"doc_{number}", np.tile(question, (20, 1)))
    far = serve(database, "doc_5", -np.tile(question, (2, 1)))
    hits = open_index().search("default", question, 10, {"doc_5", "doc_unknown"})
    assert {hit.window_id for hit in hits} == set(far)


def test_a_deleted_document_is_unsearchable_at_once(database: Database, open_index: Open) -> None:
    index = open_index()
    for name in ("doc_1", "doc_2"):
        add_document(database, name)
        serve(database, name, vectors(3))
    assert len(found(index, vectors(1)[0])) == 6
    delete_document(database, "doc_1")
    assert {hit.document_id for hit in index.search("default", vectors(1)[0], 100)} == {"doc_2"}
    assert index.search("default", vectors(1)[0], 100, {"doc_1"}) == []


def test_what_is_in_memory_follows_without_a_question(database: Database, open_index: Open) -> None:
    index = open_index()
    add_document(database, "doc_1")
    serve(database, "doc_1", vectors(3))
    index.follow()
    assert index.held() == {}  # nobody has asked
    found(index, vectors(1)[0])
    add_document(database, "doc_2")
    serve(database, "doc_2", vectors(4))
    index.follow()
    assert len(index.held()["default"].windows) == 7


def test_a_text_indexed_again_replaces_vectors_even_under_the_same_ids(database: Database, open_index: Open) -> None:
    index = open_index()
    add_document(database, "doc_1")
    serve(database, "doc_1", vectors(3))
    found(index, vectors(1)[0])
    new = vectors(3)
    ids = serve(database, "doc_1", new)  # SQLite gives the freed ids again
    assert index.search("default", new[1], 1)[0].window_id == ids[1]
    assert index.search("default", new[1], 1)[0].score == pytest.approx(1.0, abs=1e-6)


def test_a_view_goes_on_showing_the_generation_it_was_opened_at(database: Database, open_index: Open) -> None:
    index = open_index()
    add_document(database, "doc_1")
    old, new = vectors(3), vectors(2)
    serve(database, "doc_1", old)
    with index.view("default") as view:
        add_revision(database, "doc_1", "new")
        serve(database, "doc_1", new)
        assert {hit.revision for hit in index.search("default", new[0], 10)} == {2}
        assert {hit.revision for hit in view.search(old[0], 10)} == {1}
    assert {hit.revision for hit in index.search("default", new[0], 10)} == {2}


def test_vectors_of_another_embedder_are_never_compared(
    database: Database, open_index: Open, caplog: pytest.LogCaptureFixture
) -> None:
    for name, embedder in (("doc_1", "test"), ("doc_2", "another")):
        add_document(database, name)
        serve(database, name, vectors(3), embedder=embedder)
    index = open_index()
    with caplog.at_level(logging.ERROR):
        assert {hit.document_id for hit in index.search("default", vectors(1)[0], 100)} == {"doc_1"}
    assert "LORAMEM_EMBEDDER" in caplog.text


# threads


def test_searches_beside_changes_see_whole_revisions(database: Database, open_index: Open) -> None:
    """Every revision has as many windows as its number, so half a change would show as a wrong count."""
    index = open_index()
    add_document(database, "doc_1")
    serve(database, "doc_1", vectors(1))
    question, done, wrong = vectors(1)[0], threading.Event(), []

    def search() -> None:
        newest = 0
        while not done.is_set():
            hits = index.search("default", question, 100)
            if {hit.revision for hit in hits} != {len(hits)} or len(hits) < newest:
                wrong.append(hits)
            newest = len(hits)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 20):
        add_revision(database, "doc_1", "text")
        serve(database, "doc_1", vectors(number))
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(found(index, question)) == 19


class Held:
    """Reading vectors of `document_id` begins, and goes on when it is let."""

    def __init__(self, document_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._document_id, self._read = document_id, served.windows_of
        self.begun, self.goes_on = threading.Event(), threading.Event()
        monkeypatch.setattr(served, "windows_of", self)

    def __call__(self, session: Session, documents: Mapping[str, str], *rest: Any) -> Any:
        if self._document_id in documents:
            self.begun.set()
            assert self.goes_on.wait(60)
        return self._read(session, documents, *rest)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def test_a_namespace_that_is_being_read_keeps_no_other_waiting(
    database: Database, open_index: Open, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("large", "small"):
        add_document(database, f"doc_{name}", namespace=name)
        serve(database, f"doc_{name}", vectors(3))
    index, held = open_index(), Held("doc_large", monkeypatch)
    large = pool.submit(found, index, vectors(1)[0], namespace="large")
    assert held.begun.wait(60)
    small = pool.submit(found, index, vectors(1)[0], namespace="small")
    try:
        assert len(small.result(timeout=20)) == 3
    finally:
        held.goes_on.set()
    assert len(large.result()) == 3


def test_who_waits_long_for_a_namespace_is_told_to_ask_again(
    database: Database, open_index: Open, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its thread serves others."""
    monkeypatch.setattr("loramem.vectors.WAIT_S", 0.05)
    add_document(database, "doc_1")
    serve(database, "doc_1", vectors(3))
    index, held = open_index(), Held("doc_1", monkeypatch)
    first = pool.submit(found, index, vectors(1)[0])
    try:
        assert held.begun.wait(60)
        with pytest.raises(NamespaceBusy, match="default"):
            found(index, vectors(1)[0])
        index.open("default")
    finally:
        held.goes_on.set()
    assert len(first.result()) == 3
    assert len(found(index, vectors(1)[0])) == 3


def test_who_waits_for_a_namespace_has_no_transaction_open(
    database_url: str, tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Semaphore(0)
    database = Database(database_url, lambda kind, seconds: ended.release())
    add_document(database, "doc_1")
    serve(database, "doc_1", vectors(3))
    for _ in range(2):
        assert ended.acquire(timeout=20)  # those of the set-up
    index = VectorIndex(database, dim=DIM, embedder_name="test", snapshot_dir=tmp_path)
    held = Held("doc_1", monkeypatch)
    questions = [pool.submit(found, index, vectors(1)[0]) for _ in range(4)]
    try:
        assert held.begun.wait(60)
        assert all(ended.acquire(timeout=20) for _ in questions)  # each looked what there is
    finally:
        held.goes_on.set()
    assert [len(question.result()) for question in questions] == [3] * 4
    database.close()


# inverted lists


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven vectors are too many for a flat index; all lists are read."""
    for name, value in {"vector_set.LEAST_DELTA": 4, "vector_set.FLAT_AT_MOST": 6, "vector_lists.PROBED": 1}.items():
        monkeypatch.setattr(f"loramem.{name}", value)


def is_flat(index: VectorIndex) -> bool:
    with index.view("default") as view:
        return view.state.windows.main.is_flat


@pytest.mark.usefixtures("few_are_many")
def test_searches_and_changes_go_on_while_inverted_lists_are_made(
    database: Database, open_index: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, release, build = open_index(), threading.Event(), vector_lists.build

    def held(*given: Any, **named: Any) -> Any:
        assert release.wait(60)
        return build(*given, **named)

    monkeypatch.setattr(vector_lists, "build", held)
    for name in ("doc_1", "doc_2", "doc_3"):
        add_document(database, name)
    serve(database, "doc_1", vectors(8))
    serve(database, "doc_2", vectors(3))
    assert len(found(index, vectors(1)[0])) == 11
    (thread,) = index._listing.values()
    delete_document(database, "doc_1")
    new = vectors(5)
    ids = serve(database, "doc_3", new)
    assert index.search("default", new[2], 1)[0].window_id == ids[2]
    assert is_flat(index)
    release.set()
    thread.join()
    assert not is_flat(index)
    assert index._listing == {}
    hits = index.search("default", new[2], 100)
    assert hits[0].window_id == ids[2]
    assert {hit.document_id for hit in hits} == {"doc_2", "doc_3"}
    assert len(hits) == 8


@pytest.mark.usefixtures("few_are_many")
def test_lists_that_cannot_be_made_are_tried_again_after_the_next_change(
    database: Database, open_index: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise MemoryError("for lists")

    index = open_index()
    add_document(database, "doc_1")
    serve(database, "doc_1", vectors(8))
    with monkeypatch.context() as patch:
        patch.setattr(vector_lists, "build", fails)
        assert len(found(index, vectors(1)[0])) == 8
        for thread in list(index._listing.values()):
            thread.join()
    assert "MemoryError: for lists" in caplog.text
    assert is_flat(index)
    add_document(database, "doc_2")
    serve(database, "doc_2", vectors(1))
    assert len(found(index, vectors(1)[0])) == 9
    for thread in list(index._listing.values()):
        thread.join()
    assert not is_flat(index)
    assert len(found(index, vectors(1)[0])) == 9
