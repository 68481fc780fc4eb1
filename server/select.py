"""Let the best-routed adapter begin its answer, and beside it those that may still beat it; go on with the likeliest.

The router's score is the prior, how sure an adapter is of its first words the evidence; their sum decides: the score
over the temperature of the router's weights, and the mean log-probability of the words. How far an adapter departs
from the base model says less: one that invents departs as far as one that knows (`benchmarks.lifts`). Evidence is never
positive, so a rival whose prior is no more than what the first one has reached cannot win and need not begin: the
choice is the same as if all had, and for most questions none begins (decision 0012).
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import NamedTuple

from loramem.errors import InvalidValue
from server.ask import ADAPTER_MODES, Ask, Opened, Prepared, Prompt, Route, Selection
from server.engine.engine import Delta, Engine, Sampling
from server.tasks import beside, ended, together

HEAD = 4
"""Tokens of each answer that are compared."""

Opener = Callable[[], AbstractAsyncContextManager[Opened]]
"""Gives an adapter a slot when it is entered."""


class Answering(NamedTuple):
    """What the engine says, from the first token. `prepared` has what answers first, then those that began beside it;
    `selection` is None where there was no choice."""

    deltas: AsyncGenerator[Delta, None]
    prepared: tuple[Prepared, ...] = ()
    selection: Selection | None = None


def check_slots(ask: Ask, route: Route, slots: int) -> None:
    """Raises `InvalidValue` for more candidates than the engine runs in one batch."""
    candidates = len(route.adapters)
    if ask.compose == "select" and ask.mode in ADAPTER_MODES and candidates > slots:
        raise InvalidValue(
            f"selecting among {candidates} adapters needs as many of the engine's slots, and it has {slots}; "
            "use a smaller top_k, compose merge, or raise LORAMEM_MAX_LORAS",
            key="top_k",
            value=ask.top_k,
            allowed=f"1 to {slots}",
        )


@asynccontextmanager
async def select(
    engine: Engine,
    prompt: Awaitable[Prompt],
    ask: Ask,
    openers: Sequence[Opener] = (),
    priors: Sequence[float] = (),
) -> AsyncGenerator[Answering, None]:
    """Start the answer of the best of several adapters, or of the only one, or of the base model where there is none.

    Candidates share the prompt, which is awaited when the first has its slot, and the way of sampling; `priors` are
    theirs, in nats up to a constant, best first. Who begins says `HEAD` tokens; of equals the first wins. The others
    are aborted and let go of their slots. KV blocks are shared within a namespace only. Leaving the context aborts
    whatever still runs.
    """
    if len(openers) < 2:
        async with (
            openers[0]() if openers else nullcontext() as only,
            _generation(engine, prompt, ask, ask.sampling, only) as deltas,
        ):
            yield Answering(deltas, (await only.prepared,) if only else ())
        return
    start = partial(_started, engine, prompt, ask)
    async with AsyncExitStack() as opened:
        candidates = [_Candidate(partial(start, opener), prior) for opener, prior in zip(openers, priors, strict=True)]
        for one in candidates:
            await opened.enter_async_context(one.opened)
        waited = await _compare(candidates)
        ran = [one for one in candidates if one.running]
        chosen = max(ran, key=_Candidate.score)
        await together(one.opened.aclose() for one in ran if one is not chosen)
        sure = tuple(one.sure() if one.running else None for one in candidates)
        dropped = sum(one.said for one in ran if one is not chosen)
        selection = Selection(candidates.index(chosen), sure, dropped, waited)
        chosen_first = sorted(ran, key=lambda one: one is not chosen)
        prepared = tuple(one.running.prepared for one in chosen_first if one.running)
        yield Answering(await opened.enter_async_context(aclosing(chosen.answer())), prepared, selection)


@asynccontextmanager
async def _generation(
    engine: Engine, prompt: Awaitable[Prompt], ask: Ask, sampling: Sampling, opened: Opened | None
) -> AsyncGenerator[AsyncGenerator[Delta, None], None]:
    """The engine begins at once, while the adapter is prepared and the reader is told of the route."""
    adapter, read = opened.adapter if opened else None, await prompt
    drafts = b"".join(read.drafts.get(adapter_id, b"") for adapter_id in opened.adapter_ids) if opened else b""
    answer = engine.generate(read.token_ids, sampling, adapter=adapter, salt=ask.namespace, drafts=drafts)
    async with (
        aclosing(answer) as generation,
        _at_work(generation) as deltas,
    ):
        yield deltas


@asynccontextmanager
async def _at_work(generation: AsyncGenerator[Delta, None]) -> AsyncGenerator[AsyncGenerator[Delta, None], None]:
    """The same deltas, the first of them asked for at once."""

    async def deltas() -> AsyncGenerator[Delta, None]:
        if (delta := await first) is not None:
            yield delta
        async for delta in generation:
            yield delta

    async with beside(_first_of(generation)) as first, aclosing(deltas()) as same:
        yield same


async def _first_of(generation: AsyncGenerator[Delta, None]) -> Delta | None:
    return await anext(generation, None)


class _Running(NamedTuple):
    prepared: Prepared
    deltas: AsyncGenerator[Delta, None]


@asynccontextmanager
async def _started(
    engine: Engine, prompt: Awaitable[Prompt], ask: Ask, opener: Opener
) -> AsyncGenerator[_Running, None]:
    sampling = replace(ask.sampling, logprobs=ask.sampling.logprobs or 0)
    async with opener() as opened, _generation(engine, prompt, ask, sampling, opened) as deltas:
        yield _Running(await opened.prepared, deltas)


@dataclass(eq=False)
class _Candidate:
    """An answer that runs in the engine from its beginning until `opened` is closed, which lets go of its slot too."""

    start: Callable[[], AbstractAsyncContextManager[_Running]]
    prior: float
    opened: AsyncExitStack = field(default_factory=AsyncExitStack)
    running: _Running | None = None
    ready: float = 0.0
    """When its adapter was (`time.perf_counter`)."""
    head: list[Delta] = field(default_factory=list)

    @property
    def said(self) -> int:
        return sum(delta.token_count for delta in self.head)

    @property
    def logprobs(self) -> list[float]:
        return [item.logprob for delta in self.head for item in delta.logprobs][:HEAD]

    def sure(self) -> float:
        """Mean log-probability of the head's tokens, in nats; minus infinity where they say nothing."""
        return fmean(self.logprobs) if self.says_something and self.logprobs else -math.inf

    @property
    def says_something(self) -> bool:
        """By its tokens until it ends: text that may be the beginning of a stop string comes late. Then by its text,
        as the token that ends an answer says nothing."""
        ended = any(delta.finish_reason for delta in self.head)
        tokens = (item.token for delta in self.head for item in delta.logprobs)
        return any(text.strip() for text in ((delta.text for delta in self.head) if ended else tokens))

    def score(self) -> float:
        return self.prior + self.sure()

    def score_at_most(self) -> float:
        """By what is said so far: every token that follows can only lower it."""
        return self.prior + sum(self.logprobs) / HEAD

    def merged_since(self, then: float) -> float:
        """Seconds that its adapter took to be ready after `then`."""
        return min(self.running.prepared.seconds, max(0.0, self.ready - then)) if self.running else 0.0

    async def begin(self) -> AsyncGenerator[None, None]:
        """Read the head, with a stop after each piece."""
        self.running = await self.opened.enter_async_context(self.start())
        self.ready = time.perf_counter()
        async for delta in self.running.deltas:
            self.head.append(delta)
            if self.said >= HEAD:
                break
            yield

    async def begin_whole(self) -> None:
        async for _ in self.begin():
            pass

    async def answer(self) -> AsyncGenerator[Delta, None]:
        """The head again, then the rest as it comes."""
        for delta in self.head:
            yield delta
        if self.running:
            async for delta in self.running.deltas:
                yield delta


async def _compare(candidates: Sequence[_Candidate]) -> float:
    """Read the head of the first, and of each other from the moment that the first is no longer sure to win. Gives for
    how many seconds the first then had to wait for others, less what their adapters took of that."""
    first, *waiting = candidates
    rivals: list[asyncio.Task[None]] = []

    def let_in(reached: float) -> None:
        for rival in [one for one in waiting if one.prior > reached]:
            waiting.remove(rival)
            rivals.append(asyncio.create_task(rival.begin_whole()))

    async with ended(rivals):
        let_in(first.prior)
        async for _ in first.begin():
            let_in(first.score_at_most())
        let_in(first.score())
        said = time.perf_counter()
        await asyncio.gather(*rivals)
        merging = sum(one.merged_since(said) for one in candidates)
        return max(0.0, time.perf_counter() - said - merging)
