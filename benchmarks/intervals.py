"""How sure a mean over documents is: questions about one text are not independent, so whole documents are redrawn."""

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.scores import RESAMPLES

Interval = tuple[float, float]


def cluster_interval(clusters: Iterable[Sequence[float]], seed: int) -> Interval | None:
    """95 % interval of the mean over all values by the percentile bootstrap, clusters redrawn whole.

    None for fewer than two clusters that hold a value, which say nothing about others. For a paired difference, give
    the differences.
    """
    filled = [values for values in clusters if values]
    if len(filled) < 2:
        return None
    sums, counts = np.array([sum(values) for values in filled]), np.array([len(values) for values in filled])
    drawn = np.random.default_rng(seed).integers(len(filled), size=(RESAMPLES, len(filled)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated between neighbours; 0 for none."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent)) if values else 0.0
