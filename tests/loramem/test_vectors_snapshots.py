"""The vector index across restarts: what is read again, and what damage costs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from loramem import served, vector_state
from loramem.database import Database
from loramem.vectors import VectorIndex
from tests.backends import database, database_url
from tests.loramem.test_vectors import DIM, found, vectors
from tests.loramem.test_vectors_questions import Learnt, learn
from tests.rows import add_document, delete_document, serve

__all__ = ["database", "database_url"]

Open = Callable[[], VectorIndex]
FILES = ("windows.main", "windows.delta", "questions.main", "questions.delta", "manifest")


@pytest.fixture
def open_index(database: Database, tmp_path: Path) -> Open:
    return lambda: VectorIndex(database, dim=DIM, embedder_name="test", snapshot_dir=tmp_path / "snapshots")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five vectors are a main, and two more a delta; main may die whole."""
    monkeypatch.setattr("loramem.vector_set.LEAST_DELTA", 4)
    monkeypatch.setattr("loramem.vector_set.DEAD_SHARE", 1.0)


@pytest.fixture
def saved(database: Database, open_index: Open) -> NDArray[np.float32]:
    """Vectors of doc_1, in a snapshot."""
    return save(database, open_index)[0]


def save(database: Database, open_index: Open) -> tuple[NDArray[np.float32], Learnt]:
    add_document(database, "doc_1")
    stored = vectors(5)
    serve(database, "doc_1", stored)
    learnt = learn(database, "doc_1", 3)
    index = open_index()
    found(index, stored[0])
    index.snapshot()
    return stored, learnt


def folder(tmp_path: Path) -> Path:
    (only,) = (path for path in (tmp_path / "snapshots").iterdir() if path.is_dir())
    return only


def file(tmp_path: Path, name: str) -> Path:
    (path,) = folder(tmp_path).glob(f"{name}[-.]*")
    return path


def manifest(tmp_path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder(tmp_path) / vector_state.MANIFEST_FILE).read_text())
    return read


def rows_read(index: VectorIndex, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], set[str]]:
    """Documents and adapters whose embeddings the first search reads from the database."""
    wanted: tuple[set[str], set[str]] = set(), set()
    for name, kept in zip(("windows_of", "questions_of"), wanted, strict=True):
        monkeypatch.setattr(served, name, _noting(getattr(served, name), kept))
    found(index, vectors(1)[0])
    return wanted


def _noting(read: Callable[..., Any], kept: set[str]) -> Callable[..., Any]:
    def noted(session: object, keys: Mapping[str, str], *rest: object) -> object:
        kept.update(keys)
        return read(session, keys, *rest)

    return noted


def test_a_restart_reads_only_what_changed_since_the_snapshot(
    database: Database, open_index: Open, saved: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_document(database, "doc_2")
    serve(database, "doc_2", vectors(2))
    new = learn(database, "doc_2")
    index = open_index()
    assert rows_read(index, monkeypatch) == ({"doc_2"}, set(new))
    assert len(found(index, saved[0])) == 7
    assert index.search("default", saved[2], 1)[0].score == pytest.approx(1.0, abs=1e-6)


@pytest.mark.usefixtures("saved")
def test_namespaces_asked_lately_are_known_to_the_next_start(
    database: Database, open_index: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for namespace in ("never-asked", "asked"):
        add_document(database, f"doc_{namespace}", namespace=namespace)
    index = open_index()
    index.search("asked", vectors(1)[0], 1)
    index.search("nowhere", vectors(1)[0], 1)
    index.open("never-asked")
    monkeypatch.setattr("loramem.vectors.NOTE_EVERY_S", 0.0)
    index.follow()  # as the gateway does every few seconds: it may be killed
    index = open_index()
    assert index.asked_before() == ["asked", "default"], "the last one first"
    index.open("default")
    assert index.asked_before() == ["asked"]
    assert len(index.held()["default"].windows) == 5
    monkeypatch.setattr("loramem.vectors.RECENT_S", 0.0)
    assert open_index().asked_before() == []


def test_what_was_asked_need_not_be_noted(
    open_index: Open, saved: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    index = open_index()
    found(index, saved[0])
    monkeypatch.setattr("loramem.vectors.NOTE_EVERY_S", 0.0)
    monkeypatch.setattr(index._snapshots, "save_asked_at", full)
    index.follow()
    index.snapshot()
    assert "cannot be noted: No space left" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"default": "long ago"}'])
def test_a_damaged_list_of_what_was_asked_harms_nobody(open_index: Open, tmp_path: Path, damage: bytes) -> None:
    open_index().snapshot()
    [file] = tmp_path.rglob("asked.json")
    file.write_bytes(damage)
    assert open_index().asked_before() == []


def test_main_delta_and_the_dead_come_back(
    database: Database, open_index: Open, saved: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("doc_2", "doc_3"):
        add_document(database, name)
    small, index = vectors(2), open_index()
    serve(database, "doc_2", small)
    found(index, small[0])
    delete_document(database, "doc_1")
    serve(database, "doc_3", vectors(1))
    found(index, small[0])
    index.snapshot()
    assert manifest(tmp_path)["windows"]["dead"] == ["doc_1"]
    assert manifest(tmp_path)["windows"]["count"] == 3
    again = open_index()
    assert rows_read(again, monkeypatch) == (set(), set())
    assert {hit.document_id for hit in again.search("default", saved[0], 9)} == {"doc_2", "doc_3"}
    assert again.search("default", small[1], 1)[0].score == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("place", [0.05, 0.5, 0.95])
def test_one_flipped_bit_costs_a_rebuild_and_no_wrong_answer(
    database: Database, open_index: Open, tmp_path: Path, which: str, place: float
) -> None:
    stored, learnt = save(database, open_index)
    path = file(tmp_path, which)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with open_index().view("default") as view:
        hits = view.search(stored[3], 5)
        assert hits[0].score == pytest.approx(1.0, abs=1e-6)
        assert sorted(hit.start for hit in hits) == [0, 10, 20, 30, 40]
        for adapter_id, asked in learnt.items():
            ((nearest, score),) = view.search_questions(asked[2], 1)
            assert nearest == adapter_id
            assert score == pytest.approx(1.0, abs=1e-6)


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    "damage", ["truncate", "no index", "another embedder", "another dim", "older layout", "newer FAISS"]
)
def test_a_snapshot_that_does_not_fit_is_rebuilt(
    database: Database, open_index: Open, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_file, index = file(tmp_path, "windows.main"), open_index()
    if damage == "truncate":
        index_file.write_bytes(index_file.read_bytes()[:-7])
    elif damage == "no index":
        index_file.unlink()
    elif damage == "newer FAISS":
        monkeypatch.setattr("faiss.read_index", refuse)
    elif damage == "older layout":
        older = {"generation": 1, "count": 5, "dim": DIM, "embedder": "test", "documents": {}, "sha256": "0" * 64}
        (folder(tmp_path) / vector_state.MANIFEST_FILE).write_text(json.dumps(older))
    else:
        embedder, dim = ("another", DIM) if damage == "another embedder" else ("test", DIM + 1)
        index = VectorIndex(database, dim=dim, embedder_name=embedder, snapshot_dir=tmp_path / "snapshots")
    documents, adapters = rows_read(index, monkeypatch)
    assert (documents, len(adapters)) == ({"doc_1"}, 2)


def refuse(path: str) -> None:
    raise RuntimeError(f"Index type 0x0 not recognized in {path}")


def test_a_snapshot_is_written_again_only_after_a_change(
    database: Database, open_index: Open, saved: NDArray[np.float32], tmp_path: Path
) -> None:
    index = open_index()
    found(index, saved[0])
    index.snapshot()
    before = {path.name: path.stat().st_mtime_ns for path in folder(tmp_path).iterdir()}
    index.snapshot()
    assert {path.name: path.stat().st_mtime_ns for path in folder(tmp_path).iterdir()} == before
    delete_document(database, "doc_1")
    found(index, saved[0])
    index.snapshot()
    assert manifest(tmp_path)["windows"]["count"] == manifest(tmp_path)["questions"]["count"] == 0


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("step", ["faiss.write_index", "loramem.vector_state.sync_file"])
def test_a_full_disk_keeps_the_old_snapshot_and_gets_its_room_back(
    database: Database, open_index: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder(tmp_path).iterdir()}
    add_document(database, "doc_2")
    serve(database, "doc_2", vectors(2))
    index = open_index()
    found(index, vectors(1)[0])
    monkeypatch.setattr(step, fill_the_disk)
    with pytest.raises(RuntimeError, match="could not be written"):
        index.snapshot()
    assert {path.name: path.read_bytes() for path in folder(tmp_path).iterdir()} == before


def fill_the_disk(*given: Any) -> None:
    """As FAISS does in the middle of a file, which is named last."""
    Path(given[-1]).write_bytes(b"half of it")
    raise RuntimeError(f"{given[-1]} could not be written")


def test_a_main_that_did_not_change_is_not_written_again(
    database: Database, open_index: Open, saved: NDArray[np.float32], tmp_path: Path
) -> None:
    main, delta = file(tmp_path, "windows.main"), file(tmp_path, "windows.delta")
    written = main.stat().st_mtime_ns
    (folder(tmp_path) / "index.faiss").write_bytes(b"of an older layout")
    index = open_index()
    add_document(database, "doc_2")
    serve(database, "doc_2", vectors(2))
    found(index, saved[0])
    index.snapshot()
    assert file(tmp_path, "windows.main").stat().st_mtime_ns == written
    assert file(tmp_path, "windows.delta") != delta
    assert len(list(folder(tmp_path).iterdir())) == len(FILES), "what the manifest does not name is dropped"
