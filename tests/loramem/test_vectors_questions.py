"""Questions beside windows: what adapters learnt is found by meaning and by words, of one moment, across changes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select

from loramem.database import Database
from loramem.tables import Adapter, AdapterState, Chunk, Question
from loramem.vectors import VectorIndex
from tests.backends import database, database_url
from tests.loramem.test_vectors import DIM, vectors
from tests.rows import add_adapters, add_document, delete_document, replace_revision, serve

__all__ = ["database", "database_url"]

Open = Callable[[], VectorIndex]
Learnt = dict[str, NDArray[np.float32]]

LIGHT = "Basalt carries the lighthouse. Ansel Brandt mends the lamp. "
BREAD = "Tamsin Oake bakes rye loaves. A loaf costs three crowns. "


@pytest.fixture
def open_index(database: Database, tmp_path: Path) -> Open:
    return lambda: VectorIndex(database, dim=DIM, embedder_name="test", snapshot_dir=tmp_path / "snapshots")


def learn(
    database: Database, document_id: str, count: int = 2, *, embedder: str = "test", held_out: bool = False
) -> Learnt:
    """Live adapters for the chunks served now, each asked `count` questions; vectors by adapter id."""
    with database.read() as session:
        before = set(session.scalars(select(Adapter.id)))
    add_adapters(database, document_id)
    with database.write() as session:
        of_document = select(Adapter).where(Adapter.document_id == document_id, Adapter.state == AdapterState.LIVE)
        new = [adapter for adapter in session.scalars(of_document) if adapter.id not in before]
        learnt = {adapter.id: vectors(count) for adapter in new}
        session.add_all(
            Question(
                adapter_id=adapter.id,
                question=f"Question {number} of chunk {adapter.ordinal} of {document_id}?",
                answer=f"answer{number} chunk{adapter.ordinal}",
                held_out=held_out,
                embedder=embedder,
                embedding=learnt[adapter.id][number].astype("<f4").tobytes(),
            )
            for adapter in new
            for number in range(count)
        )
    return learnt


def add_text(database: Database, document_id: str, text: str) -> None:
    """Two chunks: windows are ten characters long, three to a chunk."""
    add_document(database, document_id, text)
    serve(database, document_id, vectors(6))


def chunk_of(database: Database, chunk_id: str) -> tuple[str, int]:
    with database.read() as session:
        chunk = session.get_one(Chunk, chunk_id)
        return chunk.document_id, chunk.ordinal


# vectors


def test_questions_come_best_first_with_their_adapter(database: Database, open_index: Open) -> None:
    add_text(database, "doc_1", LIGHT)
    learnt = learn(database, "doc_1", 3)
    assert len(learnt) == 2
    for adapter_id, stored in learnt.items():
        with open_index().view("default") as view:
            found = view.search_questions(stored[1], 5)
        assert found[0][0] == adapter_id
        assert found[0][1] == pytest.approx(1.0, abs=1e-6)
        assert len(found) == 5
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_questions_of_chosen_adapters_only(database: Database, open_index: Open) -> None:
    add_text(database, "doc_1", LIGHT)
    first, second = learn(database, "doc_1", 3)
    with open_index().view("default") as view:
        found = view.search_questions(vectors(1)[0], 100, {second, "ada_unknown"})
        assert [adapter_id for adapter_id, _ in found] == [second] * 3
        assert view.search_questions(vectors(1)[0], 100, set()) == []
        assert {adapter_id for adapter_id, _ in view.search_questions(vectors(1)[0], 100)} == {first, second}


@pytest.mark.parametrize("kind", [{"held_out": True}, {"embedder": "another"}])
def test_held_out_questions_and_those_of_another_embedder_are_not_searched(
    database: Database, open_index: Open, kind: dict[str, object]
) -> None:
    add_text(database, "doc_1", LIGHT)
    learn(database, "doc_1", **kind)  # type: ignore[arg-type]
    with open_index().view("default") as view:
        assert view.search_questions(vectors(1)[0], 100) == []
        assert len(view.search(vectors(1)[0], 100)) == 6


def test_questions_go_with_their_adapters_and_stay_in_their_namespace(database: Database, open_index: Open) -> None:
    index = open_index()
    add_text(database, "doc_1", LIGHT)
    add_document(database, "doc_2", BREAD, namespace="other")
    serve(database, "doc_2", vectors(3))
    old, other = learn(database, "doc_1"), learn(database, "doc_2")

    def found() -> set[str]:
        with index.view("default") as view:
            return {adapter_id for adapter_id, _ in view.search_questions(vectors(1)[0], 100)}

    assert found() == set(old)
    replace_revision(database, "doc_1", BREAD, vectors(2), "test")  # retires the old; the new were asked nothing
    assert found() == set()
    new = learn(database, "doc_1")
    assert found() == set(new)
    delete_document(database, "doc_1")
    assert found() == set()
    with index.view("other") as view:
        assert {adapter_id for adapter_id, _ in view.search_questions(vectors(1)[0], 100)} == set(other)


def test_a_view_shows_windows_and_questions_of_one_generation(database: Database, open_index: Open) -> None:
    index = open_index()
    add_text(database, "doc_1", LIGHT)
    old = learn(database, "doc_1")
    with open_index().view("default") as early:
        replace_revision(database, "doc_1", BREAD, vectors(2), "test")
        with index.view("default") as late:
            assert late.search_questions(vectors(1)[0], 9) == []
            assert len(late.search(vectors(1)[0], 9)) == 2
        assert {adapter_id for adapter_id, _ in early.search_questions(vectors(1)[0], 9)} == set(old)
        assert len(early.search(vectors(1)[0], 9)) == 6


# words


def test_chunks_are_matched_by_their_text_and_title(database: Database, open_index: Open) -> None:
    add_text(database, "doc_1", LIGHT)
    add_text(database, "doc_2", BREAD)
    with open_index().view("default") as view:
        matches = view.match("Who mends the lamp of Ansel Brandt?", 5)
        assert chunk_of(database, matches[0][0]) == ("doc_1", 1)
        assert [share for _, share in matches] == sorted((share for _, share in matches), reverse=True)
        assert all(0 < share <= 1 for _, share in matches)
        assert chunk_of(database, view.match("basalt", 5)[0][0]) == ("doc_1", 0)
        assert {chunk_of(database, chunk)[0] for chunk, _ in view.match("title doc_2", 1)} == {"doc_2"}
        assert view.match("zebra", 5) == []


def test_matches_of_chosen_documents_and_chunks(database: Database, open_index: Open) -> None:
    add_text(database, "doc_1", LIGHT)
    add_text(database, "doc_2", BREAD)
    with open_index().view("default") as view:
        every = {chunk for chunk, _ in view.match("title", 9)}
        assert len(every) == 4
        of_one = {chunk for chunk, _ in view.match("title", 9, document_ids={"doc_1"})}
        assert {chunk_of(database, chunk)[0] for chunk in of_one} == {"doc_1"}
        one = min(every - of_one)
        assert [chunk for chunk, _ in view.match("title", 9, chunk_ids={one})] == [one]
        assert view.match("title", 9, document_ids={"doc_1"}, chunk_ids={one}) == []
        assert len(view.match("title", 3)) == 3


def test_windows_are_matched_by_their_own_text_and_tell_their_chunk(database: Database, open_index: Open) -> None:
    add_text(database, "doc_1", "red basaltgrey chalkwhite sandmore chalkblue slatepink loams")  # ten characters each
    add_text(database, "doc_2", "black lavared basalt" + "x" * 40)
    with open_index().view("default") as view:
        found = [chunk_of(database, chunk) for chunk, _ in view.match_windows("chalk", 9)]
        assert sorted(found) == [("doc_1", 0), ("doc_1", 1)]
        assert len(view.match_windows("red basalt", 9)) == 2
        of_one = view.match_windows("red basalt", 9, document_ids={"doc_2"})
        assert [chunk_of(database, chunk) for chunk, _ in of_one] == [("doc_2", 0)]
        assert view.match_windows("title", 9) == []  # titles are of chunks
    replace_revision(database, "doc_1", "clay alone", vectors(1), "test")
    with open_index().view("default") as view:
        assert view.match_windows("chalk", 9) == []
        assert [chunk_of(database, chunk)[0] for chunk, _ in view.match_windows("clay", 9)] == ["doc_1"]


def test_learnt_questions_are_matched_with_their_answers_whatever_the_embedder(
    database: Database, open_index: Open
) -> None:
    add_text(database, "doc_1", LIGHT)
    add_text(database, "doc_2", BREAD)
    ours, theirs = learn(database, "doc_1"), learn(database, "doc_2", embedder="another")
    add_text(database, "doc_3", BREAD)
    learn(database, "doc_3", held_out=True)
    with open_index().view("default") as view:
        matches = view.match_questions("answer1", 9)
        assert sorted(adapter_id for adapter_id, _ in matches) == sorted([*ours, *theirs])
        first = min(ours)
        assert [adapter_id for adapter_id, _ in view.match_questions("question", 9, {first})] == [first, first]
        assert view.match_questions("doc_3", 9, set()) == []


def test_words_follow_the_texts_and_start_from_the_database(database: Database, open_index: Open) -> None:
    index = open_index()
    add_text(database, "doc_1", LIGHT)
    add_text(database, "doc_2", BREAD)
    old = learn(database, "doc_1")

    def documents(text: str) -> set[str]:
        with index.view("default") as view:
            return {chunk_of(database, chunk)[0] for chunk, _ in view.match(text, 9)}

    def adapters() -> set[str]:
        with index.view("default") as view:
            return {adapter_id for adapter_id, _ in view.match_questions("question", 9)}

    assert documents("basalt") == {"doc_1"}
    assert adapters() == set(old)
    replace_revision(database, "doc_1", "A mill.", vectors(1), "test")
    assert documents("basalt") == set()
    assert documents("mill") == {"doc_1"}
    assert adapters() == set()
    index.snapshot()
    index = open_index()
    assert documents("mill loaves") == {"doc_1", "doc_2"}
    delete_document(database, "doc_2")
    assert documents("mill loaves") == {"doc_1"}


def test_chunks_are_cut_by_characters(database: Database, open_index: Open) -> None:
    add_text(database, "doc_1", "ä" * 29 + " ünder\U0001f600 wörter folgen danach")
    with open_index().view("default") as view:
        assert [chunk_of(database, chunk) for chunk, _ in view.match("ünder", 9)] == [("doc_1", 1)]


def test_an_empty_namespace_matches_nothing(database: Database, open_index: Open) -> None:
    with open_index().view("nobody's") as view:
        assert view.match("title", 9) == view.match_questions("title", 9) == []
        assert view.search_questions(vectors(1)[0], 9) == []


def test_texts_that_cannot_be_read_are_read_by_the_next_view(
    database: Database, open_index: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index()
    add_text(database, "doc_1", LIGHT)
    with monkeypatch.context() as patch:
        patch.setattr("loramem.served.TEXTS", 0)
        with pytest.raises(ValueError, match="range"), index.view("default"):
            pass
    with index.view("default") as view:
        assert len(view.match("basalt", 9)) == 1
