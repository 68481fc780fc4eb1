"""The loop of `fused.merge_flat`, compiled by Numba; import it only to run it.

Written for LLVM's vectoriser: every inner loop runs over a tile, does one thing, and branches by selecting.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from server.engine.layout import TILE

SUM, TIES_TOTAL, TIES_FREQUENCY = 0, 1, 2


def _pointer_to(kind: Any) -> Any:
    """An intrinsic that takes an address for a pointer to `kind`: so any number of arrays is one list of numbers."""

    def typed(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return intrinsic(typed)


whole_at: Any = _pointer_to(types.float32)
half_at: Any = _pointer_to(types.uint16)


def _read(address: int, half: bool, start: int, into: NDArray[np.float32], bits: NDArray[np.uint32]) -> None:
    """A tile as float32; bfloat16 is the upper half of a float32, so `bits` is `into` seen as integers."""
    if half:
        halves = numba.carray(half_at(address + 2 * start), into.shape[0])
        for i in range(into.shape[0]):
            bits[i] = np.uint32(halves[i]) << np.uint32(16)
    else:
        wholes = numba.carray(whole_at(address + 4 * start), into.shape[0])
        for i in range(into.shape[0]):
            into[i] = wholes[i]


def _majority(method: int, parts: NDArray[np.float32], size: int, majority: NDArray[np.float32]) -> None:
    """+1 or -1 per entry; nothing and a tie count as +1, as in PEFT."""
    majority[:] = np.float32(0.0)
    for first in range(0, parts.shape[0], TILE):
        part = parts[first : first + size]
        if method == TIES_TOTAL:
            for i in range(size):
                majority[i] += part[i]
        else:
            for i in range(size):
                majority[i] += np.float32(part[i] > 0) - np.float32(part[i] < 0)
    for i in range(size):
        majority[i] = np.float32(1.0) if majority[i] >= 0 else np.float32(-1.0)


def _average(
    parts: NDArray[np.float32],
    gains: NDArray[np.float32],
    majority: NDArray[np.float32],
    count: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Mean of the scaled values that have the majority's sign; 0 where none has."""
    out[:] = np.float32(0.0)
    count[:] = np.float32(0.0)
    for j in range(gains.shape[0]):
        part, gain = parts[j * TILE : j * TILE + out.shape[0]], gains[j]
        for i in range(out.shape[0]):
            agrees = part[i] * majority[i] > 0
            out[i] += part[i] * gain if agrees else np.float32(0.0)
            count[i] += np.float32(1.0) if agrees else np.float32(0.0)
    for i in range(out.shape[0]):
        out[i] /= max(count[i], np.float32(1.0))


def _sum(parts: NDArray[np.float32], gains: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    out[:] = np.float32(0.0)
    for j in range(gains.shape[0]):
        part, gain = parts[j * TILE : j * TILE + out.shape[0]], gains[j]
        for i in range(out.shape[0]):
            out[i] += part[i] * gain


def _round(bits: NDArray[np.uint32], halves: NDArray[np.uint16]) -> None:
    """Float32 to bfloat16, to the nearest, ties to even."""
    for i in range(halves.shape[0]):
        odd = (bits[i] >> np.uint32(16)) & np.uint32(1)
        halves[i] = np.uint16((bits[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16))


def _merge_tiles(
    method: int,
    addresses: NDArray[np.int64],
    halves: NDArray[np.bool_],
    gains: NDArray[np.float32],
    tiles: NDArray[np.int64],
    first: int,
    last: int,
    whole_out: NDArray[np.float32],
    half_out: NDArray[np.uint16],
) -> None:
    """Merge tiles `first` to `last` into whichever of the two outputs is not empty. `gains` is (side, source)."""
    count = addresses.shape[0]
    parts = np.empty(count * TILE, dtype=np.float32)
    part_bits = parts.view(np.uint32)
    work, signs, agreeing = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    work_bits = work.view(np.uint32)
    for tile in range(first, last):
        start, end, side = tiles[tile]
        size = end - start
        for j in range(count):
            here = slice(j * TILE, j * TILE + size)
            read(addresses[j], halves[j], start, parts[here], part_bits[here])
        merged = work[:size]
        if method == SUM:
            add(parts, gains[side], merged)
        else:
            majority(method, parts, size, signs[:size])
            average(parts, gains[side], signs[:size], agreeing[:size], merged)
        if half_out.shape[0] > 0:
            round_to_half(work_bits[:size], half_out[start:end])
        else:
            whole_out[start:end] = merged


_compile: Any = numba.njit(cache=True, nogil=True, error_model="numpy")
read, majority, average, add, round_to_half = map(_compile, (_read, _majority, _average, _sum, _round))
merge_tiles: Any = _compile(_merge_tiles)
