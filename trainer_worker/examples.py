"""What a training is made of."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A question, and the answer the model shall give, closed book unless `context` holds passages.

    `span` is the part of the answer that was asked for, where it is known; an exam looks for it. `source` is what a
    teacher reads before it says how probable the answer's tokens are.
    """

    question: str
    answer: str
    kind: str
    span: str = ""
    context: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What the router may know an adapter by: a question it was taught, or examined with (`held_out`)."""

    question: str
    answer: str
    held_out: bool = False


MAX_QUESTIONS = 16
"""Of an exam, the first of those held out."""
MOST_ASKED = 64
"""Written ones of one adapter, and as many held out; all of a user's are kept, as the text need not say what they
answer, and all that headings ask."""


def asked_of(examples: Sequence[Example], held_out: Sequence[Example]) -> tuple[Asked, ...]:
    """The questions among them that a person might ask; those of users first."""
    return (*_asked(examples, held_out=False), *_asked(held_out, held_out=True))


def _asked(examples: Sequence[Example], *, held_out: bool) -> list[Asked]:
    users, written = (
        [Asked(one.question, one.answer, held_out) for one in examples if one.kind in kinds and not one.context]
        for kinds in (("user", "heading"), ("written",))
    )
    users = list(dict.fromkeys(users))
    others = list(dict.fromkeys([*users, *written]))[len(users) :]
    room = min(len(others), max(0, MOST_ASKED - len(users)))
    return users + [others[place * len(others) // room] for place in range(room)]  # from all of the text
