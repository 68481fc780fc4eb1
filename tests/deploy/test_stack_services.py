"""The stack for real: first what needs no engine, then everything, a document learnt and asked for through it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from redis import Redis

from tests.backends import postgres_binaries
from tests.deploy.test_compose import SECRETS
from tests.flow.test_walkthrough import walk
from tests.rules import ROOT

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(3600)]

with_postgres = pytest.mark.skipif(postgres_binaries() is None, reason="PostgreSQL is not installed")


class Up:
    """`with Up(home, ...)`: `python -m deploy.stack up`, until it says that all is ready."""

    def __init__(self, home: Path, *arguments: str, timeout_s: float, **variables: str) -> None:
        self.home = home
        self._timeout_s = timeout_s
        self._command = [sys.executable, "-m", "deploy.stack", "up", "--json", "--home", str(home), *arguments]
        self._command += ["--env-file", os.devnull]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LORAMEM_")}
        self._environment = {**inherited, **SECRETS, **variables}

    def __enter__(self) -> "Up":
        self.said, self.errors = self.home / "stdout", self.home / "stderr"
        with self.said.open("wb") as said, self.errors.open("ab") as errors:
            self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stdout=said, stderr=errors)
        try:
            self.services = self._ready()["services"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(180)

    def _ready(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        while not (line := self.said.read_text()).endswith("\n"):
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.1)
        ready: dict[str, Any] = json.loads(line)
        return ready

    def address(self, name: str) -> str:
        return str(self.services[name]["address"])


@pytest.fixture
def home() -> Iterator[Path]:
    """Not pytest's folder: PostgreSQL may run as another user, who cannot enter it, and sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="loramem-stack-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def wait_for(url: str, expected: str) -> str:
    deadline = time.monotonic() + 60
    while expected not in (text := httpx.get(url).text):
        assert time.monotonic() < deadline, text
        time.sleep(0.5)
    return text


@with_postgres
def test_the_stores_run_as_the_file_says_and_keep_their_data(home: Path) -> None:
    only = ["--only", "postgres", "--only", "valkey"]
    with Up(home, *only, timeout_s=120) as up:
        pids = [service["pid"] for service in up.services.values()]
        url = f"postgresql://loramem:secret@{up.address('postgres')}/loramem"
        with psycopg.connect(url) as connection:
            assert connection.execute("SHOW data_checksums").fetchone() == ("on",)
            connection.execute("CREATE TABLE kept (word text)")
            connection.execute("INSERT INTO kept VALUES ('adapter')")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(url.replace("secret", "guessed"))
        with Redis.from_url(f"redis://{up.address('valkey')}") as redis:
            wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
            found = {key: redis.config_get(key)[key] for key in wanted}
            assert found == wanted
            redis.set("kept", "adapter")
    assert up.process.returncode == 0
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    with Up(home, *only, timeout_s=120) as up:
        with psycopg.connect(f"postgresql://loramem:secret@{up.address('postgres')}/loramem") as connection:
            assert connection.execute("SELECT word FROM kept").fetchone() == ("adapter",)
        with Redis.from_url(f"redis://{up.address('valkey')}") as redis:
            assert redis.get("kept") == b"adapter"


def test_prometheus_loads_its_rules_and_knows_its_targets(home: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    with Up(home, "--only", "prometheus", timeout_s=60) as up:
        api = f"http://{up.address('prometheus')}/api/v1"
        assert '"type":"alerting"' in wait_for(f"{api}/rules", '"type":"alerting"')
        targets = json.loads(wait_for(f"{api}/targets", '"health":"up"'))["data"]["activeTargets"]
        assert {target["labels"]["job"]: target["health"] for target in targets}["prometheus"] == "up"
        assert {target["labels"]["job"] for target in targets} == {"gateway", "trainer", "prometheus"}
        [key] = home.rglob("scrape_key")
        assert (key.read_text(), key.stat().st_mode & 0o777) == (SECRETS["INTERNAL_KEY"], 0o600)


@with_postgres
def test_everything_together_learns_a_document_and_answers(
    home: Path, fill_cache: Callable[[Path], None], tmp_path: Path
) -> None:
    fill_cache(home / "volumes" / "data" / "cache")
    small = {"LORAMEM_MAX_MODEL_LEN": "1024", "LORAMEM_LEASE_S": "6", "LORAMEM_HEARTBEAT_S": "1"}
    with Up(home, timeout_s=1800, **small, LORAMEM_TRAIN_MAX_S="3600") as up:
        gateway = f"http://{up.address('gateway-cpu')}"
        assert httpx.get(f"{gateway}/documents").status_code == 401
        assert httpx.get(f"{gateway}/metrics").status_code == 401
        done = walk(gateway, tmp_path, LORAMEM_API_KEY="user")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "loramem_" in httpx.get(f"http://{up.address('trainer-cpu')}/metrics").text
        if "prometheus" in up.services:
            api = f"http://{up.address('prometheus')}/api/v1"
            assert '"1"' in wait_for(f'{api}/query?query=up{{job="gateway"}}', '"1"]')
            assert '"1"' in wait_for(f'{api}/query?query=up{{job="trainer"}}', '"1"]')
        pids = [service["pid"] for service in up.services.values()]
    assert up.process.returncode == 0, up.errors.read_text()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
