"""LoRA on a CPU: the rows of a batch are grouped by adapter, and few rows take one call of a compiled loop.

vLLM's CPU path (0.32, `torch_ops/lora_ops.py`) gathers the adapter's whole A and B once per token, in float32, and
takes index -1, which means "no adapter", as Python does: as the last slot, so that base-model rows of a mixed batch get
whatever adapter lies there. Grouping the rows by slot is both faster and right.

A slot has room for the greatest rank in every layer, the output head included; an adapter fills less of it, and often
only some layers. What is zero is left out. Few rows of an adapter, as in decoding, go through `cpu_kernels`, in one
call for all adapters; many rows, as in prefill, are matrix products, one adapter after another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear, pad

FEW_ROWS = 64
"""Up to so many rows of an adapter the compiled loop is faster than matrix products."""
LIKE: dict[torch.dtype, NDArray[Any]] = {
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float32: np.empty(0, np.float32),
}
"""What the compiled loop can read, and as what."""
KEPT = "_loramem_filled"
"""Attribute of a layer's first A, with what is filled of its slots."""


class Filled:
    """What is not zero in the slots of a layer, looked up once for each adapter that comes into a slot.

    `table` (slots, parts, 3) and `columns` (parts, 2) are as the compiled loop takes them; a part is one slice of a
    packed layer.
    """

    def __init__(self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], widths: tuple[int, ...]) -> None:
        self._a, self._b, self.widths = a_stacked, b_stacked, widths
        stacked = (*a_stacked, *b_stacked)
        alike = len({part.dtype for part in stacked}) == len({a.shape[-1] for a in a_stacked}) == 1
        wide_enough = all(b.shape[2] >= width for b, width in zip(b_stacked, widths, strict=True))
        self._regular = alike and wide_enough and all(part.is_contiguous() for part in stacked)
        self._width = sum(widths)
        starts = np.cumsum((0, *widths[:-1]))
        self.columns = np.stack([starts, np.asarray(widths)], axis=1).astype(np.int64)
        self.table = np.zeros((len(a_stacked[0]), len(widths), 3), dtype=np.int64)
        self._turned: dict[int, list[Tensor]] = {}
        """By slot, B turned round of each part; none where all parts are empty."""

    def fits(self, y: Tensor, x: Tensor) -> bool:
        """Whether the compiled loop, which goes by addresses, may add what it makes of x to y."""
        kind = x.dtype == y.dtype == self._a[0].dtype and x.dtype in LIKE
        sizes = x.shape[0] == y.shape[0] and x.shape[1] == self._a[0].shape[-1] and y.shape[1] >= self._width
        return self._regular and kind and sizes and x.stride(1) == y.stride(1) == 1

    def look_up(self, slot: int) -> bool:
        """Whether the slot has anything for this layer; fills in its rows of `table`, unless they are there."""
        if slot in self._turned:
            return bool(self._turned[slot])
        from server.engine.cpu_kernels import filled_rank

        turned = list[Tensor]()
        for part, (a, b) in enumerate(zip(self._a, self._b, strict=True)):
            own_a = a[slot, 0]
            rank = filled_rank(own_a.data_ptr(), len(own_a), own_a[0].nbytes // 2)
            turned.append(b[slot, 0, : self.columns[part, 1], :rank].t().contiguous())
            self.table[slot, part] = own_a.data_ptr(), turned[-1].data_ptr(), rank
        self._turned[slot] = turned if any(map(len, turned)) else []
        return bool(self._turned[slot])

    def forget(self, slot: int) -> None:
        self._turned.pop(slot, None)
        self.table[slot] = 0

    def add(self, y: Tensor, x: Tensor, slot: int, scale: float) -> None:
        """y += scale * x A^T B^T through the adapter in one slot, by matrix products; `look_up` comes first."""
        rows, more = len(x), padded(len(x)) - len(x)
        x = pad(x, (0, 0, 0, more)) if more else x
        for part, b in enumerate(self._turned[slot]):
            if len(b):
                start, width = self.columns[part]
                product = linear(x, self._a[part][slot, 0, : len(b)]) @ b
                y[:, start : start + width].add_(product[:rows], alpha=scale)


def padded(rows: int) -> int:
    """The next of a few numbers of rows, where they are many.

    oneDNN compiles each product anew for each number of rows, which takes several times as long as the product, and
    keeps the last 1,024 of them, most of a megabyte each.
    """
    if rows <= FEW_ROWS:
        return rows
    step = max(FEW_ROWS, 1 << (rows - 1).bit_length() >> 3)
    return -(-rows // step) * step


def filled(a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], widths: tuple[int, ...]) -> Filled:
    """One for each layer, kept with its tensors."""
    kept: Filled | None = getattr(a_stacked[0], KEPT, None)
    if kept is None or kept.widths != widths:
        kept = Filled(a_stacked, b_stacked, widths)
        setattr(a_stacked[0], KEPT, kept)
    return kept


def forget(layers: Iterable[Any], slot: int) -> None:
    """Another adapter is in the slot now. `layers` are vLLM's, each with its `lora_a_stacked`, the head's a tensor."""
    for layer in layers:
        stacked: Tensor | tuple[Tensor, ...] = getattr(layer, "lora_a_stacked", ())
        for a in (stacked,) if isinstance(stacked, Tensor) else stacked[:1]:
            kept: Filled | None = getattr(a, KEPT, None)
            if kept is not None:
                kept.forget(slot)


@dataclass(frozen=True)
class Rows:
    """The rows of a batch by adapter: (slot, rows), rows None where all have it."""

    groups: tuple[tuple[int, Tensor | None], ...]
    count: int

    @cached_property
    def many(self) -> tuple[tuple[int, Tensor | None], ...]:
        return tuple(group for group in self.groups if self._size(group) > FEW_ROWS)

    @cached_property
    def few(self) -> NDArray[np.int64] | None:
        """(rows,) the slot of each row whose adapter has few, -1 for others; None when there are none."""
        groups = [group for group in self.groups if self._size(group) <= FEW_ROWS]
        slots = np.full(self.count, -1, dtype=np.int64)
        for slot, rows in groups:
            slots[slice(None) if rows is None else rows.numpy()] = slot
        return slots if groups else None

    def _size(self, group: tuple[int, Tensor | None]) -> int:
        rows = group[1]
        return self.count if rows is None else len(rows)


def group_rows(indices: Tensor) -> Rows:
    """`indices` of shape (tokens,): each row's slot, -1 for none."""
    slots = torch.unique(indices).tolist()
    if len(slots) == 1:
        return Rows(((slots[0], None),) if slots[0] >= 0 else (), len(indices))
    groups = ((slot, (indices == slot).nonzero().flatten()) for slot in slots if slot >= 0)
    return Rows(tuple(groups), len(indices))


def add_grouped(
    y: Tensor,
    x: Tensor,
    rows: Rows,
    a_stacked: tuple[Tensor, ...],
    b_stacked: tuple[Tensor, ...],
    scale: float,
    widths: tuple[int, ...],
) -> None:
    """y += scale * x A^T B^T, in place, each row through its own adapter.

    `x` (tokens, in), `y` (tokens, sum of widths); per slice `a` (slots, 1, rank, in) and `b` (slots, 1, width, rank).
    """
    here = filled(a_stacked, b_stacked, widths)
    held = [here.look_up(slot) for slot, _ in rows.groups]
    if not any(held):
        return
    loops = x.shape[0] == rows.count and here.fits(y, x)
    if loops and rows.few is not None:
        _add_few(y, x, rows.few, here, scale)
    for slot, chosen in rows.many if loops else rows.groups:
        if chosen is None:
            here.add(y, x, slot, scale)
        else:
            part = y[chosen]
            here.add(part, x[chosen], slot, scale)
            y[chosen] = part


def _add_few(y: Tensor, x: Tensor, slots: NDArray[np.int64], here: Filled, scale: float) -> None:
    from server.engine.cpu_kernels import add_rows

    x_rows, y_rows = (x.data_ptr(), x.stride(0)), (y.data_ptr(), y.stride(0))
    add_rows(LIKE[y.dtype], slots, here.table, here.columns, x.shape[1], *x_rows, *y_rows, scale)


def warm_up() -> None:
    """Have the loop compiled, or read from Numba's cache, before a query needs it."""
    for dtype in LIKE:
        one = torch.ones(1, 1, 1, 1, dtype=dtype)
        add_grouped(torch.zeros(1, 1, dtype=dtype), one[0, 0], group_rows(torch.tensor([0])), (one,), (one,), 1.0, (1,))


def install() -> None:
    """Replace three methods of vLLM's `PunicaWrapperCPU`; does nothing where it is not used."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    stock_update = PunicaWrapperCPU.update_metadata
    if getattr(stock_update, "_loramem", False):
        return

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_update(self, *args, **kwargs)
        self.loramem_rows = group_rows(self.token_lora_indices)
        self.loramem_sampler_rows = group_rows(self.sampler_indices)

    def add_lora_linear(
        self: Any, y: Tensor, x: Tensor, a: Any, b: Any, scale: float, output_slices: Any, **kwargs: Any
    ) -> None:
        flat_x, flat_y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        add_grouped(flat_y, flat_x, self.loramem_rows, a, b, scale, tuple(output_slices))

    def add_lora_logits(self: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, **kwargs: Any) -> None:
        flat_x, flat_y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        width = min(b.shape[2], flat_y.shape[1])  # model and adapter pad the vocabulary as each needs
        add_grouped(flat_y, flat_x, self.loramem_sampler_rows, (a,), (b,), scale, (width,))

    update_metadata._loramem = True  # type: ignore[attr-defined]
    PunicaWrapperCPU.update_metadata = update_metadata
    PunicaWrapperCPU.add_lora_linear = add_lora_linear
    PunicaWrapperCPU.add_lora_logits = add_lora_logits
