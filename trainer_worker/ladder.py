"""What to do about an adapter that failed its exam."""

from collections.abc import Sequence

from loramem.records import ExamResult, Remedy

MOST = 2
"""Remedies for one chunk."""
LEARNT = 0.6
"""An adapter that took in a smaller share of its own lesson needs room, not more questions."""


def next_remedy(exam: ExamResult, tried: Sequence[Remedy], *, possible: Sequence[Remedy]) -> Remedy | None:
    """More data, then a greater rank, then two adapters in place of one; None when nothing is left to do.

    Data is left out where the adapter did not even learn what it was taught.
    """
    if not exam.weak or len(tried) >= MOST:
        return None
    ladder: tuple[Remedy, ...] = ("rank", "split") if _short_of_room(exam) else ("data", "rank", "split")
    return next((remedy for remedy in ladder if remedy in possible and remedy not in tried), None)


def better(one: ExamResult, other: ExamResult) -> bool:
    """Whether `one`, of the same questions, is the better result."""
    return (one.recall, one.overlap, -one.loss) > (other.recall, other.overlap, -other.loss)


def _short_of_room(exam: ExamResult) -> bool:
    held = exam.fullness
    return held is not None and held.stored_bits < LEARNT * held.load_bits
