"""Migrations on an empty, an older, a current and a newer database."""

import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text

import loramem.migrate
from loramem.database import Database
from loramem.errors import SettingsError
from loramem.migrate import SCRIPTS, migrate
from loramem.tables import Base, Installation, Job, Namespace
from tests.backends import drop_postgres_database, make_postgres_database, need_postgres

NEXT = '''"""A later version's change, which copies the table on SQLite."""
import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    with op.batch_alter_table("job", recreate="auto") as batch:
        batch.alter_column("owner", type_=sa.String(256))
    {broken}
'''


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'home' / 'loramem.db'}")
        yield database
        database.close()
        return
    need_postgres()
    name = f"loramem_migrate_{uuid.uuid4().hex[:12]}"
    database = Database(make_postgres_database(name))
    yield database
    database.close()
    drop_postgres_database(name)


def revision_of(database: Database) -> str | None:
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def release(monkeypatch: pytest.MonkeyPatch, folder: Path, broken: str = "") -> None:
    """Make this process the next version of loramem."""
    copy_scripts(monkeypatch, folder, "versions/*.py")
    (folder / "versions" / "0008_next.py").write_text(NEXT.format(broken=broken))


def copy_scripts(monkeypatch: pytest.MonkeyPatch, folder: Path, versions: str) -> None:
    (folder / "versions").mkdir(parents=True)
    for script in [*SCRIPTS.glob("*.py"), *SCRIPTS.glob(versions)]:
        (folder / script.relative_to(SCRIPTS)).write_text(script.read_text())
    monkeypatch.setattr(loramem.migrate, "SCRIPTS", folder)


def add_job(database: Database) -> None:
    with database.write() as session:
        fields: dict[str, Any] = {"id": "job_1", "document_id": "doc_1", "zero": 0, "no": False}
        session.execute(
            text(
                "INSERT INTO job (id, document_id, revision, state, fence, attempts, max_attempts, not_before,"
                " cancel_requested, progress, created_at) VALUES (:id, :document_id, :zero, 'queued', :zero, :zero,"
                " :zero, :zero, :no, '{}', :zero)"
            ),
            fields,
        )
        session.execute(text("INSERT INTO job_event (job_id, at, kind, data) VALUES ('job_1', 0, 'state', '{}')"))


def test_the_migrated_schema_is_the_one_the_code_uses(empty: Database) -> None:
    migrate(empty)
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_current_database_is_left_alone(empty: Database) -> None:
    migrate(empty)
    with empty.write() as session:
        session.add(Namespace(name="mine"))
    migrate(empty)
    with empty.read() as session:
        assert session.get(Namespace, "mine") is not None
    if empty.is_sqlite:
        assert not list(_path(empty).parent.glob("*.before-*"))


def test_processes_that_start_together_migrate_once(empty: Database) -> None:
    url = empty.engine.url.render_as_string(hide_password=False)
    databases = [Database(url) for _ in range(3)]
    done: list[Database] = []

    def start(database: Database) -> None:
        migrate(database)
        done.append(database)

    threads = [threading.Thread(target=start, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in databases:
        database.close()
    assert len(done) == 3
    assert revision_of(empty) == "0007"


def test_an_upgrade_keeps_every_row_and_copies_a_file_aside(
    empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    migrate(empty)
    add_job(empty)
    release(monkeypatch, tmp_path / "next")
    migrate(empty)
    assert revision_of(empty) == "0008"
    with empty.read() as session:
        assert session.scalar(text("SELECT count(*) FROM job_event")) == 1  # a copied table would cascade
        if empty.is_sqlite:
            assert session.scalar(text("PRAGMA foreign_keys")) == 1
    if empty.is_sqlite:
        with sqlite3.connect(f"{_path(empty)}.before-0008") as copy:
            assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("0007",)
            assert copy.execute("SELECT count(*) FROM job").fetchone() == (1,)
        copy.close()


def test_jobs_from_before_previews_are_builds(empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as earlier:
        copy_scripts(earlier, tmp_path / "earlier", "versions/0001*.py")
        migrate(empty)
    add_job(empty)
    migrate(empty)
    with empty.read() as session:
        job = session.get_one(Job, "job_1")
        assert (job.kind, job.document_id, job.revision) == ("build", "doc_1", 0)
        assert session.scalar(text("SELECT count(*) FROM job_event")) == 1


def test_a_database_says_which_one_it_is_and_goes_on_saying_so(
    empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    migrate(empty)
    with empty.read() as session:
        (first,) = session.scalars(select(Installation.id))
    assert len(first) == 32
    migrate(empty)
    release(monkeypatch, tmp_path / "next")
    migrate(empty)
    with empty.read() as session:
        assert session.scalars(select(Installation.id)).all() == [first]


def test_an_older_database_is_told_which_one_it_is(
    empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as earlier:
        copy_scripts(earlier, tmp_path / "earlier", "versions/000[1-6]*.py")
        migrate(empty)
    migrate(empty)
    with empty.read() as session:
        assert len(session.scalars(select(Installation.id)).all()) == 1


def test_a_failed_upgrade_changes_nothing(empty: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    migrate(empty)
    add_job(empty)
    release(monkeypatch, tmp_path / "next", broken="raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        migrate(empty)
    assert revision_of(empty) == "0007"
    owner = next(column for column in inspect(empty.engine).get_columns("job") if column["name"] == "owner")
    assert str(owner["type"]) == "VARCHAR(128)"


def test_a_database_of_a_newer_version_stops_the_start(empty: Database) -> None:
    migrate(empty)
    with empty.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0099'"))
    with pytest.raises(SettingsError, match=r"0099.*upgrade loramem"):
        migrate(empty)


def _path(database: Database) -> Path:
    assert database.engine.url.database
    return Path(database.engine.url.database)
