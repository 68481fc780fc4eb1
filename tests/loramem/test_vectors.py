"""The vector index against brute force, across changes, restarts, damage and threads."""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from loramem import vector_state
from loramem.database import Database
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


def test_a_reader_that_is_late_gets_the_state_of_its_own_transaction(database: Database, open_index: Open) -> None:
    index = open_index()
    add_document(database, "doc_1")
    serve(database, "doc_1", vectors(3))
    with open_index().view("default") as early:
        add_revision(database, "doc_1", "new")
        serve(database, "doc_1", vectors(2))
        assert len(found(index, vectors(1)[0])) == 2
        state = index._state_at(early.session, "default")
        assert len(state.nearest(vectors(1)[0], 10)) == 3
    assert len(found(index, vectors(1)[0])) == 2, "the late reader must not put the old state back"


def test_vectors_of_another_embedder_are_never_compared(
    database: Database, open_index: Open, caplog: pytest.LogCaptureFixture
) -> None:
    for name, embedder in (("doc_1", "test"), ("doc_2", "another")):
        add_document(database, name)
        serve(database, name, vectors(3), embedder=embedder)
    index = open_index()
    with caplog.at_level(logging.ERROR):
        assert {hit.document_id for hit in index.search("default", vectors(1)[0], 100)} == {"doc_1"}
    assert index.stale_documents("default") == 1
    assert "LORAMEM_EMBEDDER" in caplog.text


# snapshots


def snapshot_files(tmp_path: Path) -> tuple[Path, Path]:
    (folder,) = (tmp_path / "snapshots").iterdir()
    return folder / vector_state.INDEX_FILE, folder / vector_state.MANIFEST_FILE


@pytest.fixture
def saved(database: Database, open_index: Open) -> NDArray[np.float32]:
    """Vectors of doc_1, in a snapshot."""
    add_document(database, "doc_1")
    stored = vectors(5)
    serve(database, "doc_1", stored)
    index = open_index()
    found(index, stored[0])
    index.snapshot()
    return stored


def rows_read(index: VectorIndex, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Documents whose embeddings the first search reads from the database."""
    wanted: set[str] = set()
    read = VectorIndex._read

    def spy(self: VectorIndex, session: object, namespace: str, documents: dict[str, str]) -> object:
        wanted.update(documents)
        return read(self, session, namespace, documents)  # type: ignore[arg-type]

    monkeypatch.setattr(VectorIndex, "_read", spy)
    found(index, vectors(1)[0])
    return wanted


def test_a_restart_reads_only_what_changed_since_the_snapshot(
    database: Database, open_index: Open, saved: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_document(database, "doc_2")
    serve(database, "doc_2", vectors(2))
    index = open_index()
    assert rows_read(index, monkeypatch) == {"doc_2"}
    assert len(found(index, saved[0])) == 7
    assert index.search("default", saved[2], 1)[0].score == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("place", [0.05, 0.5, 0.95])
def test_one_flipped_bit_costs_a_rebuild_and_no_wrong_answer(
    database: Database, open_index: Open, saved: NDArray[np.float32], tmp_path: Path, which: int, place: float
) -> None:
    path = snapshot_files(tmp_path)[which]
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    hits = open_index().search("default", saved[3], 5)
    assert hits[0].score == pytest.approx(1.0, abs=1e-6)
    assert sorted(hit.start for hit in hits) == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("damage", ["truncate", "no index", "another embedder", "another dim"])
def test_a_snapshot_that_does_not_fit_is_rebuilt(
    open_index: Open, saved: NDArray[np.float32], tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_file, manifest_file = snapshot_files(tmp_path)
    manifest = json.loads(manifest_file.read_text())
    if damage == "truncate":
        index_file.write_bytes(index_file.read_bytes()[:-7])
    elif damage == "no index":
        index_file.unlink()
    else:
        manifest |= {"embedder": "another"} if damage == "another embedder" else {"dim": DIM + 1}
    manifest_file.write_text(json.dumps(manifest))
    index = open_index()
    assert rows_read(index, monkeypatch) == {"doc_1"}
    assert index.search("default", saved[1], 1)[0].score == pytest.approx(1.0, abs=1e-6)


def test_a_snapshot_is_written_again_only_after_a_change(
    database: Database, open_index: Open, saved: NDArray[np.float32], tmp_path: Path
) -> None:
    index = open_index()
    found(index, saved[0])
    index.snapshot()
    before = [path.stat().st_mtime_ns for path in snapshot_files(tmp_path)]
    index.snapshot()
    assert [path.stat().st_mtime_ns for path in snapshot_files(tmp_path)] == before
    delete_document(database, "doc_1")
    found(index, saved[0])
    index.snapshot()
    assert json.loads(snapshot_files(tmp_path)[1].read_text())["count"] == 0


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
