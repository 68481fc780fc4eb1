"""Who may have an adapter in the engine's slots, so that none that answers is put out for one that waits.

vLLM gives a new adapter the slot that was used least lately. With every slot in use, that one is needed again in the
next step, and takes the next slot in turn: one adapter too many has all of them merged anew, step after step.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager


class Slots:
    """As many different adapters at once as `count` says; whoever shares one that is held does not wait.

    For one event loop. First come, first served: none is overtaken by an adapter that needs a slot of its own.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._held: Counter[int] = Counter()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def free_for(self, adapter: int) -> bool:
        """Whether it would be held at once."""
        return adapter in self._held or (len(self._held) < self._count() and not self._waiting)

    @property
    def in_use(self) -> int:
        return len(self._held)

    @property
    def waiting(self) -> int:
        """Questions that wait for one."""
        return len(self._waiting)

    @asynccontextmanager
    async def held(self, adapter: int) -> AsyncGenerator[None, None]:
        """Wait for a slot, and hold it until the context is left."""
        if self.free_for(adapter):
            self._held[adapter] += 1
        else:
            await self._turn(adapter)
        try:
            yield
        finally:
            self._release(adapter)

    async def _turn(self, adapter: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((adapter, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came while it was being cancelled
                self._release(adapter)
            else:
                self._waiting.remove((adapter, turn))
                self._let_in()
            raise

    def _release(self, adapter: int) -> None:
        self._held[adapter] -= 1
        if not self._held[adapter]:
            del self._held[adapter]
        self._let_in()

    def _let_in(self) -> None:
        """All whose adapter is held, and of the others as many as there is room for, from the front."""
        left: deque[tuple[int, asyncio.Future[None]]] = deque()
        for adapter, turn in self._waiting:
            if not turn.cancelled() and (adapter in self._held or (len(self._held) < self._count() and not left)):
                self._held[adapter] += 1
                turn.set_result(None)
            else:
                left.append((adapter, turn))
        self._waiting = left
