"""What the engine says of itself before it runs."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import Gauge, generate_latest

from loramem.base_model import BaseModel
from loramem.chat import load_tokenizer
from loramem.errors import EngineUnavailable, InvalidValue, LoramemError, StoredDataDamaged
from loramem.settings import Settings
from server.engine import engine as engine_module
from server.engine.engine import Engine, EngineAdapter, Sampling
from server.engine.extension import WorkerExtension
from tests.trainer_worker.tiny import save_tiny_model


def test_slots_are_as_many_as_the_settings_say() -> None:
    assert Engine(Settings(max_loras=3), BaseModel(Path("nowhere"), "noting", "f" * 64)).slots == 3


def test_what_is_loaded_at_the_start_is_left_out_of_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(engine: Engine, method: str, *arguments: Any) -> list[Any]:
        return [None]

    monkeypatch.setattr(Engine, "_load", lambda engine: None)
    monkeypatch.setattr(Engine, "_call", answer)
    gc.unfreeze()
    try:
        asyncio.run(Engine(Settings(), BaseModel(Path("nowhere"), "noting", "f" * 64)).start())
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()


def test_it_runs_once_it_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def load(engine: Engine) -> None:
        engine._llm = SimpleNamespace(errored=False)

    async def answer(engine: Engine, method: str, *arguments: Any) -> list[Any]:
        seen.append(engine.running)
        return [None]

    monkeypatch.setattr(Engine, "_load", load)
    monkeypatch.setattr(Engine, "_call", answer)
    engine = Engine(Settings(), BaseModel(Path("nowhere"), "noting", "f" * 64))
    try:
        asyncio.run(engine.start())
        assert (seen, engine.running) == ([False], True)
        engine._llm.errored = True
        assert not engine.running
    finally:
        gc.unfreeze()


class Gone(Exception):
    pass


def test_no_series_are_kept_of_the_adapters_that_ran_together() -> None:
    """As vLLM keeps one for each set of them, for ever."""
    gauge = Gauge("vllm:lora_requests_info", "of a test", ["running_lora_adapters"])
    logger = SimpleNamespace(gauge_lora_info=gauge)
    engine_module._name_no_adapters([logger, SimpleNamespace(), SimpleNamespace(gauge_lora_info=None)])
    assert logger.gauge_lora_info is None
    assert "vllm:lora_requests_info" not in generate_latest().decode()


class Vocabulary:
    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


def engine_with(**methods: Any) -> Engine:
    engine = Engine(Settings(), BaseModel(Path("nowhere"), "noting", "f" * 64))
    engine._llm = SimpleNamespace(errored=False, **methods)
    engine.__dict__["end_of_turn"] = 2  # of a tokenizer that is not there
    return engine


def output(text: str, finish_reason: str | None) -> Any:
    said = SimpleNamespace(text=text, token_ids=[1], logprobs=None, finish_reason=finish_reason)
    return SimpleNamespace(outputs=[said], metrics=None, finished=finish_reason is not None)


async def said(engine: Engine) -> list[str]:
    return [delta.text async for delta in engine.generate([1, 2], Sampling(8))]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_ends_as_the_engine_says(reason: str) -> None:
    async def generate(*_: Any, **__: Any) -> AsyncGenerator[Any, None]:
        yield output("So", None)
        yield output(" it is.", reason)

    assert asyncio.run(said(engine_with(generate=generate))) == ["So", " it is."]


def test_an_answer_that_the_engine_gives_up_is_no_answer() -> None:
    async def generate(*_: Any, **__: Any) -> AsyncGenerator[Any, None]:
        yield output("So", None)
        yield output("", "abort")

    with pytest.raises(EngineUnavailable, match="gave the answer up; ask again"):
        asyncio.run(said(engine_with(generate=generate)))


@pytest.mark.parametrize(
    ("error", "why"),
    [("EngineDeadError", "died; it is being restarted"), ("EngineGenerateError", "failed at this; its log says why")],
)
def test_an_answer_that_the_engine_fails_at_is_unavailable(error: str, why: str) -> None:
    from vllm.v1.engine import exceptions

    async def generate(*_: Any, **__: Any) -> AsyncGenerator[Any, None]:
        yield output("So", None)
        raise getattr(exceptions, error)

    with pytest.raises(EngineUnavailable, match=why):
        asyncio.run(said(engine_with(generate=generate)))


def test_the_worker_is_told_to_give_memory_back() -> None:
    called: list[tuple[str, tuple[Any, ...]]] = []

    async def collective_rpc(method: str, args: tuple[Any, ...]) -> list[Any]:
        called.append((method, args))
        return [None]

    asyncio.run(engine_with(collective_rpc=collective_rpc).trim_memory())
    assert called == [(WorkerExtension.loramem_trim_memory.__name__, ())]


def test_a_call_that_the_engine_fails_is_said_to_be_its_failure() -> None:
    async def collective_rpc(method: str, args: tuple[Any, ...]) -> list[Any]:
        raise Gone("Server shutting down")

    async def prefetch() -> None:
        await engine_with(collective_rpc=collective_rpc).prefetch(EngineAdapter("a", 1, "path"))

    with pytest.raises(EngineUnavailable, match="failed at this") as caught:
        asyncio.run(prefetch())
    assert isinstance(caught.value.__cause__, Gone)


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("StoredDataDamaged", StoredDataDamaged, "ada_1 is gone; restore its folder, or delete its document"),
        ("VLLMValidationError", InvalidValue, "ada_1 is gone"),
        ("OSError", EngineUnavailable, "could not be loaded; the engine's log says why"),
    ],
)
def test_an_adapter_that_cannot_be_had_is_refused_with_what_to_do(
    kind: str, error: type[LoramemError], said: str
) -> None:
    async def collective_rpc(method: str, args: tuple[Any, ...]) -> list[Any]:
        return [{"error": kind, "detail": "ada_1 is gone"}]

    async def activate() -> None:
        async with engine_with(collective_rpc=collective_rpc).activating(EngineAdapter("a", 1, "path")) as activation:
            await activation

    with pytest.raises(error, match=said):
        asyncio.run(activate())


def test_a_conversation_that_the_template_refuses_is_the_callers_mistake(tmp_path: Path) -> None:
    engine = engine_with()
    engine._tokenizer = load_tokenizer(save_tiny_model(tmp_path))
    engine._tokenizer.chat_template = "{{ raise_exception('the user speaks first') }}"
    roles = ("assistant", "user")
    with pytest.raises(InvalidValue, match="noting cannot read this conversation: the user speaks first") as caught:
        engine.encode_chat([{"role": role, "content": "who ?"} for role in roles])
    named = {"key": "messages", "value": "assistant, user", "allowed": "the user speaks first"}
    assert (caught.value.status, caught.value.extra) == (422, named)


@pytest.mark.parametrize("starts_at", [0.0, 0.3], ids=["has a process", "will have one"])
def test_an_engine_that_is_still_loading_is_ended_with_its_processes(
    monkeypatch: pytest.MonkeyPatch, starts_at: float
) -> None:
    killed = threading.Event()
    core = SimpleNamespace(name="EngineCore", kill=killed.set)
    parser = SimpleNamespace(name="parser", kill=lambda: pytest.fail("it is not the engine's"))
    children = [parser]

    def from_engine_args(arguments: object) -> None:
        loading.set()
        time.sleep(starts_at)
        children.append(core)
        assert killed.wait(5)
        raise RuntimeError("the core is gone")

    loading = threading.Event()
    engine = loads_by(from_engine_args, monkeypatch)
    monkeypatch.setattr("server.engine.engine.multiprocessing.active_children", lambda: children)
    with ThreadPoolExecutor() as threads:
        load = threads.submit(engine._load)
        assert loading.wait(30)
        engine.stop()
        assert load.done() or killed.is_set()
        assert isinstance(load.exception(), RuntimeError)


def test_an_engine_that_was_stopped_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = loads_by(lambda arguments: pytest.fail("a process nobody ends"), monkeypatch)
    engine.stop()
    engine._load()
    assert not engine.running


def loads_by(from_engine_args: Callable[[object], None], monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr("vllm.v1.engine.async_llm.AsyncLLM.from_engine_args", from_engine_args)
    monkeypatch.setattr("loramem.chat.load_tokenizer", lambda path: Vocabulary())
    monkeypatch.setattr("server.engine.options.set_environment", lambda settings: None)
    arguments = SimpleNamespace(speculative_config=None)
    monkeypatch.setattr("server.engine.options.engine_args", lambda settings, base: arguments)
    return Engine(Settings(), BaseModel(Path("nowhere"), "nothing", "f" * 64))
