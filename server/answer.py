"""The read flow, in order: route, decide, check, prompt, merge, select, generate. An answer is a stream of events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from loramem import tracing
from loramem.database import Database
from server.ask import ADAPTER_MODES, Ask, Decision, Done, Event, Prepared, Prompt, Route, Routed, Token
from server.confidence import MOST
from server.context import PromptBuilder
from server.decide import decide, refuse
from server.engine.engine import Engine, Sampling
from server.generate import Generation, generate
from server.merge import Merger
from server.readiness import check_ready
from server.route import Router, priors
from server.select import Opener, check_slots, select

EMPTY_ROUTE = Route((), (), {}, {}, {})
T = TypeVar("T")
First = Callable[[], AbstractAsyncContextManager[Prepared | None]]


@dataclass(frozen=True)
class Answerer:
    """The steps of the read flow, wired once per gateway."""

    database: Database
    router: Router
    merger: Merger
    prompts: PromptBuilder
    engine: Engine

    async def answer(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """`Routed`, then `Token`s, then `Done`. An error before `Routed` means that there is no answer.

        Where adapters are candidates, `Routed` comes once one is chosen. Closing the iterator aborts what runs.
        """
        started = time.perf_counter()
        with tracing.span("route"):
            route, decision = await asyncio.to_thread(self._route, ask)
        generation = Generation(started, time.perf_counter())
        if decision.refuses:
            async for event in refuse(decision, _refused(generation, route)):
                yield event
            return
        ask = replace(ask, mode=decision.mode)
        first, rivals = self._openers(ask, route)
        async with (
            _begun(self._prompt(ask, route)) as prompting,
            first() as prepared,
            select(self.engine, (await prompting).token_ids, ask, prepared, rivals, priors(route)) as answering,
        ):
            prompt = prompting.result()
            adapters = route.adapters if prepared else ()
            head = Routed(decision, adapters, answering.prepared, prompt.spans, answering.selection)
            yield head
            async with aclosing(generate(answering.deltas, ask, generation)) as tokens:
                async for token in tokens:
                    yield token
        yield _done(generation, route, head, prompt)

    async def complete(self, text: str, sampling: Sampling) -> AsyncGenerator[Event, None]:
        """Continue a text with the base model alone: no chat template, no memory. Events as in `answer`."""
        started = time.perf_counter()
        generation = Generation(started, started)
        prompt = await asyncio.to_thread(self.prompts.plain, text, sampling)
        ask, head = Ask(text, "base", "", sampling), Routed(Decision("base"))
        yield head
        async with (
            select(self.engine, prompt.token_ids, ask, None) as answering,
            aclosing(generate(answering.deltas, ask, generation)) as tokens,
        ):
            async for token in tokens:
                yield token
        yield _done(generation, EMPTY_ROUTE, head, prompt)

    def _route(self, ask: Ask) -> tuple[Route, Decision]:
        if ask.mode == "base":
            return EMPTY_ROUTE, decide(ask, EMPTY_ROUTE)
        at_most = self.engine.slots if ask.compose == "select" else MOST
        route = self.router.route(
            ask.question,
            namespace=ask.namespace,
            document_ids=ask.document_ids,
            metadata=ask.metadata,
            top_k=ask.top_k,
            at_most=at_most,
            with_passages=ask.mode != "lora",
        )
        decision = decide(ask, route)
        check_ready(self.database, ask, route, decision.mode)
        check_slots(replace(ask, mode=decision.mode), route, self.engine.slots)
        return route, decision

    async def _prompt(self, ask: Ask, route: Route) -> Prompt:
        with tracing.span("prompt"):
            return await asyncio.to_thread(self.prompts.build, ask, route)

    def _openers(self, ask: Ask, route: Route) -> tuple[First, list[Opener]]:
        """Of the adapter that begins, or of all merged, or of none; and of each that may begin beside it."""
        if ask.mode not in ADAPTER_MODES or not route.adapters:
            return partial(nullcontext, None), []
        if ask.compose == "merge":
            return partial(self.merger.held, route.adapters, ask.merging), []
        first, *rivals = [(replace(adapter, weight=1.0),) for adapter in route.adapters]
        held = partial(self.merger.held, options=ask.merging)
        return partial(held, first), [partial(held, rival, waits=False) for rival in rivals]


@asynccontextmanager
async def _begun(work: Coroutine[Any, Any, T]) -> AsyncGenerator[asyncio.Task[T], None]:
    """A task that runs beside what is in the context, and not after it."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _refused(generation: Generation, route: Route) -> dict[str, float]:
    routing = generation.routing_ms()
    rest = routing - sum(route.timings_ms.values())
    return {**route.timings_ms, "route": rest, "ttft": routing, "total": routing}


def _done(generation: Generation, route: Route, head: Routed, prompt: Prompt) -> Done:
    rest = generation.routing_ms() - sum(route.timings_ms.values())
    timings = {**route.timings_ms, "route": rest, **generation.timings_ms()}
    if head.prepared:
        timings["merge"] = sum(prepared.seconds for prepared in head.prepared) * 1000
        waited = sum(prepared.waited for prepared in head.prepared)
        timings["queue"] = timings.get("queue", 0.0) + waited * 1000
    if head.selection is not None:
        timings["select"] = head.selection.seconds * 1000
    dropped = head.selection.dropped_tokens if head.selection else 0
    return Done(generation.finish_reason, len(prompt.token_ids), generation.completion_tokens, timings, dropped)


async def whole(events: AsyncGenerator[Event, None]) -> tuple[Routed, list[Token], Done]:
    """Collect an answer that nobody streams."""
    routed: Routed | None = None
    done: Done | None = None
    tokens: list[Token] = []
    async for event in events:
        match event:
            case Routed():
                routed = event
            case Token():
                tokens.append(event)
            case Done():
                done = event
    assert routed is not None
    assert done is not None
    return routed, tokens, done
