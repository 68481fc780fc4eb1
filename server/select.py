"""Let several adapters begin their answers side by side, and go on with the one that most likely knows.

The router's score is the prior, how sure an adapter is of its first words the evidence; their sum decides: the score
over the temperature of the router's weights, and the mean log-probability of the words. How far an adapter departs
from the base model says less: one that invents departs as far as one that knows (`benchmarks.lifts`).
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, TypeVar

from loramem.errors import InvalidValue
from server.ask import ADAPTER_MODES, Ask, Prepared, Route, Selection
from server.engine.engine import Delta, Engine

T = TypeVar("T")

HEAD = 4
"""Tokens of each answer that are compared."""

Answering = tuple[AsyncGenerator[Delta, None], Selection | None]
"""What the engine says, from the first token, and how it was chosen; None where there was no choice."""


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
    engine: Engine, prompt: list[int], ask: Ask, prepared: Sequence[Prepared], priors: Sequence[float] = ()
) -> AsyncGenerator[Answering, None]:
    """Start the answer of the best of `prepared`, or the only one, or the base model where there is none.

    Candidates share the prompt and the way of sampling; `priors` are theirs, in nats up to a constant. Each says `HEAD`
    tokens; of equals the first wins, and the others are aborted. KV blocks are shared within a namespace only. A
    candidate that waits for a slot needs nothing from its siblings: the engine runs them to their end whether they are
    read or not. Leaving the context aborts whatever still runs.
    """
    if len(prepared) < 2:
        adapter = prepared[0].adapter if prepared else None
        async with aclosing(engine.generate(prompt, ask.sampling, adapter=adapter, salt=ask.namespace)) as deltas:
            yield deltas, None
        return
    started = time.perf_counter()
    sampling = replace(ask.sampling, logprobs=ask.sampling.logprobs or 0)
    async with AsyncExitStack() as opened:
        candidates = []
        for one in prepared:
            deltas = engine.generate(prompt, sampling, adapter=one.adapter, salt=ask.namespace)
            candidates.append(_Candidate(await opened.enter_async_context(aclosing(deltas))))
        sure = await _together(candidate.begin() for candidate in candidates)
        scores = [prior + logprob for prior, logprob in zip(priors, sure, strict=True)]
        winner = scores.index(max(scores))
        chosen = candidates.pop(winner)
        await _together(loser.drop() for loser in candidates)
        dropped = sum(loser.said for loser in candidates)
        selection = Selection(winner, tuple(sure), dropped, time.perf_counter() - started)
        yield await opened.enter_async_context(aclosing(chosen.answer())), selection


@dataclass
class _Candidate:
    deltas: AsyncGenerator[Delta, None]
    head: list[Delta] = field(default_factory=list)

    @property
    def said(self) -> int:
        return sum(delta.token_count for delta in self.head)

    async def begin(self) -> float:
        """Mean log-probability of the head's tokens, in nats; minus infinity where they say nothing."""
        async for delta in self.deltas:
            self.head.append(delta)
            if self.said >= HEAD:
                break
        logprobs = [item.logprob for delta in self.head for item in delta.logprobs][:HEAD]
        said = "".join(delta.text for delta in self.head).strip()
        return fmean(logprobs) if said and logprobs else -math.inf

    async def drop(self) -> None:
        await self.deltas.aclose()

    async def answer(self) -> AsyncGenerator[Delta, None]:
        """The head again, then the rest as it comes."""
        for delta in self.head:
            yield delta
        async for delta in self.deltas:
            yield delta


async def _together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. The first that fails ends the others, and so does being cancelled, before the error goes on."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
