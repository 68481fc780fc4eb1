"""Inverted lists: vectors by the nearest of some centroids, so that a search reads the likeliest lists only, and of
each vector there a code, four bits for four of its numbers. The best by their codes are compared by the vectors.

In FAISS's terms `IndexIVFPQFastScan`, refined by half-precision floats: a cosine is right to about 1e-4, a vector is
read by its code in a sixteenth of its bytes, and memory is a sixteenth more than the vectors'.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROBED = 2
"""A search reads one list in so many."""
SHORTLIST = 4096
"""Found by their codes at least, to be compared by their vectors: of a thousand texts that are nearly the same, codes
alone do not tell which are the nearest."""
WANTED = 2
"""Or so many for each one wanted, where that is more."""
POINTS_PER_LIST = 40
"""That the centroids are found from; FAISS advises 39 at least."""
ROUNDS = 10
"""Of k-means."""
CODE_BITS = 4
CODED = 4, 2, 1
"""Numbers of a vector that share one code, as many as divide its dimensions."""

Vectors = NDArray[np.float32]


def is_in_lists(index: Any) -> bool:
    """Of this version or of the one before it, which had the vectors themselves in the lists; `build` replaces it."""
    import faiss

    return isinstance(index, faiss.IndexRefine | faiss.IndexIVF)


def lists_of(index: Any) -> Any:
    """The part of the index that has the lists."""
    import faiss

    return faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index


def lists_for(count: int) -> int:
    """A power of two near the square root."""
    return 1 << round(math.log2(max(1, count)) / 2)


def parameters(index: Any, limit: int, selector: Any) -> Any:
    """Of a search for `limit` vectors among the rows that `selector` lets pass, or all."""
    import faiss

    probed = max(1, lists_of(index).nlist // PROBED)
    in_lists = faiss.SearchParametersIVF(sel=selector, nprobe=probed)  # type: ignore[call-arg]
    if not isinstance(index, faiss.IndexRefine):
        return in_lists
    factor = max(WANTED, SHORTLIST / limit)
    return faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=in_lists)  # type: ignore[call-arg]


def build(dim: int, count: int, batches: Callable[[], Iterable[Vectors]], *, old: Any) -> Any:
    """A FAISS index of the `count` vectors that `batches` gives each time, row by row in their order.

    Centroids and codes of `old` are kept if it has as many lists as are wanted: a quarter of the time goes to them.
    """
    import faiss

    faiss.omp_set_num_threads(1)  # the other cores are the engine's
    index = faiss.IndexRefine(_emptied(old, count) or _trained(dim, count, batches), _vectors(dim))
    for batch in batches():
        index.add(batch)
    return index


def _vectors(dim: int) -> Any:
    import faiss

    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _emptied(old: Any, count: int) -> Any:
    """A copy of the lists of `old` without what is in them, or None if others are wanted."""
    import faiss

    if not isinstance(old, faiss.IndexRefine) or lists_of(old).nlist != lists_for(count):
        return None
    lists = faiss.clone_index(lists_of(old))
    lists.reset()
    return lists


def _trained(dim: int, count: int, batches: Callable[[], Iterable[Vectors]]) -> Any:
    import faiss

    lists, product = lists_for(count), faiss.METRIC_INNER_PRODUCT
    codes = dim // next(share for share in CODED if dim % share == 0)
    index = faiss.IndexIVFPQFastScan(faiss.IndexFlatIP(dim), dim, lists, codes, CODE_BITS, product)
    index.by_residual = False  # one table of products for all lists
    index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = ROUNDS, True, 1
    step = max(1, count // (POINTS_PER_LIST * lists))
    sample = np.concatenate([batch[::step] for batch in batches()])
    index.train(np.resize(sample, (max(len(sample), 1 << CODE_BITS), dim)))  # as many as there are codes, at least
    return index
