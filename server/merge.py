"""Make the adapters that a question was routed to into one that the engine has loaded."""

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial

from loramem import tracing
from loramem.errors import InvalidValue, LoramemError, MemoryNotReady
from loramem.records import ELECTS_SIGNS, MergeMethod, Recipe, Source, merged_rank
from server.ask import MergeOptions, Opened, Prepared, RoutedAdapter
from server.engine.engine import Activation, Engine, EngineAdapter, Tiers
from server.slots import Slots
from server.tasks import beside

IDS_KEPT = 1 << 16
"""Far more than the engine holds at once, so a forgotten id is never one in use."""


class AdapterIds:
    """vLLM wants a positive int32 per adapter; they are counted out by full name, never derived from a hash."""

    def __init__(self) -> None:
        self._counter = itertools.count(1)
        self._ids: OrderedDict[str, int] = OrderedDict()
        self._proven: set[int] = set()

    def forget(self, name: str, int_id: int) -> None:
        """Give it another the next time, if it has this one."""
        if self._ids.get(name) == int_id:
            del self._ids[name]
        self._proven.discard(int_id)

    def prove(self, int_id: int) -> None:
        """The engine has loaded it: if it should not be able to once more, that is told to whoever asks next."""
        self._proven.add(int_id)

    def is_proven(self, int_id: int) -> bool:
        return int_id in self._proven

    def of(self, name: str) -> int:
        if name not in self._ids:
            self._ids[name] = next(self._counter)
        self._ids.move_to_end(name)
        if len(self._ids) > IDS_KEPT:
            self._proven.discard(self._ids.popitem(last=False)[1])
        return self._ids[name]


class Merger:
    """Prepares adapters in the engine; one per gateway."""

    def __init__(self, engine: Engine, max_rank: int) -> None:
        self._engine = engine
        self._max_rank = max_rank
        self._ids = AdapterIds()
        self.slots = Slots(lambda: engine.slots)

    def has_slot_for(self, adapters: Sequence[RoutedAdapter], options: MergeOptions) -> bool:
        """Whether `held` would not wait."""
        return self.slots.free_for(self._adapter(recipe_of(adapters, options, self._max_rank)).int_id)

    @asynccontextmanager
    async def held(
        self, adapters: Sequence[RoutedAdapter], options: MergeOptions, *, waits: bool = True
    ) -> AsyncGenerator[Opened, None]:
        """Have the one adapter, or the merge of several, in a slot of the engine until the context is left. It may be
        used at once; only what is said once it is prepared counts.

        It waits for a slot that no other answer needs, and meanwhile has brought into memory what it will need. With
        `waits` false it takes a slot at once, and is counted: two answers that each hold one and wait for another would
        never end. Raises `InvalidValue` for a merge, and `MemoryNotReady` for an adapter, of a rank that the engine
        cannot take, `EngineBusy` when it waited too long; being prepared raises `StoredDataDamaged` for files that are
        missing or altered, and what else `Engine.activating` does.
        """
        recipe = recipe_of(adapters, options, self._max_rank)
        self._check_rank(adapters, recipe.method)
        adapter = self._adapter(recipe)
        started = time.perf_counter()
        fetch = waits and not self.slots.free_for(adapter.int_id)
        async with (
            beside(self._prefetch(adapter)) if fetch else nullcontext(),
            self.slots.held(adapter.int_id, waits=waits),
        ):
            waited = time.perf_counter() - started
            async with self._engine.activating(adapter) as activation:
                merged = len(adapters) > 1 or options.strength not in (None, 1.0)
                nearly = partial(Prepared, adapter, recipe, merged, waited=waited)
                try:
                    async with beside(_prepared(nearly, activation, len(adapters))) as prepared:
                        yield Opened(adapter, prepared, tuple(one.adapter_id for one in adapters))
                finally:
                    self._note(recipe, adapter, activation)

    def _note(self, recipe: Recipe, adapter: EngineAdapter, activation: asyncio.Task[Activation]) -> None:
        """One that fails gets another id, and one that was left before its end, and was never loaded under its own."""
        if _succeeded(activation):
            self._ids.prove(adapter.int_id)
        elif _failed(activation) or not self._ids.is_proven(adapter.int_id):
            self._ids.forget(recipe.digest(), adapter.int_id)

    async def _prefetch(self, adapter: EngineAdapter) -> None:
        with suppress(LoramemError):  # what goes wrong here goes wrong again when it is activated, which says so
            await self._engine.prefetch(adapter)

    def _adapter(self, recipe: Recipe) -> EngineAdapter:
        digest = recipe.digest()
        int_id = self._ids.of(digest)
        return EngineAdapter(f"{digest}.{int_id}", int_id, recipe.path())

    def _check_rank(self, adapters: Sequence[RoutedAdapter], method: MergeMethod) -> None:
        ranks = [adapter.rank for adapter in adapters]
        for adapter in adapters:
            if adapter.rank > self._max_rank:
                raise MemoryNotReady(
                    f"adapter {adapter.adapter_id} has rank {adapter.rank}, the engine's slots have {self._max_rank}: "
                    "raise LORAMEM_MAX_LORA_RANK and restart, or delete its document and upload it again",
                    document_id=adapter.document_id,
                )
        rank = merged_rank(method, ranks)
        if rank > self._max_rank:
            raise InvalidValue(
                f"{method} of ranks {ranks} needs rank {rank}, the engine's slots have {self._max_rank}; "
                "use a smaller top_k, another method, or raise LORAMEM_MAX_LORA_RANK",
                key="merge.method",
                value=method,
                allowed=f"{'summed ' if method == 'cat' else ''}rank up to {self._max_rank}",
            )


async def _prepared(
    nearly: Callable[[bool, float, Tiers], Prepared], activation: Awaitable[Activation], count: int
) -> Prepared:
    with tracing.span("merge", {"loramem.adapters": count}):
        done = await activation
    return nearly(done.hit, done.seconds, done.tiers)


def _succeeded(activation: asyncio.Task[Activation]) -> bool:
    """False too where it was left before its end, and nobody will know."""
    return activation.done() and not activation.cancelled() and activation.exception() is None


def _failed(activation: asyncio.Task[Activation]) -> bool:
    return activation.done() and not activation.cancelled() and activation.exception() is not None


def recipe_of(adapters: Sequence[RoutedAdapter], options: MergeOptions, max_rank: int) -> Recipe:
    """Methods that elect signs take weights as gains (1 each keeps the adapters' strength), the others as shares.

    `strength` scales the whole update. Where no method is named it is the mean of the updates (`cat`) if a slot has
    room for all ranks together (`max_rank`), else `ties`: everybody waits while a merge is made, and of what fits it is
    the best but for the slow ones.
    """
    fits = merged_rank("cat", [adapter.rank for adapter in adapters]) <= max_rank
    method = options.method or ("cat" if fits else "ties")
    count, strength = len(adapters), 1.0 if options.strength is None else options.strength
    gain = strength * (count if method in ELECTS_SIGNS else 1)
    shares = [a.weight if options.weights == "router" else 1.0 / count for a in adapters]
    sources = [
        Source(adapter_id=adapter.adapter_id, sha256=adapter.sha256, weight=gain * share)
        for adapter, share in zip(adapters, shares, strict=True)
    ]
    return Recipe.of(method, sources, options.density, options.sign_method, options.seed)
