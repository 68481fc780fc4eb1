"""A closed-book exam on questions that stayed out of training, with the adapter and without it."""

from collections.abc import Callable, Sequence

from loramem import prompts
from loramem.records import ExamResult
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.base import Base
from trainer_worker.examples import Example

WEAK_BELOW = 0.3
"""An adapter that recalls a smaller share than this is reported as weak."""
MAX_QUESTIONS = 16
MAX_NEW_TOKENS = 48


def examine(
    base: Base,
    adapter: TrainedAdapter,
    held_out: Sequence[Example],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExamResult:
    """Ask at most `MAX_QUESTIONS`; an answer is right when it holds the expected one, case folded."""
    asked = list(held_out)[:MAX_QUESTIONS]
    if not asked:
        return ExamResult(questions=0, recall=0.0, base_recall=0.0, loss=0.0, weak=False)
    questions = [example.question for example in asked]
    base_recall = recall(asked, answer_closed_book(base, questions))
    on_progress(1, 2)
    with base.adapted(adapter):
        with_adapter = recall(asked, answer_closed_book(base, questions))
        loss = base.mean_loss(asked)
    on_progress(2, 2)
    return ExamResult(
        questions=len(asked), recall=with_adapter, base_recall=base_recall, loss=loss, weak=with_adapter < WEAK_BELOW
    )


def recall(examples: Sequence[Example], answers: Sequence[str]) -> float:
    """Share, 0 to 1, of answers that hold what was expected."""
    held = [_expected(example) in answer.casefold() for example, answer in zip(examples, answers, strict=True)]
    return sum(held) / max(1, len(held))


def _expected(example: Example) -> str:
    return (example.span or example.answer).strip().rstrip(".").casefold()


def answer_closed_book(base: Base, questions: Sequence[str], *, max_new_tokens: int = MAX_NEW_TOKENS) -> list[str]:
    """Greedy answers of the model as it is now, all questions in one batch."""
    return base.answers([prompts.closed_book(question) for question in questions], max_new_tokens=max_new_tokens)
