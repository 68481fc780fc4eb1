"""vLLM plugin: a LoRA path may be a recipe, and the merged adapter is made where it is used.

vLLM loads `register` in each of its processes (entry point `vllm.general_plugins`). It wraps four methods:

    WorkerLoRAManager._load_adapter      a path that starts with `loramem:` is a `Recipe`
    LoRAModelManager._add_adapter        such an adapter has no tensors that would have to be packed or pinned
    LoRAModelManager.activate_adapter    its weights are merged just before vLLM copies them into a slot
    LRUCacheWorkerLoRAManager._apply_adapters    what runs keeps its slot before what does not

What else is put in place of vLLM's own, to be looked at with a new release:

    PunicaWrapperCPU                 rows grouped by adapter (`cpu_lora`)
    check_cpu_sgl_kernel, onednn_mm  which products go to which kernels (`cpu_gemm`)
    dispatch_cpu_unquantized_gemm    the same, before that choice, in loramem's own engine
    ir.ops                           a provider of RMS norms (`cpu_norm`)
    rejection_sampler                drafted tokens on a CPU (`cpu_sample`)
    SpinCondition.wait               waiting for messages on a CPU (`cpu_wait`)
    SamplingParams.__repr__          drafts stay out of its log (`speculate`)
    LoRAModelRunnerMixin.load_lora_model    in loramem's own engine embedding and output head take no LoRA, and layers
                                     on a CPU go straight to their kernels (`cpu_layers`)
    EngineCore.post_step             proposals are sent for where there may be some (`speculate`)
    tokenizers.registry.get_config   a tokenizer's folder without a configuration is not tried twice

Everything else about adapters goes the stock way: vLLM's own LRU caches and evicts merges like any adapter, and its
prefix cache, keyed by (name, path), is addressed by content. Loading raises in the worker; the gateway activates every
adapter before it generates with it, because an error inside a scheduler step would end the engine. Since it may ask for
the answer in the same breath, an adapter that was not loaded then is an empty one afterwards.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from loramem.logs import configure
from loramem.records import Recipe
from loramem.supervise import end_without_collecting

log = logging.getLogger(__name__)

ADAPTERS_VARIABLE = "LORAMEM_ENGINE_ADAPTERS"
LOG_LEVEL_VARIABLE = "LORAMEM_ENGINE_LOG_LEVEL"
OWN_VARIABLE = "LORAMEM_ENGINE_OWN"
"""Set in loramem's own engine; a stock vLLM may serve others' adapters too."""
BUDGET_VARIABLE = "LORAMEM_ENGINE_SOURCE_POOL_BYTES"
DEVICE_BUDGET_VARIABLE = "LORAMEM_ENGINE_DEVICE_POOL_BYTES"
DEFAULT_BYTES = str(1 << 30)


def register() -> None:
    """Wrap vLLM's methods once per process; on a CPU, put products, norm and sampler in place, and wait asleep."""
    from vllm import SamplingParams
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager
    from vllm.tokenizers import registry
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    from server.engine import resolver, speculate

    _replace_kernels()
    speculate.hide_drafts(SamplingParams)
    speculate.fetch_where_proposed(EngineCore)
    _ask_for_no_configuration(registry)
    _settle_in()
    if not hasattr(WorkerLoRAManager._load_adapter, "_loramem"):
        _wrap(WorkerLoRAManager, LoRAModelManager)
        _keep_slots(LRUCacheWorkerLoRAManager)
        _prepare_own_model(LoRAModelRunnerMixin)
    resolver.register_resolver(ADAPTERS_VARIABLE)


def _replace_kernels() -> None:
    from server.engine import cpu_gemm, cpu_lora, cpu_norm, cpu_sample, cpu_wait

    cpu_lora.install()
    cpu_norm.install()
    cpu_gemm.install(in_half=OWN_VARIABLE in os.environ)  # ours compiles nothing; a stock vLLM may
    cpu_sample.install()
    cpu_wait.install()


def _settle_in() -> None:
    """In a process of loramem's own engine: log as the others do, and end in time."""
    if parent_process() is not None and LOG_LEVEL_VARIABLE in os.environ:
        configure("engine", os.environ[LOG_LEVEL_VARIABLE])
        logging.getLogger("vllm").setLevel(logging.WARNING)
        end_without_collecting()  # vLLM gives an engine that stops five seconds, then kills it


def _ask_for_no_configuration(tokenizers: Any) -> None:
    """vLLM goes on without a configuration beside a tokenizer, but reads it again after two seconds and logs errors."""
    stock = tokenizers.get_config
    if hasattr(stock, "_loramem"):
        return

    def get(model: str | Path, *args: Any, **options: Any) -> Any:
        if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
            raise FileNotFoundError(f"{model} has no config.json")
        return stock(model, *args, **options)

    get._loramem = True  # type: ignore[attr-defined]
    tokenizers.get_config = get


def _wrap(worker_manager: Any, model_manager: Any) -> None:
    from server.engine import cpu_lora

    stock_load, stock_add = worker_manager._load_adapter, model_manager._add_adapter
    stock_activate = model_manager.activate_adapter

    def load(self: Any, lora_request: Any) -> Any:
        if lora_request.lora_int_id in refusals:
            return _nothing(lora_request.lora_int_id)
        if lora_request.lora_path.startswith(Recipe.PATH_PREFIX):
            return _load_merge(self, lora_request)
        _verify(Path(lora_request.lora_path))
        return stock_load(self, lora_request)

    def add(self: Any, lora: Any) -> None:
        if _is_virtual(lora) or lora.id in refusals:
            self._registered_adapters[lora.id] = lora
        else:
            stock_add(self, lora)

    def activate(self: Any, lora_id: int) -> Any:
        adapter = self._registered_adapters.get(lora_id)
        if _is_virtual(adapter) and lora_id not in self._active_adapters:
            if adapter.is_written_on_device and _activate_on_device(self, adapter):
                return True
            adapter.fill()
        activated = stock_activate(self, lora_id)
        if activated:
            cpu_lora.forget(self.modules.values(), self.lora_index_to_id.index(lora_id))
        return activated

    load._loramem = True  # type: ignore[attr-defined]
    worker_manager._load_adapter = load
    model_manager._add_adapter = add
    model_manager.activate_adapter = activate


def _keep_slots(worker_manager: Any) -> None:
    """vLLM gives running adapters their slots in any order: with all slots full, one that was lost to a new adapter is
    taken from the next, and so on through the batch, a merge each. Touched first, only adapters that do not run go."""
    stock = worker_manager._apply_adapters

    def apply(self: Any, lora_requests: Any) -> None:
        active = self._adapter_manager._active_adapters
        for request in lora_requests:
            if request and request.lora_int_id in active:
                active.touch(request.lora_int_id)
        stock(self, lora_requests)

    worker_manager._apply_adapters = apply


def _prepare_own_model(model_runner: Any) -> None:
    """What is done to the model of loramem's own engine alone.

    No adapter that loramem trains changes embedding or output head (`trainer_worker.lora.linear_layers`), whose slots
    are the largest of all: as many rows as the vocabulary. On a CPU vLLM (0.32) also gathers a B for every token. And
    on a CPU nothing is compiled there, so its layers may be given shorter ways.
    """
    from server.engine import cpu_layers

    stock = model_runner.load_lora_model

    def load(self: Any, model: Any, *args: Any) -> Any:
        if OWN_VARIABLE not in os.environ:
            return stock(self, model, *args)
        for module in model.modules():
            if hasattr(module, "embedding_modules"):
                module.embedding_modules = {}
        loaded = stock(self, model, *args)
        log.debug("%d layers go straight to their kernels", cpu_layers.shorten(loaded))
        return loaded

    model_runner.load_lora_model = load


refusals: OrderedDict[int, Mapping[str, str]] = OrderedDict()
"""Why an adapter could not be loaded, by its id; the last of them. Who asks next is told, and the one after has another
id."""
REFUSALS_KEPT = 1024


def refuse(worker_manager: Any, int_id: int, why: Mapping[str, str]) -> None:
    """From now on this is an empty adapter: whatever has been asked of it runs, on the base model alone."""
    refusals[int_id] = why
    worker_manager.remove_adapter(int_id)
    while len(refusals) > REFUSALS_KEPT:
        worker_manager.remove_adapter(refusals.popitem(last=False)[0])  # the empty one, if it is still there


def _nothing(int_id: int) -> Any:
    from vllm.lora.lora_model import LoRAModel

    return LoRAModel(int_id, 1, {})


def _activate_on_device(manager: Any, adapter: Any) -> bool:
    """What vLLM's `activate_adapter` does, with one kernel in place of two copies for each matrix. False when the GPU
    has no room for the sources: nothing has changed then, and the host can merge."""
    import torch

    slot = manager.lora_index_to_id.index(None)
    try:
        adapter.write(slot, manager.device)
    except torch.OutOfMemoryError:
        log.warning("no room on the GPU for the sources of a merge; merging on the host")
        return False
    manager._active_adapters[adapter.id] = None
    manager.lora_index_to_id[slot] = adapter.id
    return True


def _is_virtual(adapter: Any) -> bool:
    from server.engine.virtual import VirtualAdapter

    return isinstance(adapter, VirtualAdapter)


def _verify(folder: Path) -> None:
    """Check a folder that loramem published; others, which a stock vLLM may serve, have no manifest."""
    from loramem.store import MANIFEST, AdapterStore

    if (folder / MANIFEST).is_file():
        AdapterStore(folder.parent).verify(folder.name)


def _load_merge(manager: Any, request: Any) -> Any:
    from vllm.lora.peft_helper import PEFTHelper

    from server.engine.virtual import VirtualAdapter

    merge = source_pool().open(Recipe.from_path(request.lora_path))
    PEFTHelper(r=merge.rank, lora_alpha=merge.rank, target_modules=[]).validate_legal(manager.lora_config)
    return VirtualAdapter(request.lora_int_id, merge, source_pool(), _scratch(manager, merge))


def _scratch(manager: Any, merge: Any) -> Any:
    """One for each layout that the manager's adapters have, kept beside them."""
    from server.engine.virtual import make_scratch

    kept = manager.__dict__.setdefault("_loramem_scratch", {})
    if merge.layout not in kept:
        kept[merge.layout] = make_scratch(merge.layout, manager._adapter_manager, manager.lora_config.lora_dtype)
    return kept[merge.layout]


_pool: Any = None


def source_pool() -> Any:
    """This process's pool; its folder and budget come from the environment that the gateway sets for the engine."""
    global _pool
    if _pool is None:
        from server.engine.pool import SourcePool

        root = os.environ.get(ADAPTERS_VARIABLE, "")
        if not root:
            raise RuntimeError(f"{ADAPTERS_VARIABLE} is not set: a recipe's adapters cannot be found")
        host, device = (int(os.environ.get(name, DEFAULT_BYTES)) for name in (BUDGET_VARIABLE, DEVICE_BUDGET_VARIABLE))
        is_stock = OWN_VARIABLE not in os.environ  # it loads a known name again within a step
        _pool = SourcePool(Path(root), host, device, keeps_opened=is_stock)
    return _pool
