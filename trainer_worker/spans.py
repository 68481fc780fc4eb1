"""What a statement tells that a question may ask for: dates, quantities, names and things, found by rule."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trainer_worker.blocks import Block
from trainer_worker.words import IN_WORD, content_words, says

_WORDED = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|half"
)
_NO_UNIT = "is|was|has|does|as|its|his|this|us|plus|less|across|versus|always|towards|besides|unless|thus|whereas"
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_SHORT_MONTH = r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b"
_YEAR = r"(?<![$€£])(?<![$€£] )(?<!\d\.)\b(?:1\d{3}|20\d{2})\b(?![.,]\d)"
_HALF = r"(?: ?[AaPp](?:\.[Mm]\.|[Mm]\b))"
_MEANT = (
    r"(?=[–-]\d{1,2}:[0-5]\d)|(?<=:\d\d[–-]\d:\d\d)|(?<=:00)|(?<=\b[Aa]t \d:\d\d)|(?<=\b[Bb]y \d:\d\d)"
    r"|(?<=\bto \d:\d\d)|(?<=\b[Ff]rom \d:\d\d)|(?<=\b[Uu]ntil \d:\d\d)"
)
"""As a time: with one digit of hours it may be a ratio or a score."""
_TIME = (
    r"(?<!\bratio )(?<!\bratio of )(?<!\bscore )(?<!\bscore of )(?<!\bwon )(?<!\blost )(?:(?<![\w.:])|(?<=\dT))"
    rf"(?:[0-2]\d:[0-5]\d(?::[0-5]\d)?(?![\d:]){_HALF}?|\d:[0-5]\d(?![\d:])(?:{_HALF}|{_MEANT}))"
)
_DATE = re.compile(
    r"\b\d{4}-\d{2}-\d{2}(?!\d)"
    r"|(?<![\d./])\d{1,2}(?P<mark>[./])\d{1,2}(?P=mark)\d{4}\b"
    rf"|{_TIME}"
    rf"|\b(?:\d{{1,2}} )?{_MONTH}(?: \d{{1,2}},?)?(?: \d{{4}})?\b"
    rf"|\b\d{{1,2}} {_SHORT_MONTH}(?:\.? \d{{4}}\b)?"
    rf"|\b{_SHORT_MONTH}\.? (?:\d{{1,2}}(?:,? \d{{4}})?|\d{{4}})\b"
    rf"|{_YEAR}"
)
"""Times of day too. Short months count only beside a day or a year: alone, `Jan` and `Mar` are names."""
_QUANTITY = re.compile(
    rf"[$€£]?\b(?:\d[\d,.:]*\d|\d|(?:{_WORDED})(?:[ -](?:{_WORDED}))*\b)"
    rf"(?:(?<!:\d\d) (?:per cent|percent|%|°C|(?!(?:{_NO_UNIT})\b)[a-z]+s\b|kilo\w+|metre|year|day))?",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"[$€£]?\d[\d.,]*(?: [^\W\d]+)?")
_CODE = re.compile(r"(?:\b[A-Z]{1,9}-|(?<!\d)[A-Za-z]/?|#)\d[\w.-]*|(?<![\w-])\d{3}-(?:\d{3}-)?\d{4}(?![\w-])")
"""`CVE-2024-0727`, `v3.1.4`, `pull/1482`, `#1482`, `555-0199`: their digits count nothing and are no year."""
_LEADING = re.compile(
    r"(?:[\s#*_>•–—+\-\[\](\"“'‘`]|[xX]\]|[a-z]\)\s"
    r"|(?:\d{1,3}\.)*\d{1,3}[.)]\s|(?:\d{1,2}\.)+\d{1,2}\s(?=[A-Z][a-z])(?![MB]illion))*"
)
"""Marks, bullets and numbers of headings and items, before the first word."""
CAPITALISED = f"[A-Z][{IN_WORD}]"
_NAME = re.compile(
    rf"(?:(?<!\S)\.)?\b{CAPITALISED}+"
    rf"(?:(?: (?:of|the|de|la|von|van|du|and) (?=(?:the )?[A-Z])| )(?:the )?{CAPITALISED}+)*"
)
_QUOTED = re.compile(r"[\"“']([^\"”']{3,40})[\"”']")
_OBJECT = re.compile(
    r"\b(?:called|named|known as|made (?:of|from)|built (?:of|from)|because of|with|by|from|for|into|as)\s+"
    r"((?:an?|the)?\s?[a-z][\w-]+"
    r"(?:\s(?!and|or|that|which|who|to|in|on|of|by|from|with|at|is|was|were|are|had|has|called|until)[a-z][\w-]+){0,2})"
)


@dataclass(frozen=True)
class AnswerSpan:
    """A stretch of a statement that a question may ask for."""

    text: str
    kind: str  # date, quantity, name, thing


def spans_of(block: Block, subject: str) -> list[AnswerSpan]:
    """Of what may be asked for: neither a lead, since all that it stands before would be asked for the same, nor the
    names of columns."""
    found = [span for said in (block.news, "" if block.cells else block.text) for span in spans(said, subject)]
    found += [span for cell in block.cells for span in _spans_of_cell(cell.text, subject)]
    return [span for span in found if not says(block.lead, span.text)]


def _spans_of_cell(cell: str, subject: str) -> list[AnswerSpan]:
    """An amount is one with what follows it, and a capital is that of a name, where these are all there is."""
    said = cell.strip(" ,:.")
    if len(said) > 1 and _AMOUNT.fullmatch(said):
        return [AnswerSpan(said, "quantity")]
    named = _NAME.fullmatch(said) and said.casefold() not in subject.casefold()
    return [AnswerSpan(said, "name")] if named else spans(said, subject)


def spans(statement: str, subject: str) -> list[AnswerSpan]:
    """What the statement tells: dates, quantities, names other than the subject's, things; none inside another."""
    kept: list[AnswerSpan] = []
    for span in [*_numbers(statement), *_words(statement)]:
        inside = any(span.text in other.text for other in kept)
        if not inside and len(span.text) > 1 and span.text.casefold() not in subject.casefold():
            kept.append(span)
    return kept


def _numbers(statement: str) -> Iterator[AnswerSpan]:
    plain = _CODE.sub(lambda code: "_" * len(code[0]), statement)
    for kind, pattern in (("date", _DATE), ("quantity", _QUANTITY)):
        for match in pattern.finditer(plain, _start(statement)):
            yield AnswerSpan(statement[match.start() : match.end()].strip(), kind)


def _words(statement: str) -> Iterator[AnswerSpan]:
    """Names, of which the first word of a sentence is none for its capital, and things, which say something."""
    yield from (AnswerSpan(match[1], "name") for match in _QUOTED.finditer(statement))
    start = _start(statement)
    yield from (AnswerSpan(match[0], "name") for match in _NAME.finditer(statement) if match.start() > start)
    things = (match[1].strip() for match in _OBJECT.finditer(statement))
    yield from (AnswerSpan(thing, "thing") for thing in things if content_words(thing))


def _start(statement: str) -> int:
    """Where the first word is."""
    leading = _LEADING.match(statement)
    return leading.end() if leading else 0
