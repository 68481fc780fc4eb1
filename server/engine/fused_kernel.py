"""The loop of `fused.merge_flat`, compiled by Numba; import it only to run it.

Written for LLVM's vectoriser. `parts` holds a tile of each source, one after another. Method and number of sources are
constants of the compiled code, so that loops over sources are unrolled and the one over entries is vectorised, with
sums and counts in registers; LLVM does so for up to five sources at once, therefore every such loop is two. No constant
comes from another module: Numba's cache would not see it change, and go on using the old code.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

SUM, TIES_TOTAL, TIES_FREQUENCY = 0, 1, 2
TILE = 1024
"""As in `layout`; a constant, because with a variable for it LLVM does not vectorise."""


def _pointer_to(kind: Any) -> Any:
    """An intrinsic that takes an address for a pointer to `kind`: so any number of arrays is one list of numbers."""

    def typed(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return intrinsic(typed)


whole_at: Any = _pointer_to(types.float32)
half_at: Any = _pointer_to(types.uint16)


def _read(address: int, half: bool, start: int, size: int, into: NDArray[np.float32], bits: NDArray[np.uint32]) -> None:
    """Entries of a source as float32; bfloat16 is the upper half of one, so `bits` is `into` seen as integers."""
    if half:
        halves = numba.carray(half_at(address + 2 * start), size)
        for i in range(size):
            bits[i] = np.uint32(halves[i]) << np.uint32(16)
    else:
        wholes = numba.carray(whole_at(address + 4 * start), size)
        for i in range(size):
            into[i] = wholes[i]


def _write(
    address: int, half: bool, start: int, size: int, merged: NDArray[np.float32], bits: NDArray[np.uint32]
) -> None:
    """Entries of the result; to bfloat16 they are rounded to the nearest, ties to even."""
    if half:
        halves = numba.carray(half_at(address + 2 * start), size)
        for i in range(size):
            odd = (bits[i] >> np.uint32(16)) & np.uint32(1)
            halves[i] = np.uint16((bits[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    else:
        wholes = numba.carray(whole_at(address + 4 * start), size)
        for i in range(size):
            wholes[i] = merged[i]


def _vote_of(part: float, gain: float, method: int) -> Any:
    """What a source adds to the first sum: to a linear merge its scaled value, to an election its value or its sign."""
    above = np.float32(1.0) if part > 0 else np.float32(0.0)
    below = np.float32(1.0) if part < 0 else np.float32(0.0)
    scaled, sign = part * gain, above - below
    if method == SUM:
        return scaled
    return part if method == TIES_TOTAL else sign


def _merging(count: int, method: int) -> Any:
    few = count if count <= 5 else (count + 1) // 2

    def merge_tiles(
        addresses: NDArray[np.int64],
        halves: NDArray[np.bool_],
        gains: NDArray[np.float32],
        tiles: NDArray[np.int64],
        first: int,
        last: int,
        out: int,
        out_is_half: bool,
    ) -> None:
        """Merge tiles `first` to `last` into the array at address `out`. `gains` is (side, source)."""
        parts, merged = np.empty(count * TILE, dtype=np.float32), np.empty(TILE, dtype=np.float32)
        part_bits, merged_bits = parts.view(np.uint32), merged.view(np.uint32)
        for number in range(first, last):
            start, end, side = tiles[number]
            size, gain = end - start, gains[side]
            for j in range(count):
                read(addresses[j], halves[j], start, size, parts[j * TILE :], part_bits[j * TILE :])
            for i in range(size):
                votes, total, agreeing = np.float32(0.0), np.float32(0.0), np.float32(0.0)
                for j in range(few):
                    votes += vote_of(parts[j * TILE + i], gain[j], method)
                for j in range(few, count):
                    votes += vote_of(parts[j * TILE + i], gain[j], method)
                if method == SUM:
                    merged[i] = votes
                else:  # the sign is + where votes are even or none, as in PEFT; a zero agrees with neither
                    elected = np.float32(1.0) if votes >= 0 else np.float32(-1.0)
                    for j in range(few):
                        scaled, agrees = parts[j * TILE + i] * gain[j], parts[j * TILE + i] * elected > 0
                        total += scaled if agrees else np.float32(0.0)
                        agreeing += np.float32(1.0) if agrees else np.float32(0.0)
                    for j in range(few, count):
                        scaled, agrees = parts[j * TILE + i] * gain[j], parts[j * TILE + i] * elected > 0
                        total += scaled if agrees else np.float32(0.0)
                        agreeing += np.float32(1.0) if agrees else np.float32(0.0)
                    merged[i] = total / (agreeing if agreeing > 0 else np.float32(1.0))
            write(out, out_is_half, start, size, merged, merged_bits)

    merge_tiles.__qualname__ = f"merge_tiles_{method}_{count}"  # so that each has a file of its own in the cache
    return merge_tiles


METHODS = (SUM, TIES_TOTAL, TIES_FREQUENCY)
MAX_SOURCES = 8
_compile: Any = numba.njit(cache=True, nogil=True, error_model="numpy")
read, write, vote_of = map(_compile, (_read, _write, _vote_of))
kernels: dict[tuple[int, int], Any] = {
    (method, count): _compile(_merging(count, method)) for method in METHODS for count in range(1, MAX_SOURCES + 1)
}
