"""What candidates are found without: searches that could add nothing, and rows that were read before."""

from typing import Any

import pytest
from sqlalchemy import event, update

from loramem.database import Database
from loramem.lexical import Words
from loramem.tables import Adapter, Namespace
from tests.backends import database, database_url
from tests.rows import EXAM
from tests.server.test_candidates import CUT, EMPTY, WORDY, Find, Learn, Learnt, find, index, learn

__all__ = ["database", "database_url", "find", "index", "learn"]


@pytest.mark.parametrize("limit", [1, 3])
def test_a_search_that_found_everything_gives_what_a_second_one_would(
    learn: Learn, find: Find, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    texts = [WORDY, CUT, f"The quagga {EMPTY}" + 9 * EMPTY, "A graze. " + EMPTY, "Last. " * 9, EMPTY]
    for number, text in enumerate(texts):
        asked = [Learnt(f"{text} {more}", 0.1 * number) for more in ("Where?", "The last quagga?", "Grazed?", "Graze?")]
        learn(f"doc_{number}", text, windows=[0.5, 0.1 * number], asked=asked[: number + 1])
    everything = find(windows=999)
    monkeypatch.setattr("server.candidates.FOUND", limit)
    assert find(windows=999) == everything
    assert len(everything) == len(texts)


def test_where_a_search_found_everything_there_is_no_second_one(
    learn: Learn, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, search = 0, Words.search

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        return search(*given, **named)

    monkeypatch.setattr(Words, "search", counted)
    learn("doc_1", WORDY, asked=[Learnt(WORDY)])
    learn("doc_2", asked=[Learnt()])
    find(windows=999)
    assert count == 3
    monkeypatch.setattr("server.candidates.FOUND", 1)
    find(windows=999)
    assert count > 3 + 3


def test_what_was_read_is_not_asked_for_again_before_the_namespace_changes(
    database: Database, learn: Learn, find: Find
) -> None:
    statements: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    learn("doc_1", WORDY, windows=[0.6], asked=[Learnt(WORDY, 0.5)])
    first = find(windows=9)
    statements.clear()
    assert find(windows=9) == first
    assert [one for one in statements if "SELECT" in one and "namespace.generation" not in one] == []
    with database.write() as session:
        session.execute(update(Adapter).values(exam=EXAM.model_dump() | {"weak": True}))
        session.execute(Namespace.changed("default"))
    (changed,) = find(windows=9)
    assert changed.adapter is not None
    assert changed.adapter.weak


@pytest.mark.parametrize("untrained", [1, 40])
def test_what_is_yet_to_be_learnt_pushes_no_adapter_out(learn: Learn, find: Find, untrained: int) -> None:
    for number in range(untrained):
        learn(f"doc_{number}", windows=[0.9], live=False)
    learn("doc_live", windows=[0.5], asked=[Learnt("Where does the quagga graze?", 0.5)])
    found = find(windows=999)
    assert [one.document_id for one in found if one.adapter] == ["doc_live"]
