"""What to do about an adapter that failed its exam."""

from collections.abc import Sequence

from loramem.records import ExamResult, Remedy, TrainingOptions
from trainer_worker.capacity import next_rank

MOST = 2
"""Remedies for one chunk."""
NOTES: dict[Remedy, str] = {"data": "more questions", "rank": "a greater rank", "split": "in two parts"}
"""What a job says while it tries one."""
SMALLEST_HALF = 64
"""Tokens; a chunk that would be cut into less stays whole."""
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


def possible_remedies(options: TrainingOptions, tokens: int, rank: int, *, most_rank: int) -> list[Remedy]:
    """What can be tried on an adapter of this published rank, of a text of so many tokens, under a user's options."""
    asked = {item.rstrip("0123456789") for item in options.formats}
    possible: dict[Remedy, bool] = {
        "data": "qa" in asked,
        "rank": options.rank in (None, "auto") and next_rank(rank, most_rank) is not None,
        "split": options.per == "chunk" and tokens >= 2 * SMALLEST_HALF,
    }
    return [remedy for remedy, can in possible.items() if can]


def pooled(exams: Sequence[ExamResult]) -> ExamResult:
    """Means over the parts of one text, weighed by their questions; of a single exam, that exam."""
    if len(exams) == 1:
        return exams[0]
    asked = sum(exam.questions for exam in exams)

    def mean(values: Sequence[float]) -> float:
        return sum(value * exam.questions for value, exam in zip(values, exams, strict=True)) / max(1, asked)

    return ExamResult(
        questions=asked,
        recall=mean([exam.recall for exam in exams]),
        base_recall=mean([exam.base_recall for exam in exams]),
        overlap=mean([exam.overlap for exam in exams]),
        base_overlap=mean([exam.base_overlap for exam in exams]),
        loss=mean([exam.loss for exam in exams]),
        harm=mean([exam.harm for exam in exams]),
        weak=all(exam.weak for exam in exams),
    )


def better(one: ExamResult, other: ExamResult) -> bool:
    """Whether `one`, of the same questions, is the better result."""
    return (one.recall, one.overlap, -one.loss) > (other.recall, other.overlap, -other.loss)


def _short_of_room(exam: ExamResult) -> bool:
    held = exam.fullness
    return held is not None and held.stored_bits < LEARNT * held.load_bits
