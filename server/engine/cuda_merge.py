"""Merging on the GPU, straight into vLLM's LoRA slots: equal to `combine` for `ties`, `linear` and DARE.

vLLM's `set_lora` fills a slot with two launches per matrix, some 900 for an 8B model, and needs the merged adapter in
memory first. Here one Triton kernel reads the sources, elects, averages and writes every entry of the slot once, its
zeros included. The buffers are written in place: CUDA graphs and vLLM's pointer tables hold their addresses.

Only what is held whole by one GPU is taken (`supports`); everything else goes through vLLM's own `set_lora`. Triton is
imported at the first launch, because a CPU has none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl  # type: ignore[import-not-found, unused-ignore]

MAX_SOURCES = 8
METHODS = ("ties_total", "ties_frequency", "sum")
"""Sign election by total or by frequency, then the mean of those that agree; or the plain weighted sum (`linear`).
DARE's are the same, of sources that were trimmed before."""

LINEAR = frozenset(
    {
        "ColumnParallelLinearWithLoRA",
        "MergedColumnParallelLinearVariableSliceWithLoRA",
        "MergedColumnParallelLinearWithLoRA",
        "MergedQKVParallelLinearWithLoRA",
        "QKVParallelLinearWithLoRA",
        "ReplicatedLinearWithLoRA",
        "RowParallelLinearWithLoRA",
    }
)
"""vLLM's layers (0.32, `vllm/lora/layers`) whose slots hold A and B as they were trained, one pair per slice."""

NEVER_TARGETED = frozenset({"LogitsProcessorWithLoRA", "VocabParallelEmbeddingWithLoRA"})
"""Layers that have slots but whose adapters loramem does not train: their slots are zeroed."""

BLOCK = 1024
"""Entries per tile: eight per thread of four warps, so that eight sources still fit in registers."""


class Layout(Protocol):
    """Where each tensor lies in a source: PEFT name, shape, offset in entries; `size` is the source's length."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def offsets(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True)
class Placed:
    """One tensor of the layout."""

    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A buffer and the source entries that fill one slot of it, row by row; none of them (`count` 0) means zeros.

    `columns` source entries fill the start of each `width` entries of the slot, `width` being vLLM's `max_lora_rank`.
    A, whose rows have their full length, is one run of entries: columns == width. `side` is 0 for A, 1 for B.
    """

    buffer: Tensor
    offset: int = 0
    count: int = 0
    columns: int = 0
    side: int = 0

    @property
    def entries(self) -> int:
        return self.buffer.stride(0)


# what the manager holds


def supports(manager: Any) -> bool:
    """Whether every module of a vLLM `LoRAModelManager` can be written: known layers, one GPU, one dtype."""
    modules: dict[str, Any] = manager.modules
    if not modules or not all(_is_known(manager, name) for name in modules):
        return False
    buffers = [buffer for name in modules for _, *pair in _slices(manager, name) for buffer in pair]
    alike = {(buffer.shape[0], buffer.dtype, buffer.device) for buffer in buffers}
    return len(alike) == 1 and all(b.is_contiguous() for b in buffers) and _can_launch(buffers[0].device)


def _is_known(manager: Any, name: str) -> bool:
    module = manager.modules[name]
    if type(module).__name__ in NEVER_TARGETED:
        return True
    if type(module).__name__ not in LINEAR or module.tp_size != 1:
        return False
    a, b = module.lora_a_stacked, module.lora_b_stacked
    width = _width(manager)
    whole = all(x.dim() == y.dim() == 4 and x.shape[2] == y.shape[3] == width for x, y in zip(a, b, strict=True))
    return whole and len(a) == len(manager.packed_modules.get(name, (name,)))


def _width(manager: Any) -> int:
    return int(manager.lora_config.max_lora_rank)


def _slices(manager: Any, name: str) -> Iterator[tuple[str | None, Tensor, Tensor]]:
    """(adapter's name of the slice, A buffer, B buffer) for each slice of a module; None: adapters never name it."""
    module = manager.modules[name]
    if type(module).__name__ in NEVER_TARGETED:
        yield None, module.lora_a_stacked, module.lora_b_stacked
    else:
        parts = manager.packed_modules.get(name, (name,))
        yield from zip(parts, module.lora_a_stacked, module.lora_b_stacked, strict=True)


def _can_launch(device: torch.device) -> bool:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return find_spec("triton") is not None and (interpreted if device.type == "cpu" else device.type == "cuda")


# which entries of a source go where


def _by_module(layout: Layout) -> dict[str, dict[str, Placed]]:
    """Module, as vLLM names it, to its tensors by side. Raises `ValueError` for a tensor that is not a LoRA matrix."""
    found: dict[str, dict[str, Placed]] = {}
    for name, shape, offset in zip(layout.names, layout.shapes, layout.offsets, strict=True):
        module, dot, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if not dot or side not in ("lora_A", "lora_B") or len(shape) != 2:
            raise ValueError(f"{name} of shape {shape} is not a LoRA matrix of a linear layer")
        if offset < 0 or offset + math.prod(shape) > layout.size:
            raise ValueError(f"{name} ends at {offset + math.prod(shape)}, past the source's {layout.size} entries")
        found.setdefault(module, {})[side] = Placed(offset, shape)
    return found


def _regions(manager: Any, layout: Layout) -> list[Region]:
    """Every buffer of the manager once. Raises `ValueError` for a tensor that has no place in one of them."""
    adapter = _by_module(layout)
    regions: list[Region] = []
    for name in manager.modules:
        for part, a, b in _slices(manager, name):
            tensors = adapter.pop(part, None) if part is not None else None
            regions += [Region(a), Region(b)] if tensors is None else _fill(name, tensors, a, b)
    if adapter:
        raise ValueError(f"the engine has no LoRA layer for {sorted(adapter)[0]} ({len(adapter)} such modules)")
    return regions


def _fill(name: str, tensors: dict[str, Placed], a: Tensor, b: Tensor) -> list[Region]:
    if len(tensors) != 2:
        raise ValueError(f"{name} has {', '.join(tensors)} and lacks its other side")
    width, left, right = b.shape[3], tensors["lora_A"], tensors["lora_B"]
    rank = left.shape[0]
    if left.shape[1] != a.shape[3] or right.shape != (b.shape[2], rank) or rank > width:
        allowed = f"(r, {a.shape[3]}) and ({b.shape[2]}, r) with r <= {width}"
        raise ValueError(f"{name} takes {allowed}, got {left.shape} and {right.shape}")
    return [
        Region(a, left.offset, math.prod(left.shape), width, 0),
        Region(b, right.offset, math.prod(right.shape), rank, 1),
    ]


def _tile(regions: Sequence[Region]) -> NDArray[np.int64]:
    """Cut each region into tiles of at most `BLOCK` entries: a row per tile, of shape (tiles, 8), for the kernel.

    Slot 0's address and the distance of two slots (bytes), the tensor's offset and count in a source, its columns, its
    side, the tile's first entry in the slot, the slot's entries.
    """
    tables = []
    for region in regions:
        starts = np.arange(0, region.entries, BLOCK, dtype=np.int64)
        table = np.empty((len(starts), 8), dtype=np.int64)
        stride = region.entries * region.buffer.itemsize
        table[:] = (
            *(region.buffer.data_ptr(), stride, region.offset, region.count, region.columns, region.side, 0),
            region.entries,
        )
        table[:, 6] = starts
        tables.append(table)
    return np.concatenate(tables)


def _unit(regions: Sequence[Region]) -> int:
    """Neighbouring entries that can be moved as one, up to 8: 16 bytes of bfloat16."""
    sizes = [n for region in regions for n in (region.offset, region.count, region.columns, region.entries)]
    addresses = [region.buffer.data_ptr() // region.buffer.itemsize for region in regions]
    return math.gcd(8, *sizes, *addresses)


# writing


class SlotWriter:
    """Writes merges of adapters of one layout into the slots of one manager. Used from the engine's one thread.

    Raises `ValueError` for a manager that is not supported, or a layout that does not fit it.
    """

    def __init__(self, manager: Any, layout: Layout) -> None:
        if not supports(manager):
            raise ValueError("these LoRA layers cannot be written directly: merge, then use their set_lora")
        regions = _regions(manager, layout)
        self._buffers = [region.buffer for region in regions]  # the table holds their addresses: keep them allocated
        self._source_size = layout.size
        self._slots, self._device = self._buffers[0].shape[0], self._buffers[0].device
        self._constants = {"width": _width(manager), "unit": _unit(regions), "block": BLOCK}
        self._table = torch.from_numpy(_tile(regions)).to(self._device)
        self._stream = _new_stream(self._device) if self._device.type == "cuda" else None

    def write(self, slot: int, sources: Sequence[Tensor], gains: NDArray[np.float32], method: str) -> None:
        """Leave `slot` as vLLM's `set_lora` of the merge would; returns before the GPU is done, and never waits for it.

        `sources`: 1 to 8 float32 or bfloat16 tensors of shape (layout.size,), trimmed already for TIES. `gains`, of
        shape (sources, 2), multiply A (column 0) and B (column 1). The write comes after all that the current stream
        was given, and before what it is given next. Raises `ValueError` for arguments that do not fit.
        """
        self._check(slot, sources, gains, method)
        with self._ordered():
            self._launch(len(self._table), slot, sources, gains, method)

    def compile(
        self, counts: Iterable[int], methods: Iterable[str] = METHODS, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """Build the kernel for so many sources of this type, so that the first merges need not wait for it."""
        empty = torch.empty(1, device=self._device, dtype=dtype)
        for count in counts:
            for method in methods:
                self._launch(0, 0, [empty] * count, np.zeros((count, 2), dtype=np.float32), method)

    def _check(self, slot: int, sources: Sequence[Tensor], gains: NDArray[np.float32], method: str) -> None:
        if not 0 <= slot < self._slots:
            raise ValueError(f"slot must be 0 to {self._slots - 1}, got {slot}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method}")
        if not 1 <= len(sources) <= MAX_SOURCES or gains.shape != (len(sources), 2):
            got = f"{len(sources)} and {gains.shape}"
            raise ValueError(f"1 to {MAX_SOURCES} sources need gains of shape (sources, 2), got {got}")
        for source in sources:
            known = source.dtype in (torch.float32, torch.bfloat16)
            if source.shape != (self._source_size,) or not known or source.device != self._device:
                raise ValueError(
                    f"a source must be float32 or bfloat16 of shape ({self._source_size},) on {self._device}, "
                    f"got {source.dtype} of shape {tuple(source.shape)} on {source.device}"
                )
            if not source.is_contiguous():
                raise ValueError(f"a source must be contiguous, got stride {source.stride()}")

    def _ordered(self) -> AbstractContextManager[None]:
        return nullcontext() if self._stream is None else _side_stream(self._stream)

    def _launch(
        self, tiles: int, slot: int, sources: Sequence[Tensor], gains: NDArray[np.float32], method: str
    ) -> None:
        """Pointers and gains travel with the launch: a copy to the device would need a pinned buffer and its upkeep."""
        on_a, on_b = (tuple(float(gain) for gain in side) for side in gains.T)
        kernel = _kernel()
        kernel[(tiles,)](
            *(self._table, slot, tuple(sources), on_a, on_b),
            **self._constants,
            k=len(sources),
            method=method,
            dtype=getattr(tl, str(self._buffers[0].dtype).removeprefix("torch.")),
            num_warps=4,
            enable_fp_fusion=False,  # a fused multiply-add would round once where `combine` rounds twice
        )


def _new_stream(device: torch.device) -> Any:
    cuda: Any = torch.cuda  # published with `Stream` untyped
    return cuda.Stream(device)


@contextmanager
def _side_stream(stream: Any) -> Iterator[None]:
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@cache
def _kernel() -> Any:
    global tl  # Triton looks the kernel's names up in this module
    tl = import_module("triton.language")
    # a slot number must not choose the binary: 0, 1 and 16 would each be compiled apart
    return import_module("triton").jit(do_not_specialize=["slot"])(_merge_tile)


def _merge_tile(
    table: tl.tensor,
    slot: tl.tensor,
    sources: tl.tuple,
    on_a: tl.tuple,
    on_b: tl.tuple,
    width: tl.constexpr,
    unit: tl.constexpr,
    block: tl.constexpr,
    k: tl.constexpr,
    method: tl.constexpr,
    dtype: tl.constexpr,
) -> None:
    """Triton: one tile of a slot. Electing and averaging each load the sources; compiled, that is one read."""
    row = table + tl.program_id(0).to(tl.int64) * 8
    address = tl.load(row) + slot.to(tl.int64) * tl.load(row + 1)
    pointer = tl.multiple_of(address.to(tl.pointer_type(dtype), bitcast=True), unit * (dtype.primitive_bitwidth // 8))
    offset = tl.multiple_of(tl.load(row + 2), unit)
    count = tl.multiple_of(tl.load(row + 3).to(tl.int32), unit)
    columns = tl.multiple_of(tl.load(row + 4).to(tl.int32), unit)
    is_a = tl.load(row + 5) == 0
    entry = tl.multiple_of(tl.load(row + 6).to(tl.int32), block) + tl.arange(0, block)
    entries = tl.multiple_of(tl.load(row + 7).to(tl.int32), unit)
    column = entry % width
    at = entry // width * columns + column
    live = (column < columns) & (at < count)
    total = tl.zeros([block], tl.float32)
    for j in tl.static_range(k):
        x = tl.load(sources[j] + offset + at, mask=live, other=0.0).to(tl.float32)
        if method == "sum":
            total += x * tl.where(is_a, on_a[j], on_b[j])
        elif method == "ties_frequency":
            total += tl.where(x > 0, 1.0, 0.0) - tl.where(x < 0, 1.0, 0.0)
        else:
            total += x
    if method != "sum":
        elected = total >= 0
        total = tl.zeros([block], tl.float32)
        agreeing = tl.zeros([block], tl.float32)
        for j in tl.static_range(k):
            x = tl.load(sources[j] + offset + at, mask=live, other=0.0).to(tl.float32)
            agrees = tl.where(elected, x > 0, x < 0)
            total += tl.where(agrees, x * tl.where(is_a, on_a[j], on_b[j]), 0.0)
            agreeing += tl.where(agrees, 1.0, 0.0)
        total = tl.div_rn(total, tl.maximum(agreeing, 1.0))  # `/` is not correctly rounded on a GPU
    tl.store(pointer + entry, total.to(dtype), mask=entry < entries)
