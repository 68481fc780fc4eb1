"""vLLM plugin: a LoRA path may be a recipe, and the merged adapter is made where it is used.

vLLM loads `register` in each of its processes (entry point `vllm.general_plugins`). It wraps one private method,
`WorkerLoRAManager._load_adapter`: a path that starts with `loramem:` is the canonical JSON of a `Recipe`, everything
else goes the stock way. vLLM's own LRU then caches, evicts and rebuilds merges like any adapter, and its prefix cache,
keyed by (name, path), is addressed by content. Loading raises in the worker; the gateway activates every adapter
before it generates with it, because an error inside a scheduler step would end the engine.
"""

import logging
import os
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from loramem.logs import configure

RECIPE_PREFIX = "loramem:"
ADAPTERS_VARIABLE = "LORAMEM_ENGINE_ADAPTERS"
LOG_LEVEL_VARIABLE = "LORAMEM_ENGINE_LOG_LEVEL"
BUDGET_VARIABLE = "LORAMEM_ENGINE_SOURCE_POOL_BYTES"


def register() -> None:
    """Wrap `_load_adapter` once per process, and put the grouped LoRA product in place on a CPU."""
    from vllm.lora.worker_manager import WorkerLoRAManager

    from server.engine import cpu_lora

    cpu_lora.install()
    if parent_process() is not None and LOG_LEVEL_VARIABLE in os.environ:
        configure("engine", os.environ[LOG_LEVEL_VARIABLE])
        logging.getLogger("vllm").setLevel(logging.WARNING)
    stock = WorkerLoRAManager._load_adapter
    if getattr(stock, "_loramem", False):
        return

    def load_adapter(self: Any, lora_request: Any) -> Any:
        if lora_request.lora_path.startswith(RECIPE_PREFIX):
            return _load_merge(self, lora_request)
        _verify(Path(lora_request.lora_path))
        return stock(self, lora_request)

    load_adapter._loramem = True  # type: ignore[attr-defined]
    WorkerLoRAManager._load_adapter = load_adapter


def _verify(folder: Path) -> None:
    """Check a folder that loramem published; others, which a stock vLLM may serve, have no manifest."""
    from loramem.store import MANIFEST, AdapterStore

    if (folder / MANIFEST).is_file():
        AdapterStore(folder.parent).verify(folder.name)


def _load_merge(manager: Any, request: Any) -> Any:
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    from loramem.records import Recipe

    recipe = Recipe.model_validate_json(request.lora_path.removeprefix(RECIPE_PREFIX))
    merged = source_pool().merge(recipe)
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in merged.tensors})
    helper = PEFTHelper(r=merged.rank, lora_alpha=merged.rank, target_modules=targets)
    helper.validate_legal(manager.lora_config)
    return LoRAModel.from_lora_tensors(
        lora_model_id=request.lora_int_id,
        tensors=merged.tensors,
        peft_helper=helper,
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        model_vocab_size=manager.vocab_size,
    )


_pool: Any = None


def source_pool() -> Any:
    """This process's pool; its folder and budget come from the environment that the gateway sets for the engine."""
    global _pool
    if _pool is None:
        from server.engine.pool import SourcePool

        root = os.environ.get(ADAPTERS_VARIABLE, "")
        if not root:
            raise RuntimeError(f"{ADAPTERS_VARIABLE} is not set: a recipe's adapters cannot be found")
        _pool = SourcePool(Path(root), int(os.environ.get(BUDGET_VARIABLE, str(1 << 30))))
    return _pool
