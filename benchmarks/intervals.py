"""How sure a mean over documents is: questions about one text are not independent, so whole documents are redrawn."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.scores import RESAMPLES

Interval = tuple[float, float]
NORMAL = 1.959964
"""The 97.5th percentile of the standard normal distribution."""


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


def widening(clusters: int) -> float:
    """What an end of `cluster_interval` is too close to the mean by, as a factor; for two clusters or more.

    The percentile bootstrap divides the spread by n in place of n - 1, and knows no more of its tails than the normal
    distribution does: Student's t with n - 1 degrees of freedom has the wider ones that so few clusters need.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(clusters - 1, 0.975)) / NORMAL * math.sqrt(clusters / (clusters - 1))


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated between neighbours; 0 for none."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent)) if values else 0.0
