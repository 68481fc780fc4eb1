import json
from functools import partial
from typing import Any

import httpx
import pytest

from benchmarks import overhead
from benchmarks.overhead import CASES, TEXTS, checks
from loramem.client import Client
from tests.benchmarks.fake_server import FakeServer

Json = dict[str, Any]


class TimedServer(FakeServer):
    """10 ms beside the engine's time; a merge of another strength than 1 is new."""

    def __init__(self, said: str = "In 1874.") -> None:
        super().__init__(lambda *_: said, refuses={}, fails={})

    def _answered(self, body: Json) -> httpx.Response:
        self.asked.append(body)
        new = body.get("merge", {}).get("strength", 1.0) != 1.0
        times = {"total": 50.0, "queue": 1.0, "prefill": 20.0, "decode": 19.0, "merge": 3.0}
        said = self.answer(body["question"], "", {})
        return httpx.Response(
            200, json={"answer": said, "merge": {"cache": "miss" if new else "hit"}, "timings_ms": times}
        )


def run(server: TimedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, Json]:
    monkeypatch.setattr(overhead, "Client", partial(Client, transport=server.transport))
    status = overhead.main(["--json", "--smoke"])
    report: Json = json.loads(capsys.readouterr().out.splitlines()[-1])
    return status, report


def test_what_is_not_the_engines_time_is_overhead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = TimedServer()
    status, report = run(server, monkeypatch, capsys)
    assert status == 0
    assert list(report["cases"]) == list(CASES)
    assert {one["overhead_ms"]["p50"] for one in report["cases"].values()} == {10.0}
    assert report["new_combinations"]["merge_ms"]["p50"] == 3.0
    assert len(server.uploaded) == len(TEXTS)
    assert not server.documents


@pytest.mark.parametrize(("said", "value"), [("In 1874.", 10), (" ...", 0)])
def test_a_smoke_run_promises_that_something_is_said(
    said: str, value: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = run(TimedServer(said), monkeypatch, capsys)
    assert report["checks"] == [{"name": "answers with a word", "value": value, "bound": "= 10", "ok": value == 10}]
    assert status == int(value != 10)


def test_every_way_to_answer_and_a_new_merge_have_a_bound() -> None:
    cases = {name: {"overhead_ms": {"p50": ms}} for name, ms in (("base", 25.0), ("rag", 25.1))}
    new = {"client_ms": {"cached": {"p50": 100.0}, "new": {"p50": 140.1}}}
    assert [one["ok"] for one in checks(cases, new)] == [True, False, False]
