"""The read flow beside everything else that the gateway does."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from loramem.embed import Embedder
from loramem.settings import Settings
from server.answer import whole
from server.ask import Ask
from server.engine.engine import Sampling
from tests.loramem.test_vectors import Held
from tests.rows import add_document
from tests.server.conftest import MakeGateway
from tests.server.learned import learn

MANY = 50
"""Questions, more than asyncio has threads."""


def test_questions_of_a_namespace_that_is_being_read_leave_a_thread_for_others(
    make_settings: Callable[..., Settings],
    make_gateway: MakeGateway,
    embedder: Embedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = make_gateway(make_settings())
    add_document(gateway.database, "doc_a", "The lighthouse of Korrin stands on a reef of red basalt.")
    with gateway.database.write() as session:
        gateway.queue.enqueue(session, "doc_a", 1)
    learn(gateway, embedder)
    held = Held("doc_a", monkeypatch)

    async def run() -> None:
        await gateway.engine.start()
        asked = Ask("What does the lighthouse stand on?", "rag", "default", Sampling(4))
        answers = [asyncio.create_task(whole(gateway.answerer.answer(asked))) for _ in range(MANY)]
        while not held.begun.is_set():  # noqa: ASYNC110 another thread sets it
            await asyncio.sleep(0.01)
        try:
            await asyncio.wait_for(asyncio.to_thread(gateway.metrics.exposition), 20)
        finally:
            held.goes_on.set()
        await asyncio.gather(*answers)

    asyncio.run(run())


def test_a_prompt_waits_for_no_upload(make_settings: Callable[..., Settings], make_gateway: MakeGateway) -> None:
    gateway, goes_on = make_gateway(make_settings()), threading.Event()

    async def run() -> None:
        await gateway.engine.start()
        uploads = [asyncio.create_task(asyncio.to_thread(goes_on.wait, 60)) for _ in range(MANY)]
        await asyncio.sleep(0)
        try:
            asked = Ask("What does the lighthouse stand on?", "base", "default", Sampling(4))
            await asyncio.wait_for(whole(gateway.answerer.answer(asked)), 20)
            await asyncio.wait_for(whole(gateway.answerer.complete("The lighthouse", Sampling(4))), 20)
        finally:
            goes_on.set()
        await asyncio.gather(*uploads)

    asyncio.run(run())
