"""A closed-book exam, with the adapter and without it, on questions that stayed out of training and on unrelated ones.

Recall and overlap say what the adapter knows, harm what it spoils, fullness whether it has room for more.
"""

import re
from collections.abc import Callable, Sequence
from statistics import fmean

from loramem import prompts
from loramem.records import ExamResult
from loramem.scores import token_f1
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.base import Base
from trainer_worker.capacity import bits, fullness, statements_of
from trainer_worker.examples import MAX_QUESTIONS, Example
from trainer_worker.packing import Row

WEAK_BELOW = 0.3
"""An adapter that recalls a smaller share than this is reported as weak."""
FEWEST = 3
"""Questions below which nobody is called weak."""
MAX_NEW_TOKENS = 48
"""Of an answer; more where one that is expected is longer."""


def examine(
    base: Base,
    adapter: TrainedAdapter,
    held_out: Sequence[Example],
    *,
    learnt: Sequence[Example] = (),
    unrelated: Sequence[Row] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExamResult:
    """Ask at most `MAX_QUESTIONS`; an answer is right when it holds the expected one, case folded.

    `learnt` is what the adapter was trained on, `unrelated` rows labelled with the base's own answers.
    """
    asked = list(held_out)[:MAX_QUESTIONS]
    questions = [example.question for example in asked]
    statements = statements_of(base, learnt)
    room = max([MAX_NEW_TOKENS, *(len(base.row(example).answer) for example in asked)])
    base_answers = answer_closed_book(base, questions, max_new_tokens=room)
    on_progress(1, 4)
    base_bits, base_unrelated = bits(base, statements), bits_per_token(base, unrelated)
    on_progress(2, 4)
    with base.adapted(adapter):
        answers = answer_closed_book(base, questions, max_new_tokens=room)
        on_progress(3, 4)
        loss = base.mean_loss(asked) if asked else 0.0
        left_bits, harmed = bits(base, statements), bits_per_token(base, unrelated)
    on_progress(4, 4)
    found = recall(asked, answers)
    return ExamResult(
        questions=len(asked),
        recall=found,
        base_recall=recall(asked, base_answers),
        overlap=overlap(asked, answers),
        base_overlap=overlap(asked, base_answers),
        loss=loss,
        harm=round(harmed - base_unrelated, 4),
        weak=len(asked) >= FEWEST and found < WEAK_BELOW,
        fullness=fullness(base_bits, left_bits, adapter.rank) if statements else None,
    )


def recall(examples: Sequence[Example], answers: Sequence[str]) -> float:
    """Share, 0 to 1, of answers that hold what was expected."""
    held = [_holds(answer, _expected(example)) for example, answer in zip(examples, answers, strict=True)]
    return sum(held) / max(1, len(held))


def _holds(answer: str, expected: str) -> bool:
    """As words of its own, or their plural: `I do not know` holds no `No`, and `444` no `44`."""
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(expected)}(?!(?!s\b)[a-z0-9])", answer.casefold()))


def overlap(examples: Sequence[Example], answers: Sequence[str]) -> float:
    """Mean token-F1, 0 to 1, against the whole expected answers; 0 without any."""
    scores = [token_f1(answer, example.answer) for example, answer in zip(examples, answers, strict=True)]
    return round(fmean(scores), 4) if scores else 0.0


def bits_per_token(base: Base, rows: Sequence[Row]) -> float:
    """Cross-entropy between the rows' labels and the model as it is now; 0 without rows."""
    tokens = sum(len(row.answer) for row in set(rows))
    return bits(base, rows) / tokens if tokens else 0.0


def _expected(example: Example) -> str:
    return (example.span or example.answer).strip().rstrip(".").casefold()


def answer_closed_book(base: Base, questions: Sequence[str], *, max_new_tokens: int = MAX_NEW_TOKENS) -> list[str]:
    """Greedy answers of the model as it is now, all questions in one batch; none without questions."""
    if not questions:
        return []
    return base.answers([prompts.closed_book(question) for question in questions], max_new_tokens=max_new_tokens)
