"""Locust in processes of its own: importing it patches the standard library."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from benchmarks import soak
from benchmarks.soak_figures import request_figures
from tests.benchmarks.fake_load_server import FakeLoadServer, served

Json = dict[str, Any]
ROOT = Path(soak.__file__).parents[1]
SCRIPT = """
import argparse, json, sys
import benchmarks.locustfile as locustfile
from locust.env import Environment

def take(host, steps):
    environment = Environment(user_classes=[locustfile.MemoryUser])
    environment.parsed_options = argparse.Namespace(namespace="n", seed=0)
    environment.create_local_runner()
    locustfile.MemoryUser.host = host
    user = locustfile.MemoryUser(environment)
    user.on_start()
    for step in steps:
        getattr(user, step)()
    return locustfile.result_of(environment)

print(json.dumps([take(*each) for each in json.loads(sys.argv[1])]))
"""


@dataclass
class SlowTrainer(FakeLoadServer):
    """A document is live when it was looked at `looks` times; until then it refuses every mode that names it."""

    looks: int = 8
    looked: Counter[str] = field(default_factory=Counter)
    fewest_live: list[int] = field(default_factory=list)
    """After each deletion."""

    async def show(self, request: Request) -> Response:
        name = request.path_params["id"]
        self.looked[name] += 1
        return JSONResponse({"id": name, "state": "live" if self._is_live(name) else "indexed"})

    async def query(self, request: Request) -> Response:
        body = await request.json()
        if all(map(self._is_live, body.get("document_ids", ()))):
            return await super().query(request)
        return JSONResponse({"status": 409, "code": "memory-not-ready"}, 409)

    async def delete(self, request: Request) -> Response:
        response = await super().delete(request)
        self.fewest_live.append(sum(map(self._is_live, self.documents)))
        return response

    def _is_live(self, name: str) -> bool:
        return self.looked[name] >= self.looks


def stepped(*users: tuple[FakeLoadServer, Sequence[str]]) -> list[Json]:
    """What each user saw, with requests by name, when it took these steps."""
    given = json.dumps([(server.url, list(steps)) for server, steps in users])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, given],
        cwd=ROOT,
        env=os.environ | {"LORAMEM_API_KEY": "key"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: list[Json] = json.loads(done.stdout.splitlines()[-1])
    for result in results:
        result["by_name"] = {f"{one['method']} {one['name']}": one for one in result["requests"]}
    return results


def test_a_user_uploads_asks_lists_and_deletes() -> None:
    with served(FakeLoadServer()) as server:
        asking = ["ask", "stream", "leave"] * 8
        (result,) = stepped((server, [*["upload"] * 5, *asking, "look_around", "on_stop"]))
        assert server.documents == {}
        assert len(server.deleted) == 5
    requests = result["by_name"]
    assert (result["errors"], result["exceptions"]) == ([], [])
    assert requests["POST /documents"]["count"] == 5
    assert requests["DELETE /documents/{id}"]["count"] == 5
    assert requests["POST /query [streamed]"]["count"] == 8
    assert requests["POST /query [left]"]["count"] == 8
    modes = {name.partition("[")[2].rstrip("]") for name in requests if name.startswith("POST /query [")}
    assert len(modes & {"base", "lora", "rag", "icl", "hybrid", "auto"}) >= 3
    assert {"GET /documents", "GET /jobs/{id}", "GET /readyz"} <= requests.keys()
    assert not any(one["failures"] for one in requests.values())
    named = [one["document_ids"] for one in server.asked if one["mode"] == "lora"]
    assert named
    assert all(len(ids) == 3 for ids in named)
    assert all(one["namespace"] == "n" for one in server.asked if one["mode"] != "base")


def test_a_document_that_is_learnt_may_refuse_and_holds_up_the_next() -> None:
    with served(SlowTrainer(looks=1000)) as server:
        (result,) = stepped((server, ["upload", "upload", *["ask"] * 80]))
        assert len(server.documents) == 1
    assert result["errors"] == []
    apart = {name: one for name, one in result["by_name"].items() if name.endswith(result["expected"])}
    assert sum(one["count"] for one in apart.values()) >= 3
    assert result["by_name"]["POST /query [base]"]["count"] >= 60  # nothing else is live


def test_questions_name_live_documents_and_seldom_the_one_that_is_learnt() -> None:
    server = SlowTrainer()
    with served(server):
        (result,) = stepped((server, ["upload", *["upload", "ask", "ask", "stream", "leave"] * 60]))
        kept = len(server.documents)
    assert result["errors"] == []
    questions = request_figures(result)["questions"]
    assert all(one["answered"] > 0.7 * one["asked"] > 3 for one in questions.values())
    assert sum(one["asked"] - one["answered"] for one in questions.values()) >= 3
    assert kept <= 4
    assert len(server.fewest_live) >= 10
    assert min(server.fewest_live) == 3
    named = [len(one["document_ids"]) for one in server.asked if one["mode"] in ("lora", "hybrid", "rag", "auto")]
    assert (max(named), named.count(3) > len(named) / 2) == (3, True)


def test_a_document_whose_job_failed_makes_room_for_the_next() -> None:
    with served(FakeLoadServer(state="indexed", job_state="dead")) as server:
        (result,) = stepped((server, ["upload", "look_around", "upload", "upload"]))
        assert len(server.documents) == 1
        assert len(server.deleted) == 1
    assert [one["error"] for one in result["errors"]] == ["the job is dead"]


def test_whatever_is_not_expected_is_a_failure() -> None:
    cases = [
        (FakeLoadServer(refuses={"?": (409, "memory-not-ready")}), ("upload", "upload", "ask"), "409 memory-not-ready"),
        (FakeLoadServer(refuses={"?": (503, "unavailable")}), ("ask",), "503 unavailable"),
        (FakeLoadServer(breaks="?"), ("stream",), "the stream ended with token"),
        (FakeLoadServer(fails="?"), ("stream",), "the stream ended with error"),
        (FakeLoadServer(job_state="failed"), ("upload", "look_around"), "the job is failed"),
    ]
    with ExitStack() as stack:
        for server, _, _ in cases:
            stack.enter_context(served(server))
        gone = (FakeLoadServer(url="http://127.0.0.1:9"), ("ask",))
        *results, of_gone = stepped(*((server, steps) for server, steps, _ in cases), gone)
    assert [[one["error"] for one in result["errors"]] for result in results] == [[error] for _, _, error in cases]
    assert [one["error"] for one in of_gone["errors"]] == ["0 ConnectionError"]


def test_a_smoke_run_reports_requests_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "SMOKE_S", 5.0)
    monkeypatch.setattr(soak, "SMOKE_INTERVAL_S", 0.5)
    out = tmp_path / "soak.json"
    with served(FakeLoadServer()) as server:
        arguments = ["--smoke", "--json", "--url", server.url, "--pid", str(os.getpid()), "--out", str(out)]
        assert soak.main([*arguments, "--api-key", "secret"]) == 0
        assert server.documents == {}
    said = capsys.readouterr().out.splitlines()[-1]
    report = json.loads(said)
    checked = ["requests", "failed requests", "exceptions of tasks", "answered questions"]
    assert [one["name"] for one in report["checks"]] == checked
    assert {"LORAMEM_KV_CACHE_BYTES", "LORAMEM_SOURCE_POOL_BYTES"} <= report["settings"].keys()
    assert sum(one["count"] for one in report["requests"].values()) >= 1
    assert report["processes"]["samples"] >= 8
    assert any(one["files"]["first"] > 0 for one in report["processes"]["by_process"].values())
    assert {"machine", "versions", "command", "seed", "model"} <= report.keys()
    assert json.loads(out.read_text()) == report
    for hidden in ("secret", server.url, str(tmp_path), str(os.getpid())):
        assert hidden not in report["command"]
    assert str(ROOT) not in said


def test_without_a_process_the_report_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {
        "expected": "!",
        "kinds": ["lora"],
        "requests": [{"method": "GET", "name": "/readyz", "count": 3, "failures": 1, "p50_ms": 1, "p99_ms": 1}],
        "errors": [{"name": "GET /readyz", "error": "503 ", "count": 1}],
        "exceptions": [],
    }
    monkeypatch.setattr(soak, "drive", lambda *_: result)
    with served(FakeLoadServer()) as server:
        assert soak.main(["--json", "--url", server.url]) == 1
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["processes"] is None
        assert report["processes_reason"] == "no --pid was given"
        assert [one["name"] for one in report["checks"] if not one["ok"]] == ["failed requests", "answered [lora]"]
        assert report["settings"] == {"minutes": 30, "users": 4, "interval": 10, "smoke": False}
        assert soak.main(["--url", server.url]) == 1
    said = capsys.readouterr().out
    assert "1 x GET /readyz: 503" in said
    assert "failed: answered [lora] 0 (>= 20)" in said


def test_what_the_server_was_given_is_found_and_defaults_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = {
        7: {"loramem_kv_cache_bytes": "268435456", "PATH": "/bin"},
        8: {"LORAMEM_KV_CACHE_BYTES": "1", "LORAMEM_SOURCE_POOL_BYTES": "134217728"},
    }
    monkeypatch.setattr(soak, "environment_of", environments.__getitem__)
    default = {"LORAMEM_KV_CACHE_BYTES": 1 << 28, "LORAMEM_SOURCE_POOL_BYTES": 1 << 30}
    assert soak.server_settings([7]) == default
    assert soak.server_settings([7, 8]) == default | {"LORAMEM_SOURCE_POOL_BYTES": 1 << 27}
    assert soak.server_settings([]) == {}


def test_a_locust_that_does_not_start_is_said_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    monkeypatch.setattr(soak, "command_of", lambda *_: broken)
    with served(FakeLoadServer()) as server, pytest.raises(SystemExit, match=r"exit status 1:\nno such thing"):
        soak.main(["--smoke", "--url", server.url])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--pid", "999999999"], "no such process"),
        (["--pid", str(os.getpid()), "--minutes", "1"], "fewer than 8 samples"),
        (["--minutes", "0"], "must be above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        soak.main(given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
