"""Merging on a CPU in one pass: every source is read once, the result is written once, nothing else touches memory.

Compiled by Numba the first time it runs on a machine and kept in its cache, so `warm_up` belongs to an engine's start.
The kernel holds no lock on the interpreter; tiles are shared out over threads of ours, because the engine's worker may
be bound to one core.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from server.engine.cpu_threads import use_every_core
from server.engine.layout import TILE

Elementwise = Literal["sum", "ties_total", "ties_frequency"]
CODES: dict[Elementwise, int] = {"sum": 0, "ties_total": 1, "ties_frequency": 2}
Flat = NDArray[np.uint16] | NDArray[np.float32]
"""A flat adapter: float32, or bfloat16 as its bits."""
Gains = NDArray[np.float32]
MAX_THREADS = 8
MIN_TILES_PER_THREAD = 64


def merge_flat(method: Elementwise, sources: Sequence[Flat], gains: Gains, tiles: NDArray[np.int64], out: Flat) -> None:
    """Write the merge of `sources` (each of shape (size,)) to `out` (size,).

    `gains` (sources, 2) scales each source, by side: `lora_A`, `lora_B`. `sum` adds; `ties_*` elect the sign of each
    entry from the unscaled values (by their sum, or by the sum of their signs) and average the scaled values that have
    it (PEFT 0.21 `ties`, whose trim the sources must have behind them). Arithmetic is float32.
    """
    addresses = np.array([source.ctypes.data for source in sources], dtype=np.int64)
    halves = np.array([source.dtype == np.uint16 for source in sources], dtype=np.bool_)
    by_side = np.ascontiguousarray(gains.T, dtype=np.float32)
    arguments = (addresses, halves, by_side, tiles)
    result = (out.ctypes.data, out.dtype == np.uint16)
    kernel = _compiled()[CODES[method], len(sources)]
    own, *others = _shares(len(tiles))
    running = [_threads().submit(kernel, *arguments, *share, *result) for share in others]
    kernel(*arguments, *own, *result)
    for share in running:
        share.result()


def warm_up() -> None:
    """Compile for every method and number of sources, or read Numba's cache, before a query needs it."""
    one, tile = np.zeros(1, dtype=np.float32), np.array([[0, 1, 0]], dtype=np.int64)
    methods = {code: method for method, code in CODES.items()}
    many = np.repeat(tile, MAX_THREADS * MIN_TILES_PER_THREAD, axis=0)  # work for every thread, so that all start
    merge_flat("sum", [one], np.ones((1, 2), np.float32), many, one.copy())
    for code, count in _compiled():
        merge_flat(methods[code], [one] * count, np.ones((count, 2), np.float32), tile, one.copy())


def _shares(tiles: int) -> list[tuple[int, int]]:
    parts = max(1, min(_thread_count(), tiles // MIN_TILES_PER_THREAD))
    bounds = [tiles * part // parts for part in range(parts + 1)]
    return list(pairwise(bounds))


def _thread_count() -> int:
    return min(MAX_THREADS, os.cpu_count() or 1)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_thread_count(), "merge", initializer=use_every_core)


@cache
def _compiled() -> Mapping[tuple[int, int], Callable[..., None]]:
    """The kernel by method and number of sources."""
    from server.engine import fused_kernel

    assert fused_kernel.TILE == TILE, "the kernel would write past its tiles"
    return fused_kernel.kernels
