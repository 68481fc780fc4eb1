"""The inference engine: vLLM's `AsyncLLM` in this process, its core in a child process.

Knows tokens, adapters and samples; does not know HTTP, documents or routing. Everything that touches vLLM is in this
package, so that a new release is one place to change.
"""

import asyncio
import gc
import logging
import multiprocessing
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from loramem import chat, errors, tracing
from loramem.base_model import BaseModel
from loramem.settings import Settings
from server.engine import options, speculate
from server.tasks import beside

log = logging.getLogger(__name__)

RPC_POLL_S = 1.0
KILL_EVERY_S = 0.1
CORE = "EngineCore"
"""vLLM's name for the process that it starts first."""
ENDS = (None, "stop", "length")
"""Of an answer, none yet among them; others mean that vLLM did not bring it to its end."""

REFUSALS = frozenset({"ValueError", "VLLMValidationError"})
"""What vLLM raises for an adapter that is sound but that it will not take, such as one of too great a rank."""


Tiers = Mapping[str, Mapping[str, int]]
"""By tier (disk, host, device): bytes, entries, hits, misses, evictions."""


@dataclass(frozen=True)
class Sampling:
    """How to decode. `logprobs` asks for that many alternatives per token; None for none. `least_tokens`: a prompt that
    leaves room for so many is taken, and the end of the window ends the answer; None: for `max_tokens`."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    least_tokens: int | None = None

    @property
    def room(self) -> int:
        """Tokens of the window that the prompt has to leave."""
        return self.max_tokens if self.least_tokens is None else self.least_tokens


@dataclass(frozen=True)
class EngineAdapter:
    """What vLLM calls a LoRA request. Same name and path always mean the same weights: KV blocks are keyed by them."""

    name: str
    int_id: int
    path: str


@dataclass(frozen=True)
class Activation:
    """A hit had its slot already. `tiers` is what the pool of adapters holds, by tier."""

    hit: bool
    seconds: float
    tiers: Tiers = field(default_factory=dict)


@dataclass(frozen=True)
class TokenLogprob:
    """One sampled token, its natural-log probability, and the most likely alternatives (token text, logprob)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass
class Delta:
    """What one engine step added. The last one has `finish_reason` and the engine's own times in seconds."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    engine_times: dict[str, float] = field(default_factory=dict)

    @property
    def token_count(self) -> int:
        return len(self.token_ids)


class Engine:
    """Owns the `AsyncLLM`. Create it, `await start()` inside the event loop that will use it, `stop()` at the end."""

    def __init__(self, settings: Settings, base: BaseModel) -> None:
        self.settings = settings
        self.base = base
        self._tokenizer: Any = None
        self._llm: Any = None
        self._warm = False
        self._loading = threading.Lock()
        self._ended = threading.Event()
        self.speculates = False
        """Whether drafts are of use to it."""

    async def start(self) -> None:
        """Start the engine's processes; takes tens of seconds, in a thread, so that uploads are answered meanwhile.

        vLLM binds itself to the event loop at its first call, not when it is made.
        """
        started = time.monotonic()
        await asyncio.to_thread(self._load)
        await self._call("loramem_warm_up")
        # What is there now stays. While all of it is looked through for garbage, nobody is answered.
        gc.collect()
        gc.freeze()
        self._warm = True
        log.info("engine ready in %.1f s: %s", time.monotonic() - started, self.base.name)

    def _load(self) -> None:
        with self._loading:
            options.set_environment(self.settings)
            from vllm.v1.engine.async_llm import AsyncLLM

            self._tokenizer = chat.load_tokenizer(self.base.path)
            _longest_token(self._tokenizer)  # some ten milliseconds that no question need wait for
            arguments = options.engine_args(self.settings, self.base)
            self.speculates = arguments.speculative_config is not None
            if not self._ended.is_set():
                self._llm = AsyncLLM.from_engine_args(arguments)
                _name_no_adapters(self._llm.logger_manager.stat_loggers)

    def stop(self) -> None:
        """End the engine's processes for good, those too that an engine that is still loading has started or starts."""
        self._ended.set()
        while not self._loading.acquire(timeout=KILL_EVERY_S):
            for process in multiprocessing.active_children():
                if process.name.startswith(CORE):
                    process.kill()
        self._loading.release()  # what has not begun to load sees that it has ended
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    @property
    def dead(self) -> bool:
        """True when the engine's processes are gone; only a restart of the gateway brings them back."""
        return self._llm is not None and bool(self._llm.errored)

    @property
    def running(self) -> bool:
        """False too while it warms up, which on a new machine compiles for some ten seconds: who asks then waits."""
        return self._warm and self._llm is not None and not self.dead

    @property
    def slots(self) -> int:
        """Adapters that can run in one batch."""
        return self.settings.max_loras

    @property
    def tokenizer(self) -> Any:
        """Raises `EngineUnavailable` before `start` has loaded it."""
        if self._tokenizer is None:
            raise errors.EngineUnavailable("the engine is loading")
        return self._tokenizer

    @property
    def longest_token(self) -> int:
        """Characters that a token stands for at most. Raises as `tokenizer`."""
        return _longest_token(self.tokenizer)

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends an answer. Raises as `tokenizer`."""
        return chat.end_of_turn(self.tokenizer)

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation under the model's chat template, ready for the assistant's turn.

        Raises `InvalidValue` for an order of roles that the template refuses.
        """
        from jinja2 import TemplateError

        try:
            return chat.encode_chat(self.tokenizer, messages)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise errors.InvalidValue(
                f"{self.base.name} cannot read this conversation: {error}",
                key="messages",
                value=roles,
                allowed=str(error),
            ) from error

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text of which no word is a special token, and without those that begin a prompt."""
        return chat.encode_text(self.tokenizer, text)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to be continued: with the tokens that begin a prompt, and with those that it spells."""
        return list(self.tokenizer(text)["input_ids"])

    @asynccontextmanager
    async def activating(self, adapter: EngineAdapter) -> AsyncGenerator[asyncio.Task[Activation], None]:
        """Load or merge an adapter. What is generated inside the context comes after it, and may be asked for at once:
        both reach the engine between the same two steps. If the adapter cannot be loaded, generation silently runs on
        the base model: nothing that was said may be used before the task has its result.

        The task raises `StoredDataDamaged` when a source is missing or altered, `InvalidValue` when vLLM refuses the
        adapter, `EngineUnavailable` for whatever else goes wrong; the engine's log has it. Then the adapter's name and
        id must not be used again: KV blocks made without it may be kept under them.
        """
        call = await self._send("loramem_activate", adapter.name, adapter.int_id, adapter.path)
        try:
            async with beside(self._activation(call)) as activation:
                yield activation
        finally:
            call.cancel()

    async def _activation(self, call: asyncio.Future[Any]) -> Activation:
        results = await self._result(call)
        for result in results:
            if "error" in result:
                raise _refusal(result["error"], result["detail"])
        return Activation(all(r["hit"] for r in results), max(r["seconds"] for r in results), results[0]["tiers"])

    async def prefetch(self, adapter: EngineAdapter) -> None:
        """Have what an adapter is made of brought into memory, beside what runs; errors are left to `activating`."""
        await self._call("loramem_prefetch", adapter.int_id, adapter.path)

    async def generate(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        adapter: EngineAdapter | None = None,
        salt: str | None = None,
        drafts: bytes = b"",
    ) -> AsyncGenerator[Delta, None]:
        """Decode, a delta per engine step. Closing the iterator aborts the request in the engine.

        `salt` keeps prefix-cache blocks of one namespace from being shared with another. `drafts` (`speculate.packed`)
        is what the answer may repeat, which makes it faster. Raises `EngineUnavailable` when the engine gives the
        answer up: it has died, or was told to end, by a Ctrl-C in its terminal for one.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        inputs: dict[str, Any] = {"prompt_token_ids": prompt}
        if salt:
            inputs["cache_salt"] = salt
        outputs = self._live().generate(
            inputs,
            _sampling_params(sampling, self.end_of_turn, drafts if self.speculates else None),
            uuid.uuid4().hex,
            lora_request=_lora_request(adapter),
            trace_headers=tracing.headers() or None,
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    delta = _delta(output)
                    if delta.finish_reason not in ENDS:
                        raise errors.EngineUnavailable("the engine gave the answer up; ask again")
                    yield delta
        except EngineDeadError as error:
            raise errors.EngineUnavailable("the engine died; it is being restarted") from error
        except EngineGenerateError as error:
            raise errors.EngineUnavailable("the engine failed at this; its log says why") from error

    async def trim_memory(self) -> None:
        """Between two steps, have the worker give back what it has freed."""
        await self._call("loramem_trim_memory")

    async def _call(self, method: str, *arguments: Any) -> list[Any]:
        return await self._result(await self._send(method, *arguments))

    async def _send(self, method: str, *arguments: Any) -> asyncio.Future[Any]:
        """Have a method of the worker's extension run. What is sent to the engine afterwards comes after it."""
        call: asyncio.Future[Any] = asyncio.ensure_future(self._live().collective_rpc(method, args=arguments))
        try:
            await asyncio.sleep(0)  # so far that its message is in the socket
        except asyncio.CancelledError:
            call.cancel()
            raise
        return call

    async def _result(self, call: asyncio.Future[Any]) -> list[Any]:
        """vLLM leaves a call unanswered when the engine dies meanwhile, and fails it when it ends."""
        try:
            while not (await asyncio.wait({call}, timeout=RPC_POLL_S))[0]:
                self._live()
        finally:
            call.cancel()
        if (error := call.exception()) is not None:
            raise errors.EngineUnavailable("the engine failed at this; its log says why") from error
        results: list[Any] = call.result()
        return results

    def _live(self) -> Any:
        if self._llm is None or self.dead:
            raise errors.EngineUnavailable("the engine is not running")
        return self._llm


def _refusal(kind: str, detail: str) -> errors.LoramemError:
    if kind in REFUSALS:
        return errors.InvalidValue(detail)
    if kind == errors.StoredDataDamaged.__name__:
        return errors.StoredDataDamaged(f"{detail}; restore its folder, or delete its document and upload it again")
    return errors.EngineUnavailable("the adapter could not be loaded; the engine's log says why")


def _delta(output: Any) -> Delta:
    completion = output.outputs[0]
    return Delta(
        text=completion.text,
        token_ids=list(completion.token_ids),
        logprobs=_logprobs(completion),
        finish_reason=completion.finish_reason,
        engine_times=_times(output.metrics) if output.finished else {},
    )


def _logprobs(completion: Any) -> list[TokenLogprob]:
    if not completion.logprobs:
        return []
    found = []
    for token_id, candidates in zip(completion.token_ids, completion.logprobs, strict=True):
        ranked = sorted(candidates.items(), key=lambda item: item[1].rank or 0)
        top = tuple((value.decoded_token or "", value.logprob) for key, value in ranked)
        found.append(TokenLogprob(candidates[token_id].decoded_token or "", candidates[token_id].logprob, top))
    return found


def _times(metrics: Any) -> dict[str, float]:
    if metrics is None:
        return {}
    return {
        "queue": max(0.0, metrics.scheduled_ts - metrics.queued_ts),
        "prefill": max(0.0, metrics.first_token_ts - metrics.scheduled_ts),
        "decode": max(0.0, metrics.last_token_ts - metrics.first_token_ts),
    }


@lru_cache(maxsize=8)
def _longest_token(tokenizer: Any) -> int:
    return max(map(len, tokenizer.get_vocab()))


def _name_no_adapters(stat_loggers: Iterable[Any]) -> None:
    """vLLM would keep a time series for every set of adapters that was ever asked for together."""
    from prometheus_client import REGISTRY

    for logger in stat_loggers:
        gauge = getattr(logger, "gauge_lora_info", None)
        if gauge is not None:
            REGISTRY.unregister(gauge)
            logger.gauge_lora_info = None


def _lora_request(adapter: EngineAdapter | None) -> Any:
    from vllm.lora.request import LoRARequest

    if adapter is None:
        return None
    return LoRARequest(lora_name=adapter.name, lora_int_id=adapter.int_id, lora_path=adapter.path)


def _sampling_params(sampling: Sampling, end: int, drafts: bytes | None) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=list(sampling.stop),
        stop_token_ids=[end],  # vLLM knows the tokenizer's and the generation config's
        logprobs=sampling.logprobs,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        output_kind=RequestOutputKind.DELTA,
        # With a temperature, how many tokens are proposed, which is the load's affair, would change a seed's answer.
        extra_args={speculate.ARGUMENT: drafts} if drafts is not None and sampling.temperature == 0 else None,
    )
