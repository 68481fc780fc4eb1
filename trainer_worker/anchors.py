"""Prompts that no document is about, held to what the base says to them, so that an adapter does no harm elsewhere."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trainer_worker.base import Base
from trainer_worker.distil import labels_of
from trainer_worker.examples import Example
from trainer_worker.packing import Row

PROMPTS = Path(__file__).with_name("anchors.json")
MAX_NEW_TOKENS = 32

Anchors = Sequence[Sequence[Row]]
"""Groups of labelled rows; those of a group share their passages."""


def anchors(base: Base) -> list[list[Row]]:
    """Every prompt with the base's own answer and, for each of its tokens, what else the base holds probable."""
    examples = list(_prompts())
    closed = [example for example in examples if not example.context]
    open_book = [example for example in examples if example.context]
    groups = base.groups([*_answered(base, closed), *_answered(base, open_book)])
    return [_held(base, group) for group in groups]


def _answered(base: Base, examples: Sequence[Example]) -> Iterator[Example]:
    """In one batch, so of about one length."""
    answers = base.answers([base.conversation(example) for example in examples], max_new_tokens=MAX_NEW_TOKENS)
    for example, said in zip(examples, answers, strict=True):
        yield replace(example, answer=said)


def _held(base: Base, group: Sequence[Row]) -> list[Row]:
    labels = labels_of(base, group)
    return [replace(row, labels=labels[row]) for row in group]


def some(anchors: Anchors, count: int, rng: random.Random) -> list[Sequence[Row]]:
    """About `count` rows, half of them with passages: whole groups, as passages are paid for by the group."""
    if not count:
        return []
    closed, *open_book = anchors
    chosen: list[Sequence[Row]] = [rng.sample(closed, min(len(closed), max(1, count // 2)))]
    for group in rng.sample(open_book, len(open_book)):
        if sum(map(len, chosen)) < count:
            chosen.append(group)
    return chosen


def _prompts() -> Iterator[Example]:
    written = json.loads(PROMPTS.read_text())
    for question in written["closed_book"]:
        yield Example(question, "", "anchor")
    for passage in written["passages"]:
        for question in passage["questions"]:
            yield Example(question, "", "anchor", context=tuple(passage["text"]))
