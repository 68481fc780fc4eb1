"""Inverted lists: vectors by the nearest of some centroids, so that a search reads the likeliest lists only.

Half-precision floats: a cosine is right to about 1e-4, and memory and reading are half of single precision's.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROBED = 5
"""A search reads one list in so many."""
POINTS_PER_LIST = 40
"""That the centroids are found from; FAISS advises 39 at least."""
ROUNDS = 10
"""Of k-means."""

Vectors = NDArray[np.float32]


def is_in_lists(index: Any) -> bool:
    import faiss

    return isinstance(index, faiss.IndexIVF)


def lists_for(count: int) -> int:
    """A power of two near the square root."""
    return 1 << round(math.log2(max(1, count)) / 2)


def parameters(index: Any, selector: Any) -> Any:
    """Of a search among the rows that `selector` lets pass, or all."""
    import faiss

    return faiss.SearchParametersIVF(sel=selector, nprobe=max(1, index.nlist // PROBED))  # type: ignore[call-arg]


def build(dim: int, count: int, batches: Callable[[], Iterable[Vectors]], *, old: Any) -> Any:
    """A FAISS index of the `count` vectors that `batches` gives each time, row by row in their order.

    The centroids of `old` are kept if it has as many as are wanted: finding them takes half of the time.
    """
    import faiss

    faiss.omp_set_num_threads(1)  # the other cores are the engine's
    lists = lists_for(count)
    kept = is_in_lists(old) and old.nlist == lists
    centroids = faiss.clone_index(old.quantizer) if kept else faiss.IndexFlatIP(dim)
    half, product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(centroids, dim, lists, half, product, False)
    if kept:
        index.is_trained = True
    else:
        index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = ROUNDS, True, 1
        step = max(1, count // (POINTS_PER_LIST * lists))
        index.train(np.concatenate([batch[::step] for batch in batches()]))
    for batch in batches():
        index.add(batch)
    index.make_direct_map()  # rows can be read again
    return index
