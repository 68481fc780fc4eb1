"""What the engine says of itself before it runs."""

import asyncio
import gc
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loramem.base_model import BaseModel
from loramem.errors import EngineUnavailable
from loramem.settings import Settings
from server.engine.engine import Engine, EngineAdapter, Sampling


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


def engine_with(**methods: Any) -> Engine:
    engine = Engine(Settings(), BaseModel(Path("nowhere"), "noting", "f" * 64))
    engine._llm = SimpleNamespace(errored=False, **methods)
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


def test_a_call_that_the_engine_fails_is_said_to_be_its_failure() -> None:
    async def collective_rpc(method: str, args: tuple[Any, ...]) -> list[Any]:
        raise Gone("Server shutting down")

    async def prefetch() -> None:
        await engine_with(collective_rpc=collective_rpc).prefetch(EngineAdapter("a", 1, "path"))

    with pytest.raises(EngineUnavailable, match="failed at this") as caught:
        asyncio.run(prefetch())
    assert isinstance(caught.value.__cause__, Gone)


def test_an_engine_that_is_still_loading_is_ended_with_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []
    children = [SimpleNamespace(name=name, kill=partial(killed.append, name)) for name in ("EngineCore", "parser")]
    monkeypatch.setattr("server.engine.engine.multiprocessing.active_children", lambda: children)
    Engine(Settings(), BaseModel(Path("nowhere"), "noting", "f" * 64)).stop()
    assert killed == ["EngineCore"]
