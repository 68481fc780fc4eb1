"""An event loop whose time is not real: it passes only while nothing is left to do, and then at once."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Clock(selectors.SelectSelector):
    """Waits for nothing: the time that a loop would have waited has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        found = super().select(0)
        if timeout is None and not found:
            raise TimeoutError("all of it waits for what never comes")
        return found


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def run_simulated(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`. Nothing in it may wait for a thread or a socket."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)
