"""What loramem adds to vLLM's worker, reached by `AsyncLLM.collective_rpc`."""

import time
from typing import Any


class WorkerExtension:
    """Mixed into vLLM's `Worker`; names are prefixed because they share its namespace."""

    def loramem_activate(self, name: str, int_id: int, path: str) -> dict[str, Any]:
        """Load (or merge) an adapter and give it a slot; runs between two scheduler steps.

        Returns `{hit, seconds}`, or `{error, detail}` when it cannot be loaded: an exception would reach the caller as
        text only, without its type.
        """
        from vllm.lora.request import LoRARequest

        worker: Any = self
        started = time.perf_counter()
        hit = int_id in worker.model_runner.lora_manager.list_adapters()
        try:
            worker.add_lora(LoRARequest(lora_name=name, lora_int_id=int_id, lora_path=path))
        except Exception as error:  # noqa: BLE001 - boundary: vLLM's own errors have no common base; the gateway tells them apart
            return {"error": type(error).__name__, "detail": str(error)}
        return {"hit": hit, "seconds": time.perf_counter() - started}
