"""What the base model itself would say, token by token: the labels of a teacher.

The teacher is the base without an adapter. With the text before the question, it teaches the adapter to answer as if it
had the text; with the same prompt as the adapter, it holds the adapter to the base where nothing is to be learnt.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from trainer_worker.base import STEP_TOKENS, Base
from trainer_worker.packing import Labels, Row, Step, steps_in_order

TOP = 20
"""Tokens kept of a distribution; what the others have is left out of the loss."""


def taught(
    base: Base,
    rows: Sequence[Row],
    shown: Sequence[Row],
    share: float,
    on_each: Callable[[int], None] = lambda count: None,
) -> list[Row]:
    """`rows`, labelled with `share` of what the base makes of `shown` (the same answers after other prompts), the rest
    on the answer itself. `on_each` is told of rows as they are done; those of `shown` should begin alike."""
    labels = labels_of(base, shown, on_each)
    return [replace(row, labels=_mixed(row, labels[other], share)) for row, other in zip(rows, shown, strict=True)]


def labels_of(
    base: Base, rows: Sequence[Row], on_each: Callable[[int], None] = lambda count: None
) -> dict[Row, tuple[Labels, ...]]:
    """The base's most probable tokens at every answer token of each row, with their probabilities."""
    found: dict[Row, tuple[Labels, ...]] = {}
    for step in steps_in_order([[rows]], STEP_TOKENS):
        tokens = iter(_most_probable(base, step))
        found |= {row: tuple(next(tokens) for _ in row.answer) for row in step.rows}
        on_each(sum(1 for _ in step.rows))
    return found


def _most_probable(base: Base, step: Step) -> Iterator[Labels]:
    top = base.probabilities(step).topk(TOP, dim=-1)
    for values, tokens in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        yield tuple(zip(tokens, values, strict=True))


def _mixed(row: Row, labels: Sequence[Labels], share: float) -> tuple[Labels, ...]:
    return tuple(
        ((answer, 1 - share), *((token, share * weight) for token, weight in teacher))
        for answer, teacher in zip(row.answer, labels, strict=True)
    )
