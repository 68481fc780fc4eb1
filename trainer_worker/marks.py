"""Markdown as a reader sees it: blocks whose sentences can be learnt alone.

Marks go, and so does what a reader does not see. What headings say is said by what is below: by each item of a list and
row of a table, which also says what its cells are, and by the first sentence of prose. Blocks are found as CommonMark
has them, and told from scripts, logs and records, which lose nothing, by rule. What is not covered: lists of
definitions, tables of HTML, and code outside fences, where a comment that stands alone passes for a heading.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markdown_it.tree import SyntaxTreeNode

from trainer_worker.blocks import Block, Reading, plain, rows_of
from trainer_worker.heading_pairs import COLONS, QUESTION_MARKS, HeadingPairs
from trainer_worker.inline import inline
from trainer_worker.nodes import LISTS, TAG, Parsed, content, parse, place
from trainer_worker.sentences import sentences
from trainer_worker.statements import MAX_WORDS
from trainer_worker.words import is_worded, says, size_of, words_of

MAX_LEAD_WORDS = 14
_OF_QUESTIONS = 7
"""The level of a question in bold type, and of a summary: below all headings."""
_SAYS_SOMETHING = 4
"""Words, from which on a heading with nothing below it is learnt itself."""
_SIGNS = "".join(QUESTION_MARKS)
_LABEL = re.compile(r"[ \t>]*\(?(?P<label>[a-z]{1,4}|\d{1,9})[.)]")
_SUMMARY = re.compile(r"(?:<details[^<>\n]*>[ \t]*)?<summary>(?P<said>(?:(?!</?summary)[^\n])*)</summary>[ \t]*")
_BOLD_QUESTION = re.compile(rf"\*\*[^*\n]+[{_SIGNS}]\*\*")
_GONE = re.compile(
    rf"{TAG}(?:[ \t]*{TAG})*|:::[^\n]*"
    r"|\[[^\]\n]+\]:[ \t]+<?(?:\w+://|mailto:|[#/]|\.\.?/)\S*(?:[ \t]+[\"'(][^\n]*)?"
)
"""Tags, and definitions of links."""
_NOTE = re.compile(r"[ \t]*>[ \t>]*(?:\[!\w+\]|\*\*(?:Note|Tip|Important|Warning|Caution)\*\*)[ \t]*")
_STANDS_ALONE = re.compile(r"[ \t]*(?:$|(?:[-*+]|\d{1,3}[.)]|[a-z]\))[ \t]|#{2}|[`~]{3}|[>|])")
"""A line that no prose goes on with; after a `#` alone it makes a heading of a comment."""
_CONTENTS = re.compile(r"\[[^\]\n]*\]\(#[^)\n]*\)")
_TAGS = re.compile(rf"\A(?:{TAG}[ \t]*)+")
_BOX = re.compile(r"\[([ xX])\][ \t]+")
_NUMBERING = re.compile(r"(?:(?:\d{1,3}\.)+|\w[.)])[ \t]+(?=[^\W\d])")
_GOES_ON = re.compile(r"[,;](?: (?:and|or))?$")
"""At the end of an item that is a part of a sentence."""
_INDENTED = re.compile(r"[ \t]|(?:[ \t]*>)+[ \t]{2}")
_BAR = re.compile(r"(?<!\\)\|")


def read(text: str) -> Reading:
    """As plain text where it has no marks, or nothing else. Takes time linear in its length."""
    found = _Reader(parse(text)).reading()
    return found if is_worded(found.text) else plain(text)


@dataclass(frozen=True)
class _Untold:
    """What leads to items that have not come yet. They begin with `lead`, of which `known` is said elsewhere; if none
    comes, `block` is said."""

    block: Block
    lead: str
    known: str


class _Reader:
    """Goes through the blocks, and knows what an item that comes next would be about."""

    def __init__(self, parsed: Parsed) -> None:
        self._nodes, self._lines, self._comments = parsed.nodes, list(parsed.lines), parsed.comments
        headings = [node for node in self._nodes.walk() if node.type == "heading"]
        self._sectioned = any(len(node.markup) > 1 for node in headings)
        self._chaptered = sum(map(self._may_be_chapter, headings)) > 1
        """Whether headings of the first level are more than the title."""
        self._blocks: list[Block] = []
        self._asked = HeadingPairs()
        self._opening = ""
        self._prose: tuple[int, int] | None = None
        """Lines that are not in a block yet: their last sentence may lead to items."""
        self._headings: dict[int, str] = {}
        self._lead, self._led = "", ""
        """Of the sentence before, and the marks of the list that it leads to."""
        self._untold: _Untold | None = None
        self._fresh = False
        """Whether nothing says yet what the last heading says."""
        self._unsaid: Block | None = None
        """What the last heading says of its own, if nothing is below it."""

    def reading(self) -> Reading:
        self._read(self._nodes.children)
        self._end_prose()
        self._say_heading()
        return Reading(tuple(self._blocks), self._opening, tuple(self._asked.pairs))

    def _read(self, nodes: Iterable[SyntaxTreeNode], lead: str = "") -> None:
        """`lead` is what a list or table among them is about."""
        for node in nodes:
            start, end = place(node)
            if node.type not in ("paragraph", *LISTS):
                self._asked.other()
            if start in self._comments:
                self._add_prose(start, end)
            elif node.type in LISTS:
                self._list(node, lead)
            elif node.type == "heading":
                self._heading(node)
            elif node.type == "table":
                self._table(node, lead)
            elif node.type == "blockquote":
                self._lead = ""
                self._within(node, lead)
                self._lead = ""
            elif node.type in ("fence", "hr"):
                self._end_prose()
                self._lead = ""
                self._add(Block(node.content))
            else:
                self._paragraph(start, end)

    def _within(self, node: SyntaxTreeNode, lead: str) -> None:
        """A quotation or an item, whose headings are of nothing after it; as it is where it goes too deep."""
        if not node.children:
            self._add_prose(*place(node))
            return
        headings, fresh = self._headings, self._fresh
        self._read(node.children, lead)
        if self._headings is not headings:
            self._end_prose()
            self._say_heading()
            self._headings, self._fresh, self._lead = headings, fresh, ""

    def _add(self, block: Block) -> None:
        if block.text.strip():
            self._say_untold()
            self._unsaid = None
            self._blocks.append(block)

    def _say_untold(self) -> None:
        if self._untold:
            said, self._untold = self._untold.block, None
            self._add(said)

    def _add_prose(self, start: int, end: int) -> None:
        """Lines as they are, but for the marks within them."""
        if self._prose and "".join(self._lines[self._prose[1] : start]).strip():
            self._end_prose()
        self._prose = (self._prose[0] if self._prose else start, end)

    def _end_prose(self) -> None:
        start, end = self._prose or (0, 0)
        self._prose = None
        if start < end and (text := self._without_marks(start, end)):
            indented = self._lines[start][:1].isspace()
            self._lead = self._lead if indented else ""
            self._add(Block(text) if indented else self._below_heading(text))

    def _without_marks(self, start: int, end: int) -> str:
        """Lines that are empty for it, as those of badges, are none at the beginning."""
        text = inline("\n".join(self._lines[start:end]))
        return re.sub(r"\A(?:[ \t]*\n)+", "", text) if text.strip() else ""

    def _below_heading(self, text: str) -> Block:
        """With what the headings say, where it is the first below them and its first sentence does not say it."""
        if not self._fresh or not is_worded(text):
            return Block(text)
        self._fresh = False
        first = sentences(text)[0]
        lead = _lead_of([name for name in self._headings.values() if not says(first, name)])
        return Block(text.lstrip("> "), lead=lead, opens=True)

    def _paragraph(self, start: int, end: int) -> None:
        said_from = start
        for at in range(start, end):
            line = self._lines[at].lstrip(" \t>").rstrip()
            summary = _SUMMARY.match(line)
            gone = _GONE.fullmatch(line) or _NOTE.fullmatch(self._lines[at])
            if not (summary or gone or _BOLD_QUESTION.fullmatch(line)):
                continue
            self._run(said_from, at)
            self._end_prose()
            said_from = at + 1
            if summary:
                self._head(_OF_QUESTIONS, summary["said"])
                self._lines[at] = line[summary.end() :]
                said_from = at if self._lines[at] else at + 1
            elif not gone:
                self._head(_OF_QUESTIONS, line)
            elif line.startswith("</details"):
                self._end_details()
        self._run(said_from, end)

    def _run(self, start: int, end: int) -> None:
        if start < end:
            self._asked.prose(inline("\n".join(line.lstrip(" \t>") for line in self._lines[start:end])))
            self._add_prose(start, end)
            if "</details" in self._lines[end - 1]:
                self._end_details()

    def _end_details(self) -> None:
        self._end_prose()
        self._say_heading()
        self._lead = ""
        self._headings = {level: name for level, name in self._headings.items() if level != _OF_QUESTIONS}

    def _heading(self, node: SyntaxTreeNode) -> None:
        start, end = place(node)
        if self._is_heading(node):
            self._end_prose()
            self._head(int(node.tag[1:]), content(node))
        elif node.markup.startswith("#"):
            self._add_prose(start, end)
        else:
            self._paragraph(start, end - 1)
            self._end_prose()

    def _is_heading(self, node: SyntaxTreeNode) -> bool:
        """One `#` begins many a comment: where it does not begin the text, no prose may follow in the next line, and
        where there are no further headings it must stand alone. What is underlined is one line, and no sentence."""
        start, end = place(node)
        alone = not self._line(start - 1).strip() and not self._line(end).strip()
        if not node.markup.startswith("#"):
            title, under = self._line(start), self._line(end - 1).strip()
            ends_so = node.markup == "-" and title.rstrip().endswith((".", "!", ";", ","))
            return alone and end - start == 2 and len(under) > 2 and not ends_so
        if not content(node) or (node.level == 0 and self._line(start).expandtabs(4)[:4].isspace()):
            return False
        if len(node.markup) > 1:
            return True
        return alone if not self._sectioned else not (self._blocks or self._prose) or self._may_be_chapter(node)

    def _may_be_chapter(self, node: SyntaxTreeNode) -> bool:
        return node.markup == "=" or (node.markup == "#" and bool(_STANDS_ALONE.match(self._line(place(node)[1]))))

    def _line(self, at: int) -> str:
        return self._lines[at] if 0 <= at < len(self._lines) else ""

    def _head(self, level: int, heading: str) -> None:
        if level <= max(self._headings, default=0):
            self._say_heading()
        self._headings = {above: name for above, name in self._headings.items() if above < level}
        self._lead = ""
        self._fresh = level > 1 or self._chaptered
        name, ends = _heading_text(heading), inline(heading).rstrip(" \t#*")[-1:]
        self._opening = self._opening or ("" if self._blocks else name)
        self._asked.heading(name, ends)
        if self._fresh and name:
            if ends not in QUESTION_MARKS and len(list(words_of(name))) >= _SAYS_SOMETHING:
                self._unsaid = Block(name, lead=_lead_of(list(self._headings.values())))
            self._headings[level] = name

    def _say_heading(self) -> None:
        """The last one, if it says something and nothing is below it."""
        if self._unsaid:
            self._add(self._unsaid)

    def _list(self, node: SyntaxTreeNode, lead: str) -> None:
        self._asked.items(_item_text(content(one)) for one in node.walk() if one.type == "paragraph")
        marks = node.markup if node.type == "ordered_list" else "-"
        introduced = self._introduced(marks)
        before = self._lead if self._led == marks else ""
        lead = introduced or lead or before or _lead_of(list(self._headings.values()))
        for item in node.children:
            if not is_worded("".join(self._lines[slice(*place(item))])):
                continue
            if item.children and item.children[0].type == "paragraph":
                below = self._item(item, lead)
                self._read(item.children[1:], below)
            else:
                self._within(item, lead)
        self._say_untold()

    def _item(self, item: SyntaxTreeNode, lead: str) -> str:
        """Says it; returns what items below it are about: this one too if it is no sentence. Where it ends in a colon
        it is left to them to say."""
        paragraph, *below_it = item.children
        start, end = place(paragraph)
        lines = content(paragraph).split("\n")
        own = next((at for at in range(1, len(lines)) if not self._goes_on(start + at)), len(lines))
        said, below = "\n".join(lines[:own]), lead
        text = _item_text(said)
        nests = any(node.type in (*LISTS, "table") for node in below_it) and start + own == end
        if nests and not text.endswith((".", "!", "?", ";", ",")):
            below = _lead_of([*filter(None, [lead]), text.rstrip(" :：")]) or lead
        label = _LABEL.match(self._lines[start]) if item.markup in (".", ")") else None
        if text.endswith(COLONS) and below != lead and below.startswith(lead):
            block = self._with_lead(lead, Block(text, whole=True))
            self._untold = _Untold(block, below, block.lead if block.news else below)
        elif _CONTENTS.fullmatch(said.strip()):
            pass
        elif label and not lead:
            self._add_prose(start, start + own)
        else:
            self._tell(f"{lead} ({label['label']})" if label and lead else lead, Block(text, whole=True))
        self._paragraph(start + own, end)
        return below

    def _goes_on(self, at: int) -> bool:
        """Whether the line is meant to belong to the item of the line before: indented, or in lower case."""
        return bool(_INDENTED.match(self._lines[at])) or self._lines[at].lstrip(" \t>")[:1].islower()

    def _tell(self, lead: str, block: Block) -> None:
        if is_worded(block.text):
            self._add(self._with_lead(lead, block))

    def _with_lead(self, lead: str, block: Block) -> Block:
        """The first one has what leads to it as its news."""
        self._end_prose()
        self._fresh = False
        untold = self._untold
        if untold is None or not lead.startswith(untold.lead):
            self._say_untold()
            return replace(block, lead=lead)
        self._untold = None
        if untold.known == untold.lead:
            return replace(block, lead=lead)
        return replace(block, lead=untold.known, news=lead.removeprefix(untold.known).removeprefix(": "))

    def _introduced(self, marks: str = "") -> str:
        """The last sentence of the prose before, where it leads to items: it ends in a colon."""
        start, end = self._prose or (0, 0)
        ends_so = start < end and inline(self._lines[end - 1]).rstrip(" \t*_").endswith(COLONS)
        first = end - 1
        while ends_so and first > start and self._lines[first - 1].strip(" \t>"):
            first -= 1
        last = self._without_marks(first, end) if ends_so and not self._lines[first][:1].isspace() else ""
        if not is_worded(last):
            if self._headings or self._lead or ends_so:
                self._end_prose()
            return ""
        self._prose = (start, first)
        self._end_prose()
        block = self._below_heading(last)
        *others, sentence = sentences(block.text)
        said = sentence.rstrip(" :：")
        forms = ("" if others else block.lead, "")
        known = next((one for one in forms if size_of(f"{one} {said}".split()) <= MAX_LEAD_WORDS), None)
        self._lead = ""
        if known is None:
            self._add(block)
            return ""
        if others:
            self._add(replace(block, text="\n\n".join(others)))
        self._unsaid = None
        self._lead, self._led = ": ".join(filter(None, (known, said))), marks
        self._untold = _Untold(Block(sentence, lead=known, opens=block.opens and not others), self._lead, known)
        return self._lead

    def _table(self, node: SyntaxTreeNode, lead: str) -> None:
        head, *body = node.children
        names = [inline(content(cell)).rstrip(" :") for cell in head.children[0].children]
        lines = [place(line)[0] for part in body for line in part.children]
        told = {at: cells for at in lines if len(cells := _cells(self._lines[at])) == len(names)}
        if not told:
            self._end_prose()
        above = self._introduced() or lead or _lead_of(list(self._headings.values()))
        for at in lines:
            if at not in told:
                self._add_prose(at, at + 1)
                continue
            for block in rows_of(names, told[at], room=MAX_WORDS - size_of(above.split())):
                self._tell(above, block)
        self._end_prose()
        self._say_untold()
        self._lead = self._lead if lead else ""


def _item_text(item: str) -> str:
    item = _TAGS.sub("", item)
    box = _BOX.match(item)
    said = " ".join(inline(item[box.end() :] if box else item).split())
    return _GOES_ON.sub("", said) + (" (done)" if box and box[1] != " " else "")


def _heading_text(heading: str) -> str:
    """Without marks, numbering and what ends it."""
    said = re.sub(r"\[([^\[\]\n]*)\]", r"\1", inline(heading).strip())
    numbering = _NUMBERING.match(said)
    return (said[numbering.end() :] if numbering else said).strip(f" \t.:!{_SIGNS}")


def _lead_of(headings: Sequence[str]) -> str:
    """The last two, or the last alone where they are too long to begin each item with."""
    leads = (" – ".join(headings[-2:]), *headings[-1:])
    return next((lead for lead in leads if size_of(lead.split()) <= MAX_LEAD_WORDS), "")


def _cells(line: str) -> list[str]:
    """What the bars part; none in a line without any."""
    parts = _BAR.split(line.strip(" \t>").removeprefix("|"))
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    return [inline(part.replace(r"\|", "|")).strip() for part in parts] if "|" in line else []
