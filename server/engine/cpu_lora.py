"""LoRA on a CPU, one matrix product per adapter in the batch.

vLLM's CPU path (0.32, `torch_ops/lora_ops.py`) gathers the adapter's whole A and B once per token, in float32, and
takes index -1, which means "no adapter", as Python does: as the last slot, so that base-model rows of a mixed batch get
whatever adapter lies there. Grouping the rows by slot is both faster and right.

A slot has room for the greatest rank in every layer, the output head included; an adapter fills less of it, and often
only some layers. What is zero is left out, and for few rows, as in decoding, the rest is multiplied in float32: there a
product in bfloat16 takes longer to set up than to do.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

FEW_ROWS = 32
"""Up to here float32 is faster."""
KEPT = "_loramem_filled"
"""Attribute of a layer's first A, with what is filled of its slots."""


@dataclass(frozen=True)
class Part:
    """One slice of a packed layer: `a` (rank, in) and `b` (width, rank) in the slot, and in float32 `b` turned round;
    `ranks`, `columns`: its place in the layer's products with A, and in the output."""

    a: Tensor
    b: Tensor
    b_float: Tensor
    ranks: slice
    columns: slice


@dataclass(frozen=True)
class Filled:
    """What is not zero in one slot of a layer; `a_float` (in, sum of the ranks)."""

    parts: tuple[Part, ...]
    a_float: Tensor


def filled(
    a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], slot: int, widths: tuple[int, ...]
) -> Filled | None:
    """None for a slot that is empty. Looked up once for each adapter that comes into the slot; see `forget`."""
    kept: dict[int, Filled | None] | None = getattr(a_stacked[0], KEPT, None)
    if kept is None:
        kept = {}
        setattr(a_stacked[0], KEPT, kept)
    if slot not in kept:
        kept[slot] = _filled(a_stacked, b_stacked, slot, widths)
    return kept[slot]


def forget(layers: Iterable[Any], slot: int) -> None:
    """Another adapter is in the slot now. `layers` are vLLM's, each with its `lora_a_stacked`, the head's a tensor."""
    for layer in layers:
        stacked: Tensor | tuple[Tensor, ...] = getattr(layer, "lora_a_stacked", ())
        for a in (stacked,) if isinstance(stacked, Tensor) else stacked[:1]:
            getattr(a, KEPT, {}).pop(slot, None)


def _filled(
    a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], slot: int, widths: tuple[int, ...]
) -> Filled | None:
    parts: list[Part] = []
    rank_start = column_start = 0
    for a, b, width in zip(a_stacked, b_stacked, widths, strict=True):
        whole_a, whole_b = a[slot, 0], b[slot, 0, :width]
        rank = _last(whole_a.any(dim=1))
        if rank:  # B of the output head is large
            rank = min(rank, _last(whole_b.any(dim=0)))
        if rank:
            part_a, part_b = whole_a[:rank], whole_b[:, :rank]
            ranks, columns = slice(rank_start, rank_start + rank), slice(column_start, column_start + width)
            parts.append(Part(part_a, part_b, part_b.t().float().contiguous(), ranks, columns))
        rank_start += rank
        column_start += width
    return Filled(tuple(parts), torch.cat([part.a for part in parts]).t().float()) if parts else None


def _last(nonzero: Tensor) -> int:
    """Number of entries up to the last that is true."""
    found = nonzero.nonzero()
    return int(found[-1]) + 1 if len(found) else 0


def group_rows(indices: Tensor) -> list[tuple[int, Tensor | None]]:
    """(slot, rows) for each adapter of a batch; rows None means all of them. `indices` of shape (tokens,), -1: none."""
    slots = torch.unique(indices).tolist()
    if len(slots) == 1:
        return [(slots[0], None)] if slots[0] >= 0 else []
    return [(slot, (indices == slot).nonzero().flatten()) for slot in slots if slot >= 0]


def add_grouped(
    y: Tensor,
    x: Tensor,
    groups: list[tuple[int, Tensor | None]],
    a_stacked: tuple[Tensor, ...],
    b_stacked: tuple[Tensor, ...],
    scale: float,
    widths: tuple[int, ...],
) -> None:
    """y += scale * x A^T B^T, in place, each row through its own adapter.

    `x` (tokens, in), `y` (tokens, sum of widths); per slice `a` (slots, 1, rank, in) and `b` (slots, 1, width, rank).
    """
    for slot, rows in groups:
        here = filled(a_stacked, b_stacked, slot, widths)
        if here is None:
            continue
        if rows is None:
            _add(y, x, here, scale)
        else:
            part = y[rows]
            _add(part, x[rows], here, scale)
            y[rows] = part


def _add(y: Tensor, x: Tensor, here: Filled, scale: float) -> None:
    if len(x) <= FEW_ROWS:
        products = x.float() @ here.a_float
        for part in here.parts:
            y[:, part.columns].add_(products[:, part.ranks] @ part.b_float, alpha=scale)
    else:
        for part in here.parts:
            y[:, part.columns].add_(linear(linear(x, part.a), part.b), alpha=scale)


def install() -> None:
    """Replace three methods of vLLM's `PunicaWrapperCPU`; does nothing where it is not used."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    stock_update = PunicaWrapperCPU.update_metadata
    if getattr(stock_update, "_loramem", False):
        return

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_update(self, *args, **kwargs)
        self.loramem_groups = group_rows(self.token_lora_indices)
        self.loramem_sampler_groups = group_rows(self.sampler_indices)

    def add_lora_linear(
        self: Any, y: Tensor, x: Tensor, a: Any, b: Any, scale: float, output_slices: Any, **kwargs: Any
    ) -> None:
        flat_x, flat_y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        add_grouped(flat_y, flat_x, self.loramem_groups, a, b, scale, tuple(output_slices))

    def add_lora_logits(self: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, **kwargs: Any) -> None:
        flat_x, flat_y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        width = min(b.shape[2], flat_y.shape[1])  # model and adapter pad the vocabulary as each needs
        add_grouped(flat_y, flat_x, self.loramem_sampler_groups, (a,), (b,), scale, (width,))

    update_metadata._loramem = True  # type: ignore[attr-defined]
    PunicaWrapperCPU.update_metadata = update_metadata
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
    PunicaWrapperCPU.add_lora_logits = add_lora_logits
