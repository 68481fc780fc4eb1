"""Locust in processes of its own: importing it patches the standard library."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks import soak
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
        assert len(server.deleted) == 5  # beyond three the oldest goes at once
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
    with served(FakeLoadServer(state="indexed", refuses={"?": (409, "memory-not-ready")})) as server:
        (result,) = stepped((server, ["upload", "upload", *["ask"] * 12]))
        assert len(server.documents) == 1
    assert {one["name"] for one in result["errors"]} <= {"POST /query [base]"}  # for which nothing need be learnt
    apart = {name: one for name, one in result["by_name"].items() if name.endswith(result["expected"])}
    assert sum(one["count"] for one in apart.values()) >= 3
    assert not any(one["failures"] for one in apart.values())


def test_whatever_is_not_expected_is_a_failure() -> None:
    cases = [
        (FakeLoadServer(refuses={"?": (409, "memory-not-ready")}), ("upload", "ask"), "409 memory-not-ready"),
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
    monkeypatch.setattr(soak, "SMOKE_S", 6.0)
    monkeypatch.setattr(soak, "SMOKE_INTERVAL_S", 0.5)
    out = tmp_path / "soak.json"
    with served(FakeLoadServer()) as server:
        arguments = ["--smoke", "--json", "--url", server.url, "--pid", str(os.getpid()), "--out", str(out)]
        assert soak.main([*arguments, "--api-key", "secret"]) == 0
        assert server.documents == {}
    said = capsys.readouterr().out.splitlines()[-1]
    report = json.loads(said)
    assert [one["name"] for one in report["checks"]] == ["requests", "failed requests", "exceptions of tasks"]
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
        assert [one["name"] for one in report["checks"] if not one["ok"]] == ["failed requests"]
        assert soak.main(["--url", server.url]) == 1
    assert "1 x GET /readyz: 503" in capsys.readouterr().out


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
