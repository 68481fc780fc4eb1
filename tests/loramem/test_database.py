"""Sessions, the database's clock and ids."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from loramem.database import Database, epoch_now, new_id
from loramem.tables import Chunk, Namespace
from tests.backends import database, database_url

__all__ = ["database", "database_url"]


def names(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Namespace.name).order_by(Namespace.name)))


def fail_after_insert(database: Database) -> None:
    with database.write() as session:
        session.add(Namespace(name="lost"))
        session.flush()
        raise LookupError


def test_leaving_write_commits_and_an_exception_rolls_back(database: Database) -> None:
    with database.write() as session:
        session.add(Namespace(name="kept"))
    with pytest.raises(LookupError):
        fail_after_insert(database)
    assert names(database) == ["kept"]


def test_rows_can_be_used_after_their_session(database: Database) -> None:
    with database.write() as session:
        row = Namespace(name="a")
        session.add(row)
    assert (row.name, row.generation) == ("a", 0)


def test_errors_tell_no_text_of_a_document(database: Database) -> None:
    same = [Namespace(name="the secret text"), Namespace(name="the secret text")]
    with pytest.raises(IntegrityError) as caught, database.write() as session:
        session.add_all(same)
    assert "INSERT INTO namespace" in str(caught.value)
    assert "secret" not in str(caught.value).split("DETAIL:")[0]


def test_the_clock_counts_seconds_since_the_epoch(database: Database) -> None:
    with database.read() as session:
        first = session.scalar(select(epoch_now()))
        time.sleep(0.05)
        second = session.scalar(select(epoch_now()))
    assert first == pytest.approx(time.time(), abs=5)
    assert second - first == pytest.approx(0.05, abs=0.5)
    assert second > first


def test_foreign_keys_hold(database: Database) -> None:
    orphan = Chunk(id="c", document_id="nobody", revision=1, ordinal=0, start=0, end=1, tokens=1)
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(orphan)


def test_writes_of_several_threads_lose_no_update(database: Database) -> None:
    with database.write() as session:
        session.add(Namespace(name="n"))

    def bump() -> None:
        for _ in range(10):
            with database.write() as session:
                row = session.scalars(select(Namespace).with_for_update()).one()
                row.generation += 1

    threads = [threading.Thread(target=bump) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.scalar(select(Namespace.generation)) == 40


def test_a_reader_is_not_kept_waiting_by_a_writer(database: Database) -> None:
    with database.write() as session:
        session.add(Namespace(name="uncommitted"))
        session.flush()
        assert names(database) == []


def test_sqlite_is_durable_and_makes_its_folder(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new' / 'folder' / 'loramem.db'}")
    with database.read() as session:
        pragmas = [session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")]
    database.close()
    assert pragmas == ["wal", 2, 1]


def arguments(url: str) -> dict[str, Any]:
    """What the driver is given to connect with."""
    database, given = Database(url), dict[str, Any]()

    def note(dialect: object, record: object, arguments: object, named: dict[str, Any]) -> None:
        given.update(named)
        raise ConnectionError

    event.listen(database.engine, "do_connect", note)
    with pytest.raises(ConnectionError):
        names(database)
    return given


def test_a_postgresql_that_vanished_is_known_to_be_gone_within_a_minute() -> None:
    given = arguments("postgresql://loramem@db/loramem")
    assert (given["host"], given["connect_timeout"]) == ("db", 5)
    assert given["keepalives_idle"] + given["keepalives_interval"] * given["keepalives_count"] <= 60
    assert given["tcp_user_timeout"] <= 60_000


def test_what_the_url_says_of_a_connection_wins() -> None:
    """As it stands, and several hosts as SQLAlchemy joins them."""
    given = arguments("postgresql://loramem@/loramem?host=one:1&host=two:2&connect_timeout=60&sslmode=require")
    assert (given["host"], given["port"], given["sslmode"]) == ("one,two", "1,2", "require")
    assert (given["connect_timeout"], given["keepalives_count"]) == ("60", 3)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_takes_row_locks_from_who_rests_on_them(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramem.database.IDLE_IN_WRITE_S", 0.3)
    frozen, other = Database(database_url), Database(database_url)
    with other.write() as session:
        session.add(Namespace(name="n"))
    with pytest.raises(DBAPIError, match="idle-in-transaction"):
        overtake(frozen, other)
    assert names(other) == ["renamed"]
    frozen.close()
    other.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_lets_readers_wait(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loramem.database.IDLE_IN_WRITE_S", 0.2)
    with database.read() as session:
        session.execute(select(Namespace))
        time.sleep(0.5)
        assert session.scalars(select(Namespace)).all() == []


def overtake(frozen: Database, other: Database) -> None:
    """`other` changes a row that `frozen` has locked, while `frozen` does nothing."""
    with frozen.write() as session:
        row = session.scalars(select(Namespace).with_for_update()).one()
        with other.write() as quick:
            quick.execute(update(Namespace).values(name="renamed"))
        row.name = "late"


def test_ids_sort_by_time_and_fit_their_column() -> None:
    first = new_id("doc")
    time.sleep(0.002)
    second = new_id("doc")
    assert first < second
    assert len(first) <= 32
    assert first.startswith("doc_")
    assert len({new_id("job") for _ in range(1000)}) == 1000
