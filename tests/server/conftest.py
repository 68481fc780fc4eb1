"""A gateway on real parts: database, queue, index, embedder, store, tokenizer. Only the engine follows a script."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loramem.base_model import BaseModel
from loramem.database import Database
from loramem.embed import Embedder, load_embedder
from loramem.migrate import migrate
from loramem.settings import Settings
from server.gateway import Gateway, build_gateway
from tests.server.scripted_engine import ScriptedEngine

MakeGateway = Callable[..., Gateway]


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return load_embedder(Settings(), device="cpu")


@pytest.fixture(scope="session")
def tokenizer(base_model: BaseModel) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model.path)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database to copy."""
    path = tmp_path_factory.mktemp("migrated") / "loramem.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.close()
    return path


@pytest.fixture
def make_settings(tmp_path: Path, migrated: Path, base_model: BaseModel) -> Callable[..., Settings]:
    def make(**changed: Any) -> Settings:
        shutil.copy(migrated, tmp_path / "loramem.db")
        return Settings(home=tmp_path, model=str(base_model.path), **{"max_model_len": 512, **changed})

    return make


@pytest.fixture
def make_gateway(monkeypatch: pytest.MonkeyPatch, embedder: Embedder, tokenizer: Any) -> Iterator[MakeGateway]:
    """`build_gateway` itself, with two things put in: the engine, and the embedder that is loaded already."""
    made: list[Gateway] = []
    monkeypatch.setattr("server.gateway.Engine", lambda settings, base: ScriptedEngine(tokenizer, base=base))
    monkeypatch.setattr("server.gateway.load_embedder", lambda settings: embedder)

    def make(settings: Settings) -> Gateway:
        made.append(build_gateway(settings))
        return made[-1]

    yield make
    for gateway in made:
        gateway.database.close()
