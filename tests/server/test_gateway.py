"""The gateway's life: what it refuses to start with, its housekeeping, its end."""

import asyncio
import errno
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from loramem.errors import SettingsError
from loramem.precision import ENTRY_BYTES, precision
from loramem.settings import Settings
from loramem.tables import Adapter
from server import gateway as module
from server.gateway import Gateway
from tests.rows import add_adapters, add_document, serve
from tests.server.conftest import MakeGateway
from tests.server.scripted_engine import ScriptedEngine


class Ended:
    """Stands for the signal that ends the process."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ended:
    counter = Ended()
    monkeypatch.setattr(module, "_end_process", counter)
    monkeypatch.setattr(module, "WATCH_S", 0.01)
    monkeypatch.setattr(module, "RECONCILE_S", 0.02)
    monkeypatch.setattr(module, "FOLLOW_S", 0.02)
    monkeypatch.setattr(module, "AHEAD_S", 0.02)
    monkeypatch.setattr(module, "CALIBRATE_S", 0.02)
    monkeypatch.setattr(module, "TRIM_S", 0.02)
    return counter


@pytest.fixture
def gateway(make_settings: Callable[..., Settings], make_gateway: MakeGateway) -> Gateway:
    return make_gateway(make_settings())


def scripted(gateway: Gateway) -> ScriptedEngine:
    assert isinstance(gateway.engine, ScriptedEngine)
    return gateway.engine


def live(gateway: Gateway, meanwhile: Callable[[], Any], until: Callable[[], bool] = lambda: True) -> None:
    async def run() -> None:
        gateway.start()
        await asyncio.sleep(0.05)
        meanwhile()
        await asyncio.sleep(0.15)
        for _ in range(1000):
            if until():
                break
            await asyncio.sleep(0.01)
        await gateway.stop()

    asyncio.run(run())


def test_a_window_greater_than_the_models_stops_the_start(
    make_settings: Callable[..., Settings], make_gateway: MakeGateway
) -> None:
    with pytest.raises(SettingsError, match=r"LORAMEM_MAX_MODEL_LEN=100000: .* reads at most 8192 tokens"):
        make_gateway(make_settings(max_model_len=100_000))


def test_more_requests_at_once_than_a_step_has_tokens_stop_the_start(
    make_settings: Callable[..., Settings], make_gateway: MakeGateway
) -> None:
    with pytest.raises(SettingsError, match="LORAMEM_MAX_CONCURRENT_REQUESTS=4097: at most 4096"):
        make_gateway(make_settings(max_concurrent_requests=4097))
    make_gateway(make_settings(max_concurrent_requests=4097, max_model_len=8192))


def test_a_cache_that_no_window_fits_stops_the_start(
    make_settings: Callable[..., Settings], make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = (512 + 128) * 11520 * ENTRY_BYTES[precision()]
    with pytest.raises(SettingsError, match=f"LORAMEM_KV_CACHE_BYTES={least - 1}: at least {least}, .*_MODEL_LEN=512"):
        make_gateway(make_settings(kv_cache_bytes=least - 1))
    make_gateway(make_settings(kv_cache_bytes=least))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # where the engine takes a share of the GPU instead
    make_gateway(make_settings(kv_cache_bytes=1))


def test_a_start_on_another_base_model_is_told(
    make_settings: Callable[..., Settings], make_gateway: MakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings()
    told = "no live adapter was trained on smollm2-135m-instruct-bf16 as it is now (LORAMEM_MODEL)"
    gateway = make_gateway(settings)
    assert told not in caplog.text
    add_document(gateway.database, "doc_a", "text")
    serve(gateway.database, "doc_a", np.ones((6, 384), dtype=np.float32))
    add_adapters(gateway.database, "doc_a")
    make_gateway(settings)
    assert caplog.text.count(told) == 1
    with gateway.database.write() as session:
        session.scalars(select(Adapter).limit(1)).one().fingerprint = gateway.base.fingerprint
    make_gateway(settings)
    assert caplog.text.count(told) == 1


def test_starting_and_stopping(gateway: Gateway, ended: Ended) -> None:
    seen: list[bool] = []
    live(gateway, lambda: seen.append(gateway.engine.running))
    assert seen == [True]
    assert not gateway.engine.running
    assert ended.times == 0


def test_what_new_adapters_were_taught_is_read_ahead(
    gateway: Gateway, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = threading.Event()
    monkeypatch.setattr(gateway.answerer.drafts, "read_ahead", reading.set)
    live(gateway, lambda: None, until=reading.is_set)
    assert reading.is_set()


def test_an_engine_that_does_not_start_ends_the_gateway(
    gateway: Gateway, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise ValueError("no memory left")

    monkeypatch.setattr(gateway.engine, "start", fail)
    live(gateway, lambda: None, until=lambda: ended.times > 0)
    assert ended.times == 1
    assert gateway.engine_error == "ValueError: no memory left"


def test_an_engine_that_dies_ends_the_gateway(gateway: Gateway, ended: Ended) -> None:
    live(gateway, lambda: setattr(scripted(gateway), "broken", True), until=lambda: ended.times > 0)
    assert ended.times == 1


def test_the_engine_is_told_again_and_again_to_give_memory_back(
    gateway: Gateway, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scripted(gateway)
    start, told = engine.start, engine.trim_memory
    early: list[bool] = []

    async def load() -> None:
        await asyncio.sleep(0.1)
        await start()

    async def trim_memory() -> None:
        early.append(not engine.up)
        await told()

    monkeypatch.setattr(engine, "start", load)
    monkeypatch.setattr(engine, "trim_memory", trim_memory)
    live(gateway, lambda: None, until=lambda: engine.trimmed > 1)
    assert early[0], "while it loads it was asked too, and refused"
    assert engine.trimmed > 1


def test_what_was_asked_before_is_read_before_it_is_asked_again(
    make_settings: Callable[..., Settings], make_gateway: MakeGateway, ended: Ended
) -> None:
    settings = make_settings()
    first = make_gateway(settings)
    add_document(first.database, "doc_a", "text")
    live(first, lambda: first.index.search("default", np.zeros(first.index._dim, np.float32), 1))
    second = make_gateway(settings)
    live(second, lambda: None, until=lambda: bool(second.index.held()))
    assert second.index.held().keys() == {"default"}


def test_jobs_that_nobody_was_told_of_are_announced(
    gateway: Gateway, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung: list[str] = []

    def ring(job_id: str) -> bool:
        rung.append(job_id)
        return True

    monkeypatch.setattr(gateway.doorbell, "ring", ring)
    add_document(gateway.database, "doc_a", "text")
    with gateway.database.write() as session:
        job = gateway.queue.enqueue(session, "doc_a", 1)
    live(gateway, lambda: None, until=lambda: bool(rung))
    assert set(rung) == {job.id}


def test_a_database_that_is_away_for_a_while_does_not_end_the_housekeeping(
    gateway: Gateway, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()

    def away(chore: str) -> None:
        calls[chore] += 1
        raise ConnectionError("gone")

    monkeypatch.setattr(gateway.queue, "reconcile", partial(away, "reconcile"))
    monkeypatch.setattr(gateway.index, "follow", partial(away, "follow"))
    monkeypatch.setattr(gateway.answerer.router.calibrations, "renew", partial(away, "renew"))
    live(gateway, lambda: None, until=lambda: len(calls) == 3 and min(calls.values()) > 1)
    assert min(calls[chore] for chore in ("reconcile", "follow", "renew")) > 1


def test_a_chore_that_takes_long_is_done_less_often(
    gateway: Gateway, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()

    def take_long() -> None:
        calls["reconcile"] += 1
        time.sleep(0.5)  # so not again for ten seconds

    monkeypatch.setattr(gateway.queue, "reconcile", take_long)
    monkeypatch.setattr(gateway.index, "follow", lambda: calls.update(["follow"]))
    live(gateway, lambda: None, until=lambda: calls["follow"] > 5)
    assert calls["reconcile"] == 1


def test_an_index_that_cannot_be_written_does_not_keep_the_gateway_from_closing(
    gateway: Gateway, ended: Ended, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[bool] = []

    def fill_the_disk() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gateway.index, "snapshot", fill_the_disk)
    monkeypatch.setattr(gateway.doorbell, "close", lambda: closed.append(True))
    live(gateway, lambda: None)
    assert closed
    assert "the index could not be written" in caplog.text


def test_importing_the_application_does_nothing(tmp_path: Path) -> None:
    """Only a start opens files, and vLLM is imported by the engine alone."""
    check = "import sys, server.app; print(sorted({'torch', 'vllm', 'transformers', 'faiss'} & sys.modules.keys()))"
    home = {"HOME": str(tmp_path), "PATH": ""}
    loaded = subprocess.run([sys.executable, "-c", check], env=home, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []
