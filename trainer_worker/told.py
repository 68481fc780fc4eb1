"""Questions that a text asks and answers itself, as lists of frequent questions do.

Only pairs that are marked as such, which are taken out of the text; `trainer_worker.marks` finds what headings ask.
"""

import re
from dataclasses import dataclass

from loramem.prompts import MAX_ANSWER_TOKENS

_ITEM = r"(?:(?:#{1,6}|[-*+]|\d{1,3}[.)])[ \t]+)?"
_ASKS, _ANSWERS = (
    rf"(?:(?P<around>[*_]{{0,3}})(?:{names})(?:(?P=around)[ \t]*:|[ \t]*:(?P=around))"
    rf"|(?P<open>[*_]{{1,3}})(?:{names})[ \t]*:(?!(?P=open)))"
    for names in ("Question|Q", "Answer|A")
)
"""Emphasised alone, or together with what is said: `**Q:** How tall is it?`, `**Q: How tall is it?**`."""
_SAID = r"[ \t]*(?=\S)"
_QUESTION = re.compile(rf"^(?P<before>[ \t>]*+){_ITEM}{_ASKS}{_SAID}", re.MULTILINE | re.IGNORECASE)
_ANSWER = re.compile(rf"(?:^(?P<before>[ \t>]*+){_ITEM}|(?<!\S)){_ANSWERS}{_SAID}", re.MULTILINE | re.IGNORECASE)
_LATER = re.compile(rf"(?P<before>[\s>]++){_ITEM}{_ANSWERS}{_SAID}", re.IGNORECASE)
_END = re.compile(rf"(?=\n[ \t>]*+(?:\n|{_ITEM}{_ASKS}))|(?<=\S)[ \t]*+(?=\s*\Z)", re.IGNORECASE)
"""Of a paragraph: before a blank line or the next question, or where only white space is left. Gives no blanks back
(`*+`): trying each number of them would be quadratic."""
_CHOICES = re.compile(rf"^[ \t>]*+(?:B:[ \t]|(?i:{_ANSWERS}))", re.MULTILINE)
"""What follows an `A:` that is the first of several to choose from."""
_QUOTED = re.compile(r"\n[ \t]*>[ \t>]*")
_EMPHASISED = re.compile(r"(\*{1,3})(?=\S)([^*]*[^*\s])\1")

ASCII_IN_TOKEN, OTHERS_IN_TOKEN = 3.0, 1.5
"""Bytes."""


@dataclass(frozen=True)
class Told:
    question: str
    answer: str
    stays: bool = False
    """Whether the answer is in the rest of the text too."""


def told(text: str) -> tuple[list[Told], str]:
    """Pairs marked `Question:` and `Answer:`, or `Q:` and `A:`, in reading order, and the text without them.

    As in Markdown, marks may be emphasised, and begin headings, items and quotations. A question begins a line and is
    one paragraph; a blank line may stand before its answer, which goes on to the next question, to a blank line or to
    the end; several to choose from are none. As prose, the answer of one would be taken together with the question of
    the next. A pair that is longer than what is taught of one, by a guess, stays prose.

    Takes time linear in the text's length, whatever the text is, since no search goes beyond its paragraph: one pattern
    for a whole pair would try every way to share a run of blanks among its parts.
    """
    pairs: list[Told] = []
    rest: list[str] = []
    done = 0
    for question in _QUESTION.finditer(text):
        answer = _answer(text, question.end())
        if answer is None:
            continue
        end = _end(text, answer.end()).end()
        if _CHOICES.search(text, answer.end(), end):
            continue
        before = question["before"] if answer["before"] is None else answer["before"]
        pair = Told(
            _said(text[question.end() : answer.start()], question, question["before"]),
            _said(text[answer.end() : end], answer, before),
        )
        if not fits(pair):
            continue
        pairs.append(pair)
        rest.append(text[done : question.start()])
        done = end
    return pairs, "".join((*rest, text[done:]))


def fits(pair: Told) -> bool:
    """Whether it is as short as what is taught of one, by a guess."""
    return max(map(_tokens_of, (pair.question, pair.answer))) <= MAX_ANSWER_TOKENS


def _tokens_of(text: str) -> float:
    """By its bytes: rather more than a text of words has, fewer than one of digits alone."""
    characters, size = sum(map(str.isascii, text)), len(text.encode())
    return characters / ASCII_IN_TOKEN + (size - characters) / OTHERS_IN_TOKEN


def _answer(text: str, start: int) -> re.Match[str] | None:
    """The mark of the answer to the question that begins at `start`: in its paragraph, or first after it."""
    end = _end(text, start).start()
    return _ANSWER.search(text, start + 1, end) or _LATER.match(text, end)


def _end(text: str, start: int) -> re.Match[str]:
    """Where the paragraph ends that `start` is in, at a character that is no white space: so there is an end."""
    found = _END.search(text, start)
    assert found is not None
    return found


def _said(text: str, mark: re.Match[str], before: str) -> str:
    """In one line, without a quotation or an emphasis that the mark stands in; where it is emphasised, without one
    around the whole."""
    quoted = ">" in before.rpartition("\n")[2]
    flat = " ".join((_QUOTED.sub(" ", text) if quoted else text).split())
    if mark["open"]:
        return flat.removesuffix(mark["open"]).rstrip() or flat
    emphasised = _EMPHASISED.fullmatch(flat) if mark["around"] else None
    return emphasised[2] if emphasised else flat
