"""The read flow, in order: route, check, merge, prompt, generate. An answer is a stream of events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass

from loramem.database import Database
from loramem.errors import LoramemError
from server.ask import ADAPTER_MODES, Ask, Done, Event, Prepared, Prompt, Route, Routed, Token
from server.context import PromptBuilder
from server.engine.engine import Engine, Sampling
from server.generate import Generation, generate
from server.merge import Merger
from server.readiness import check_ready
from server.route import Router

EMPTY_ROUTE = Route((), (), {}, {}, {})


@dataclass(frozen=True)
class Answerer:
    """The steps of the read flow, wired once per gateway."""

    database: Database
    router: Router
    merger: Merger
    prompts: PromptBuilder
    engine: Engine

    async def answer(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """`Routed`, then `Token`s, then `Done`. Errors before `Routed` mean that nothing was generated.

        Closing the iterator aborts the generation.
        """
        started = time.perf_counter()
        route = await asyncio.to_thread(self._route, ask)
        routed = time.perf_counter()
        prefetch = asyncio.create_task(self._prefetch(ask, route))  # not waited for: it and the merge run between steps
        prompt = await asyncio.to_thread(self.prompts.build, ask, route)
        prepared = await self._merge(ask, route)
        await prefetch
        yield Routed(route.adapters if prepared else (), prepared, prompt.spans)

        generation = Generation(started, routed)
        adapter = prepared.adapter if prepared else None
        async with aclosing(generate(self.engine, prompt.token_ids, ask, adapter, generation)) as tokens:
            async for token in tokens:
                yield token
        yield self._done(generation, route, prepared, prompt)

    async def complete(self, text: str, sampling: Sampling) -> AsyncGenerator[Event, None]:
        """Continue a text with the base model alone: no chat template, no memory. Events as in `answer`."""
        started = time.perf_counter()
        generation = Generation(started, started)
        prompt = await asyncio.to_thread(self.prompts.plain, text, sampling)
        yield Routed((), None, ())
        ask = Ask(text, "base", "", sampling)
        async with aclosing(generate(self.engine, prompt.token_ids, ask, None, generation)) as tokens:
            async for token in tokens:
                yield token
        yield self._done(generation, EMPTY_ROUTE, None, prompt)

    def _route(self, ask: Ask) -> Route:
        if ask.mode == "base":
            return EMPTY_ROUTE
        route = self.router.route(ask.question, namespace=ask.namespace, document_ids=ask.document_ids, top_k=ask.top_k)
        check_ready(self.database, ask, route)
        return route

    async def _prefetch(self, ask: Ask, route: Route) -> None:
        """What goes wrong here goes wrong again in `_merge`, which says so."""
        if ask.mode in ADAPTER_MODES:
            with suppress(LoramemError):
                await self.merger.prefetch(route.adapters, ask.merge)

    async def _merge(self, ask: Ask, route: Route) -> Prepared | None:
        if ask.mode not in ADAPTER_MODES:
            return None
        return await self.merger.prepare(route.adapters, ask.merge)

    def _done(self, generation: Generation, route: Route, prepared: Prepared | None, prompt: Prompt) -> Done:
        merge = {"merge": prepared.seconds * 1000} if prepared else {}
        rest = generation.routing_ms() - sum(route.timings_ms.values())
        timings: Mapping[str, float] = {**route.timings_ms, "route": rest, **merge, **generation.timings_ms()}
        return Done(generation.finish_reason, len(prompt.token_ids), generation.completion_tokens, timings)


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
