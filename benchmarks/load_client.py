"""One question over HTTP, streamed, with the time of every token. Of loramem's gateway or of an engine behind it."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from benchmarks.load_plan import Planned
from loramem import prompts
from loramem.client import read_events
from loramem.records import Compose

Json = dict[str, Any]
SILENCE_S = 120.0
"""A stream that says nothing for so long is given up."""
CUT_OFF = "cut off"
MALFORMED = "malformed event"
ADAPTER_MODES = ("lora", "hybrid")
MERGED_BY = {"method": "ties"}
"""As in the paper."""


@dataclass
class Reply:
    """Times in seconds by `time.perf_counter`: when it was sent, each token event, the end. `error`: "" or its kind."""

    sent: float
    tokens: list[float] = field(default_factory=list)
    ended: float = 0.0
    error: str = ""
    answer: str = ""
    adapters: tuple[str, ...] = ()
    merge_cache: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


Ask = Callable[[Planned], Awaitable[Reply]]


@dataclass(frozen=True)
class Sampling:
    """By the names that gateway and engine both take."""

    temperature: float
    seed: int


ALMOST_GREEDY = Sampling(temperature=0.01, seed=0)
"""The least temperature that vLLM does not raise."""


@dataclass(frozen=True)
class Asking:
    """How the gateway is asked. `ids`: the server's document ids by number, to name the question's; empty: route.
    `sampling`: None is greedy.
    """

    namespace: str
    top_k: int = 3
    compose: Compose = "merge"
    ids: Sequence[str] = ()
    sampling: Sampling | None = None

    def body(self, planned: Planned) -> Json:
        how = {"merge": MERGED_BY} if self.compose == "merge" else {}
        adapters = {"top_k": self.top_k, "compose": self.compose, **how} if planned.mode in ADAPTER_MODES else {}
        named = {"document_ids": [self.ids[planned.document]]} if self.ids and planned.mode != "base" else {}
        return {
            "question": planned.question,
            "mode": planned.mode,
            "namespace": self.namespace,
            "max_tokens": planned.max_tokens,
            "stream": True,
            **adapters,
            **named,
            **_sampled(self.sampling),
        }


def connect(url: str, api_key: str | None) -> httpx.AsyncClient:
    """As many connections as there are questions in flight."""
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(SILENCE_S, connect=10, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )


async def ask_gateway(http: httpx.AsyncClient, body: Json) -> Reply:
    """`POST /query`. Whatever goes wrong is in the reply."""
    return await _ask(http, "/query", body, _read_gateway)


async def ask_engine(
    http: httpx.AsyncClient, adapter_id: str, planned: Planned, sampling: Sampling | None = None
) -> Reply:
    """`POST /v1/chat/completions` of a stock vLLM: the messages of a closed-book question, to the same adapter. Without
    `sampling` greedily.
    """
    body = {
        "model": f"loramem:{adapter_id}",
        "messages": prompts.closed_book(planned.question),
        "max_tokens": planned.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampled(sampling),
    }
    return await _ask(http, "/v1/chat/completions", body, _read_engine)


def _sampled(sampling: Sampling | None) -> Json:
    return asdict(sampling) if sampling else {}


async def _ask(
    http: httpx.AsyncClient, path: str, body: Json, read: Callable[[Reply, httpx.Response], Awaitable[bool]]
) -> Reply:
    reply = Reply(time.perf_counter())
    try:
        async with http.stream("POST", path, json=body) as response:
            if response.is_error:
                await response.aread()
                reply.error = _refusal(response)
            elif not await read(reply, response) and not reply.error:
                reply.error = CUT_OFF
    except httpx.TransportError as error:
        reply.error = type(error).__name__
    except json.JSONDecodeError:
        reply.error = MALFORMED
    reply.ended = time.perf_counter()
    return reply


async def _read_gateway(reply: Reply, response: httpx.Response) -> bool:
    """Whether the stream came to its end."""
    async for block in _blocks(response):
        now = time.perf_counter()
        for event in read_events([block]):
            if event.kind == "token":
                reply.tokens.append(now)
            elif event.kind == "route":
                reply.adapters = tuple(one["adapter_id"] for one in event.data["routed"])
                reply.merge_cache = (event.data["merge"] or {}).get("cache")
            elif event.kind == "error":
                reply.error = f"in the stream: {_kind(event.data.get('status', 500), event.data)}"
            elif event.kind == "done":
                reply.answer = event.data["answer"]
                _count(reply, event.data["usage"])
                return True
    return False


async def _read_engine(reply: Reply, response: httpx.Response) -> bool:
    """Whether the stream came to its end."""
    async for block in _blocks(response):
        now = time.perf_counter()
        if block.strip() == "data: [DONE]":
            reply.answer = reply.answer.strip()
            return True
        for event in read_events([block]):
            if "error" in event.data:
                error = event.data["error"]
                reply.error = f"in the stream: {error.get('code') or error.get('type') or 'error'}"
                continue
            text = "".join(choice["delta"].get("content") or "" for choice in event.data["choices"])
            if text:
                reply.tokens.append(now)
                reply.answer += text
            if event.data.get("usage"):
                _count(reply, event.data["usage"])
    return False


def _count(reply: Reply, usage: Json) -> None:
    reply.prompt_tokens, reply.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]


async def _blocks(response: httpx.Response) -> AsyncIterator[str]:
    """Whole events, each with the empty line that ends it. Not by httpx's lines, which also break at U+2028."""
    rest = ""
    async for piece in response.aiter_text():
        *whole, rest = (rest + piece).split("\n\n")
        for block in whole:
            yield f"{block}\n\n"


def _refusal(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        body = None
    return _kind(response.status_code, body if isinstance(body, dict) else {})


def _kind(status: int, problem: Json) -> str:
    """Such as `409 memory-not-ready`; without the code of a problem document, the status alone."""
    return f"{status} {problem.get('code', '')}".strip()
