"""LoRA on a CPU, one matrix product per adapter in the batch.

vLLM's CPU path (0.32, `torch_ops/lora_ops.py`) gathers the adapter's whole A and B once per token, in float32, and
takes index -1, which means "no adapter", as Python does: as the last slot, so that base-model rows of a mixed batch get
whatever adapter lies there. Grouping the rows by slot is both faster and right.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


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
        part = x if rows is None else x[rows]
        start = 0
        for a, b, width in zip(a_stacked, b_stacked, widths, strict=True):
            delta = linear(linear(part, a[slot, 0]), b[slot, 0])
            columns = slice(start, start + width)
            if rows is None:
                y[:, columns].add_(delta[:, :width], alpha=scale)
            else:
                y[rows, columns] += delta[:, :width] * scale
            start += width


def install() -> None:
    """Replace the two methods of vLLM's `PunicaWrapperCPU`; does nothing where it is not used."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    stock_update = PunicaWrapperCPU.update_metadata
    if getattr(stock_update, "_loramem", False):
        return

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_update(self, *args, **kwargs)
        self.loramem_groups = group_rows(self.token_lora_indices)

    def add_lora_linear(
        self: Any, y: Tensor, x: Tensor, a: Any, b: Any, scale: float, output_slices: Any, **kwargs: Any
    ) -> None:
        flat_x, flat_y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        add_grouped(flat_y, flat_x, self.loramem_groups, a, b, scale, tuple(output_slices))

    update_metadata._loramem = True  # type: ignore[attr-defined]
    PunicaWrapperCPU.update_metadata = update_metadata
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
