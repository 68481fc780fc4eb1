"""The model that writes training data, behind any OpenAI-compatible endpoint.

Not covered: retries. An endpoint that is away raises `WriterUnavailable` and the worker postpones the whole job.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from loramem import tracing
from loramem.errors import TrainingFailed, WriterUnavailable
from loramem.prompts import Message

Prompt = str | Sequence[Message]
"""Text to be continued (`/completions`) or a conversation to be answered (`/chat/completions`)."""


@dataclass(frozen=True)
class Writer:
    """`base_url` is the endpoint's OpenAI root, ending in /v1; an empty `model` takes the first it lists."""

    base_url: str
    model: str = ""
    api_key: str = ""
    concurrency: int = 32
    timeout_s: float = 120.0
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
    ) -> list[str]:
        """Texts in the order of `prompts`, the i-th sampled with `seed + i`; `on_each` is called as each arrives.

        Raises `WriterUnavailable` when the endpoint cannot be reached, is too slow or fails (5xx, 429), and
        `TrainingFailed` with the endpoint's own message when it refuses (other 4xx).
        """
        options = {"max_tokens": max_tokens, "temperature": temperature} | ({"stop": list(stop)} if stop else {})
        bodies = [_body(prompt) | options for prompt in prompts]
        if temperature > 0:  # a seed without sampling has no meaning, and some engines fail on it
            bodies = [body | {"seed": seed + index} for index, body in enumerate(bodies)]
        return asyncio.run(self._complete_all(bodies, on_each))

    async def _complete_all(self, bodies: Sequence[dict[str, object]], on_each: Callable[[], None]) -> list[str]:
        if not bodies:
            return []
        slots = asyncio.Semaphore(self.concurrency)
        async with self._client() as client:
            model = self.model or await self._first_model(client)

            async def one(body: dict[str, object]) -> str:
                async with slots:
                    text = await self._complete_one(client, body | {"model": model})
                on_each()
                return text

            tasks = [asyncio.ensure_future(one(body)) for body in bodies]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

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
        try:
            reply = await client.request(method, self.base_url.rstrip("/") + path, json=body, headers=tracing.headers())
        except httpx.TransportError as error:
            raise WriterUnavailable(f"the writer at {self.base_url} cannot be reached: {error!r}") from error
        if reply.status_code >= 500 or reply.status_code == 429:
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
        return httpx.AsyncClient(headers=headers, timeout=self.timeout_s, transport=self.transport)


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
