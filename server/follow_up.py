"""Questions that can only be understood with what was asked before them: `How tall is it?`.

The router sees a question's own words. Where these are few and point back, the user's turns before it, up to the first
that stands alone, are read with it. English only; in other languages a question is routed by its own words.
"""

import re
from collections.abc import Sequence

from loramem.lexical import ASKING, tokens_of
from loramem.prompts import Message

TURNS = 3
"""Of the user, looked at."""
OWN_WORDS = 2
"""With more of its own a question says what it is about: `Is it safe to mix bleach with vinegar?`"""
_POINTING = frozenset(
    {"it", "its", "itself", "he", "him", "his", "she", "her", "hers", "they", "them", "their", "theirs"}
    | {"this", "these", "those", "one", "ones"}
)
_FILLING = frozenset({"about", "else", "me", "more", "please", "so", "tell", "that", "then", "there", "or", "but"})
_WHAT_ABOUT = re.compile(r"^\W*(?:and )?(?:what|how) about\b", re.IGNORECASE)
_GOES_ON = re.compile(r"^\W*(?:and|or|but|so|what else)\b|\b(?:that|more|else)\W*$", re.IGNORECASE)


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
    """It has a pronoun, or begins or ends as what goes on does, and few words of its own; or no such words at all."""
    tokens = tokens_of(question)
    own = [token for token in tokens if token not in ASKING | _POINTING | _FILLING]
    if len(own) > OWN_WORDS:
        return False
    if not own or _WHAT_ABOUT.match(question):
        return True
    points = not _POINTING.isdisjoint(tokens) or _GOES_ON.search(question)
    return bool(points) and not _names(question)


def _names(question: str) -> bool:
    """Whether it has a number, or a word that is a name by its capital letter."""
    words = re.findall(r"\w+", question)[1:]
    capitals = not question.isupper() and any(word[0].isupper() and word != "I" for word in words)
    return capitals or any(character.isdigit() for character in question)
