"""The vLLM plugin on vLLM's own LoRA classes, without an engine: recipes go into slots, folders load as they did."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.config.lora import LoRAConfig
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import AdapterLRUCache, LoRAModelManager, LRUCacheLoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager
from vllm.model_executor.layers import utils as layer_utils
from vllm.platforms import current_platform
from vllm.tokenizers import registry
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from loramem.chat import tokenizer_folder
from loramem.errors import StoredDataDamaged
from loramem.records import MergeMethod, Recipe, Source
from loramem.store import AdapterStore
from server.engine import plugin
from server.engine.cpu_lora import add_grouped, group_rows
from server.engine.extension import WorkerExtension
from server.engine.plugin import ADAPTERS_VARIABLE, BUDGET_VARIABLE, DEVICE_BUDGET_VARIABLE
from server.engine.published import as_tensor
from server.engine.virtual import Scratch, VirtualAdapter
from tests.server.learned import peft_tensors, store_adapter
from tests.trainer_worker.tiny import save_tiny_model

ATTENTION = "model.layers.0.self_attn"
WIDTH = 12


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path)


@pytest.fixture(autouse=True)
def registered(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin in place, in an engine process of this store; vLLM's classes are as they came afterwards."""
    for owner, name in (
        (WorkerLoRAManager, "_load_adapter"),
        (LoRAModelManager, "_add_adapter"),
        (LoRAModelManager, "activate_adapter"),
        (LRUCacheWorkerLoRAManager, "_apply_adapters"),
        (PunicaWrapperCPU, "update_metadata"),
        (PunicaWrapperCPU, "add_lora_linear"),
        (PunicaWrapperCPU, "add_lora_logits"),
        (LoRAModelRunnerMixin, "load_lora_model"),
        (SpinCondition, "wait"),
        (layer_utils, "check_cpu_sgl_kernel"),
        (layer_utils, "dispatch_cpu_unquantized_gemm"),
        (registry, "get_config"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(plugin, "_pool", None)
    plugin.refusals.clear()
    monkeypatch.setenv(ADAPTERS_VARIABLE, str(store.root))
    monkeypatch.setenv(BUDGET_VARIABLE, str(1 << 20))
    plugin.register()


class Layer:
    """A vLLM layer of one slice or of several: slots that `set_lora` writes as vLLM's do."""

    tp_size = 1

    def __init__(self, slices: int, slots: int, rank: int, width: int = WIDTH) -> None:
        self.lora_a_stacked = tuple(torch.full((slots, 1, rank, width), torch.nan) for _ in range(slices))
        self.lora_b_stacked = tuple(torch.full((slots, 1, width, rank), torch.nan) for _ in range(slices))

    def reset_lora(self, slot: int) -> None:
        for stacked in (*self.lora_a_stacked, *self.lora_b_stacked):
            stacked[slot] = 0

    def set_lora(self, slot: int, a: Any, b: Any) -> None:
        self.reset_lora(slot)
        for number, (part_a, part_b) in enumerate(zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]):
            if part_a is not None:
                self.lora_a_stacked[number][slot, 0, : part_a.shape[0]].copy_(part_a)
                self.lora_b_stacked[number][slot, 0, :, : part_b.shape[1]].copy_(part_b)


def manager(max_rank: int = 64, *, slots: int = 2, capacity: int = 16, width: int = WIDTH) -> Any:
    """vLLM's managers over one packed attention layer and one that no adapter targets."""
    made: Any = LRUCacheWorkerLoRAManager.__new__(LRUCacheWorkerLoRAManager)
    made.lora_config = LoRAConfig(
        max_lora_rank=max_rank, lora_dtype=torch.float32, max_loras=slots, max_cpu_loras=capacity
    )
    made.vocab_size = 100
    made.max_position_embeddings = 64
    made._lora_model_cls = LoRAModel
    inner: Any = LRUCacheLoRAModelManager.__new__(LRUCacheLoRAModelManager)
    inner.lora_config, inner.model, inner.is_pooling_model = made.lora_config, SimpleNamespace(), False
    inner.modules = {
        f"{ATTENTION}.qkv_proj": Layer(3, slots, max_rank, width),
        f"{ATTENTION}.o_proj": Layer(1, slots, max_rank, width),
    }
    inner.packed_modules = {f"{ATTENTION}.qkv_proj": [f"{ATTENTION}.{part}_proj" for part in "qkv"]}
    inner.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    inner.supported_lora_modules = ["qkv_proj", "o_proj"]
    inner.moe_ep_load_spec = None
    for check in ("_validate_moe_lora_format", "_validate_modules_to_save", "_validate_token_classification_lora"):
        setattr(inner, check, Mock())  # of kinds of adapters that ours are not
    inner._registered_adapters = AdapterLRUCache(capacity, inner.deactivate_adapter)
    inner._active_adapters = AdapterLRUCache(slots, inner._deactivate_adapter)
    inner.lora_index_to_id = [None] * slots
    made._adapter_manager = inner
    return made


def slot_of(made: Any, int_id: int, part: int, rank: int) -> tuple[Tensor, Tensor]:
    """A and B of q (0), k (1) or v (2) in the slot that an adapter has."""
    layer = made._adapter_manager.modules[f"{ATTENTION}.qkv_proj"]
    slot = made._adapter_manager.lora_index_to_id.index(int_id)
    a, b = layer.lora_a_stacked[part][slot, 0], layer.lora_b_stacked[part][slot, 0]
    assert not a[rank:].any()
    assert not b[:, rank:].any()
    return a[:rank], b[:, :rank]


def merged(recipe: Recipe) -> dict[str, Tensor]:
    opened = plugin.source_pool().open(recipe)
    out = np.zeros(opened.layout.size, dtype=np.float32)
    plugin.source_pool().merge_into(opened, out)
    return {name.removeprefix("base_model.model."): t for name, t in opened.layout.views(as_tensor(out)).items()}


def assert_holds(made: Any, int_id: int, recipe: Recipe, rank: int) -> None:
    expected = merged(recipe)
    for number, part in ((0, "q_proj"), (2, "v_proj")):
        a, b = slot_of(made, int_id, number, rank)
        assert torch.equal(a, expected[f"{ATTENTION}.{part}.lora_A.weight"])
        assert torch.equal(b, expected[f"{ATTENTION}.{part}.lora_B.weight"])
    assert not slot_of(made, int_id, 1, 0)[0].any()  # nothing targets k_proj, nor o_proj
    other = made._adapter_manager.modules[f"{ATTENTION}.o_proj"].lora_a_stacked[0]
    assert not other[made._adapter_manager.lora_index_to_id.index(int_id)].any()


def sources(store: AdapterStore, ranks: tuple[int, ...]) -> list[Source]:
    made = []
    for seed, rank in enumerate(ranks):
        manifest, stored = store_adapter(store, rank=rank, seed=seed)
        made.append(Source(adapter_id=manifest.adapter_id, sha256=stored.sha256, weight=1.0 + seed))
    return made


def request(path: str, int_id: int = 7) -> LoRARequest:
    return LoRARequest(lora_name="some name", lora_int_id=int_id, lora_path=path)


def named(path: str, int_id: int) -> LoRARequest:
    """Requests of one name are one to vLLM."""
    return LoRARequest(lora_name=f"name {int_id}", lora_int_id=int_id, lora_path=path)


@pytest.mark.parametrize(
    ("method", "rank"), [("ties", 8), ("linear", 8), ("cat", 16), ("dare_ties", 8), ("product_ties", 8)]
)
def test_a_recipe_becomes_weights_in_a_slot(store: AdapterStore, method: MergeMethod, rank: int) -> None:
    made, recipe = manager(), Recipe.of(method, sources(store, (8, 8)), density=0.4)
    assert made.add_adapter(request(recipe.path()))
    assert_holds(made, 7, recipe, rank)


@pytest.mark.parametrize("method", ["ties", "linear", "dare_ties", "dare_linear"])
def test_ranks_that_differ_share_a_slot_of_the_greatest(store: AdapterStore, method: MergeMethod) -> None:
    made, recipe = manager(max_rank=16), Recipe.of(method, sources(store, (8, 16, 4)), density=0.4)
    assert made.add_adapter(request(recipe.path()))
    assert_holds(made, 7, recipe, 16)
    assert made._adapter_manager._registered_adapters.cache[7].rank == 16


@pytest.mark.parametrize(
    ("method", "by_kernel"), [("ties", True), ("dare_linear", True), ("cat", False), ("product_ties", False)]
)
def test_the_device_takes_ranks_that_differ_as_one_layout(
    store: AdapterStore, method: MergeMethod, by_kernel: bool
) -> None:
    opened, writer = plugin.source_pool().open(Recipe.of(method, sources(store, (8, 16)))), Mock()
    scratch = Scratch(np.zeros(opened.layout.size, dtype=np.float32), {}, writer)
    adapter = VirtualAdapter(7, opened, plugin.source_pool(), scratch)
    assert adapter.is_written_on_device == by_kernel
    if by_kernel:
        adapter.write(1, torch.device("cpu"))
        slot, flats, gains, _ = writer.write.call_args.args
        assert slot == 1
        assert [flat.shape for flat in flats] == [(opened.layout.size,)] * 2
        weights = [source.weight for source in opened.recipe.sources]
        assert np.allclose(gains[:, 1] ** 2, [2 * weight for weight in weights])  # alpha is twice the rank of each


def test_without_a_budget_on_the_device_merges_are_made_on_the_host(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE_BUDGET_VARIABLE, "0")
    opened = plugin.source_pool().open(Recipe.of("ties", sources(store, (8, 8))))
    scratch = Scratch(np.zeros(opened.layout.size, dtype=np.float32), {}, Mock())
    assert not VirtualAdapter(7, opened, plugin.source_pool(), scratch).is_written_on_device


def test_what_is_registered_holds_no_weights(store: AdapterStore) -> None:
    made, both = manager(slots=1), sources(store, (8, 8))
    for number, density in enumerate((0.2, 0.4, 0.6), start=1):
        made.add_adapter(request(Recipe.of("ties", both, density).path(), number))
    kept = list(made._adapter_manager._registered_adapters.cache.values())
    assert [type(adapter) for adapter in kept] == [VirtualAdapter] * 3
    assert all(not adapter.loras for adapter in kept)
    assert len({id(adapter._scratch) for adapter in kept}) == 1


def test_a_slot_that_was_lost_is_filled_again_even_when_the_sources_are_gone(store: AdapterStore) -> None:
    made, both = manager(slots=1), sources(store, (8, 8))
    recipes = [Recipe.of("ties", both, density) for density in (0.3, 0.7)]
    for number, recipe in enumerate(recipes, start=1):
        made.add_adapter(request(recipe.path(), number))
    assert made._adapter_manager.lora_index_to_id == [2]
    for one in both:
        store.remove(one.adapter_id)
    plugin.source_pool().host.budget_bytes = 0  # nothing of them stays in memory
    made.add_adapter(request(recipes[0].path(), 1))
    assert_holds(made, 1, recipes[0], 8)


def test_what_runs_keeps_its_slot_when_a_new_adapter_took_one(store: AdapterStore) -> None:
    """Three slots, all of running adapters; a fourth takes one. The next step must not merge all three again."""
    made, both = manager(slots=3), sources(store, (8, 8))
    paths = [Recipe.of("ties", both, density).path() for density in (0.2, 0.4, 0.6, 0.8)]
    requests = [named(path, number) for number, path in enumerate(paths, start=1)]
    running = set(requests[:3])
    made._apply_adapters(running)
    made.add_adapter(requests[3])
    merges_before = plugin.source_pool().host.stats.hits + plugin.source_pool().host.stats.misses
    made._apply_adapters(running)
    merges = plugin.source_pool().host.stats.hits + plugin.source_pool().host.stats.misses - merges_before
    assert merges == 2  # the sources of the one that had lost its slot
    assert set(made._adapter_manager.lora_index_to_id) == {1, 2, 3}


def test_many_adapters_need_no_file_descriptors(store: AdapterStore) -> None:
    before = len(os.listdir("/proc/self/fd"))
    opened = [plugin.source_pool().open(Recipe.of("ties", sources(store, (8,)))) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert len(opened) == 20


def test_an_adapter_of_another_model_is_refused_before_it_has_a_slot(store: AdapterStore) -> None:
    path = Recipe.of("ties", sources(store, (8, 8))).path()
    with pytest.raises(ValueError, match="maps 20 values to 20, the adapter's 12 to 12"):
        manager(width=20).add_adapter(request(path))
    smaller = manager()
    smaller._adapter_manager.packed_modules = {}
    with pytest.raises(ValueError, match=f"the base model has no layer {ATTENTION}.q_proj"):
        smaller.add_adapter(request(path))


def test_a_rank_above_the_slots_is_refused(store: AdapterStore) -> None:
    path = Recipe.of("cat", sources(store, (8, 8))).path()
    with pytest.raises(Exception, match="rank 16"):
        manager(max_rank=8)._load_adapter(request(path))


def test_a_folder_is_loaded_by_vllm_itself(store: AdapterStore) -> None:
    manifest, _ = store_adapter(store, rank=8, seed=5)
    loaded = manager()._load_adapter(request(str(store.path(manifest.adapter_id))))
    assert (loaded.id, loaded.rank) == (7, 8)
    for name, layer in loaded.loras.items():
        assert layer.lora_alpha == 16
        assert torch.equal(layer.lora_a, peft_tensors(8, 5)[f"base_model.model.{name}.lora_A.weight"])


def test_a_folder_that_was_altered_is_not_loaded(store: AdapterStore) -> None:
    manifest, _ = store_adapter(store, rank=8, seed=5)
    folder = store.path(manifest.adapter_id)
    weights = folder / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    folder.chmod(0o755)
    weights.chmod(0o644)
    weights.write_bytes(content)
    with pytest.raises(StoredDataDamaged):
        manager()._load_adapter(request(str(folder)))


def test_registering_twice_wraps_once() -> None:
    wrapped = WorkerLoRAManager._load_adapter
    plugin.register()
    assert WorkerLoRAManager._load_adapter is wrapped


def test_the_product_of_a_cpu_is_chosen_by_us_too() -> None:
    assert hasattr(layer_utils.check_cpu_sgl_kernel, "_loramem") == current_platform.is_cpu()


def test_the_pool_is_one_a_process_and_reads_its_environment(store: AdapterStore) -> None:
    made = plugin.source_pool()
    assert made is plugin.source_pool()
    assert (made.store.root, made.host.budget_bytes) == (store.root, 1 << 20)


def test_without_the_folder_a_recipe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADAPTERS_VARIABLE)
    with pytest.raises(RuntimeError, match=ADAPTERS_VARIABLE):
        plugin.source_pool()


# activation, as the gateway calls it by RPC


class Worker(WorkerExtension):
    """As much of vLLM's worker as the extension uses."""

    def __init__(self, max_rank: int = 64) -> None:
        self.manager = manager(max_rank)
        self.model_runner = SimpleNamespace(lora_manager=self.manager)

    def add_lora(self, wanted: LoRARequest) -> bool:
        return bool(self.manager.add_adapter(wanted))


def test_the_second_activation_is_a_hit(store: AdapterStore) -> None:
    worker, path = Worker(), Recipe.of("ties", sources(store, (8, 8))).path()
    first, second = (worker.loramem_activate("name", 3, path) for _ in range(2))
    assert (first["hit"], second["hit"]) == (False, True)
    assert first["seconds"] > 0
    assert second["tiers"]["host"]["entries"] == 2
    assert second["tiers"]["disk"]["misses"] == 2


def test_an_adapter_without_a_slot_is_a_miss(store: AdapterStore) -> None:
    worker, both = Worker(), sources(store, (8, 8))
    paths = [Recipe.of("ties", both, density).path() for density in (0.2, 0.4, 0.6)]
    for number, path in enumerate(paths, start=1):
        worker.loramem_activate(f"name {number}", number, path)
    assert [worker.loramem_activate(f"name {n}", n, paths[n - 1])["hit"] for n in (2, 1)] == [True, False]


def test_the_product_of_a_slot_is_with_the_adapter_that_came_last(store: AdapterStore) -> None:
    worker, both = Worker(), sources(store, (8, 8))
    layer = worker.manager._adapter_manager.modules[f"{ATTENTION}.qkv_proj"]
    recipes = [Recipe.of("ties", both, density) for density in (0.2, 0.4, 0.6)]
    for number, recipe in enumerate(recipes, start=1):
        worker.loramem_activate(f"name {number}", number, recipe.path())
        slot = worker.manager._adapter_manager.lora_index_to_id.index(number)
        x, y = torch.randn(2, WIDTH), torch.zeros(2, 3 * WIDTH)
        rows = group_rows(torch.full((2,), slot))
        add_grouped(y, x, rows, layer.lora_a_stacked, layer.lora_b_stacked, 1.0, (WIDTH,) * 3)
        expected = merged(recipe)
        for start, name in ((0, "q_proj"), (2 * WIDTH, "v_proj")):
            a, b = (expected[f"{ATTENTION}.{name}.lora_{side}.weight"] for side in "AB")
            torch.testing.assert_close(y[:, start : start + WIDTH], x @ a.T @ b.T, atol=1e-4, rtol=1e-4)
        assert not y[:, WIDTH : 2 * WIDTH].any()


def test_a_prefetched_recipe_finds_its_sources_in_memory(store: AdapterStore) -> None:
    worker, path = Worker(), Recipe.of("ties", sources(store, (8, 8))).path()
    worker.loramem_prefetch(3, path)
    plugin.source_pool().close()
    tiers = worker.loramem_activate("name", 3, path)["tiers"]
    assert (tiers["host"]["misses"], tiers["host"]["hits"]) == (2, 2)


def test_a_source_that_is_gone_is_reported_not_raised(store: AdapterStore) -> None:
    wanted = sources(store, (8, 8))
    store.remove(wanted[0].adapter_id)
    reply = Worker().loramem_activate("name", 3, Recipe.of("ties", wanted).path())
    assert reply["error"] == StoredDataDamaged.__name__
    assert wanted[0].adapter_id in reply["detail"]


def test_whatever_vllm_raises_for_a_missing_folder_is_reported(store: AdapterStore) -> None:
    reply = Worker().loramem_activate("name", 3, str(store.root / "nothing"))
    assert reply["error"] not in ("ValueError", "VLLMValidationError")  # those are the request's fault
    assert "nothing" in reply["detail"]


def test_a_rank_that_vllm_refuses_is_the_requests_fault(store: AdapterStore) -> None:
    path = Recipe.of("cat", sources(store, (8, 8))).path()
    reply = Worker(max_rank=8).loramem_activate("name", 3, path)
    assert reply["error"] in ("ValueError", "VLLMValidationError")
    assert "rank 16" in reply["detail"]


def test_a_tokenizer_without_a_configuration_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tokenizer_folder(save_tiny_model(tmp_path / "tiny"), tmp_path / "cache")
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    assert registry.get_tokenizer(str(folder)).decode([5]) == "who"
    assert waits == []
