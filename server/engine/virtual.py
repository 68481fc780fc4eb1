"""A merge as vLLM's LoRA cache sees it: registered as a recipe, turned into weights when it gets a slot.

What vLLM registers holds no tensors, so any number of merges may be registered; a slot that was lost is filled again
from the pool, and cannot fail to be, because the sources stay mapped. Importing this module imports vLLM; only the
plugin does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.lora.lora_model import LoRAModel
from vllm.lora.utils import parse_fine_tuned_lora_name

from server.engine.combine import elementwise_of, gains_of, is_elementwise
from server.engine.cuda_merge import SlotWriter, supports
from server.engine.fused import Flat
from server.engine.layout import Layout
from server.engine.pool import Merge, SourcePool
from server.engine.published import as_tensor


@dataclass(frozen=True)
class Factors:
    """A and B of one vLLM layer, as its `set_lora` takes them: tensors, or a list with one for each part it packs."""

    lora_a: Any
    lora_b: Any


@dataclass(frozen=True)
class Scratch:
    """Memory that merges of one layout are written to on their way into a slot, and its views by vLLM layer."""

    flat: Flat
    layers: Mapping[str, Factors]
    writer: SlotWriter | None


class VirtualAdapter(LoRAModel):  # type: ignore[misc]  # vLLM publishes no types
    """`fill` before vLLM reads the layers, which it does while it activates the adapter and at no other time."""

    def __init__(self, int_id: int, merge: Merge, pool: SourcePool, scratch: Scratch) -> None:
        super().__init__(int_id, merge.rank, {})
        self.merge = merge
        self._pool = pool
        self._scratch = scratch

    @property
    def is_written_on_device(self) -> bool:
        """Whether a kernel merges into the slot itself; `cat` and the product methods go by way of the host, and all do
        where no source is to be kept on the GPU."""
        keeps_sources = self._pool.device.budget_bytes > 0
        return keeps_sources and self._scratch.writer is not None and is_elementwise(self.merge.recipe)

    def write(self, slot: int, device: torch.device) -> None:
        """Merge on the GPU, straight into a slot; returns before the GPU is done."""
        assert self._scratch.writer is not None
        sources, recipe = self._pool.on_device(self.merge, device), self.merge.recipe
        self._scratch.writer.write(
            slot,
            sources,
            gains_of(
                [
                    (source.weight, adapter.scaling)
                    for source, adapter in zip(recipe.sources, self.merge.sources, strict=True)
                ]
            ),
            elementwise_of(recipe),
        )

    def fill(self) -> None:
        self._pool.merge_into(self.merge, self._scratch.flat)

    def get_lora(self, module_name: str) -> Any:
        return self._scratch.layers.get(module_name)


def make_scratch(layout: Layout, manager: Any, dtype: torch.dtype) -> Scratch:
    """Raises `ValueError` for tensors that are not of this manager's model."""
    flat: Flat = np.zeros(layout.size, np.uint16) if dtype == torch.bfloat16 else np.zeros(layout.size, np.float32)
    pairs = _pairs(layout.views(as_tensor(flat)), _renames(manager.model))
    layers = {name: _packed(parts, pairs) for name, parts in manager.packed_modules.items()}
    layers |= {name: pairs[name] for name in manager.modules if name in pairs}
    found = {name: factors for name, factors in layers.items() if factors is not None}
    _check(found, pairs, manager)
    writer = SlotWriter(manager, _in_engine_names(layout, _renames(manager.model))) if supports(manager) else None
    return Scratch(flat, found, writer)


def _in_engine_names(layout: Layout, renames: Any) -> Layout:
    """The same tensors by the names that vLLM has for their modules."""

    def named(name: str) -> str:
        module, is_a = parse_fine_tuned_lora_name(name, renames)
        return f"base_model.model.{module}.lora_{'A' if is_a else 'B'}.weight"

    return Layout(tuple(map(named, layout.names)), layout.shapes)


def _renames(model: Any) -> Any:
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return mapper.get_rename_mapper() if mapper is not None else None


def _pairs(tensors: Mapping[str, Tensor], renames: Any) -> dict[str, Factors]:
    sides: dict[str, dict[bool, Tensor]] = {}
    for name, tensor in tensors.items():
        module, is_a = parse_fine_tuned_lora_name(name, renames)
        sides.setdefault(module, {})[is_a] = tensor
    return {module: Factors(pair[True], pair[False]) for module, pair in sides.items()}


def _packed(parts: list[str], pairs: Mapping[str, Factors]) -> Factors | None:
    found = [pairs.get(part) for part in parts]
    if not any(found):
        return None
    return Factors([pair and pair.lora_a for pair in found], [pair and pair.lora_b for pair in found])


def _check(layers: Mapping[str, Factors], pairs: Mapping[str, Factors], manager: Any) -> None:
    """Errors are harmless here, while an adapter is loaded; in a scheduler step they would end the engine."""
    packed = {part for name in layers for part in manager.packed_modules.get(name, ())}
    foreign = sorted(pairs.keys() - layers.keys() - packed)
    if foreign:
        raise ValueError(f"the base model has no layer {foreign[0]} (and {len(foreign) - 1} others) of the adapter")
    for name, factors in layers.items():
        module = manager.modules.get(name)
        if module is not None and module.tp_size == 1:
            _check_shapes(name, factors, module)


def _check_shapes(name: str, factors: Factors, module: Any) -> None:
    a = factors.lora_a if isinstance(factors.lora_a, list) else [factors.lora_a]
    b = factors.lora_b if isinstance(factors.lora_b, list) else [factors.lora_b]
    for own_a, own_b, slots_a, slots_b in zip(a, b, module.lora_a_stacked, module.lora_b_stacked, strict=True):
        if own_a is None:
            continue
        sizes, wanted = (own_a.shape[1], own_b.shape[0]), (slots_a.shape[-1], slots_b.shape[-2])
        if sizes != wanted:
            raise ValueError(f"{name} maps {wanted[0]} values to {wanted[1]}, the adapter's {sizes[0]} to {sizes[1]}")
