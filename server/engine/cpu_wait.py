"""Waiting for a message without a core, where the model computes on the cores too.

vLLM's scheduler and worker pass messages through shared memory. Whoever waits for one yields and looks again, for a
second after the last (`SpinCondition` in `shm_broadcast.py`, 0.32), and sleeps only then. Beside a GPU that costs a
core which is idle anyway. On a CPU it is one that gateway, embedder and trainer wait for: of two cores, the scheduler
took 60 to 80 % of one while answers were generated. Here it looks for some milliseconds, which is how long the worker
waits for its next step, and then sleeps until it is woken, as the scheduler does while the worker computes.
"""

import time
from typing import Any

SPIN_S = 0.005
LATELY_S = 1.0
"""After the last message the next one is close."""
LATELY_POLL_MS = 5
"""It looks again then, in case the signal was lost: a second one is dropped while the first is on its way."""


def install() -> None:
    """Replace `SpinCondition.wait` where the model runs on a CPU; once per process."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or hasattr(SpinCondition.wait, "_loramem"):
        return
    stock = SpinCondition.wait

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        now = time.monotonic()
        if getattr(self, "_loramem_read", None) != self.last_read:  # the first call since then
            self._loramem_read, self._loramem_since = self.last_read, now
        waited_s = now - self._loramem_since
        self.busy_loop_s = 3600.0 if waited_s < SPIN_S else -1.0  # stock: yield, or sleep
        stock(self, LATELY_POLL_MS if now <= self.last_read + LATELY_S else timeout_ms)

    wait._loramem = True  # type: ignore[attr-defined]
    SpinCondition.wait = wait
