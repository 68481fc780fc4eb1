"""Scores of an answer against the expected one, 0 to 1, and how sure a mean of scores is."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loramem.scores import token_f1

__all__ = ["interval", "mean", "rouge_l", "token_f1"]

RESAMPLES = 2000
_ROUGE_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(answer: str, expected: str) -> float:
    """ROUGE-L's F-measure (Lin 2004, beta 1) on the longest common subsequence of words; 0 to 1.

    Words as `rouge_score.rouge_scorer` cuts them without stemming: runs of a-z and 0-9 in lower case.
    """
    given, wanted = (_ROUGE_WORD.findall(text.lower()) for text in (answer, expected))
    if not given or not wanted:
        return 0.0
    return 2 * _common(given, wanted) / (len(given) + len(wanted))


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, row by row."""
    above = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[place]))
        above = row
    return above[-1]


def mean(values: Sequence[float]) -> float:
    """0 for none."""
    return sum(values) / len(values) if values else 0.0


def interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """95 % interval of the mean by the percentile bootstrap, values redrawn as independent; raises for none.

    For a paired difference, give the differences: each question is then redrawn with both its scores.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    given: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))
    low, high = np.percentile(given[drawn].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
