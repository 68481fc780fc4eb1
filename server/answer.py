"""The read flow, in order: route, decide, check, prompt, merge, select, generate. An answer is a stream of events."""

import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from loramem import tracing
from loramem.database import Database
from server.ask import ADAPTER_MODES, Ask, Decision, Done, Event, Opened, Prompt, Route, Routed, RoutedAdapter, Token
from server.confidence import MOST
from server.context import PromptBuilder
from server.decide import decide, refuse
from server.drafts import Drafts
from server.engine.engine import Engine, Sampling
from server.follow_up import with_what_it_points_to
from server.generate import Generation, generate
from server.merge import Merger
from server.readiness import check_ready, unread
from server.route import Router, priors
from server.select import Opener, check_slots, select
from server.tasks import beside, in_thread_of

ROUTING = 64
"""Questions that are routed at once: most of them may wait for a namespace that is being read."""
PROMPTING = 16
"""Prompts that are built at once."""
EMPTY_ROUTE = Route((), (), {}, {}, {})


@dataclass(frozen=True)
class Answerer:
    """The steps of the read flow, wired once per gateway.

    Routing has threads of its own: it may wait until a namespace is read, and nothing else is to wait with it. Prompts
    have too, so that they wait neither with that nor with uploads.
    """

    database: Database
    router: Router
    merger: Merger
    prompts: PromptBuilder
    drafts: Drafts
    engine: Engine
    routing: Executor = field(default_factory=partial(ThreadPoolExecutor, ROUTING, thread_name_prefix="route"))
    prompting: Executor = field(default_factory=partial(ThreadPoolExecutor, PROMPTING, thread_name_prefix="prompt"))

    async def answer(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """`Routed`, then `Token`s, then `Done`. An error before `Routed` means that there is no answer.

        Where adapters are candidates, `Routed` comes once one is chosen. Closing the iterator aborts what runs.
        """
        started = time.perf_counter()
        with tracing.span("route"):
            route, decision = await self._decided(ask)
        generation = Generation(started, time.perf_counter())
        if decision.refuses:
            async for event in refuse(decision, _refused(generation, route)):
                yield event
            return
        ask = replace(ask, mode=decision.mode)
        async with (
            beside(self._prompt(ask, route)) as prompting,
            select(self.engine, prompting, ask, self._openers(ask, route, prompting), priors(route)) as answering,
        ):
            prompt = await prompting
            adapters = route.adapters if answering.prepared else ()
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
        ask, head = Ask(text, "base", "", sampling), Routed(Decision("base"))
        async with (
            beside(in_thread_of(self.prompting, self.prompts.plain, text, sampling)) as prompting,
            select(self.engine, prompting, ask) as answering,
            aclosing(generate(answering.deltas, ask, generation)) as tokens,
        ):
            yield head
            async for token in tokens:
                yield token
        yield _done(generation, EMPTY_ROUTE, head, prompting.result())

    async def _decided(self, ask: Ask) -> tuple[Route, Decision]:
        self.prompts.check_length(ask)
        if ask.mode == "base":
            return EMPTY_ROUTE, decide(ask, EMPTY_ROUTE)
        return await in_thread_of(self.routing, self._route, ask)

    def _route(self, ask: Ask) -> tuple[Route, Decision]:
        route = self._routed(ask)
        decision = decide(ask, route)
        check_ready(self.database, ask, route, decision.mode)
        check_slots(replace(ask, mode=decision.mode), route, self.engine.slots)
        if decision.refuses:
            decision = replace(decision, unread=unread(self.database, ask.namespace))
        return route, decision

    def _routed(self, ask: Ask) -> Route:
        """By the question, with what was asked before where it points back to that."""
        at_most = self.engine.slots if ask.compose == "select" else MOST
        return self.router.route(
            with_what_it_points_to(ask.question, ask.history) or ask.question,
            namespace=ask.namespace,
            document_ids=ask.document_ids,
            metadata=ask.metadata,
            top_k=ask.top_k,
            at_most=at_most,
            with_passages=ask.mode != "lora",
        )

    async def _prompt(self, ask: Ask, route: Route) -> Prompt:
        with tracing.span("prompt"):
            return await in_thread_of(self.prompting, self._built, ask, route)

    def _built(self, ask: Ask, route: Route) -> Prompt:
        prompt = self.prompts.build(ask, route)
        if not self.engine.speculates or ask.mode not in ADAPTER_MODES:
            return prompt
        return replace(prompt, drafts=self.drafts.of(one.adapter_id for one in route.adapters))

    def _openers(self, ask: Ask, route: Route, prompting: Awaitable[Prompt]) -> list[Opener]:
        """Of the one adapter, or of all merged, or of none; or of each that may begin beside the best."""
        if ask.mode not in ADAPTER_MODES or not route.adapters:
            return []
        alone = [(replace(adapter, weight=1.0),) for adapter in route.adapters]
        first, *rivals = [route.adapters] if ask.compose == "merge" else alone
        unwaiting = partial(self.merger.held, options=ask.merging, waits=False)
        return [partial(self._held, ask, first, prompting), *(partial(unwaiting, rival) for rival in rivals)]

    @asynccontextmanager
    async def _held(
        self, ask: Ask, group: Sequence[RoutedAdapter], prompting: Awaitable[Prompt]
    ) -> AsyncGenerator[Opened, None]:
        """Beside a prompt of the question alone; one that may be refused takes no slot before it stands."""
        if ask.context_kind is not None or not self.merger.has_slot_for(group, ask.merging):
            await prompting
        async with self.merger.held(group, ask.merging) as opened:
            yield opened


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
