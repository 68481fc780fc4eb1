"""Which remedy comes next."""

import pytest

from loramem.records import ExamResult, Fullness, Remedy
from trainer_worker.ladder import better, next_remedy, pooled

WEAK = ExamResult(questions=8, recall=0.1, base_recall=0, loss=0.9, weak=True)
ALL: tuple[Remedy, ...] = ("data", "rank", "split")


def holding(share: float) -> ExamResult:
    return WEAK.model_copy(
        update={"fullness": Fullness(load_bits=100, stored_bits=100 * share, capacity_bits=50, full=2)}
    )


@pytest.mark.parametrize(
    ("exam", "tried", "possible", "remedy"),
    [
        (WEAK, (), ALL, "data"),
        (holding(0.9), (), ALL, "data"),
        (holding(0.9), ("data",), ALL, "rank"),
        (holding(0.9), ("data", "rank"), ALL, None),
        (holding(0.2), (), ALL, "rank"),
        (holding(0.2), ("rank",), ALL, "split"),
        (holding(0.2), ("data",), ALL, "rank"),
        (WEAK, (), ("split",), "split"),
        (WEAK, ("data",), ("data", "split"), "split"),
        (WEAK, (), (), None),
        (WEAK.model_copy(update={"weak": False}), (), ALL, None),
    ],
)
def test_the_next_remedy(
    exam: ExamResult, tried: tuple[Remedy, ...], possible: tuple[Remedy, ...], remedy: Remedy | None
) -> None:
    assert next_remedy(exam, tried, possible=possible) == remedy


def test_recall_decides_then_overlap_then_loss() -> None:
    def exam(recall: float, overlap: float, loss: float) -> ExamResult:
        return WEAK.model_copy(update={"recall": recall, "overlap": overlap, "loss": loss})

    assert better(exam(0.2, 0.1, 9), exam(0.1, 0.9, 1))
    assert better(exam(0.2, 0.2, 9), exam(0.2, 0.1, 1))
    assert better(exam(0.2, 0.2, 1), exam(0.2, 0.2, 2))
    assert not better(exam(0.2, 0.2, 1), exam(0.2, 0.2, 1))


def test_parts_count_by_their_questions() -> None:
    one = WEAK.model_copy(update={"questions": 2, "recall": 1.0, "overlap": 0.5, "weak": False})
    other = WEAK.model_copy(update={"questions": 6, "recall": 0.0, "overlap": 0.1})
    both = pooled([one, other])
    assert (both.questions, both.recall, both.weak) == (8, 0.25, False)
    assert both.overlap == pytest.approx(0.2)
    assert pooled([one]) is one
