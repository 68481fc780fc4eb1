"""Where a long sentence may be cut, and what a cut does to what is said.

`The landlord agrees, and the tenant pays` may be cut before `the tenant`; with `If` before it, nowhere: a condition,
the other half of a contrast or of a range, and what a verb governs are part of what is said. Without knowing
what kind of word each is, rules ask for what a clause begins with and for a verb soon after; where they cannot tell, a
cut is not sound. English only: in other languages all cuts at commas leave fragments.
"""

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple


class Harm(IntEnum):
    """`SOUND`: both sides stand alone, or the second is one with the first (`Which was built in 1820.`). `FRAGMENT`:
    one of them is no sentence. `FALSE`: a side may say what the text does not."""

    SOUND = 0
    FRAGMENT = 1
    FALSE = 2


class Cut(NamedTuple):
    """Before the character at `at`; `harm` is what it does."""

    at: int
    harm: Harm


_JOINS = "and|but|so|which|who|whose|where|while|because"
_PLACE = re.compile(rf"(?:; |: |, (?=(?:{_JOINS})\b)| (?=(?:and|but|because|which|while|where)\b)|, )")
VERB = (
    r"(?:is|are|was|were|has|have|had|does|do|did|can|could|will|would|shall|should|may|might|must|cannot"
    r"|became|become|becomes|began|bought|broke|brought|built|came|caught|comes|chose|cut|dealt|drew|drove|fell|felt|fought"
    r"|found|gave|gives|goes|got|grew|heard|held|hit|let|lay"
    r"|hid|kept|knew|laid|led|left|lies|lost|made|makes|meant|met|needs|paid|put|ran|read|remains|rose|sang|said|sat|saw|says"
    r"|sent|set|sold|spent|spoke|stands|stole|stood|swam|takes|taught|thought|threw|told|took|went|won|wore|wrote)\b"
)
_SUBJECT = (
    r"(?:[Tt]he|[Aa]n?|[Tt]h(?:is|ese|ose|ey|ere|eir)|[Ii]ts?|[Hh]e|[Hh]is|[Ss]he|[Hh]er|[Ww]e|[Yy]ou|I|[Oo]ur|[Yy]our"
    r"|[Mm]y|[Oo]ne|[Ee]ach|[Ee]very|[Aa]ll|[Ss]ome|[Mm]any|[Mm]ost|[Nn]o|[Nn]obody|[Aa]nother|[Oo]thers?"
    r"|[A-Z][\w'’.-]*)"
)
_CLAUSE = re.compile(rf"{_SUBJECT}(?: [\w'’.-]+){{0,6}}? (?:{VERB}|\w{{2,}}ed\b)")
"""A subject, as far as its first word tells, and a verb, with no comma between them."""
_SAYS = re.compile(rf"(?:[\w'’.-]+ ){{1,7}}?(?:{VERB}|\w{{2,}}ed\b)")
_GOES_ON = re.compile(rf"(?:{VERB}|\w{{2,}}ed\b)")
_FINITE = re.compile(rf"\b{VERB}")
_IF = re.compile(
    r"(?:if|unless|when|whenever|assuming|provided|in case|as long as|had \w|were (?:the|it|he|she|they|we|you|there)\b"
    r"|should (?:the|it|he|she|they|we|you|there|an?)\b)",
    re.IGNORECASE,
)
"""What a sentence begins with that is true under a condition: to its end, as far as rules can tell."""
_CONDITION = re.compile(
    r"(?:and |but )?(?:only |even )?(?:as long as|except|if|in case|provided|subject to|unless|until)\b"
)
_HANGS_ON = re.compile(
    r"(?:after|although|as|because|before|despite|except|given|if|in case|once|provided|since|though|to|unless|until"
    r"|when|whenever|where|whereas|wherever|while)\b",
    re.IGNORECASE,
)
_GOVERNED = re.compile(r"(?:and |but )?(?:that|or|nor|to|than|whether|how|why)\b")
_GOVERNS = re.compile(
    r"\b(?:that|whether|if|unless|says?|said|claim(?:s|ed)?|believes?|believed|argue[sd]?|allege[sd]?|writes?|wrote|tells?"
    r"|told|thinks?|thought|suggest(?:s|ed)?|suppose[sd]?|assume[sd]?)\b",
    re.IGNORECASE,
)
_HALF = re.compile(r"\b(?:between|both)\b(?!.* and )|\b(?:not only|neither|either|rather)\b(?!.*[;:])", re.IGNORECASE)
_PAIRS = ("()", "[]", "“”", "«»", "„“")


def cuts(sentence: str) -> Iterator[Cut]:
    """At every place between clauses, or what looks like them."""
    for match in _PLACE.finditer(sentence):
        yield Cut(match.end(), _harm(sentence[: match.start()], match[0], sentence[match.end() :]))


def _harm(before: str, mark: str, after: str) -> Harm:
    hangs = _IF.match(before) or (mark != "; " and _HANGS_ON.match(before) and not _says_more(before))
    if hangs or _is_within(before) or _CONDITION.match(after) or _GOVERNED.match(after) or _is_pair(mark, after):
        return Harm.FALSE
    return Harm.SOUND if _stand(before, mark, after) else Harm.FRAGMENT


def _stand(before: str, mark: str, after: str) -> bool:
    if mark == "; ":
        return ": " not in before and not _HANGS_ON.match(after) and bool(_SAYS.match(after))
    if mark != ", " or not _FINITE.search(before) or _GOVERNS.search(before):
        return False
    joint, _, rest = after.partition(" ")
    if joint in {"and", "but", "so", "while"}:
        return bool(_CLAUSE.match(rest))
    return joint in {"which", "who", "whose", "where", "because"}


def _is_within(before: str) -> bool:
    """A parenthesis, a quotation, or a pair of which the other half is yet to come."""
    opened = any(before.count(pair[0]) > before.count(pair[1]) for pair in _PAIRS)
    return opened or before.count('"') % 2 == 1 or bool(_HALF.search(before))


def _is_pair(mark: str, after: str) -> bool:
    """`opening and closing the valve`: no comma, and no verb that goes on with the sentence."""
    joint, _, rest = after.partition(" ")
    return mark == " " and joint in {"and", "but"} and not (_GOES_ON.match(rest) or _CLAUSE.match(rest))


def _says_more(before: str) -> bool:
    """Whether a clause that hangs on another is followed by that other."""
    _, comma, main = before.partition(", ")
    return bool(comma and _CLAUSE.search(main))
