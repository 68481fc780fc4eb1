"""What a training is made of."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["written", "cloze", "keywords", "about", "passages", "summary", "rewrite", "original", "user"]


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
