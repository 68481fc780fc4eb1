"""Merging adapters: equal to PEFT's `add_weighted_adapter` (0.21) for `ties`, `linear` and `cat`.

PEFT works on A and on B of each module apart, so the product of a `ties` or `linear` merge holds cross terms B_i A_j;
`cat` is the exact weighted sum of the updates at k times the rank. The merged adapter has alpha = rank (scaling 1):
each source's own alpha / rank and weight are folded in here, as sqrt(|w s|) on both sides for `ties` and `linear`
(the sign on A), as w s on A for `cat`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loramem.records import Recipe, SignMethod, merged_rank


@dataclass(frozen=True)
class SourceAdapter:
    """An adapter as it was trained: PEFT tensor names, `lora_A` of shape (rank, in), `lora_B` of shape (out, rank)."""

    tensors: dict[str, Tensor]
    rank: int
    alpha: float

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class MergedAdapter:
    """Tensors under their PEFT names; scaling is 1."""

    tensors: dict[str, Tensor]
    rank: int


def trim(tensor: Tensor, density: float) -> Tensor:
    """Keep the `int(density * numel)` entries of largest magnitude, zero the rest (PEFT `magnitude_based_pruning`)."""
    if density >= 1:
        return tensor
    kept = torch.topk(tensor.abs().flatten(), int(density * tensor.numel()), sorted=False).indices
    trimmed = torch.zeros_like(tensor).flatten()
    trimmed[kept] = tensor.flatten()[kept]
    return trimmed.view_as(tensor)


def elect_and_average(trimmed: Sequence[Tensor], weights: Sequence[float], sign_method: SignMethod) -> Tensor:
    """Elect a sign per entry, then average the weighted values that agree with it (PEFT `ties`).

    The election sees the unweighted values; the mean divides by how many agree, not by their weights.
    """
    stack = torch.stack(list(trimmed))
    signs = stack.sign()
    total = stack.sum(dim=0) if sign_method == "total" else signs.sum(dim=0)
    agrees = signs == torch.where(total >= 0, 1, -1)
    gains = torch.tensor(weights, dtype=stack.dtype, device=stack.device).view(-1, *[1] * (stack.dim() - 1))
    return (stack * gains * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def combine(recipe: Recipe, sources: Sequence[SourceAdapter]) -> MergedAdapter:
    """Merge `sources` (in the recipe's order), as float32. Raises `ValueError` for ranks the method cannot merge.

    For `ties` the sources must already be trimmed to the recipe's density: that depends on one adapter alone, so it is
    done once per adapter, not per merge.
    """
    rank = merged_rank(recipe.method, [source.rank for source in sources])
    if rank == 0:
        raise ValueError(f"{recipe.method} needs equal ranks, got {[source.rank for source in sources]}")
    weights = [source.weight for source in recipe.sources]
    merge = _concatenate if recipe.method == "cat" else _mix
    names = sources[0].tensors.keys()
    return MergedAdapter({name: merge(recipe, name, sources, weights) for name in names}, rank)


def _concatenate(recipe: Recipe, name: str, sources: Sequence[SourceAdapter], weights: Sequence[float]) -> Tensor:
    parts = [source.tensors[name].float() for source in sources]
    if "lora_B" in name:
        return torch.cat(parts, dim=1)
    scaled = [part * w * source.scaling for part, source, w in zip(parts, sources, weights, strict=True)]
    return torch.cat(scaled, dim=0)


def _mix(recipe: Recipe, name: str, sources: Sequence[SourceAdapter], weights: Sequence[float]) -> Tensor:
    gains = [_side_gain(w * source.scaling, on_a="lora_A" in name) for source, w in zip(sources, weights, strict=True)]
    parts = [source.tensors[name].float() for source in sources]
    if recipe.method == "ties" and len(parts) > 1:
        return elect_and_average(parts, gains, recipe.sign_method)
    return torch.stack([part * gain for part, gain in zip(parts, gains, strict=True)]).sum(dim=0)


def _side_gain(weight: float, *, on_a: bool) -> float:
    magnitude = math.sqrt(abs(weight))
    return -magnitude if on_a and weight < 0 else magnitude
