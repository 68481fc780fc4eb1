"""What loramem adds to vLLM's worker, reached by `AsyncLLM.collective_rpc`. Calls run between two scheduler steps."""

import gc
import logging
import time
from typing import Any

from loramem.errors import LoramemError
from loramem.records import Recipe
from server.engine import memory
from server.engine.plugin import refusals, refuse, source_pool
from server.engine.speculate import Drafter

log = logging.getLogger(__name__)


class WorkerExtension:
    """Mixed into vLLM's `Worker`; names are prefixed because they share its namespace."""

    def loramem_warm_up(self) -> None:
        """Have the merge, on a CPU product and norm too, compiled before a query needs them, and the drafter told whose
        requests it serves; what is there then stays. On a CPU, helpers make room for the thread that computes.

        The worker for CPUs (vLLM 0.32) does not freeze its objects, as that for GPUs does: now and then all of them
        would be looked through for garbage in the middle of a step.
        """
        from vllm.platforms import current_platform

        from server.engine import cpu_lora, cpu_norm, cpu_threads, fused

        fused.warm_up()
        runner: Any = getattr(self, "model_runner", None)
        if current_platform.is_cpu():
            cpu_lora.warm_up()
            cpu_norm.warm_up()
            cpu_threads.move_helpers()
        else:
            _compile_for_gpu(runner.lora_manager._adapter_manager)
        if isinstance(getattr(runner, "drafter", None), Drafter):
            runner.drafter.bind(runner)
        gc.collect()
        gc.freeze()

    def loramem_trim_memory(self) -> None:
        """On a CPU, give back what steps of many rows have taken and freed: hundreds of MiB, in pieces between what
        stays. The embedded model's worker grew from 2.0 to 2.8 GiB. Takes 10 to 40 ms.
        """
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            memory.trim()

    def loramem_prefetch(self, int_id: int, path: str) -> None:
        """Start bringing a recipe's sources into memory, unless it has its slot; returns at once."""
        if not self._loramem_is_active(int_id):
            source_pool().prefetch(Recipe.from_path(path))

    def loramem_activate(self, name: str, int_id: int, path: str) -> dict[str, Any]:
        """Load (or merge) an adapter and give it a slot.

        Returns `{hit, seconds, tiers}`, or `{error, detail}` when it cannot be loaded: an exception would reach the
        caller as text only, without its type. A hit is an adapter that has its slot already. One that was not loaded
        adds nothing to what is already asked of it.
        """
        from vllm.lora.request import LoRARequest

        if int_id in refusals:  # by a question that came just before
            return dict(refusals[int_id])
        worker: Any = self
        started = time.perf_counter()
        hit = self._loramem_is_active(int_id)
        try:
            worker.add_lora(LoRARequest(lora_name=name, lora_int_id=int_id, lora_path=path))
        except Exception as error:
            unforeseen = not isinstance(error, LoramemError | ValueError)
            log.warning("adapter %s was not loaded: %s", name, error, exc_info=error if unforeseen else None)
            why = {"error": type(error).__name__, "detail": str(error)}
            refuse(worker.model_runner.lora_manager, int_id, why)
            return why
        return {"hit": hit, "seconds": time.perf_counter() - started, "tiers": source_pool().stats}

    def _loramem_is_active(self, int_id: int) -> bool:
        worker: Any = self
        return int_id in worker.model_runner.lora_manager._adapter_manager._active_adapters


def _compile_for_gpu(manager: Any) -> None:
    """What most questions need, one adapter, and two or three by TIES. Others that the kernel makes compile when first
    asked for, a second or more in which nobody is answered; concatenations are made by the host."""
    from server.engine.cuda_merge import SlotWriter, supports
    from server.engine.layout import Layout

    if supports(manager):
        SlotWriter(manager, Layout((), ())).compile((1, 2, 3), ("sum", "ties_total"))
