"""Markdown as text whose sentences can be learnt alone, by rules.

Marks go, and so does what a reader does not see. What headings say is said by what is below: by each item of a list and
row of a table, which also says what its cells are, and by the first sentence of prose. What is not covered: emphasis
with `_`, lists and tables in quotations, lists of definitions, and code outside fences, where a comment that stands
alone passes for a heading.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from loramem.formats.plain import FRONT_MATTER
from trainer_worker.spans import LABEL_ENDS, LEAD_ENDS, SIGN, TOLD_ENDS
from trainer_worker.statements import sentences, size_of
from trainer_worker.words import PARTED, says, words_of

MAX_LEAD_WORDS = 14
_OF_QUESTIONS = 7
"""The level of a question in bold type, and of a summary: below all headings."""
_SAYS_SOMETHING = 4
"""Words, from which on a heading with nothing below it is learnt itself."""
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
_TAG = r"</?(?:details|summary|div|p|br|hr|img|picture|source|center|section)\b[^<>\n]*>"
SUMMARY = r"^[ \t]*(?:<details[^<>\n]*>[ \t]*)?<summary>(?P<summary>(?:(?!</?summary)[^\n])*)</summary>[ \t]*\n?"
_NOTE = r"(?:> ?(?:\[!\w+\]|\*\*(?:Note|Tip|Important|Warning|Caution)\*\*)|:::[^\n]*)"
_DEFINITION = r"\[[^\]\n]+\]:[ \t]+<?(?:\w+://|mailto:|[#/]|\.\.?/)\S*(?:[ \t]+[\"'(][^\n]*)?"
_RULE = r"(?P<rule>[-*_])(?:[ \t]*(?P=rule)){2,}"
_FENCE = r"(?:`{3}|~{3})[^`\n]*"
_GONE = rf"^[ \t]*(?P<gone>{_COMMENT}|{_TAG}(?:[ \t]*{_TAG})*|{_NOTE}|{_DEFINITION}|{_RULE}|{_FENCE}){_END}"

BEGINS = r"(?:(?:[-*+]|\d{1,3}[.)]|[a-z]\))[ \t]|#|[`~]{3}|[>|])"
_UNDERLINED = (
    rf"(?:(?<=\n\n)|\A\n?)(?!{BEGINS})(?P<title>\S[^\n]*)\n(?P<under>={{3,}}|(?<![.!;,]\n)-{{3,}}){_END}(?=\n|\Z)"
)
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
_LINE = r"(?P<line>[^\n]*\n|[^\n]+)"
_BLOCK = re.compile(
    "|".join([FENCED, _KEPT, SUMMARY, _GONE, _UNDERLINED, _HEADING, BOLD_QUESTION, _TABLE, ITEM, _LINE]), re.MULTILINE
)
_NO_PROSE = re.compile(rf"[ \t]*(?:\n|\Z|(?!#[ \t]){BEGINS})")
"""After a heading of the first level, which otherwise looks like a comment."""
_NEXT_ITEM = re.compile(r"(?:[ \t]*\n)*+(?P<indent>[ \t]*)(?:[-*+]|(?:\d{1,3}|[a-z](?=\)))[.)])[ \t]")

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
    rf"(?<!`)`(?P<code>[^`\n]+)`(?!`)|{_COMMENT}|</?(?:br|kbd|sub|sup|b|i|em|strong|details)[ \t]*/?>|{_IMAGE}|{_LINK}"
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
    blocks = list(_BLOCK.finditer(FRONT_MATTER.sub("", text)))
    reader = _Reader(
        sectioned=any(len(block["level"] or "") > 1 for block in blocks),
        chaptered=sum(_may_be_chapter(block) for block in blocks) > 1,
    )
    for block in blocks:
        reader.read(block)
    found = reader.text()
    return found if any(map(str.isalnum, found)) else text


def opening(text: str) -> str:
    """The heading that the text opens with; empty where it opens with something else."""
    for block in _BLOCK.finditer(FRONT_MATTER.sub("", text)):
        if heading := block["heading"] or block["title"]:
            return heading_text(heading)
        if not block["gone"] and inline(block[0]).strip():
            break
    return ""


def _may_be_chapter(block: re.Match[str]) -> bool:
    underlined = (block["under"] or "").startswith("=")
    return underlined or (block["level"] == "#" and bool(_NO_PROSE.match(block.string, block.end())))


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
    chaptered: bool
    """Whether headings of the first level are more than the title."""
    out: list[str] = field(default_factory=list)
    paragraph: list[str] = field(default_factory=list)
    """The lines of one, and the empty ones after it: it may lead to items."""
    headings: dict[int, str] = field(default_factory=dict)
    leads: dict[int, str] = field(default_factory=dict)
    """By how far the item is indented that leads; of a sentence, -1."""
    untold: bool = False
    """Whether no item says yet what the sentence says."""
    fresh: bool = False
    """Whether nothing says yet what the last heading says."""
    unsaid: str = ""
    headed_at: int = 0
    """What the last heading says of its own, and where in `out` it is."""

    def read(self, block: re.Match[str]) -> None:
        if block["line"] or block["kept"] or not (block["level"] is None or self._is_heading(block)):
            self._line(block[0])
        elif block["item"]:
            self._item(block)
        elif block["head"]:
            self._table(block)
        else:
            self._end_paragraph()
            self._other(block)

    def text(self) -> str:
        self._end_paragraph()
        self._say_heading()
        return "".join(self.out)

    def _is_heading(self, block: re.Match[str]) -> bool:
        """One `#` begins many a comment: where it does not begin the text, no prose may follow in the next line, and
        where there are no further headings it must stand alone."""
        if len(block["level"]) > 1:
            return True
        if self.sectioned:
            return not (self.out or self.paragraph) or _may_be_chapter(block)
        return block.string[block.end() : block.end() + 1] in ("", "\n") and not "".join(self.paragraph[-1:]).strip()

    def _line(self, line: str) -> None:
        if line.strip() and self.paragraph and not self.paragraph[-1].strip():
            self._end_paragraph()
        self.paragraph.append(line)

    def _end_paragraph(self) -> None:
        said = inline("".join(self.paragraph))
        self.paragraph.clear()
        if said.strip() and not said[0].isspace():
            said = self._below_heading(said)
            self.leads.clear()
        self.out.append(said)

    def _below_heading(self, said: str) -> str:
        """With what the headings say, where it is the first below them and its first sentence does not say it."""
        if not self.fresh or not any(map(str.isalnum, said)):
            return said
        self.fresh = False
        first = sentences(said)[0]
        lead = _lead_of([name for name in self.headings.values() if not says(first, name)])
        return f"{lead}{LEAD_ENDS}{said.lstrip('> ')}" if lead else f"{SIGN}{said}"

    def _other(self, block: re.Match[str]) -> None:
        """No line, no item and no table."""
        if block["code"] is not None:
            self.out += ["\n", block["code"], "\n"]
            if not block["fence"]:
                self.leads.clear()
        elif heading := block["heading"] or block["title"] or block["question"] or block["summary"]:
            self.out.append("\n")
            self._head(_level_of(block), heading)
        else:
            self.out.append("\n")
            if (block["gone"] or "").startswith("</details") and _OF_QUESTIONS in self.headings:
                self._say_heading()
                del self.headings[_OF_QUESTIONS]

    def _head(self, level: int, heading: str) -> None:
        if level <= max(self.headings, default=0):
            self._say_heading()
        self.headings = {above: name for above, name in self.headings.items() if above < level}
        self.leads.clear()
        self.fresh = level > 1 or self.chaptered
        self.unsaid, self.headed_at = "", len(self.out)
        if self.fresh:
            name = heading_text(heading)
            if not _asks(heading) and len(list(words_of(name))) >= _SAYS_SOMETHING:
                self.unsaid = _led(_lead_of(list(self.headings.values())), name)
            self.headings[level] = name

    def _say_heading(self) -> None:
        """The last one, if it says something and nothing is below it."""
        if self.unsaid and not "".join(self.out[self.headed_at :]).strip():
            self.out.append(f"\n{self.unsaid}\n")
        self.unsaid = ""

    def _item(self, block: re.Match[str]) -> None:
        self._introduce()
        self.fresh = False
        if _CONTENTS.fullmatch(block["item"].strip()):
            return
        said, number, indent = _item_text(block["item"]), block["number"], _width(block["indent"])
        lead = self._lead(indent)
        if _leads_deeper(block) and (below := _lead_of([*filter(None, [lead]), said.rstrip(" :：")])):
            self.leads[indent] = below
            if below.startswith(lead):
                return
        if number and not lead:
            self.out.append(inline(block[0]))
        elif any(map(str.isalnum, said)):
            self._say(f"{lead} ({number})" if number else lead, said)

    def _lead(self, indent: int) -> str:
        self.leads = {at: lead for at, lead in self.leads.items() if at < indent}
        return next(reversed(self.leads.values()), "") or _lead_of(list(self.headings.values()))

    def _say(self, lead: str, said: str) -> None:
        """A sentence that leads is asked for once."""
        ends = TOLD_ENDS if self.untold and self.leads else LEAD_ENDS
        self.untold = False
        self.out.append(f"\n{_led(lead, said, ends)}\n")

    def _introduce(self) -> None:
        """The paragraph before an item, whose last sentence leads to the items where it ends so."""
        said = inline("".join(self.paragraph))
        if not said.rstrip().endswith((":", "：")) or said[0].isspace():
            self._end_paragraph()
            return
        self.paragraph.clear()
        self.leads.clear()
        said = self._below_heading(said)
        *before, last = sentences(said) or [said]
        lead = _leading(last)
        self.out += [f"{sentence}\n\n" for sentence in before] if lead else [said]
        if lead:
            self.leads[-1] = lead
            self.untold = True

    def _table(self, table: re.Match[str]) -> None:
        names = [name.rstrip(" :") for name in _cells(table["head"])]
        if len(names) != len(_cells(table["ruled"])):
            self._end_paragraph()
            self.out.append(table[0])
            return
        rows = [(line, _cells(line)) for line in table["rows"].splitlines()]
        if any(len(cells) == len(names) for _, cells in rows):
            self._introduce()
        else:
            self._end_paragraph()
        self.fresh = False
        lead = self._lead(0)
        for line, cells in rows:
            if len(cells) != len(names):
                self.out.append(f"{line}\n")
            elif said := _row(names, cells):
                self._say(lead, said)
        self.leads.clear()


def _level_of(heading: re.Match[str]) -> int:
    if heading["question"] or heading["summary"]:
        return _OF_QUESTIONS
    return len(heading["level"] or "##") - (heading["under"] or "").startswith("=")


def _asks(heading: str) -> bool:
    return heading.rstrip(" \t#*").endswith(("?", "？", "؟"))


def _led(lead: str, said: str, ends: str = LEAD_ENDS) -> str:
    return f"{lead}{ends}{said}" if lead else said


def _leads_deeper(item: re.Match[str]) -> bool:
    """Whether it ends in a colon, and the next one is indented more."""
    after = _NEXT_ITEM.match(item.string, item.end()) if item["item"].rstrip(" \t*_").endswith((":", "：")) else None
    return after is not None and _width(after["indent"]) > _width(item["indent"])


def _width(indent: str) -> int:
    return len(indent.expandtabs(4))


def _leading(sentence: str) -> str:
    """The sentence as what leads; without the heading it says, or empty, where it is too long for that."""
    forms = (sentence, sentence.rpartition(LEAD_ENDS)[2])
    return next((form.rstrip(" :：") for form in forms if size_of(form.split()) <= MAX_LEAD_WORDS), "")


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


def _row(names: Sequence[str], cells: Sequence[str]) -> str:
    told = [(name, cell) for name, cell in zip(names, cells, strict=True) if any(map(str.isalnum, cell))]
    said = [f"{name}{LABEL_ENDS}{cell}" if name else cell for name, cell in told]
    return ": ".join([*said[:1], *filter(None, [", ".join(said[1:])])])


def _cells(line: str) -> list[str]:
    """What the bars part; a full stop would end the row's statement."""
    bare = line.strip().removeprefix("|")
    parts = _BAR.split(bare)
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    cells = (inline(part.replace(r"\|", "|")).strip() for part in parts)
    return [_STOP.sub("; ", _ABBREVIATED.sub("", cell)).strip(" ;") for cell in cells]
