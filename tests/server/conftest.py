"""A gateway on real parts: database, queue, index, embedder, store, tokenizer. Only the engine follows a script."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
    return partial(settings_in, tmp_path, migrated, base_model)


def settings_in(home: Path, migrated: Path, base_model: BaseModel, **changed: Any) -> Settings:
    shutil.copy(migrated, home / "loramem.db")
    return Settings(home=home, model=str(base_model.path), **{"max_model_len": 512, **changed})


@pytest.fixture
def make_gateway(embedder: Embedder, tokenizer: Any) -> Iterator[MakeGateway]:
    with gateways(embedder, tokenizer) as make:
        yield make


@contextmanager
def gateways(embedder: Embedder, tokenizer: Any) -> Iterator[MakeGateway]:
    """`build_gateway` itself, with two things put in: the engine, and the embedder that is loaded already."""
    made: list[Gateway] = []

    def make(settings: Settings) -> Gateway:
        made.append(build_gateway(settings))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.gateway.Engine", lambda settings, base: ScriptedEngine(tokenizer, base=base))
        patch.setattr("server.gateway.load_embedder", lambda settings: embedder)
        yield make
    for gateway in made:
        gateway.database.close()
