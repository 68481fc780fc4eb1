"""The loops of `cpu_lora` and `cpu_norm`, compiled by Numba; import them only to run them.

Decoding multiplies one row, or a few, with matrices of rank 16: a matrix product of a library takes longer to call than
to do, and one adapter after another makes that many calls. Here one call does all rows of a layer, whatever adapters
they have, and reads the adapters as they lie in vLLM's slots. Written for LLVM's vectoriser: four rows of A or B at a
time, each a slice of its own, because an index with an offset in it could be negative and is not vectorised.

All take `like`, an empty array of the entries' type: float32, or uint16 for bfloat16. Arithmetic is float32.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

A_AT, B_AT, RANK = 0, 1, 2
"""Columns of a table of slots."""


def _pointer_to(context: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to entries of the type of `like`, an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), generate


def _reinterpret(given: Any, wanted: Any) -> Any:
    def typed(context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(wanted))

        return wanted(given), generate

    return intrinsic(typed)


pointer_to: Any = intrinsic(_pointer_to)
as_float: Any = _reinterpret(types.uint32, types.float32)
as_bits: Any = _reinterpret(types.float32, types.uint32)


def up(value: Any) -> Any:
    """An entry as float32; bfloat16, here its bits, is the upper half of one."""
    raise NotImplementedError


def down(value: Any, like: Any) -> Any:
    """float32 as an entry of the type of `like`; to bfloat16 it is rounded to the nearest, ties to even."""
    raise NotImplementedError


def _up(value: Any) -> Any:
    if value == types.uint16:
        return lambda value: as_float(np.uint32(value) << np.uint32(16))
    return lambda value: value


def _down(value: Any, like: Any) -> Any:
    if like == types.uint16:
        return lambda value, like: round_to_half(value)
    return lambda value, like: value


def _round_to_half(value: Any) -> Any:
    bits = as_bits(value)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    return rounded if value == value else np.uint16(0x7FC0)


def _project(a: Any, x: NDArray[np.float32], rank: int, size: int, h: NDArray[np.float32]) -> None:
    """h[:rank] = A x, of A (rank, size)."""
    whole = rank - rank % 4
    for r in range(0, whole, 4):
        a0, a1, a2, a3 = (
            a[r * size : (r + 1) * size],
            a[(r + 1) * size : (r + 2) * size],
            a[(r + 2) * size : (r + 3) * size],
            a[(r + 3) * size : (r + 4) * size],
        )
        h0, h1, h2, h3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for i in range(size):
            h0 += x[i] * up(a0[i])
            h1 += x[i] * up(a1[i])
            h2 += x[i] * up(a2[i])
            h3 += x[i] * up(a3[i])
        h[r], h[r + 1], h[r + 2], h[r + 3] = h0, h1, h2, h3
    for r in range(whole, rank):
        a0 = a[r * size : (r + 1) * size]
        h0 = np.float32(0.0)
        for i in range(size):
            h0 += x[i] * up(a0[i])
        h[r] = h0


def _expand(b: Any, h: NDArray[np.float32], rank: int, width: int, out: NDArray[np.float32]) -> None:
    """out[:width] = h B, of B (rank, width)."""
    whole = rank - rank % 4
    for j in range(width):
        out[j] = np.float32(0.0)
    for r in range(0, whole, 4):
        b0, b1, b2, b3 = (
            b[r * width : (r + 1) * width],
            b[(r + 1) * width : (r + 2) * width],
            b[(r + 2) * width : (r + 3) * width],
            b[(r + 3) * width : (r + 4) * width],
        )
        h0, h1, h2, h3 = h[r], h[r + 1], h[r + 2], h[r + 3]
        for j in range(width):
            out[j] += h0 * up(b0[j]) + h1 * up(b1[j]) + h2 * up(b2[j]) + h3 * up(b3[j])
    for r in range(whole, rank):
        b0, h0 = b[r * width : (r + 1) * width], h[r]
        for j in range(width):
            out[j] += h0 * up(b0[j])


def _add_rows(
    like: Any,
    slots: NDArray[np.int64],
    table: NDArray[np.int64],
    columns: NDArray[np.int64],
    size: int,
    x_at: int,
    x_stride: int,
    y_at: int,
    y_stride: int,
    scale: float,
) -> None:
    """y += scale * x A^T B, in place, for each row that has a slot.

    `slots` (rows,), -1 for none. `table` (slots, parts, 3): addresses of A (rank, size) and of B turned round, (rank,
    width), and the rank, 0 for an empty part. `columns` (parts, 2): start and width in a row of y. x and y by the
    address of their first row, and the entries from one row to the next.
    """
    bytes_each = like.itemsize
    row, h = np.empty(size, dtype=np.float32), np.empty(table[:, :, RANK].max(), dtype=np.float32)
    out = np.empty(columns[:, 1].max(), dtype=np.float32)
    for t in range(len(slots)):
        slot = slots[t]
        if slot < 0 or table[slot, :, RANK].max() == 0:
            continue
        x = numba.carray(pointer_to(x_at + bytes_each * x_stride * t, like), size)
        for i in range(size):
            row[i] = up(x[i])
        for part in range(len(columns)):
            rank, start, width = table[slot, part, RANK], columns[part, 0], columns[part, 1]
            if rank == 0:
                continue
            project(numba.carray(pointer_to(table[slot, part, A_AT], like), rank * size), row, rank, size, h)
            expand(numba.carray(pointer_to(table[slot, part, B_AT], like), rank * width), h, rank, width, out)
            y = numba.carray(pointer_to(y_at + bytes_each * (y_stride * t + start), like), width)
            for j in range(width):
                y[j] = down(up(y[j]) + np.float32(scale) * out[j], y[j])


def _filled_rank(a_at: int, rank: int, words: int) -> int:
    """Rows of A up to the last that is not zero; `words` of 16 bits in a row."""
    a = numba.carray(pointer_to(a_at, np.empty(0, dtype=np.uint16)), rank * words)
    for r in range(rank - 1, -1, -1):
        row, seen = a[r * words : (r + 1) * words], np.uint16(0)
        for i in range(words):
            seen |= row[i]
        if seen:
            return r + 1
    return 0


def _norm_rows(
    like: Any, x_at: int, residual_at: int, weight_at: int, out_at: int, rows: int, size: int, epsilon: float
) -> None:
    """out = x / sqrt(mean(x^2) + epsilon) * weight for each row, rounded before and after the weight as vLLM's own
    operations do. With a residual (0: none), x is the sum of both, and so is the residual afterwards."""
    bytes_each = like.itemsize
    row, weight = np.empty(size, dtype=np.float32), numba.carray(pointer_to(weight_at, like), size)
    for t in range(rows):
        first = bytes_each * size * t
        x, out = (
            numba.carray(pointer_to(x_at + first, like), size),
            numba.carray(pointer_to(out_at + first, like), size),
        )
        if residual_at:
            residual = numba.carray(pointer_to(residual_at + first, like), size)
            for i in range(size):
                row[i] = up(x[i]) + up(residual[i])
                residual[i] = down(row[i], residual[i])
        else:
            for i in range(size):
                row[i] = up(x[i])
        squares = np.float32(0.0)
        for i in range(size):
            squares += row[i] * row[i]
        scale = np.float32(1.0) / np.sqrt(squares / np.float32(size) + np.float32(epsilon))
        for i in range(size):
            out[i] = down(up(down(row[i] * scale, out[i])) * up(weight[i]), out[i])


overload(up, inline="always", strict=False)(_up)
overload(down, inline="always", strict=False)(_down)
_compile: Any = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"}
)  # sums in any order, so that they are vectorised; what is not a number or not finite stays so
round_to_half, project, expand, add_rows, filled_rank, norm_rows = map(
    _compile, (_round_to_half, _project, _expand, _add_rows, _filled_rank, _norm_rows)
)
