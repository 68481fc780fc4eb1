"""One database handle a process: SQLite by default, PostgreSQL by URL.

SQLite runs in WAL with `synchronous=FULL` (a 202 means the row is on disk) and takes its write lock at BEGIN; writes
of one process go one at a time, because SQLite's busy handler is unfair between connections. PostgreSQL cuts off who
holds a transaction open and does nothing, so that a process frozen in the middle of one does not keep its row locks.
"""

import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Float

IDLE_IN_WRITE_S = 10.0
"""How long PostgreSQL lets a connection rest inside a transaction that writes: it holds locks, and ours take
milliseconds and wait for nobody."""
IDLE_IN_READ_S = 600.0
"""The same for one that reads, and may rest while it builds a large namespace's index."""
VANISHED = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""libpq's: a PostgreSQL that is gone without a word, as behind a firewall, is known to be after half a minute and not
after the system's hours. What the URL says wins."""
_IDLE = "idle_in_transaction_session_timeout"


class epoch_now(FunctionElement[float]):
    """Seconds since the epoch by the database's clock, so that leases do not depend on hosts agreeing on the time."""

    type = Float()
    inherit_cache = True


@compiles(epoch_now, "sqlite")
def _sqlite_now(element: object, compiler: object, **kwargs: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(epoch_now, "postgresql")
def _postgresql_now(element: object, compiler: object, **kwargs: object) -> str:
    return "extract(epoch FROM clock_timestamp())"


def new_id(prefix: str) -> str:
    """`doc_0192...`: sortable by time (as UUIDv7: 48 bits of milliseconds, then random bits), at most 32 characters."""
    assert len(prefix) <= 5, f"{prefix!r} makes ids longer than their column"
    milliseconds = time.time_ns() // 1_000_000
    return f"{prefix}_{milliseconds:012x}{uuid.uuid4().hex[:14]}"


Observe = Callable[[Literal["read", "write"], float], None]


def observe_nothing(kind: Literal["read", "write"], seconds: float) -> None:
    pass


class Database:
    """`read()` and `write()` give a session in a transaction; leaving `write()` commits, an exception rolls back.

    `observe` is told of every transaction and its seconds, from asking for it to its end. Errors name statements, not
    their parameters, which may be the text of a document.
    """

    def __init__(self, url: str, observe: Observe = observe_nothing) -> None:
        self._observe = observe
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        connect: dict[str, Any] = {key: value for key, value in VANISHED.items() if key not in parsed.query}
        connect = {"timeout": 30} if self.is_sqlite else connect
        self.engine: Engine = create_engine(
            parsed, hide_parameters=True, connect_args=connect, pool_pre_ping=not self.is_sqlite
        )
        self._write_lock = threading.Lock() if self.is_sqlite else nullcontext()
        if self.is_sqlite:
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine, "connect", _configure_postgresql)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """All that one session reads is of one moment: SQLite's transactions are so, PostgreSQL has to be asked."""
        with self._timed("read"), Session(self.engine, expire_on_commit=False) as session:
            if not self.is_sqlite:
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        session = Session(self.engine, expire_on_commit=False)
        with self._timed("write"), self._write_lock, session, session.begin():
            session.connection(execution_options={"loramem_write": True})
            if not self.is_sqlite:
                session.execute(text(f"SET LOCAL {_IDLE} = {int(IDLE_IN_WRITE_S * 1000)}"))
            yield session

    @contextmanager
    def _timed(self, kind: Literal["read", "write"]) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._observe(kind, time.perf_counter() - started)

    def close(self) -> None:
        self.engine.dispose()


def _configure_postgresql(connection: Any, record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET {_IDLE} = {int(IDLE_IN_READ_S * 1000)}")
    connection.commit()


def _configure_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's BEGIN is emitted below, not by the driver
    connection.execute("PRAGMA busy_timeout=30000")
    _set_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _set_wal(connection: Any) -> None:
    """The first switch to WAL needs the file alone, and SQLite does not wait for it with its busy handler."""
    deadline = time.monotonic() + 30
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Any) -> None:
    writes = connection.get_execution_options().get("loramem_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN DEFERRED")
