"""How an adapter's tensors lie in one flat array, so that a merge is one pass over memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

TILE = 1024
"""Entries that a merge works on at once: as float32, a tile of each of a few sources fits the first-level cache."""
SIDE_A, SIDE_B = 0, 1


@dataclass(frozen=True)
class Layout:
    """PEFT tensor names with their shapes, in the order in which they lie one after another without gaps."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts, in entries."""
        return (0, *accumulate(self._sizes))[:-1]

    @cached_property
    def size(self) -> int:
        return sum(self._sizes)

    @cached_property
    def tiles(self) -> NDArray[np.int64]:
        """(tiles, 3): start, end and side of stretches of at most `TILE` entries that belong to one tensor."""
        rows = [
            (begin, min(begin + TILE, start + size), side_of(name))
            for name, start, size in zip(self.names, self.offsets, self._sizes, strict=True)
            for begin in range(start, start + size, TILE)
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 3)

    def at_rank(self, rank: int) -> "Layout":
        """The same tensors for another rank: `lora_A` (rank, in), `lora_B` (out, rank)."""
        shapes = [
            (rank, *shape[1:]) if side_of(name) == SIDE_A else (*shape[:-1], rank)
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        return one_of_each(Layout(self.names, tuple(shapes)))

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors in `flat` (size,) by name; no copies."""
        return {
            name: flat[start : start + size].view(shape)
            for name, start, size, shape in zip(self.names, self.offsets, self._sizes, self.shapes, strict=True)
        }

    def copy_into(self, wider: "Layout", flat: Tensor, out: Tensor) -> None:
        """Copy the tensors of `flat` (size,) to their places in `out` (wider.size,), which lies as `wider` says.

        Of a tensor that has a greater rank in `wider`, the first rows of A or columns of B are written and no others.
        """
        places = wider.views(out)
        for name, tensor in self.views(flat).items():
            axis = 0 if side_of(name) == SIDE_A else -1
            places[name].narrow(axis, 0, tensor.shape[axis]).copy_(tensor)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(int(np.prod(shape)) for shape in self.shapes)


def side_of(name: str) -> int:
    return SIDE_B if ".lora_B." in name else SIDE_A


def union(layouts: Sequence[Layout]) -> Layout:
    """All tensors of `layouts`, which agree on the shape of those they share; the one layout when all are equal."""
    if all(layout == layouts[0] for layout in layouts):
        return layouts[0]
    shapes = {name: shape for layout in layouts for name, shape in zip(layout.names, layout.shapes, strict=True)}
    names = tuple(sorted(shapes))
    return one_of_each(Layout(names, tuple(shapes[name] for name in names)))


@cache
def one_of_each(layout: Layout) -> Layout:
    """The first layout that was equal to this one, with what it has worked out: a process meets few different ones."""
    return layout
