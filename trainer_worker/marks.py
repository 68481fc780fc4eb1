"""Markdown as text whose sentences can be learnt alone, by rules.

Marks go, and so do headings and what a reader does not see; an item of a list says what it is about, and a row of a
table what its cells are. What is not covered: emphasis with `_`, lists and tables in quotations, lists of definitions,
and code outside fences, where a comment that stands alone passes for a heading.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from loramem.formats.plain import FRONT_MATTER
from trainer_worker.statements import LEAD_ENDS, sentences, size_of
from trainer_worker.words import PARTED

MAX_LEAD_WORDS = 14
_OF_QUESTIONS = 7
"""The level of a question in bold type: below all headings."""
_END = r"[ \t]*(?:\n|\Z)"

_TICKS = r"[ \t>]*(?P=ticks)"
FENCED = (
    r"^(?P<fence>[ \t>]*)(?P<ticks>`{3,8}|~{3,8})(?P<info>[^`\n]*\w[^`\n]*)?[ \t]*\n"
    rf"(?P<code>(?:(?!{_TICKS})(?:[^\n]*\n|[^\n]+))*+)(?:{_TICKS}[`~]*{_END}|(?(info)\Z|(?!)))"
)
"""Closed, or cut at the text's end. Where another opens inside, it is the end of one that was cut at the beginning."""
_COMMENT = r"<!--(?:(?!<!--)[\s\S])*?-->"
"""None holds the beginning of another: so each search ends where the next one begins."""
_KEPT = rf"^[ \t]*(?P<kept>/\*(?:(?!/\*)[\s\S])*?\*/){_END}"
"""A comment of C and many others, whose lines look like items."""
_TAG = r"(?:</?(?:details|div|p|br|hr|img|picture|source|center|section)\b[^<>\n]*>|<summary>[^<>\n]*</summary>)"
_NOTE = r"(?:> ?(?:\[!\w+\]|\*\*(?:Note|Tip|Important|Warning|Caution)\*\*)|:::[^\n]*)"
_DEFINITION = r"\[[^\]\n]+\]:[ \t]+<?(?:\w+://|mailto:|[#/]|\.\.?/)\S*(?:[ \t]+[\"'(][^\n]*)?"
_RULE = r"(?P<rule>[-*_])(?:[ \t]*(?P=rule)){2,}"
_FENCE = r"(?:`{3}|~{3})[^`\n]*"
_GONE = rf"^[ \t]*(?P<gone>{_COMMENT}|{_TAG}(?:[ \t]*{_TAG})*|{_NOTE}|{_DEFINITION}|{_RULE}|{_FENCE}){_END}"

BEGINS = r"(?:(?:[-*+]|\d{1,3}[.)]|[a-z]\))[ \t]|#|[`~]{3}|[>|])"
_UNDERLINED = rf"(?:(?<=\n\n)|\A)(?!{BEGINS})(?P<title>\S[^\n]*)\n(?P<under>={{3,}}|-{{3,}}){_END}(?=\n|\Z)"
_HEADING = r"^ {0,3}(?P<level>#{1,6})[ \t]+(?P<heading>\S[^\n]*)(?:\n|\Z)"
BOLD_QUESTION = rf"^(?P<question>\*\*[^*\n]+[?？؟]\*\*){_END}"
_CELL = r"[ \t]*:?-+:?[ \t]*"
_ROW = r"(?=[^|\n]*\|)[^\n]*+(?:\n|\Z)"
_TABLE = rf"^(?P<head>{_ROW})(?=[^|\n]*\|)(?P<ruled>\|?{_CELL}(?:\|{_CELL})*\|?){_END}(?P<rows>(?:{_ROW})*+)"
ITEM = (
    r"^(?P<indent>[ \t]*)(?:[-*+]|(?P<number>\d{1,3}|[a-z](?=\)))[.)])[ \t]+"
    rf"(?P<item>\S[^\n]*(?:\n(?:[ \t]++|(?=[a-z]))(?!{BEGINS})\S[^\n]*)*)(?:\n|\Z)"
)
"""With the lines that go on with it: indented, or in lower case."""
_BLOCK = re.compile(
    "|".join([FENCED, _KEPT, _GONE, _UNDERLINED, _HEADING, BOLD_QUESTION, _TABLE, ITEM, r"(?P<line>[^\n]*\n|[^\n]+)"]),
    re.MULTILINE,
)
_SECTION = re.compile(r"^ {0,3}#{2,6}[ \t]+\S", re.MULTILINE)

_TARGET = r"\((?:<[^<>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:[ \t]+\"[^\"\n]*\")?\)"
_IMAGE = rf"!\[[^\[\]\n]*\]{_TARGET}"
_IN_PARAGRAPH = r"\n(?![ \t]*\n)"
_LINK = (
    rf"(?<!{PARTED})(?<![)\]])\[(?:{_IMAGE}|(?P<link>(?=[^\[\]\n]*\w)(?:[^\[\]\n]|{_IN_PARAGRAPH})+))\]"
    rf"(?:{_TARGET}|(?<=[^\W\d]\])\[[^\[\]\n]*\])"
)
_OPENS = rf"(?<![*\\/])(?<!{PARTED})"
_SAYS = r"(?=[^\s*.,;:)])(?=[^*\n]*\w)"
_GLUED = r"(?<![\s(\[{<,=/])"
"""No emphasis ends after these."""
_CLOSES = rf"(?!\*)(?!{PARTED})"
_INLINE = re.compile(
    rf"(?<!`)`(?P<code>[^`\n]+)`(?!`)|{_COMMENT}|</?(?:br|kbd|sub|sup|b|i|em|strong)[ \t]*/?>|{_IMAGE}|{_LINK}"
    rf"|{_OPENS}\*\*\*{_SAYS}(?P<both>[^*\n]+){_GLUED}\*\*\*{_CLOSES}"
    rf"|{_OPENS}\*\*{_SAYS}(?P<strong>(?:[^*\n]|{_IN_PARAGRAPH}|\*(?!\*))+?){_GLUED}\*\*{_CLOSES}"
    rf"|{_OPENS}\*{_SAYS}(?P<em>[^*\n]+){_GLUED}\*{_CLOSES}"
)
_CONTENTS = re.compile(r"\[[^\]\n]*\]\(#[^)\n]*\)")
_BOX = re.compile(r"\[([ xX])\][ \t]+")
_NUMBERING = re.compile(r"(?:(?:\d{1,3}\.)+|\w[.)])[ \t]+(?=[^\W\d])")
_GOES_ON = re.compile(r"[,;](?: (?:and|or))?$")
"""At the end of an item that is a part of a sentence."""
_BAR = re.compile(r"(?<!\\)\|")
_ABBREVIATED = re.compile(r"(?<=\w\w)\.(?= [a-z])")
_STOP = re.compile(r"(?<=\w\w\w)\.[ \t]+|\.$|。")


def readable(text: str) -> str:
    """The text without marks; as it is where it has none, or nothing else. Takes time linear in its length."""
    body = FRONT_MATTER.sub("", text)
    reader = _Reader(sectioned=bool(_SECTION.search(body)))
    for block in _BLOCK.finditer(body):
        reader.read(block)
    found = reader.text()
    return found if any(map(str.isalnum, found)) else text


def inline(text: str) -> str:
    """Without the marks within lines: of code, links, images and emphasis."""
    return _INLINE.sub(_inner, text)


def _inner(mark: re.Match[str]) -> str:
    if mark["code"]:
        return mark["code"]
    if mark[0].startswith("<br"):
        return " "
    return inline(mark["link"] or mark["both"] or mark["strong"] or mark["em"] or "")


@dataclass
class _Reader:
    """Goes through the blocks, and knows what an item that comes next would be about."""

    sectioned: bool
    out: list[str] = field(default_factory=list)
    paragraph: list[str] = field(default_factory=list)
    """The lines of one, and the empty ones after it: it may lead to items."""
    headings: dict[int, str] = field(default_factory=dict)
    lead: str = ""

    def read(self, block: re.Match[str]) -> None:
        if block["line"] or block["kept"] or not (block["level"] is None or self._is_heading(block)):
            self._line(block[0])
        elif block["item"]:
            self._item(block)
        else:
            self._end_paragraph()
            self._other(block)

    def text(self) -> str:
        self._end_paragraph()
        return "".join(self.out)

    def _is_heading(self, block: re.Match[str]) -> bool:
        """One `#` begins many a comment, so where there are no further headings it must stand alone."""
        alone = block.string[block.end() : block.end() + 1] in ("", "\n") and not "".join(self.paragraph[-1:]).strip()
        return self.sectioned or len(block["level"]) > 1 or alone

    def _line(self, line: str) -> None:
        if line.strip() and self.paragraph and not self.paragraph[-1].strip():
            self._end_paragraph()
        self.paragraph.append(line)

    def _end_paragraph(self) -> None:
        said = inline("".join(self.paragraph))
        self.paragraph.clear()
        self.out.append(said)
        if said.strip() and not said[0].isspace():
            self.lead = ""

    def _other(self, block: re.Match[str]) -> None:
        """No line and no item."""
        if block["code"] is not None:
            self.out += ["\n", block["code"], "\n"]
            self.lead = self.lead if block["fence"] else ""
        elif block["head"]:
            self.out += _rows(block)
            self.lead = ""
        else:
            self.out.append("\n")
            self._head(block)

    def _head(self, block: re.Match[str]) -> None:
        heading = block["heading"] or block["title"] or block["question"]
        if not heading:
            return
        level = _OF_QUESTIONS if block["question"] else len(block["level"] or "##")
        level -= (block["under"] or "").startswith("=")
        self.headings = {above: name for above, name in self.headings.items() if above < level}
        self.lead = ""
        if level > 1:
            self.headings[level] = heading_text(heading)

    def _item(self, block: re.Match[str]) -> None:
        self._introduce()
        if _CONTENTS.fullmatch(block["item"].strip()):
            return
        said, number = _item_text(block["item"]), block["number"]
        lead = self.lead or _lead_of(list(self.headings.values()))
        if lead:
            said = f"{lead} ({number}){LEAD_ENDS}{said}" if number else f"{lead}{LEAD_ENDS}{said}"
        if number and not lead:
            self.out.append(inline(block[0]))
        elif any(map(str.isalnum, said)):
            self.out.append(f"\n{said}\n")

    def _introduce(self) -> None:
        """The paragraph before an item, whose last sentence leads to the items where it ends so."""
        said = inline("".join(self.paragraph))
        told = sentences(said) if said.rstrip().endswith((":", "：")) and not said[0].isspace() else []
        if told and size_of(told[-1].split()) <= MAX_LEAD_WORDS:
            self.paragraph.clear()
            self.out += [f"{sentence}\n\n" for sentence in told[:-1]]
            self.lead = told[-1].rstrip(" :：")
        else:
            self._end_paragraph()


def _item_text(item: str) -> str:
    box = _BOX.match(item)
    said = " ".join(inline(item[box.end() :] if box else item).split())
    return _GOES_ON.sub("", said) + (" (done)" if box and box[1] != " " else "")


def heading_text(heading: str) -> str:
    """Without marks, numbering and what ends it."""
    closed = heading.rstrip().rstrip("#")
    bare = closed if closed.endswith((" ", "\t")) else heading
    said = re.sub(r"\[([^\[\]\n]*)\]", r"\1", inline(bare).strip())
    numbering = _NUMBERING.match(said)
    return (said[numbering.end() :] if numbering else said).strip(" \t.:?!？؟")


def _lead_of(headings: Sequence[str]) -> str:
    """The last two, or the last alone where they are too long to begin each item with."""
    leads = (" – ".join(headings[-2:]), *headings[-1:])
    return next((lead for lead in leads if size_of(lead.split()) <= MAX_LEAD_WORDS), "")


def _rows(table: re.Match[str]) -> list[str]:
    names = _cells(table["head"])
    if len(names) != len(_cells(table["ruled"])):
        return [table[0]]
    return [_row(names, line) for line in table["rows"].splitlines()]


def _row(names: Sequence[str], line: str) -> str:
    cells = _cells(line)
    if len(cells) != len(names):
        return f"{line}\n"
    said = [f"{name} {cell}".strip() for name, cell in zip(names, cells, strict=True) if any(map(str.isalnum, cell))]
    return f"\n{': '.join([*said[:1], *filter(None, [', '.join(said[1:])])])}\n"


def _cells(line: str) -> list[str]:
    """What the bars part; a full stop would end the row's statement."""
    bare = line.strip().removeprefix("|")
    parts = _BAR.split(bare)
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    cells = (inline(part.replace(r"\|", "|")).strip() for part in parts)
    return [_STOP.sub("; ", _ABBREVIATED.sub("", cell)).strip(" ;") for cell in cells]
