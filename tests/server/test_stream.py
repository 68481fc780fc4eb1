"""Server-sent events as bytes, and work that ends when its client goes away."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from loramem.client import Event, read_events
from server import stream as stream_module
from server.stream import PING_S, ClientGone, event, sse_response, streamed, while_connected
from tests.simulated_time import run_simulated


class Source:
    """Yields chunks `pause_s` apart and keeps how it ended."""

    def __init__(self, count: int, pause_s: float = 0.0, error: Exception | None = None) -> None:
        self.count, self.pause_s, self.error = count, pause_s, error
        self.ended = ""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            for n in range(self.count):
                await asyncio.sleep(self.pause_s)
                yield event("n", {"n": n}, n)
            if self.error is not None:
                raise self.error
            self.ended = "finished"
        except (GeneratorExit, asyncio.CancelledError) as stop:
            self.ended = type(stop).__name__
            raise


def body(source: Source) -> AsyncGenerator[bytes, None]:
    iterator = sse_response(source.chunks()).body_iterator
    assert isinstance(iterator, AsyncGenerator)
    return iterator


async def all_of(source: Source) -> list[bytes]:
    return [chunk async for chunk in body(source)]


def test_an_event_is_one_block_with_id_kind_and_json() -> None:
    lines = event("token", {"text": "line\nbreak · ü"}, 7).decode().splitlines()
    assert sorted(line for line in lines if line) == ['data: {"text": "line\\nbreak · ü"}', "event: token", "id: 7"]
    assert event("token", "{}").decode().count("id:") == 0


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_separator_of_unicode_breaks_no_line_of_an_event(separator: str) -> None:
    data = {"text": f"a{separator}b"}
    sent = event("token", data).decode()
    assert [line[:5] for line in sent.split("\n")].count("data:") == 1
    assert list(read_events([sent])) == [Event("token", data)]


def test_a_client_that_reads_nothing_is_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the answer holds is given back, though the connection stands."""
    monkeypatch.setattr(stream_module, "STALLED_S", 0.05)

    async def nothing_comes() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    source = Source(3)
    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    with pytest.raises(ClientGone):
        asyncio.run(sse_response(source.chunks())(scope, nothing_comes, send))
    assert source.ended == "GeneratorExit"


def test_events_pass_in_order_and_the_stream_ends_with_its_source() -> None:
    source = Source(3)
    chunks = asyncio.run(all_of(source))
    assert chunks == [event("n", {"n": n}, n) for n in range(3)]
    assert source.ended == "finished"


def test_silence_is_filled_with_comments() -> None:
    first, second = (event("n", {"n": n}, n) for n in range(2))
    pings = [b": ping\n\n"] * 2
    assert run_simulated(all_of(Source(2, pause_s=2.5 * PING_S))) == [*pings, first, *pings, second]


def test_an_error_of_the_source_ends_the_stream() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(all_of(Source(2, error=RuntimeError("broken"))))


@pytest.mark.parametrize("after", [1, 2])
def test_closing_between_events_closes_the_source(after: int) -> None:
    source = Source(5)

    async def run() -> None:
        stream = body(source)
        for _ in range(after):
            await anext(stream)
        await stream.aclose()
        assert source.ended == "GeneratorExit"  # at once, not when it is collected

    asyncio.run(run())


def test_cancelling_while_the_source_works_closes_it() -> None:
    source = Source(5, pause_s=30)

    async def run() -> None:
        waiting = asyncio.ensure_future(all_of(source))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert source.ended == "CancelledError"

    run_simulated(run())


def test_proxies_are_asked_not_to_buffer() -> None:
    headers = sse_response(Source(0).chunks()).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")


# work that needs its client


class Client:
    """The receiving side of a request whose body was read; `leave` disconnects it."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self.request = Request({"type": "http", "headers": []}, self._receive)

    async def _receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def leave(self) -> None:
        self._gone.set()


class Work:
    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.cancelled = False

    async def run(self) -> str:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return "done"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run it and see that it leaves no task behind."""

    async def watched() -> None:
        await scenario
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_simulated(watched())


def test_a_result_comes_back_while_the_client_stays() -> None:
    async def scenario() -> None:
        assert await while_connected(Client().request, Work(0.01).run()) == "done"

    run(scenario())


def test_an_error_comes_back_as_it_is() -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="wrong"):
            await while_connected(Client().request, Work(0.01, ValueError("wrong")).run())

    run(scenario())


def test_work_is_cancelled_as_soon_as_the_client_goes() -> None:
    async def scenario() -> None:
        client, work = Client(), Work(30)
        asyncio.get_running_loop().call_later(0.05, client.leave)
        with pytest.raises(ClientGone):
            await while_connected(client.request, work.run())
        assert work.cancelled

    run(scenario())


def test_a_result_that_is_there_already_is_kept_when_the_client_goes_at_the_same_moment() -> None:
    async def scenario() -> None:
        client = Client()
        client.leave()
        assert await while_connected(client.request, Work(0).run()) == "done"

    run(scenario())


def test_cancelling_the_request_cancels_the_work() -> None:
    async def scenario() -> None:
        work = Work(30)
        request = asyncio.ensure_future(while_connected(Client().request, work.run()))
        await asyncio.sleep(0.01)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert work.cancelled

    run(scenario())


def test_what_fails_is_the_last_chunk() -> None:
    async def told() -> list[bytes]:
        source = Source(0)
        return [chunk async for chunk in streamed(Source(1, error=OSError()).chunks(), source.chunks(), failed)]

    assert asyncio.run(told()) == [event("n", {"n": 0}, 0), b"OSError"]


def test_an_error_while_closing_is_no_chunk() -> None:
    async def stubborn() -> AsyncGenerator[bytes, None]:
        try:
            yield b"held"
        finally:
            raise OSError("the slot cannot be given back")

    async def leave() -> None:
        source = stubborn()
        await anext(source)
        chunks = streamed(Source(2).chunks(), source, failed)
        await anext(chunks)
        with pytest.raises(OSError, match="slot"):
            await chunks.aclose()

    asyncio.run(leave())


def failed(error: Exception) -> bytes:
    return type(error).__name__.encode()
