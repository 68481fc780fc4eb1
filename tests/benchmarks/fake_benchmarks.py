"""Benchmarks and a server for `benchmarks.smoke` that only say what real ones say; each is a process all the same."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import smoke
from benchmarks.smoke import REPORT, Benchmark

OK = {"checks": [{"name": "speed", "value": 2.0, "bound": ">= 1", "ok": True}]}
SLOW = {"checks": [{"name": "speed", "value": 0.5, "bound": ">= 1", "ok": False}]}
SERVER = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

HOME = Path(os.environ["LORAMEM_HOME"])
NOTES = Path(__file__).parent / "server.json"
settings = {key: value for key, value in os.environ.items() if key.startswith("LORAMEM_")}
NOTES.write_text(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:], "settings": settings, "deleted": []}))

class Handler(BaseHTTPRequestHandler):
    waited = 0
    def do_GET(self):
        Handler.waited += 1
        documents = {"data": [{"id": "doc_1"}, {"id": "doc_2"}], "next_cursor": None}
        self.reply(503 if Handler.waited < 3 else 200, documents)
    def do_DELETE(self):
        notes = json.loads(NOTES.read_text())
        NOTES.write_text(json.dumps(notes | {"deleted": [*notes["deleted"], self.path]}))
        self.reply(204, None)
    def reply(self, status, body):
        content = json.dumps(body).encode() if body else b""
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(os.environ["LORAMEM_PORT"])), Handler).serve_forever()
"""
BENCHMARK = """
import json, os, sys
from pathlib import Path

folder = Path(__file__).parents[1]
settings = {{key: value for key, value in os.environ.items() if key.startswith("LORAMEM_")}}
noted = {{"name": Path(__file__).stem, "argv": sys.argv[1:], "settings": settings}}
noted["server"] = (folder / "server.json").exists()
with (folder / "ran.jsonl").open("a") as file:
    file.write(json.dumps(noted) + "\\n")
{script}
"""
REPORTED = 'Path(sys.argv[sys.argv.index("--out") + 1]).write_text("# Report")'

Json = dict[str, Any]


class Fakes:
    """Benchmarks in a folder of their own, each a script; `ran` tells which were started, with what, in their order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        self._listed: list[Benchmark] = []
        self.said = ""
        """On the runner's standard error."""
        (folder / "benchmarks").mkdir()
        (folder / "serve.py").write_text(SERVER)
        monkeypatch.setattr(smoke, "ROOT", folder)
        monkeypatch.setattr(smoke, "SERVE", (sys.executable, str(folder / "serve.py"), "serve"))
        self.write("report", REPORTED)

    def add(self, name: str, *lines: object, status: int = 0, error: str = "", **kind: Any) -> None:
        """One that prints these lines, objects as JSON, and ends so."""
        said = [line if isinstance(line, str) else json.dumps(line) for line in lines or (OK,)]
        self.write(name, f"print({chr(10).join(said)!r})\nsys.stderr.write({error!r})\nsys.exit({status})")
        self._listed.append(Benchmark(name, **kind))

    def write(self, name: str, script: str) -> None:
        (self.folder / "benchmarks" / f"{name}.py").write_text(BENCHMARK.format(script=script))

    def run(self, *options: str) -> tuple[int, Json, list[str]]:
        """(exit status, the object in the last line, the lines before it)"""
        listed = (*self._listed, REPORT)
        self._monkeypatch.setattr(smoke, "BENCHMARKS", listed)
        status = smoke.main(["--json", *options])
        output, self.said = self._capsys.readouterr()
        *lines, last = output.splitlines()
        return status, json.loads(last), lines

    @property
    def ran(self) -> list[Json]:
        file = self.folder / "ran.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def served(self) -> Json | None:
        file = self.folder / "server.json"
        found: Json | None = json.loads(file.read_text()) if file.exists() else None
        return found


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fakes]:
    for name in [name for name in os.environ if name.startswith("LORAMEM_")]:
        monkeypatch.delenv(name)
    made = Fakes(tmp_path, monkeypatch, capsys)
    yield made
    assert made.served is None or not is_running(made.served["pid"])


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def states(report: Json) -> dict[str, str]:
    return {one["name"]: one["state"] for one in report["benchmarks"]}


def reason(report: Json, name: str) -> str:
    reasons: dict[str, str] = {one["name"]: one["reason"] for one in report["benchmarks"]}
    return reasons[name]
