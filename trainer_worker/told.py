"""Questions that a text asks and answers itself, as lists of frequent questions do."""

import re
from dataclasses import dataclass

_PAIR = re.compile(
    r"""
    ^[ \t]*(?:Question|Q)[ \t]*:[ \t]*(?P<question>\S(?:(?!\n[ \t]*(?:\n|(?:Question|Q)[ \t]*:)).)*?)
    \s+(?:Answer|A)[ \t]*:[ \t]*(?P<answer>\S.*?)
    [ \t]*(?=\n[ \t]*(?:(?:Question|Q)[ \t]*:|\n)|\s*\Z)
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Told:
    question: str
    answer: str


def told(text: str) -> tuple[list[Told], str]:
    """Pairs marked `Question:` and `Answer:`, or `Q:` and `A:`, in reading order, and the text without them.

    A question begins a line and is one paragraph; a blank line may stand before its answer, which goes on to the next
    question, to a blank line or to the end. As prose, the answer of one would be taken together with the question of
    the next.
    """
    found = _PAIR.finditer(text)
    pairs = [Told(*(" ".join(one[part].split()) for part in ("question", "answer"))) for one in found]
    return pairs, _PAIR.sub("", text)
