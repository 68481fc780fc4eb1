"""The model that writes training data, behind any OpenAI-compatible endpoint.

One that is busy, or slow, is asked again after a pause. One that is away raises `WriterUnavailable`, and the worker
postpones the whole job.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import httpx

from loramem import tracing
from loramem.errors import TrainingFailed, WriterUnavailable
from loramem.prompts import Message

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Before asking again, beside what the endpoint asks for; spread, so that prompts do not return in step."""
LONGEST_PAUSE_S = 60.0
PATIENCE_S = 240.0
"""After which nobody is asked again: a worker that gets no text for `hang_after_s` is taken for one that hangs."""
BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
"""Statuses after which the same prompt may be answered."""
PROMPT_REFUSED = frozenset({400, 413, 422})
"""Statuses that may be one prompt's fault alone, as one that a filter stops or that is too long."""

Prompt = str | Sequence[Message]
"""Text to be continued (`/completions`) or a conversation to be answered (`/chat/completions`)."""


@dataclass(frozen=True)
class Writer:
    """`base_url` is the endpoint's OpenAI root, ending in /v1; an empty `model` takes the first it lists. `proxies`:
    whether those of the environment are used."""

    base_url: str
    model: str = ""
    api_key: str = ""
    concurrency: int = 32
    timeout_s: float = 120.0
    pauses_s: Sequence[float] = PAUSES_S
    proxies: bool = True
    transport: httpx.AsyncBaseTransport | None = field(default=None, repr=False)

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
        endpoint cannot be reached, fails (5xx), or is still busy or too slow after all pauses, and `TrainingFailed`
        with the endpoint's own message when it refuses.
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
        slots = asyncio.Semaphore(self.concurrency)
        async with self._client() as client:
            model = self.model or await self._first_model(client)

            async def one(body: dict[str, object]) -> str | PromptRefused:
                async with slots:
                    try:
                        text: str | PromptRefused = await self._complete_one(client, body | {"model": model})
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

    async def _complete_one(self, client: httpx.AsyncClient, body: dict[str, object]) -> str:
        chat = "messages" in body
        reply = await self._call(client, "POST", "/chat/completions" if chat else "/completions", body)
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if chat else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise TrainingFailed(f"the writer's reply has no text: {str(reply)[:200]}") from None
        return text if isinstance(text, str) else ""

    async def _first_model(self, client: httpx.AsyncClient) -> str:
        listed = (await self._call(client, "GET", "/models")).get("data") or []
        if not listed:
            raise TrainingFailed(f"the writer at {self.base_url} lists no model: set LORAMEM_WRITER_MODEL")
        return str(listed[0]["id"])

    async def _call(
        self, client: httpx.AsyncClient, method: str, path: str, body: dict[str, object] | None = None
    ) -> dict[str, list[dict[str, dict[str, str]]]]:
        reply = await self._asked(client, method, self.base_url.rstrip("/") + path, body)
        if reply.status_code >= 500 or reply.status_code in BUSY:
            raise WriterUnavailable(f"the writer at {self.base_url} answers {reply.status_code}: {_message(reply)}")
        if reply.status_code >= 400:
            kind = PromptRefused if reply.status_code in PROMPT_REFUSED else TrainingFailed
            raise kind(f"the writer refuses ({reply.status_code}): {_message(reply)}")
        try:
            answer = reply.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise TrainingFailed(f"the writer at {self.base_url}{path} does not answer with a JSON object")
        return answer

    async def _asked(self, client: httpx.AsyncClient, method: str, url: str, body: object) -> httpx.Response:
        """The first reply that is not busy, or the last one."""
        for pause_s in self._pauses():
            try:
                reply = await client.request(method, url, json=body, headers=tracing.headers())
            except httpx.TransportError as error:
                if pause_s is None or not isinstance(error, httpx.TimeoutException):
                    raise WriterUnavailable(f"the writer at {self.base_url} cannot be reached: {error!r}") from error
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            else:
                if pause_s is None or reply.status_code not in BUSY:
                    break
                await asyncio.sleep(_retry_after_s(reply) + pause_s * random.uniform(0.5, 1.0))
        return reply

    def _pauses(self) -> Iterator[float | None]:
        """How long to wait after each request before the next; None after the last."""
        until = time.monotonic() + PATIENCE_S
        yield from takewhile(lambda _: time.monotonic() < until, self.pauses_s)
        yield None

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return httpx.AsyncClient(
            headers=headers, timeout=self.timeout_s, transport=self.transport, trust_env=self.proxies
        )


class PromptRefused(TrainingFailed):
    """Of one prompt, where others may be answered."""


def _texts(found: Sequence[str | PromptRefused]) -> list[str]:
    """Raises the first refusal where there are several prompts and no other reply."""
    refused = [one for one in found if isinstance(one, PromptRefused)]
    if len(refused) == len(found) > 1:
        raise refused[0]
    if refused:
        log.warning("%d of %d prompts are left out: %s", len(refused), len(found), refused[0])
    return [one if isinstance(one, str) else "" for one in found]


def _retry_after_s(reply: httpx.Response) -> float:
    """Seconds that the endpoint asks for; 0 where it does not, and for a date, which is not read."""
    text = reply.headers.get("retry-after", "")
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
