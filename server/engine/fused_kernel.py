"""The loop of `fused.merge_flat`, compiled by Numba; import it only to run it.

Written for LLVM's vectoriser. `parts` holds a tile of each source, one after another. The number of sources is a
constant of the compiled code, so that loops over sources are unrolled and the one over entries is vectorised, with
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


def _vote_of(part: float, by_sign: bool) -> Any:
    above = np.float32(1.0) if part > 0 else np.float32(0.0)
    below = np.float32(1.0) if part < 0 else np.float32(0.0)
    return above - below if by_sign else part


def _merging(count: int) -> Any:  # noqa: C901 one loop: what LLVM sees apart, it does not vectorise together
    few = count if count <= 5 else (count + 1) // 2

    def merge_tiles(
        method: int,
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
        part_bits, merged_bits, by_sign = parts.view(np.uint32), merged.view(np.uint32), method == TIES_FREQUENCY
        for number in range(first, last):
            start, end, side = tiles[number]
            size, gain = end - start, gains[side]
            for j in range(count):
                read(addresses[j], halves[j], start, size, parts[j * TILE :], part_bits[j * TILE :])
            for i in range(size):  # the sum, or the votes: the sign is + where they are even or none, as in PEFT
                total = np.float32(0.0)
                for j in range(few):
                    total += parts[j * TILE + i] * gain[j] if method == SUM else vote_of(parts[j * TILE + i], by_sign)
                for j in range(few, count):
                    total += parts[j * TILE + i] * gain[j] if method == SUM else vote_of(parts[j * TILE + i], by_sign)
                merged[i] = total
            if method != SUM:  # the mean of those that agree; a zero agrees with neither sign
                for i in range(size):
                    elected = np.float32(1.0) if merged[i] >= 0 else np.float32(-1.0)
                    total, agreeing = np.float32(0.0), np.float32(0.0)
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

    return merge_tiles


MAX_SOURCES = 8
_compile: Any = numba.njit(cache=True, nogil=True, error_model="numpy")
read, write, vote_of = map(_compile, (_read, _write, _vote_of))
merge_tiles: dict[int, Any] = {count: _compile(_merging(count)) for count in range(1, MAX_SOURCES + 1)}
