"""Waiting for a message without a core, where the model computes on the cores too.

vLLM's scheduler and worker pass messages through shared memory. Whoever waits for one yields and looks again, for a
second after the last (`SpinCondition` in `shm_broadcast.py`, 0.32), and sleeps only then. Beside a GPU that costs a core
which is idle anyway. On a CPU it is one that gateway, embedder and trainer wait for: of two cores, the scheduler took 60
to 80 % of one while answers were generated. Here it sleeps at once; what is sent wakes it.
"""

import time
from typing import Any

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
        lately = time.monotonic() <= self.last_read + LATELY_S
        self.busy_loop_s = -1.0  # the stock method then never spins
        stock(self, LATELY_POLL_MS if lately else timeout_ms)

    wait._loramem = True  # type: ignore[attr-defined]
    SpinCondition.wait = wait
