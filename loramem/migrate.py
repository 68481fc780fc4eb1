"""Bring a database of any age to the schema of this version.

Everything happens in one transaction behind a lock, so processes that start together migrate once and the others find
nothing left to do. A SQLite file with data is copied aside first: `loramem.db.before-<revision>`.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from loramem.database import Database
from loramem.errors import SettingsError

log = logging.getLogger(__name__)

SCRIPTS = Path(__file__).parent / "migrations"
LOCK = 0x6C6F7261  # any number that no other user of the same PostgreSQL database takes


def migrate(database: Database) -> None:
    """Raises `SettingsError` when the database is of a newer version than this one."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    with _locked(database) as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        newest = _newest(config, current)
        if current == newest:
            return
        if current is not None and database.is_sqlite:
            _copy_aside(database, newest)
        log.info("migrating the database from %s to %s", current or "empty", newest)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _newest(config: Config, current: str | None) -> str:
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise SettingsError(
            f"loramem: the database has schema {current}, this version knows up to {max(known)}: upgrade loramem, "
            "or point LORAMEM_DATABASE_URL or LORAMEM_HOME elsewhere"
        )
    return max(known)


@contextmanager
def _locked(database: Database) -> Iterator[Connection]:
    """A transaction that no other migration runs beside."""
    with database.engine.connect() as connection:
        if not database.is_sqlite:
            with connection.begin():
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
                yield connection
            return
        with _without_foreign_keys(connection):
            connection.execution_options(loramem_write=True)
            with connection.begin():
                yield connection


@contextmanager
def _without_foreign_keys(connection: Connection) -> Iterator[None]:
    """Replacing a table by its altered copy drops the old one, which would delete every row that refers to it."""
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _copy_aside(database: Database, newest: str) -> None:
    """A consistent copy of the file, made while the caller's transaction keeps writers out."""
    path = database.engine.url.database
    if not path or path == ":memory:":
        return
    copy = Path(f"{path}.before-{newest}")
    partial = Path(f"{copy}.partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as target:
        source.backup(target)
    partial.replace(copy)
    log.info("copied the database to %s before the migration", copy)
