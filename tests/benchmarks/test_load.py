"""The whole of `benchmarks.load` against a server that streams, and what it does before and after."""

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load, load_plan, load_plots, load_prepare
from benchmarks.load import main
from benchmarks.load_documents import TRAINING, synthesize
from benchmarks.load_prepare import NotIdle, await_idle, documents_at, jobs_at_work
from benchmarks.load_run import LEVELS, Level
from benchmarks.passages import NotLearnt
from loramem.client import Client
from tests.benchmarks.fake_load_server import FakeLoadServer, served

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SMOKE_S", 0.5)
    monkeypatch.setattr(load, "SMOKE_RATE", 40.0)
    monkeypatch.setattr(load, "SMOKE_CAPACITY_S", 0.3)
    monkeypatch.setattr(load_prepare, "POLL_S", 0.01)


def reported(capsys: pytest.CaptureFixture[str]) -> Json:
    report: Json = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


# the run


def test_a_smoke_run_learns_asks_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with served(FakeLoadServer(first_s=0.02, busy=2)) as server:
        assert main(["--smoke", "--json", "--url", server.url, "--api-key", "secret", "--modes", "lora:3,rag"]) == 0
        assert server.documents == {}
        assert len(server.deleted) == 4
    report = reported(capsys)
    every = report["load"]["all"]
    assert [(one["name"], one["ok"]) for one in report["checks"]] == [
        ("questions without an answer", True),
        ("tokens a second", True),
        ("without an answer while capacity was measured", True),
    ]
    assert every["answered"] == every["questions"] > 0
    assert every["errors"] == {}
    assert every["ttft_ms"]["p50"] >= 20
    assert 1 <= len(report["capacity"]["levels"]) <= 2
    assert report["rate_per_s"] == 40
    assert set(report["load"]["modes"]) == {"lora", "rag"}
    assert report["load"]["modes"]["lora"]["merge_cache_hit_share"] is not None
    assert (report["overhead"], report["model"]) == (None, "tiny")
    assert {"machine", "versions", "seed"} <= report.keys()
    said = json.dumps(report)
    assert server.url not in said
    assert "secret" not in said
    (namespace,) = {one["namespace"] for one in server.asked}
    assert namespace.startswith("load-")
    assert all(one["stream"] for one in server.asked)
    lora = [one for one in server.asked if one["mode"] == "lora"]
    assert {(one["top_k"], one["compose"]) for one in lora} == {(3, "merge")}
    assert not any("document_ids" in one for one in server.asked)


def test_a_rate_that_is_given_is_kept_and_needs_no_capacity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "load.json"
    with served(FakeLoadServer()) as server:
        given = ["--json", "--url", server.url, "--documents", "3", "--rate", "20", "--seconds", "1", "--zipf", "0"]
        main([*given, "--named", "--slo-ttft-ms", "60000", "--out", str(out)])  # its times are not judged
    report = reported(capsys)
    assert (report["capacity"], report["rate_per_s"]) == (None, 20)
    assert len(server.asked) == report["load"]["all"]["questions"]
    assert 5 <= len(server.asked) <= 40
    assert report["load"]["all"]["goodput"]["share"] == 1
    assert [one["name"] for one in report["checks"]] == [
        "questions without an answer", "tokens a second", "TTFT, p99 / p50",
    ]  # fmt: skip
    assert all(len(one["document_ids"]) == 1 for one in server.asked)
    assert report["settings"]["named"]
    assert json.loads(out.read_text()) == report
    assert report["plots"] == ["load-time.png", "load-time.svg", "load-cdf.png", "load-cdf.svg"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in report["plots"])
    assert report["command"] == (
        "python -m benchmarks.load --json --documents 3 --rate 20 --seconds 1 --modes lora:1 --top-k 3 --compose merge "
        "--zipf 0 --named --max-tokens 16 --slo-ttft-ms 60000 --seed 0"
    )


def test_what_is_not_answered_fails_and_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with served(FakeLoadServer(refuses={"?": (503, "engine-unavailable")})) as server:
        given = ["--url", server.url, "--documents", "2", "--rate", "20", "--seconds", "0.5"]
        assert main([*given, "--json"]) == 1
        report = reported(capsys)
        assert main(given) == 1
    every = report["load"]["all"]
    assert every["errors"] == {"503 engine-unavailable": every["questions"]}
    assert every["ttft_ms"] is None
    assert "x 503 engine-unavailable" in capsys.readouterr().out


def capacity(failed: Sequence[int]) -> Callable[..., Awaitable[list[Level]]]:
    """At one, two and four at once."""
    found = zip((1, 2, 4), (20.0, 40.0, 39.0), (200, 400, 390), failed, strict=True)
    levels = [Level(*one) for one in found]

    async def measured(*_: object) -> list[Level]:
        return levels

    return measured


def test_the_rate_is_a_share_of_the_capacity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "measure_capacity", capacity(failed=(0, 0, 0)))
    with served(FakeLoadServer()) as server:
        main(["--json", "--url", server.url, "--documents", "2", "--seconds", "1", "--capacity-share", "0.5"])
    report = reported(capsys)
    assert (report["capacity"]["per_s"], report["capacity"]["concurrency"], report["rate_per_s"]) == (40, 2, 20)
    assert 5 <= report["load"]["all"]["questions"] <= 40


def test_a_question_that_failed_while_capacity_was_measured_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "measure_capacity", capacity(failed=(0, 3, 1)))
    with served(FakeLoadServer()) as server:
        assert main(["--smoke", "--json", "--url", server.url]) == 1
    (failed,) = (one for one in reported(capsys)["checks"] if not one["ok"])
    assert (failed["name"], failed["value"]) == ("without an answer while capacity was measured", 4)


def test_no_answer_at_all_gives_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "CAPACITY_S", 0.2)
    with served(FakeLoadServer(refuses={"?": (503, "engine-unavailable")})) as server:
        with pytest.raises(SystemExit, match="the closed loop got no answer"):
            main(["--url", server.url, "--documents", "2", "--concurrency", "1"])
        assert server.documents == {}


def test_a_trace_gives_the_times_and_the_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "traces").mkdir()
    rows = [f"2023-11-16 18:00:{2 * number:02}.0000000,9,{number}" for number in range(1, 9)]
    (tmp_path / "traces" / "azure.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows))
    monkeypatch.setattr(load_plan, "DATA", tmp_path)
    given = ["--documents", "2", "--rate", "5", "--trace", "azure.csv", "--max-tokens", "3"]
    with served(FakeLoadServer()) as server:
        main(["--json", "--url", server.url, "--seconds", "1", *given])
        assert sorted(one["max_tokens"] for one in server.asked) == [1, 2, 3, 3, 3]
        assert reported(capsys)["settings"]["trace"] == "azure.csv"
        with pytest.raises(SystemExit, match="8 requests, 11 are needed"):
            main(["--url", server.url, "--seconds", "2", *given])
        assert server.documents == {}


def test_the_overhead_is_measured_beside_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with served(FakeLoadServer(first_s=0.01)) as server:
        assert main(["--smoke", "--json", "--url", server.url, "--engine-url", server.url]) == 0
    report = reported(capsys)
    side = {"slots": 16, "max_num_seqs": None, "max_num_batched_tokens": None, "drafted_tokens": 0}
    assert (report["settings"]["gateway"], report["settings"]["engine"]) == (side, side)
    assert report["overhead"]["e2e_ms"]["engine"]["p50"] >= 10
    assert report["overhead"]["pairs"] == 4
    assert report["overhead"]["same_answers"] == 1
    assert report["overhead"]["ttft_ms"]["engine"]["p50"] >= 10
    assert report["checks"][3:] == [{"name": "overhead measured", "value": 1.0, "bound": "= 1", "ok": True}]
    assert {one["model"] for one in server.engine_asked} == {f"loramem:ada_doc_{number}" for number in range(4)}
    single = [one for one in server.asked if one["top_k"] == 1]
    assert all(one["mode"] == "lora" and len(one["document_ids"]) == 1 for one in single)
    once = 4 * 3 + 4  # every question once before
    assert len(single) == len(server.engine_asked) == 2 * once
    of_gateway, of_engine = (
        [(one["temperature"], one["seed"]) for one in asked[once:]] for asked in (single, server.engine_asked)
    )
    assert of_gateway == of_engine == [(0.01, 0)] * once
    assert not any(one.get("temperature") for one in (*single[:once], *server.engine_asked[:once]))


def test_drafts_of_the_gateway_are_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    with served(FakeLoadServer(drafts=2)) as server, served(FakeLoadServer()) as engine:
        main(["--smoke", "--json", "--url", server.url, "--engine-url", engine.url])
        loaded = len(server.asked) - 2 * (4 * 3 + 4)
    report = reported(capsys)
    assert report["overhead"]["drafted_tokens"] == {"gateway": 2 * 4, "engine": 0}
    assert "e2e_ms" not in report["overhead"]
    assert "e2e_ms_with_drafts" in report["overhead"]
    without = report["overhead"]["without_drafts"]
    assert without["drafted_tokens"] == {"gateway": 0, "engine": 0}
    assert (without["pairs"], without["pairs_of_one_length"]) == (4, 4)
    assert without["e2e_ms"]["difference"]
    assert 0 < report["settings"]["gateway"]["drafted_tokens"] <= 2 * loaded  # a few were dropped with the last level


def test_an_engine_with_another_prompt_leaves_the_load_standing(capsys: pytest.CaptureFixture[str]) -> None:
    with served(FakeLoadServer(engine_prompt_tokens=31)) as server:
        assert main(["--smoke", "--json", "--url", server.url, "--engine-url", server.url]) == 1
    report = reported(capsys)
    assert report["overhead"] is None
    assert report["overhead_reason"] == "the gateway's prompt has 20 tokens, the engine's 31"
    assert [one["name"] for one in report["checks"] if not one["ok"]] == ["overhead measured"]
    assert report["load"]["all"]["answered"] > 0


def test_without_matplotlib_there_are_no_plots_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(load_plots.NoPlots):
        load_plots.load_pyplot()
    with served(FakeLoadServer()) as server:
        assert main(["--smoke", "--json", "--url", server.url, "--out", str(tmp_path / "a.json")]) == 0
    found = capsys.readouterr()
    report = json.loads(found.out.splitlines()[-1])
    assert report["plots"] is None
    assert "matplotlib is not installed" in report["plots_reason"]
    assert "matplotlib is not installed" in found.err
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rate", "1", "--capacity-share", "0.5"], "not allowed with"),
        (["--rate", "0"], "must be above 0"),
        (["--modes", "lora:0"], "must be a number above 0"),
        (["--trace", "nowhere.csv"], "no trace 'nowhere.csv'"),
        (["--documents", "100000"], "there are names for"),
        (["--bare-engine", "nowhere"], "no data folder of loramem"),
        (["--zipf", "-1"], "must be 0 or more"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_concurrency_is_the_only_level() -> None:
    def levels(*given: str) -> Any:
        options: argparse.Namespace = load._options(given)[0]
        return options.levels

    assert levels("--concurrency", "12") == (12,)
    assert levels() == LEVELS


# documents


def test_documents_are_all_queued_before_one_is_waited_for_and_deleted() -> None:
    texts = synthesize(3, 0)
    with served(FakeLoadServer()) as server, Client(server.url, namespace="n") as client:
        with documents_at(client, texts, keep=False) as ids:
            assert ids == list(server.documents)
            uploaded = list(server.documents.values())
            assert [one["external_id"] for one in uploaded] == [one.external_id for one in texts]
            assert all(one["training"] == TRAINING and one["namespace"] == "n" for one in uploaded)
        assert server.documents == {}


def test_documents_that_were_there_are_used_and_left() -> None:
    texts = synthesize(3, 0)
    with served(FakeLoadServer()) as server, Client(server.url, namespace="n") as client:
        with documents_at(client, texts[:2], keep=True) as kept:
            pass
        with documents_at(client, texts, keep=False) as ids:
            assert ids[:2] == kept
        assert list(server.documents) == kept


def test_a_job_that_failed_ends_the_run_and_leaves_nothing() -> None:
    with served(FakeLoadServer(job_state="failed")) as server, Client(server.url, namespace="n") as client:
        with pytest.raises(NotLearnt), documents_at(client, synthesize(2, 0), keep=False):
            pass
        assert server.documents == {}


def test_a_server_that_went_away_does_not_hide_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        served(FakeLoadServer()) as server,
        Client(server.url, namespace="n") as client,
        documents_at(client, synthesize(2, 0), keep=False),
    ):
        server.documents.clear()
    assert "documents may be left" in capsys.readouterr().err


def test_the_load_waits_until_nobody_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(FakeLoadServer(busy=3)) as server:
        await_idle(server.url, None)
        assert server.busy == -1
        assert capsys.readouterr().err == "waiting for 1 jobs\n"
        server.busy = 100
        monkeypatch.setattr(load_prepare, "IDLE_S", 0.0)
        with pytest.raises(NotIdle, match="1 jobs are queued or running"):
            await_idle(server.url, None)


def test_jobs_at_work_are_those_queued_and_running() -> None:
    lines = '# TYPE loramem_jobs gauge\nloramem_jobs{state="queued"} 2.0\nloramem_jobs{state="running"} 1.0\n'
    assert jobs_at_work(lines + 'loramem_jobs{state="failed"} 9.0\n') == 3
    with pytest.raises(ValueError, match="queued, running"):
        jobs_at_work("")
