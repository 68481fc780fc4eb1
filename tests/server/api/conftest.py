"""The application that `create_app` makes, running: lifespan, middleware and routers are the real ones."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from loramem.base_model import BaseModel
from loramem.embed import Embedder
from loramem.settings import Settings
from server.app import create_app
from tests.server.api.memory import Memory
from tests.server.conftest import MakeGateway, gateways, settings_in

MakeMemory = Callable[..., Memory]


@pytest.fixture
def make_memory(
    make_settings: Callable[..., Settings], make_gateway: MakeGateway, embedder: Embedder
) -> Iterator[MakeMemory]:
    """Settings to a running gateway; it is shut down after the test."""
    with memories(make_settings, make_gateway, embedder) as make:
        yield make


@pytest.fixture(scope="module")
def make_unchanged(
    tmp_path_factory: pytest.TempPathFactory, migrated: Path, base_model: BaseModel, embedder: Embedder, tokenizer: Any
) -> Iterator[MakeMemory]:
    """As `make_memory`, for all tests of a module, none of which changes anything."""

    def make_settings(**changed: Any) -> Settings:
        return settings_in(tmp_path_factory.mktemp("unchanged"), migrated, base_model, **changed)

    with gateways(embedder, tokenizer) as make_gateway, memories(make_settings, make_gateway, embedder) as make:
        yield make


@contextmanager
def memories(
    make_settings: Callable[..., Settings], make_gateway: MakeGateway, embedder: Embedder
) -> Iterator[MakeMemory]:
    with ExitStack() as running:

        def make(**changed: Any) -> Memory:
            settings = make_settings(**changed)
            gateway = make_gateway(settings)
            client = running.enter_context(TestClient(create_app(settings, gateway), base_url="http://127.0.0.1:8000"))
            return Memory(gateway, client, embedder)

        yield make


@pytest.fixture
def memory(make_memory: MakeMemory) -> Memory:
    return make_memory()
