"""What the engine says of itself before it runs."""

import asyncio
import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loramem.base_model import BaseModel
from loramem.settings import Settings
from server.engine.engine import Engine


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
