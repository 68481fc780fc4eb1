"""Paired overhead with fakes, and how a bare engine is started and ended."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from benchmarks import load_engine, load_sides
from benchmarks.load_client import Reply
from benchmarks.load_engine import NoEngine, await_ready, bare_engine, command_of, environment_of, stop
from benchmarks.load_overhead import (
    Compared,
    NotComparable,
    Pair,
    measure_overhead,
    overhead_checks,
    overhead_figures,
)
from benchmarks.load_plan import Planned
from benchmarks.load_sides import ENGINE, GATEWAY, Batch, Told, batches, settings_of, told, told_by
from loramem.settings import Settings

QUESTIONS = [Planned(0.0, "lora", number, f"{number}?", 16) for number in range(2)]
QUIET = (
    "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit()); print('up', flush=True); time.sleep(600)"
)
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


def reply(
    ttft_ms: float, e2e_ms: float, *, tokens: int = 4, prompt: int = 20, adapter: str = "ada_0", **more: str
) -> Reply:
    return Reply(
        10.0,
        [10 + ttft_ms / 1000],
        10 + e2e_ms / 1000,
        adapters=(adapter,),
        prompt_tokens=prompt,
        completion_tokens=tokens,
        **more,
    )


class Sides:
    """Notes the order in which the two are asked; the gateway drafts three tokens an answer."""

    def __init__(self, of_engine: Callable[[str], Reply] = lambda adapter: reply(30, 100, adapter=adapter)) -> None:
        self.order: list[str] = []
        self.of_engine = of_engine

    async def gateway(self, asked: Planned) -> Reply:
        self.order.append(f"gateway {asked.question}")
        return reply(40, 112, adapter=f"ada_{asked.document}")

    async def engine(self, adapter_id: str, asked: Planned) -> Reply:
        self.order.append(f"engine {asked.question} {adapter_id}")
        return self.of_engine(adapter_id)

    async def tell(self) -> load_sides.Sides:
        answers = sum(one.startswith("gateway") for one in self.order)
        return {GATEWAY: Told(16, 3 * answers), ENGINE: Told(8, 0)}


def compared(*pairs: Pair, drafted: int = 0) -> Compared:
    return Compared(pairs, {GATEWAY: Told(16, drafted), ENGINE: Told(16, 0)})


EVEN = compared(Pair(reply(40, 110), reply(30, 100)))
"""What is judged of it holds."""


def test_both_sides_get_the_same_questions_in_turn_after_a_warm_up() -> None:
    sides = Sides()
    found = asyncio.run(measure_overhead(sides.gateway, sides.engine, QUESTIONS, 4, sides.tell))
    assert len(found.pairs) == 4
    assert found.told == {GATEWAY: Told(16, 4 * 3), ENGINE: Told(8, 0)}  # not those of the warm-up
    of_zero, of_one = ("gateway 0?", "engine 0? ada_0"), ("gateway 1?", "engine 1? ada_1")
    warm_up = [*of_zero, *of_one]
    assert sides.order == [*warm_up, *of_zero, *reversed(of_one), *of_zero, *reversed(of_one)]


def test_figures_are_of_paired_differences() -> None:
    found = overhead_figures(
        compared(
            Pair(reply(40, 110), reply(30, 100)),
            Pair(reply(80, 180), reply(60, 150)),
            Pair(reply(33, 95), reply(30, 90)),
        ),
        EVEN,
    )
    assert found["ttft_ms"]["difference"]["p50"] == pytest.approx(10)
    assert found["ttft_ms"]["gateway"]["p50"] == pytest.approx(40)
    assert found["ttft_ms"]["engine"]["p50"] == pytest.approx(30)
    assert found["e2e_ms"]["difference"] == {"p50": pytest.approx(10), "p95": pytest.approx(28)}
    assert (found["pairs"], found["pairs_of_one_length"], found["same_answers"]) == (3, 3, 1)
    assert found["drafted_tokens"] == {"gateway": 0, "engine": 0}
    assert [one["ok"] for one in overhead_checks(found)] == [True, True, True]


def test_a_slow_gateway_fails() -> None:
    found = overhead_figures(compared(Pair(reply(46, 110), reply(30, 100))), EVEN)
    assert [(one["name"], one["ok"]) for one in overhead_checks(found)] == [
        ("overhead p50, TTFT", False),
        ("overhead p50, whole answer", True),
        ("overhead p50, whole answer without drafts", True),
    ]


def test_whole_answers_that_were_drafted_are_told_and_not_judged() -> None:
    drafted = compared(Pair(reply(40, 60), reply(30, 100)), drafted=3)
    found = overhead_figures(drafted, drafted)
    assert found["e2e_ms_with_drafts"]["difference"]["p50"] == pytest.approx(-40)
    assert found["drafted_tokens"] == {"gateway": 3, "engine": 0}
    assert "e2e_ms" not in found | found["without_drafts"]
    assert [one["name"] for one in overhead_checks(found)] == ["overhead p50, TTFT"]


@pytest.mark.parametrize(("e2e_ms", "ok"), [(114, True), (116, False)])
def test_whole_answers_are_judged_by_the_pairs_without_drafts(e2e_ms: float, ok: bool) -> None:
    drafted = compared(Pair(reply(40, 60), reply(30, 100)), drafted=3)
    found = overhead_figures(drafted, compared(Pair(reply(60, e2e_ms), reply(30, 100))))
    assert found.keys() - {"without_drafts", "e2e_ms_with_drafts"} == found["without_drafts"].keys() - {"e2e_ms"}
    assert [(one["name"], one["ok"]) for one in overhead_checks(found)] == [
        ("overhead p50, TTFT", True),  # of the greedy pairs
        ("overhead p50, whole answer without drafts", ok),
    ]


def test_whole_answers_of_other_lengths_are_not_compared() -> None:
    longer = Pair(reply(40, 900, tokens=16, answer="a b"), reply(30, 100, answer="a"))
    some = compared(longer, Pair(reply(40, 110), reply(30, 100)))
    found = overhead_figures(some, compared(longer))
    assert found["e2e_ms"]["difference"]["p50"] == pytest.approx(10)
    assert (found["pairs_of_one_length"], found["same_answers"]) == (1, 0.5)
    assert found["without_drafts"]["e2e_ms"] is None
    assert [one["name"] for one in overhead_checks(found)] == ["overhead p50, TTFT", "overhead p50, whole answer"]


@pytest.mark.parametrize(
    ("of_engine", "said"),
    [
        (lambda adapter: reply(1, 1, prompt=31), "prompt has 20 tokens, the engine's 31"),
        (lambda adapter: reply(1, 1, error="404"), "engine: 404"),
        (lambda adapter: Reply(1.0, [], 2.0, prompt_tokens=20), "engine: an answer without a token"),
    ],
)
def test_different_work_is_not_compared(of_engine: Callable[[str], Reply], said: str) -> None:
    sides = Sides(of_engine)
    with pytest.raises(NotComparable, match=said):
        asyncio.run(measure_overhead(sides.gateway, sides.engine, QUESTIONS, 4, sides.tell))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"error": "409 memory-not-ready"}, "gateway: 409"), ({"adapters": ("a", "b")}, "2 adapters routed, not one")],
)
def test_a_gateway_that_takes_another_way_is_not_compared(change: dict[str, object], said: str) -> None:
    sides = Sides()

    async def gateway(_: Planned) -> Reply:
        return Reply(1.0, [2.0], 3.0, **change)  # type: ignore[arg-type]

    with pytest.raises(NotComparable, match=said):
        asyncio.run(measure_overhead(gateway, sides.engine, QUESTIONS, 4, sides.tell))


# what the sides are


def test_slots_and_drafts_are_read_from_metrics() -> None:
    lines = [
        "# TYPE vllm:spec_decode_num_draft_tokens_total counter",
        'vllm:spec_decode_num_draft_tokens_total{engine="0"} 12.0',
        "# TYPE vllm:lora_requests_info gauge",
        'vllm:lora_requests_info{max_lora="16",running_lora_adapters=""} 1.7e9',
        'vllm:lora_requests_info{max_lora="16",running_lora_adapters="a"} 1.7e9',
    ]
    assert told("\n".join([*lines, ""])) == Told(16, 12)
    assert told("# TYPE loramem_slots gauge\nloramem_slots 8.0\n") == Told(8, 0)
    assert told("") == Told(None, 0)
    assert Told(16, 12).since(Told(None, 5)) == Told(16, 7)
    assert Told(16, 12).since(Told()) == Told(16, None)


def test_metrics_that_cannot_be_read_tell_nothing() -> None:
    async def once() -> Told:
        transport = httpx.MockTransport(lambda _: httpx.Response(404))
        async with httpx.AsyncClient(base_url="http://engine", transport=transport) as http:
            return await told_by(http)

    assert asyncio.run(once()) == Told()


def test_batches_are_those_of_the_settings_and_of_the_engine_that_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAMEM_MAX_CONCURRENT_REQUESTS", "7")
    monkeypatch.setenv("LORAMEM_MAX_MODEL_LEN", "8192")
    monkeypatch.setattr(load_sides, "machine_options", lambda *_: ["--max-num-batched-tokens", "9000", "--x"])
    assert batches(tmp_path) == {GATEWAY: Batch(7, 8192), ENGINE: Batch(7, 9000)}
    monkeypatch.setattr(load_sides, "machine_options", lambda *_: ["--gpu-memory-utilization", "0.3"])
    assert batches(tmp_path)[ENGINE] == Batch(7, None)
    assert batches(None) == {GATEWAY: Batch(), ENGINE: Batch()}
    assert settings_of(Told(16, 3), Batch(7, 8192)) == {
        "slots": 16,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 8192,
        "drafted_tokens": 3,
    }
    monkeypatch.setenv("LORAMEM_RANK", "17")
    assert batches(tmp_path)[GATEWAY] == Batch()


# the bare engine


def test_the_engine_is_started_as_the_gateway_is_set(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, max_loras=4, max_lora_rank=32, max_model_len=512, max_concurrent_requests=7)
    command = command_of(settings, Path("/models/tiny"), 8001)
    given = dict(pairwise(command))
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    wanted = {"--model": "/models/tiny", "--max-loras": "4", "--max-lora-rank": "32", "--max-model-len": "512"}
    wanted |= {"--max-num-seqs": "7", "--port": "8001", "--host": "127.0.0.1", "--generation-config": "vllm"}
    assert wanted.items() <= given.items()
    environment = environment_of(settings)
    assert environment["LORAMEM_ENGINE_ADAPTERS"] == str(settings.adapters_path)
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def started(script: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, process_group=0)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"up\n"
    return process


@pytest.mark.parametrize(("script", "status"), [(QUIET, 0), (DEAF, -9)])
def test_it_ends_by_sigterm_or_else_by_sigkill(
    script: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load_engine, "STOP_S", 30 if script == QUIET else 0.2)
    process = started(script)
    stop(process)
    assert process.returncode == status
    assert ("killing it" in capsys.readouterr().err) == (script == DEAF)


def test_what_is_left_of_its_group_is_killed() -> None:
    """The leader goes, its child does not hear."""
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}]); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"up\n"
        process.stdin.close()
        process.wait(60)
        os.killpg(process.pid, 0)  # the child is there
        stop(process)
        assert output.read() == b""  # nobody holds the pipe


def test_one_that_ends_before_it_is_ready_is_said_with_its_words(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("no such model")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(NoEngine, match=r"exit status 3:\nno such model"):
        await_ready(process, "http://127.0.0.1:9", log)


def test_settings_that_are_wrong_start_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMEM_RANK", "17")
    with pytest.raises(NoEngine, match="LORAMEM_RANK"), bare_engine(tmp_path):
        pass


def test_the_block_has_the_address_and_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in place of vLLM that says how it was started."""
    script = tmp_path / "server.py"
    script.write_text(
        "import http.server, json, os, sys\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        f"open({str(tmp_path / 'started.json')!r}, 'w').write(json.dumps([os.getpid(), os.getpgid(0)]))\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )
    monkeypatch.setattr(load_engine, "_served", lambda home: (Settings(home=home), tmp_path))
    monkeypatch.setattr(load_engine, "machine_options", lambda *_: [])
    monkeypatch.setattr(load_engine, "command_of", lambda _, __, port: [sys.executable, str(script), str(port)])
    with bare_engine(tmp_path) as url:
        assert load_engine._is_healthy(url)
        pid, group = json.loads((tmp_path / "started.json").read_text())
        assert pid == group != os.getpgid(0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not load_engine._is_healthy(url)
