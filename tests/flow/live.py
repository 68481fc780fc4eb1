"""A real server for the tests: supervisor, gateway with its engine, worker, on a free port with a home of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from loramem.records import AdapterManifest
from loramem.store import MANIFEST

READY_S = 900.0
JOB_S = 1800.0


class Live:
    """`with Live(home) as live:` starts `loramem serve` and waits until it is ready, without an error in its log."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "server.log"
        self._settings = {f"LORAMEM_{key.upper()}": str(value) for key, value in settings.items()}
        self.client = httpx.Client(base_url=self.url, timeout=300)

    def __enter__(self) -> "Live":
        self.home.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "LORAMEM_HOME": str(self.home), "LORAMEM_PORT": str(self.port), **self._settings}
        environment["OTEL_BSP_SCHEDULE_DELAY"] = "500"  # milliseconds; by default a test waits five seconds for a span
        command = [str(Path(sys.executable).parent / "loramem"), "serve", "--stop-with-parent"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.wait_ready()
            errors = [line for line in self.log.read_text().splitlines() if " ERROR " in line]
            assert not errors, "\n".join(errors)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def wait_ready(self) -> float:
        """Seconds until /readyz said so."""
        started = time.monotonic()
        while time.monotonic() - started < READY_S:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.story()}")
            try:
                if self.client.get("/readyz").status_code == 200:
                    return time.monotonic() - started
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.2)
        raise TimeoutError(f"not ready after {READY_S} s:\n{self.story()}")

    def story(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def upload(self, text: str, **fields: Any) -> tuple[str, str]:
        """(document id, job id)"""
        reply = self.client.post("/documents", json={"text": text, **fields})
        assert reply.status_code == 202, reply.text
        return reply.json()["document"]["id"], reply.json()["job"]["id"]

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/jobs/{job_id}").json()
        return found

    def wait_job(self, job_id: str, *states: str) -> dict[str, Any]:
        """The job once it is in one of `states` (by default `succeeded`); a failed one fails the test."""
        wanted = states or ("succeeded",)
        deadline = time.monotonic() + JOB_S
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if job["state"] in wanted:
                return job
            assert job["state"] in ("queued", "running"), job
            time.sleep(0.2)
        raise TimeoutError(f"job {self.job(job_id)} is not {wanted}:\n{self.story()}")

    def wait_phase(self, job_id: str, *phases: str) -> None:
        """Until the job is in one of `phases`; a short one may be over before it is seen."""
        deadline = time.monotonic() + JOB_S
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if job["state"] == "running" and job["progress"]["phase"] in phases:
                return
            assert job["state"] in ("queued", "running"), job
            time.sleep(0.1)
        raise TimeoutError(f"job {job_id} never was in {phases}")

    def manifests(self) -> list[AdapterManifest]:
        """Of all adapters that are published."""
        files = self.home.glob(f"adapters/ada_*/{MANIFEST}")
        return [AdapterManifest.model_validate_json(file.read_bytes()) for file in files]

    def learn(self, text: str, **fields: Any) -> str:
        """Upload and wait until the adapters are live; the document's id."""
        document_id, job_id = self.upload(text, **fields)
        self.wait_job(job_id)
        return document_id

    def ask(self, question: str, **fields: Any) -> dict[str, Any]:
        reply = self.client.post("/query", json={"question": question, **fields})
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def child(self, module: str) -> int:
        """Process id of the gateway (`server`) or the worker (`trainer_worker`)."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
                command = (stat.parent / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            if parent == self.process.pid and module.encode() in b" ".join(command):
                return int(stat.parent.name)
        raise LookupError(f"{module} is not running")


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
