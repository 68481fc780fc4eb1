"""The vLLM plugin on vLLM's own LoRA classes, without an engine: recipes are merged, folders load as they did."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from vllm.config.lora import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import WorkerLoRAManager

from loramem.errors import StoredDataDamaged
from loramem.records import MergeMethod, Recipe, Source
from loramem.store import AdapterStore
from server.engine import plugin
from server.engine.combine import SourceAdapter, combine, trim
from server.engine.extension import WorkerExtension
from server.engine.plugin import ADAPTERS_VARIABLE, BUDGET_VARIABLE, RECIPE_PREFIX
from tests.server.learned import peft_tensors, store_adapter


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path)


@pytest.fixture(autouse=True)
def registered(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin in place, in an engine process of this store; vLLM's classes are as they came afterwards."""
    for owner, name in (
        (WorkerLoRAManager, "_load_adapter"),
        (PunicaWrapperCPU, "update_metadata"),
        (PunicaWrapperCPU, "add_lora_linear"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(plugin, "_pool", None)
    monkeypatch.setenv(ADAPTERS_VARIABLE, str(store.root))
    monkeypatch.setenv(BUDGET_VARIABLE, str(1 << 20))
    plugin.register()


def manager(max_rank: int = 64) -> Any:
    """A `WorkerLoRAManager` with what loading needs of a model: the names of its layers."""
    made: Any = WorkerLoRAManager.__new__(WorkerLoRAManager)
    made.lora_config = LoRAConfig(max_lora_rank=max_rank, lora_dtype=torch.float32)
    made.vocab_size = 100
    made.max_position_embeddings = 64
    made._lora_model_cls = LoRAModel
    made._adapter_manager = Mock(  # its checks of kinds of adapters that ours are not
        supported_lora_modules=["q_proj", "v_proj"],
        packed_modules_mapping={},
        model=SimpleNamespace(),
        moe_ep_load_spec=None,
    )
    return made


def sources(store: AdapterStore, ranks: tuple[int, ...]) -> list[Source]:
    made = []
    for seed, rank in enumerate(ranks):
        manifest, stored = store_adapter(store, rank=rank, seed=seed)
        made.append(Source(adapter_id=manifest.adapter_id, sha256=stored.sha256, weight=1.0 + seed))
    return made


def request(path: str, int_id: int = 7) -> LoRARequest:
    return LoRARequest(lora_name="some name", lora_int_id=int_id, lora_path=path)


@pytest.mark.parametrize(("method", "rank"), [("ties", 8), ("linear", 8), ("cat", 16)])
def test_a_recipe_becomes_the_merged_adapter(store: AdapterStore, method: MergeMethod, rank: int) -> None:
    recipe = Recipe.of(method, sources(store, (8, 8)), density=0.4)
    loaded = manager()._load_adapter(request(RECIPE_PREFIX + recipe.canonical()))
    density = 0.4 if method == "ties" else 1.0
    parts = [
        SourceAdapter({name: trim(t, density) for name, t in peft_tensors(8, seed).items()}, 8, 16) for seed in (0, 1)
    ]
    expected = combine(recipe, parts)
    assert isinstance(loaded, LoRAModel)
    assert (loaded.id, loaded.rank) == (7, rank)
    assert len(loaded.loras) == 2
    for name, layer in loaded.loras.items():
        assert (layer.rank, layer.lora_alpha, layer.scaling) == (rank, rank, 1.0)
        assert torch.equal(layer.lora_a, expected.tensors[f"base_model.model.{name}.lora_A.weight"])
        assert torch.equal(layer.lora_b, expected.tensors[f"base_model.model.{name}.lora_B.weight"])


def test_a_merge_can_be_rebuilt_after_vllm_scaled_it_in_place(store: AdapterStore) -> None:
    path = RECIPE_PREFIX + Recipe.of("linear", sources(store, (8, 8))).canonical()
    first = manager()._load_adapter(request(path))
    kept = {name: layer.lora_b.clone() for name, layer in first.loras.items()}
    for layer in first.loras.values():
        layer.lora_b *= 0
    again = manager()._load_adapter(request(path))
    assert all(torch.equal(layer.lora_b, kept[name]) for name, layer in again.loras.items())


def test_a_rank_above_the_slots_is_refused(store: AdapterStore) -> None:
    path = RECIPE_PREFIX + Recipe.of("cat", sources(store, (8, 8))).canonical()
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


def test_the_pool_is_one_a_process_and_reads_its_environment(store: AdapterStore) -> None:
    made = plugin.source_pool()
    assert made is plugin.source_pool()
    assert (made.root, made.budget_bytes) == (store.root, 1 << 20)


def test_without_the_folder_a_recipe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADAPTERS_VARIABLE)
    with pytest.raises(RuntimeError, match=ADAPTERS_VARIABLE):
        plugin.source_pool()


# activation, as the gateway calls it by RPC


class Worker(WorkerExtension):
    """As much of vLLM's worker as the extension uses; adapters are loaded by the real `_load_adapter`."""

    def __init__(self, max_rank: int = 64) -> None:
        self._manager = manager(max_rank)
        self._loaded: dict[int, LoRAModel] = {}
        self.model_runner = SimpleNamespace(lora_manager=SimpleNamespace(list_adapters=lambda: set(self._loaded)))

    def add_lora(self, wanted: LoRARequest) -> bool:
        if wanted.lora_int_id not in self._loaded:
            self._loaded[wanted.lora_int_id] = self._manager._load_adapter(wanted)
        return True


def test_the_second_activation_is_a_hit(store: AdapterStore) -> None:
    worker, path = Worker(), RECIPE_PREFIX + Recipe.of("ties", sources(store, (8, 8))).canonical()
    first, second = (worker.loramem_activate("name", 3, path) for _ in range(2))
    assert (first["hit"], second["hit"]) == (False, True)
    assert first["seconds"] > 0


def test_a_source_that_is_gone_is_reported_not_raised(store: AdapterStore) -> None:
    wanted = sources(store, (8, 8))
    store.remove(wanted[0].adapter_id)
    reply = Worker().loramem_activate("name", 3, RECIPE_PREFIX + Recipe.of("ties", wanted).canonical())
    assert reply["error"] == StoredDataDamaged.__name__
    assert wanted[0].adapter_id in reply["detail"]


def test_whatever_vllm_raises_for_a_missing_folder_is_reported(store: AdapterStore) -> None:
    reply = Worker().loramem_activate("name", 3, str(store.root / "nothing"))
    assert reply["error"] not in ("ValueError", "VLLMValidationError")  # those are the request's fault
    assert "nothing" in reply["detail"]


def test_a_rank_that_vllm_refuses_is_the_requests_fault(store: AdapterStore) -> None:
    path = RECIPE_PREFIX + Recipe.of("cat", sources(store, (8, 8))).canonical()
    reply = Worker(max_rank=8).loramem_activate("name", 3, path)
    assert reply["error"] in ("ValueError", "VLLMValidationError")
    assert "rank 16" in reply["detail"]
