"""The model that writes training data, behind any OpenAI-compatible endpoint.

One that is busy, or slow, is asked again after a pause, and from then on fewer prompts at a time. One that is away, has
no credit left or does not take the key raises `WriterUnavailable`, and the worker postpones the whole job; one that
does not know the model fails it.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from loramem import tracing
from loramem.errors import TrainingFailed, WriterUnavailable
from loramem.prompts import Message

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Before asking again, beside what the endpoint asks for; spread, so that prompts do not return in step."""
LONGEST_PAUSE_S = 60.0
TIMEOUT_S = 120.0
PATIENCE_S = 240.0
"""Without a reply, after which nobody is asked again."""
BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
"""Statuses after which the same prompt may be answered."""
SLOW = frozenset({408, 429, 504})
"""Those of them that fewer prompts at a time may help against."""
NOT_ADMITTED = frozenset({401, 402, 403})
"""Statuses of a key or a credit that the endpoint does not take, any more or yet: no job is at fault, and all would
fail."""
PROMPT_REFUSED = frozenset({400, 403, 413, 422})
"""Statuses that may be one prompt's fault alone, as one that a filter stops or that is too long."""

Prompt = str | Sequence[Message]
"""Text to be continued (`/completions`) or a conversation to be answered (`/chat/completions`)."""


@dataclass
class Writer:
    """`base_url` is the endpoint's OpenAI root, ending in /v1; an empty `model` takes the first it lists. `proxies`:
    whether those of the environment are used. `at_once` prompts are asked together: half as many after one was too
    slow, one more after as many replies, at most `most_at_once`."""

    base_url: str
    model: str = ""
    api_key: str = ""
    most_at_once: int = 32
    timeout_s: float = TIMEOUT_S
    patience_s: float = PATIENCE_S
    pauses_s: Sequence[float] = PAUSES_S
    proxies: bool = True
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)
    at_once: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.at_once = self.most_at_once

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        on_each: Callable[[], None] = lambda: None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> list[str]:
        """Texts in the order of `prompts`, the i-th sampled with `seed + i`; `on_each` is called as each arrives,
        `on_wait` every second; both may raise to stop.

        A prompt that is refused has an empty text, unless all of several are. Raises `WriterUnavailable` when the
        endpoint cannot be reached, fails (5xx), is still busy or too slow after all pauses, or admits nobody
        (`NOT_ADMITTED`), and `TrainingFailed` with the endpoint's own message when it refuses.
        """
        options = {"max_tokens": max_tokens, "temperature": temperature} | ({"stop": list(stop)} if stop else {})
        bodies = [_body(prompt) | options for prompt in prompts]
        if temperature > 0:  # a seed without sampling has no meaning, and some engines fail on it
            bodies = [body | {"seed": seed + index} for index, body in enumerate(bodies)]
        return asyncio.run(self._complete_all(bodies, on_each, on_wait))

    async def _complete_all(
        self, bodies: Sequence[dict[str, object]], on_each: Callable[[], None], on_wait: Callable[[], None]
    ) -> list[str]:
        if not bodies:
            return []
        async with self._client() as client:
            requests = _Requests(self, client)
            model = self.model or await self._first_model(requests)

            async def one(body: dict[str, object]) -> str | PromptRefused:
                try:
                    text: str | PromptRefused = await self._complete_one(requests, body | {"model": model})
                except PromptRefused as refused:
                    text = refused
                on_each()
                return text

            tasks = [asyncio.ensure_future(one(body)) for body in bodies]
            answering = asyncio.gather(*tasks)
            try:
                while not (await asyncio.wait([answering], timeout=1))[0]:
                    on_wait()
                return _texts(answering.result())
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(answering, return_exceptions=True)

    async def _complete_one(self, requests: "_Requests", body: dict[str, object]) -> str:
        chat = "messages" in body
        reply = await self._call(requests, "POST", "/chat/completions" if chat else "/completions", body)
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if chat else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise TrainingFailed(f"the writer's reply has no text: {str(reply)[:200]}") from None
        return text if isinstance(text, str) else ""

    async def _first_model(self, requests: "_Requests") -> str:
        listed = (await self._call(requests, "GET", "/models")).get("data") or []
        if not listed:
            raise TrainingFailed(f"the writer at {self.base_url} lists no model: set LORAMEM_WRITER_MODEL")
        return str(listed[0]["id"])

    async def _call(
        self, requests: "_Requests", method: str, path: str, body: dict[str, object] | None = None
    ) -> dict[str, list[dict[str, dict[str, str]]]]:
        reply = await requests.send(method, self.base_url.rstrip("/") + path, body)
        if reply.status_code in (PROMPT_REFUSED if body else ()):
            raise PromptRefused(f"the writer refuses ({reply.status_code}): {_message(reply)}", reply.status_code)
        if reply.status_code >= 500 or reply.status_code in BUSY | NOT_ADMITTED:
            raise WriterUnavailable(f"the writer at {self.base_url} answers {reply.status_code}: {_message(reply)}")
        if reply.status_code >= 400:
            raise TrainingFailed(f"the writer refuses ({reply.status_code}): {_message(reply)}")
        try:
            answer = reply.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise TrainingFailed(f"the writer at {self.base_url}{path} does not answer with a JSON object")
        return answer

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return httpx.AsyncClient(
            headers=headers, timeout=self.timeout_s, transport=self.transport, trust_env=self.proxies
        )


class _Requests:
    """Those of one call of `complete`."""

    def __init__(self, writer: Writer, client: httpx.AsyncClient) -> None:
        self._writer, self._client = writer, client
        self._running, self._replies = 0, 0
        self._changed = asyncio.Condition()
        self._heard_at = time.monotonic()

    async def send(self, method: str, url: str, body: object) -> httpx.Response:
        """The first reply that is not busy, or the last one."""
        for pause_s in (*self._writer.pauses_s, None):
            async with self._turn() as at_once:
                reply = await self._once(method, url, body)
                status = reply.status_code if isinstance(reply, httpx.Response) else None
                slow = isinstance(reply, httpx.TimeoutException) or status in SLOW
                if slow:
                    self._fewer_than(at_once)
                elif status is not None and status not in BUSY:
                    self._heard()
            may_answer = slow or status in BUSY
            if not may_answer or pause_s is None or time.monotonic() - self._heard_at >= self._writer.patience_s:
                break
            await asyncio.sleep(_retry_after_s(reply) + pause_s * random.uniform(0.5, 1.0))
        if isinstance(reply, httpx.TransportError):
            raise WriterUnavailable(f"the writer at {self._writer.base_url} cannot be reached: {reply!r}") from reply
        return reply

    async def _once(self, method: str, url: str, body: object) -> httpx.Response | httpx.TransportError:
        try:
            return await self._client.request(method, url, json=body, headers=tracing.headers())
        except httpx.TransportError as error:
            return error

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[int]:
        """Waits until fewer than `at_once` run, and gives that number."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._running < self._writer.at_once)
            self._running += 1
            at_once = self._writer.at_once
        try:
            yield at_once
        finally:
            async with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _fewer_than(self, at_once: int) -> None:
        """Half of `at_once` from now on: those that were sent together and are all too slow halve it once."""
        self._replies = 0
        if max(1, at_once // 2) < self._writer.at_once:
            self._writer.at_once = max(1, at_once // 2)
            log.info("the writer at %s is slow: %d prompts at a time", self._writer.base_url, self._writer.at_once)

    def _heard(self) -> None:
        self._heard_at = time.monotonic()
        self._replies += 1
        if self._replies >= self._writer.at_once < self._writer.most_at_once:
            self._replies = 0
            self._writer.at_once += 1


def patience_s(hang_after_s: float) -> float:
    """So short that whoever is asked at its end has answered before the worker is taken for one that hangs."""
    return min(PATIENCE_S, hang_after_s - PAUSES_S[-1] - LONGEST_PAUSE_S - TIMEOUT_S)


class PromptRefused(TrainingFailed):
    """Of one prompt, where others may be answered."""

    def __init__(self, detail: str, status_code: int) -> None:
        super().__init__(detail)
        self.status_code = status_code


def _texts(found: Sequence[str | PromptRefused]) -> list[str]:
    """Raises `TrainingFailed`, or `WriterUnavailable`, where there are several prompts and all are refused."""
    refused = [one for one in found if isinstance(one, PromptRefused)]
    if len(refused) == len(found) > 1:
        first = refused[0]
        raise WriterUnavailable(first.detail) if first.status_code in NOT_ADMITTED else first
    if refused:
        log.warning("%d of %d prompts are left out: %s", len(refused), len(found), refused[0])
    return [one if isinstance(one, str) else "" for one in found]


def _retry_after_s(reply: httpx.Response | httpx.TransportError) -> float:
    """Seconds that the endpoint asks for; 0 where it does not, and for a date, which is not read."""
    text = reply.headers.get("retry-after", "") if isinstance(reply, httpx.Response) else ""
    return min(float(text), LONGEST_PAUSE_S) if text.isdecimal() else 0.0


def _body(prompt: Prompt) -> dict[str, object]:
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}


def _message(reply: httpx.Response) -> str:
    """The human part of an OpenAI error, a problem document, or the bare body."""
    try:
        body = reply.json()
    except ValueError:
        return reply.text[:300]
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or error)
    return str(error)[:300]
