"""Who may have an adapter in the engine's slots, so that none that answers is put out for one that waits.

vLLM gives a new adapter the slot that was used least lately. With every slot in use that adapter is needed again in the
next step, which merges it anew and puts out the new one, which is merged anew when its turn comes.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from loramem.errors import EngineBusy

PATIENCE_S = 2.0
"""As long as an answer or two take."""
MOST_S = 60.0
"""Of silence, after which proxies cut a connection off."""


class Slots:
    """As many different adapters at once as `count` says; whoever shares one that is held does not wait.

    First come, first served. A question whose adapter holds a slot already may go first, but not once the one in front
    has waited for `PATIENCE_S`: adapters that are always asked for would keep it out for ever. For one event loop.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._held: Counter[int] = Counter()
        self._waiting: deque[_Waiting] = deque()

    def free_for(self, adapter: int) -> bool:
        """Whether it would be held at once."""
        return self._has_room(adapter, behind=self._waiting[0] if self._waiting else None)

    @property
    def in_use(self) -> int:
        return len(self._held)

    @property
    def waiting(self) -> int:
        """Questions that wait for one."""
        return len(self._waiting)

    @asynccontextmanager
    async def held(self, adapter: int, *, waits: bool = True) -> AsyncGenerator[None, None]:
        """Wait for a slot, and hold it until the context is left; without waiting, one more than there are if need be.

        Raises `EngineBusy` after `MOST_S`.
        """
        if not waits or self.free_for(adapter):
            self._held[adapter] += 1
        else:
            await self._turn(adapter)
        try:
            yield
        finally:
            self._release(adapter)

    async def _turn(self, adapter: int) -> None:
        waiting = _Waiting(adapter)
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(MOST_S):
                await waiting.turn
        except TimeoutError as error:
            self._leave(waiting)
            raise EngineBusy(f"every slot was held by other answers for {MOST_S:g} s; try again") from error
        except asyncio.CancelledError:
            self._leave(waiting)
            raise

    def _leave(self, waiting: "_Waiting") -> None:
        if waiting.turn.done() and not waiting.turn.cancelled():  # its turn came while it was being cancelled
            self._release(waiting.adapter)
        else:
            self._waiting.remove(waiting)
            self._let_in()

    def _release(self, adapter: int) -> None:
        self._held[adapter] -= 1
        if not self._held[adapter]:
            del self._held[adapter]
        self._let_in()

    def _let_in(self) -> None:
        """All that may be, from the front."""
        left: deque[_Waiting] = deque()
        for waiting in self._waiting:
            if not waiting.turn.cancelled() and self._has_room(waiting.adapter, behind=left[0] if left else None):
                self._held[waiting.adapter] += 1
                waiting.turn.set_result(None)
            else:
                left.append(waiting)
        self._waiting = left

    def _has_room(self, adapter: int, behind: "_Waiting | None") -> bool:
        if adapter in self._held:
            return behind is None or time.monotonic() - behind.since < PATIENCE_S
        return behind is None and len(self._held) < self._count()


class _Waiting:
    def __init__(self, adapter: int) -> None:
        self.adapter = adapter
        self.since = time.monotonic()
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
