"""Adapters in memory, merged by us and by PEFT itself."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.merge_utils import random_pruning
from torch import Tensor, nn
from torch.nn.functional import pad

from loramem.records import AdapterManifest, MergeMethod, Recipe, SignMethod, Source
from loramem.store import AdapterStore, Stored
from server.engine.combine import layout_of_merge, merge_into, trim_of
from server.engine.fused import Flat
from server.engine.layout import Layout
from server.engine.published import Part, PublishedAdapter, as_tensor
from tests.rows import EXAM
from tests.server.learned import write_peft

SHAPES = {"down": (20, 12), "gate": (5, 33), "up": (12, 20)}
"""(in, out) of each layer; from rank 52 on `up`'s B is longer than a tile."""


@dataclass(frozen=True)
class Adapter:
    """As published: tensors by PEFT's name, in the order of the file."""

    tensors: Mapping[str, Tensor]
    rank: int
    alpha: int

    def to(self, kind: torch.dtype) -> "Adapter":
        return replace(self, tensors={name: tensor.to(kind) for name, tensor in self.tensors.items()})

    @property
    def modules(self) -> set[str]:
        return {name.split(".")[2] for name in self.tensors}


def values_of(kind: str, seed: int) -> Callable[[tuple[int, int]], Tensor]:
    """`coarse` is full of zeros, of equal magnitudes, and of votes that end in a tie."""
    noise = torch.Generator().manual_seed(seed)

    def values(shape: tuple[int, int]) -> Tensor:
        if kind == "coarse":
            return torch.randint(-3, 4, shape, generator=noise) / 4
        spread = torch.empty(shape).uniform_(-6, 1, generator=noise).exp() if kind == "wide" else 1
        return torch.randn(shape, generator=noise) * spread

    return values


def adapter_of(values: Callable[[tuple[int, int]], Tensor], modules: Sequence[str], rank: int, alpha: int) -> Adapter:
    tensors = {}
    for module in modules:
        width_in, width_out = SHAPES[module]
        tensors[f"base_model.model.{module}.lora_A.weight"] = values((rank, width_in))
        tensors[f"base_model.model.{module}.lora_B.weight"] = values((width_out, rank))
    return Adapter(tensors, rank, alpha)


def recipe_of(
    method: MergeMethod,
    weights: Sequence[float],
    density: float = 0.5,
    sign_method: SignMethod = "total",
    seed: int = 0,
) -> Recipe:
    sources = [Source(adapter_id=f"a{i}", sha256=f"{i}" * 64, weight=weight) for i, weight in enumerate(weights)]
    return Recipe.of(method, sources, density, sign_method, seed)


def padded(adapter: Adapter, rank: int) -> Adapter:
    """The same product at a greater rank: zeros in what A and B have more, and the scaling kept."""
    alpha, rest = divmod(adapter.alpha * rank, adapter.rank)
    assert rest == 0, "PEFT has whole numbers for alpha"
    more = rank - adapter.rank
    tensors = {
        name: pad(tensor, (0, 0, 0, more) if ".lora_A." in name else (0, more))
        for name, tensor in adapter.tensors.items()
    }
    return Adapter(tensors, rank, alpha)


# by us


def published(adapter: Adapter, source: Source) -> PublishedAdapter:
    """What `open_published` returns, without files."""
    flat = torch.cat([tensor.flatten() for tensor in adapter.tensors.values()])
    bits = flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat
    layout = Layout(tuple(adapter.tensors), tuple(tuple(tensor.shape) for tensor in adapter.tensors.values()))
    values: Flat = bits.numpy()
    return PublishedAdapter(
        source.adapter_id, source.sha256, layout, adapter.rank, float(adapter.alpha), values, mask=None
    )


def merge_flat_of(recipe: Recipe, adapters: Sequence[Adapter], kind: type[np.generic]) -> tuple[Flat, Layout, int]:
    """What the pool does, as `kind`: float32, or uint16 for bfloat16."""
    opened = [published(adapter, source) for adapter, source in zip(adapters, recipe.sources, strict=True)]
    layout, rank = layout_of_merge(recipe, [one.layout for one in opened], [one.rank for one in opened])
    parts = [
        Part(one.flat(trim_of(recipe)), one.layout, one.rank, one.scaling, source.weight)
        for one, source in zip(opened, recipe.sources, strict=True)
    ]
    out: Any = np.full(layout.size, 77, dtype=kind)  # whatever lay there before
    merge_into(recipe, parts, layout, out)
    return out, layout, rank


def merged_by_us(recipe: Recipe, adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    out, layout, _ = merge_flat_of(recipe, adapters, np.float32)
    return layout.views(as_tensor(out))


def publish(
    store: AdapterStore, adapter_id: str, adapter: Adapter, also: Callable[[Path], None] = lambda folder: None
) -> Stored:
    """As files; `also` may leave more in the folder, or change what is there."""

    def write(folder: Path) -> None:
        write_peft(folder, adapter.tensors, adapter.rank, adapter.alpha)
        also(folder)

    def manifest_of(sha256: dict[str, str]) -> AdapterManifest:
        named = {"adapter_id": adapter_id, "document_id": "doc_1", "base_model": "base", "fingerprint": "f" * 64}
        numbers = {"revision": 1, "chunk": 0, "rank": adapter.rank, "alpha": adapter.alpha, "training": {}}
        return AdapterManifest.model_validate({**named, **numbers, "sha256": sha256, "exam": EXAM})

    return store.publish(adapter_id, write, manifest_of)


# by PEFT


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, (width_in, width_out) in SHAPES.items():
            setattr(self, name, nn.Linear(width_in, width_out, bias=False))


def merged_by_peft(
    recipe: Recipe,
    adapters: Sequence[Adapter],
    combination_type: str | None = None,
    draws: Callable[[str, str, tuple[int, ...]], Tensor] | None = None,
) -> dict[str, Tensor]:
    """`add_weighted_adapter` of the recipe. `draws` gives DARE's mask by sha256, tensor name and shape."""
    model = _peft_model(adapters, [source.adapter_id for source in recipe.sources])
    with _drawing(draws, _addresses(model, recipe)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density 1.0 is greater")
        model.base_model.add_weighted_adapter(
            [source.adapter_id for source in recipe.sources],
            [source.weight for source in recipe.sources],
            "merged",
            combination_type or recipe.method,
            density=recipe.density,
            majority_sign_method=recipe.sign_method,
        )
    return {name: parameter.detach().clone() for name, parameter in _tensors(model, "merged")}


def _peft_model(adapters: Sequence[Adapter], names: Sequence[str]) -> Any:
    configs = [LoraConfig(r=one.rank, lora_alpha=one.alpha, target_modules=sorted(one.modules)) for one in adapters]
    model = get_peft_model(Layers(), configs[0], adapter_name=names[0])
    for name, config in zip(names[1:], configs[1:], strict=True):
        model.add_adapter(name, config)
    for name, adapter in zip(names, adapters, strict=True):
        for key, parameter in _tensors(model, name):
            parameter.data.copy_(adapter.tensors[key])
    return model


def _tensors(model: nn.Module, adapter: str) -> Iterator[tuple[str, Tensor]]:
    ending = f".{adapter}.weight"
    for key, value in model.named_parameters():
        if key.endswith(ending):
            yield key.replace(ending, ".weight"), value


def _addresses(model: nn.Module, recipe: Recipe) -> dict[int, tuple[str, str]]:
    """By which memory PEFT's pruning is told whose tensor it has."""
    return {
        tensor.data_ptr(): (source.sha256, name)
        for source in recipe.sources
        for name, tensor in _tensors(model, source.adapter_id)
    }


@contextmanager
def _drawing(
    draws: Callable[[str, str, tuple[int, ...]], Tensor] | None, known: Mapping[int, tuple[str, str]]
) -> Iterator[None]:
    """PEFT with our draws where it would ask torch's generator; what it does with a draw stays its own."""

    def bernoulli(tensor: Tensor, density: float, rescale: bool) -> Tensor:
        assert draws is not None
        mask = draws(*known[tensor.data_ptr()], tuple(tensor.shape))
        with patch("peft.utils.merge_utils.torch.bernoulli", return_value=mask.to(tensor.dtype)):
            pruned: Tensor = random_pruning(tensor, density, rescale)
        return pruned

    with patch("peft.utils.merge_utils.random_pruning", bernoulli):
        yield
