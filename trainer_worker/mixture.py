"""How many examples of each kind, and which of them when there are more."""

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from trainer_worker.examples import Example
from trainer_worker.statements import Statement

_ITEM = re.compile(r"([a-z]+)(\d*)")


def counts(items: Collection[str]) -> dict[str, int | None]:
    """`("qa40", "original")` as `{"qa": 40, "original": None}`; `None`: as many as the text gives.

    Raises `ValueError` for an item of another shape.
    """
    found = {item: _ITEM.fullmatch(item) for item in items}
    wrong = [item for item, match in found.items() if match is None]
    if wrong:
        raise ValueError(f"formats must be kinds with or without a number, such as qa40, not {wrong[0]!r}")
    return {match[1]: int(match[2]) if match[2] else None for match in found.values() if match}


def spread(
    written: Sequence[Example], ruled: Sequence[Example], facts: Sequence[Statement], most: int, rng: random.Random
) -> list[Example]:
    """At most `most` of both, one of each statement in turn.

    Of a statement, the written come before those made by rule, and what asks for something else before what asks for
    the same again. Which statements are left out, or get one less, is drawn.
    """
    queues: dict[str, list[Example]] = {fact.text: [] for fact in facts}
    for example in [*_different_first(written), *_different_first(ruled)]:
        queues[_first_statement(example, facts)].append(example)
    turns = rng.sample(list(queues.values()), len(queues))
    longest = max(map(len, turns), default=0)
    return [queue[turn] for turn in range(longest) for queue in turns if turn < len(queue)][:most]


def _different_first(examples: Iterable[Example]) -> list[Example]:
    asked: Counter[tuple[str, str]] = Counter()
    repeats: list[tuple[int, Example]] = []
    for example in examples:
        repeats.append((asked[example.answer, example.span], example))
        asked[example.answer, example.span] += 1
    return [example for _, example in sorted(repeats, key=lambda repeat: repeat[0])]


def _first_statement(example: Example, facts: Sequence[Statement]) -> str:
    """The answer, or, where it is two statements, the first of them."""
    told = {fact.text for fact in facts}
    return example.answer if example.answer in told else max(filter(example.answer.startswith, told), key=len)
