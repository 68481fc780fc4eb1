"""Server-sent events, and generation that ends when its client goes away."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

T = TypeVar("T")

PING_S = 15.0
STALLED_S = 60.0
"""After which a client that reads nothing is taken for gone, as what it holds others wait for."""
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ClientGone(Exception):
    """Nobody is left to answer; the reply is not sent."""


async def streamed(
    chunks: AsyncGenerator[bytes, None], source: AsyncGenerator[Any, None], failure: Callable[[Exception], bytes]
) -> AsyncGenerator[bytes, None]:
    """The chunks, and where they fail, `failure` as the last. `source`, of which they are made, ends with them."""
    async with aclosing(source), aclosing(chunks):
        try:
            async for chunk in chunks:
                yield chunk
        except Exception as error:  # noqa: BLE001 the status is sent: the stream has to say what went wrong
            yield failure(error)


def event(kind: str, data: Any, event_id: int | None = None) -> bytes:
    """One event with JSON data on one line."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    numbered = "" if event_id is None else f"id: {event_id}\n"
    return f"event: {kind}\ndata: {text}\n{numbered}\n".encode()  # no line feed is in JSON; U+2028 ends no line


def sse_response(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Stream events, with a comment every 15 s of silence so that proxies keep the connection."""
    return _Stream(_with_pings(events), media_type="text/event-stream", headers=HEADERS)


class _Stream(StreamingResponse):
    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STALLED_S):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except TimeoutError:
            assert isinstance(self.body_iterator, AsyncGenerator)
            await self.body_iterator.aclose()
            raise ClientGone from None


async def _with_pings(events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    iterator = aiter(events)
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(iterator))
            done, _ = await asyncio.wait({pending}, timeout=PING_S)
            if not done:
                yield b": ping\n\n"
                continue
            try:
                chunk = pending.result()
            except StopAsyncIteration:
                return
            pending = None
            yield chunk
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def _next(iterator: AsyncIterator[bytes]) -> bytes:
    return await anext(iterator)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, but cancel it as soon as the client disconnects (then raises `ClientGone`)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """The body has been read, so the next message can only be the disconnect."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
