"""Questions that can only be understood with what was asked before them: `How tall is it?`.

The router sees a question's own words. Where one points back, the user's turns before it, up to the first that does
not, are read with it. English only; in other languages a question is routed by its own words.
"""

import re
from collections.abc import Sequence

from loramem.lexical import ASKING, tokens_of
from loramem.prompts import Message

TURNS = 3
"""Of the user, looked at."""
_POINTING = frozenset(
    {"it", "its", "itself", "he", "him", "his", "she", "her", "hers", "they", "them", "their", "theirs"}
    | {"this", "these", "those", "one", "ones"}
)
_GOES_ON = re.compile(r"^\W*(?:and|or|but|so|what about|how about|what else)\b|\b(?:that|more|else)\W*$", re.IGNORECASE)


def with_what_it_points_to(question: str, history: Sequence[Message]) -> str | None:
    """The question with the turns before it that it needs; None where it stands alone or nothing was asked before."""
    if not points_back(question):
        return None
    before = [turn["content"] for turn in history if turn["role"] == "user" and turn["content"].strip()]
    needed: list[str] = []
    for turn in before[: -TURNS - 1 : -1]:
        needed.append(turn)
        if not points_back(turn):
            break
    return "\n".join([question, *needed]) if needed else None


def points_back(question: str) -> bool:
    """It has a pronoun, begins or ends as what goes on does, or names nothing at all."""
    tokens = tokens_of(question)
    names_nothing = all(token in ASKING for token in tokens)
    return names_nothing or not _POINTING.isdisjoint(tokens) or bool(_GOES_ON.search(question))
