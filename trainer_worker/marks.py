"""Markdown as a reader sees it: blocks whose sentences can be learnt alone.

Marks go, and so does what a reader does not see. What headings say is said by what is below: by each item of a list and
row of a table, which also says what its cells are, and by the first sentence of prose. Blocks are found as CommonMark
has them, and told from scripts, logs and records, which lose nothing, by rule. What is not covered: lists of
definitions, and code outside fences, where a comment that stands alone passes for a heading.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from markdown_it.tree import SyntaxTreeNode

from trainer_worker.blocks import Block, Cell, Reading, plain, row
from trainer_worker.inline import COMMENT, inline
from trainer_worker.nodes import LISTS, Parsed, content, parse, place
from trainer_worker.sentences import sentences
from trainer_worker.statements import MAX_WORDS
from trainer_worker.told import Told, fits
from trainer_worker.words import says, size_of, words_of

MAX_LEAD_WORDS = 14
_OF_QUESTIONS = 7
"""The level of a question in bold type, and of a summary: below all headings."""
_SAYS_SOMETHING = 4
"""Words, from which on a heading with nothing below it is learnt itself."""
_ASKS_SOMETHING = 3
"""Words of a heading that is a question."""
_COLONS = (":", "：")


_LABEL = re.compile(r"[ \t>]*\(?(?P<label>[a-z]{1,4}|\d{1,9})[.)]")
_TAG = r"</?(?:details|summary|div|p|br|hr|img|picture|source|center|section)\b[^<>\n]*>"
_MARK = re.compile(
    r"(?P<bold>\*\*[^*\n]+[?？؟]\*\*)"
    r"|(?:<details[^<>\n]*>[ \t]*)?<summary>(?P<summary>(?:(?!</?summary)[^\n])*)</summary>"
    rf"|(?P<gone>{_TAG}(?:[ \t]*{_TAG})*|{COMMENT}|:::[^\n]*|\[!\w+\]|\*\*(?:Note|Tip|Important|Warning|Caution)\*\*"
    r"|\[[^\]\n]+\]:[ \t]+<?(?:\w+://|mailto:|[#/]|\.\.?/)\S*(?:[ \t]+[\"'(][^\n]*)?)"
)
"""Lines of a paragraph that are questions, or gone: tags, names of notes, definitions of links."""
_STANDS_ALONE = re.compile(r"[ \t]*(?:$|(?:[-*+]|\d{1,3}[.)]|[a-z]\))[ \t]|#{2}|[`~]{3}|[>|])")
"""A line that goes on with none before it; comments, which begin with one `#`, may."""
_CONTENTS = re.compile(r"\[[^\]\n]*\]\(#[^)\n]*\)")
_BOX = re.compile(r"\[([ xX])\][ \t]+")
_NUMBERING = re.compile(r"(?:(?:\d{1,3}\.)+|\w[.)])[ \t]+(?=[^\W\d])")
_GOES_ON = re.compile(r"[,;](?: (?:and|or))?$")
"""At the end of an item that is a part of a sentence."""
_BAR = re.compile(r"(?<!\\)\|")


def read(text: str) -> Reading:
    """As plain text where it has no marks, or nothing else. Takes time linear in its length."""
    found = _Reader(parse(text)).reading()
    return found if any(map(_says_something, found.text.splitlines())) else plain(text)


def _says_something(text: str) -> bool:
    return any(map(str.isalnum, text))


class _Reader:
    """Goes through the blocks, and knows what an item that comes next would be about."""

    def __init__(self, parsed: Parsed) -> None:
        self._nodes, self._lines, self._kept = parsed.nodes, parsed.lines, parsed.kept
        headings = [node for node in self._nodes.walk() if node.type == "heading"]
        self._sectioned = any(len(node.markup) > 1 for node in headings)
        self._chaptered = sum(map(self._may_be_chapter, headings)) > 1
        """Whether headings of the first level are more than the title."""
        self._blocks: list[Block] = []
        self._pairs: list[Told] = []
        self._opening = ""
        self._prose: tuple[int, int] | None = None
        """Lines that are not in a block yet: their last sentence may lead to items."""
        self._headings: dict[int, str] = {}
        self._lead = ""
        """Of the sentence before: `known` of headings, and what it says itself."""
        self._known = ""
        self._untold = False
        """Whether no item says yet what the sentence says."""
        self._fresh = False
        """Whether nothing says yet what the last heading says."""
        self._unsaid: Block | None = None
        """What the last heading says of its own, if nothing is below it."""
        self._question = self._answer = ""
        """Asked by the last heading; an answer that the items after it complete."""

    def reading(self) -> Reading:
        self._read(self._nodes.children)
        self._end_prose()
        self._say_heading()
        return Reading(tuple(self._blocks), self._opening, tuple(self._pairs))

    def _read(self, nodes: Iterable[SyntaxTreeNode], lead: str = "") -> None:
        """`lead` is what a list among them is about."""
        for node in nodes:
            start, end = place(node)
            if node.type not in ("paragraph", *LISTS):
                self._question = self._answer = ""
            if start in self._kept:
                self._keep(start, end)
            elif node.type in LISTS:
                self._list(node, lead)
            elif node.type == "heading":
                self._heading(node)
            elif node.type == "table":
                self._table(node)
            elif node.type == "blockquote":
                self._read(node.children, lead)
            elif node.type in ("fence", "hr"):
                self._end_prose()
                self._lead = ""
                self._add(Block(node.content))
            else:
                self._paragraph(start, end)

    def _add(self, block: Block) -> None:
        if block.text.strip():
            self._unsaid = None
            self._blocks.append(block)

    def _keep(self, start: int, end: int) -> None:
        """Lines as they are, but for the marks within them."""
        if self._prose and "".join(self._lines[self._prose[1] : start]).strip():
            self._end_prose()
        self._prose = (self._prose[0] if self._prose else start, end)

    def _end_prose(self) -> None:
        start, end = self._prose or (0, 0)
        self._prose = None
        text = inline("\n".join(self._lines[start:end]))
        if text.strip():
            self._lead = self._lead if text[0].isspace() else ""
            self._add(self._below_heading(text))

    def _below_heading(self, text: str) -> Block:
        """With what the headings say, where it is the first below them and its first sentence does not say it."""
        if not self._fresh or text[:1].isspace() or not _says_something(text):
            return Block(text)
        self._fresh = False
        first = sentences(text)[0]
        lead = _lead_of([name for name in self._headings.values() if not says(first, name)])
        return Block(text.lstrip("> "), lead=lead, opens=True)

    def _paragraph(self, start: int, end: int) -> None:
        said_from = start
        for at in range(start, end):
            if mark := _MARK.fullmatch(self._lines[at].lstrip(" \t>").rstrip()):
                self._run(said_from, at)
                self._end_prose()
                self._mark(mark)
                said_from = at + 1
        self._run(said_from, end)

    def _run(self, start: int, end: int) -> None:
        if start < end:
            self._answer_with(start, end)
            self._keep(start, end)

    def _mark(self, mark: re.Match[str]) -> None:
        if heading := mark["bold"] or mark["summary"]:
            self._head(_OF_QUESTIONS, heading)
        elif mark["gone"] and mark["gone"].startswith("</details") and _OF_QUESTIONS in self._headings:
            self._say_heading()
            del self._headings[_OF_QUESTIONS]

    def _answer_with(self, start: int, end: int) -> None:
        """To what the heading asks; where it ends in a colon, together with the list after it."""
        said = " ".join(inline("\n".join(line.lstrip(" \t>") for line in self._lines[start:end])).split())
        if self._answer or said.startswith((":", "<")) or not _says_something(said):
            self._question = self._answer = ""
        elif said.endswith(_COLONS):
            self._answer = said
        else:
            self._pair(said)

    def _pair(self, answer: str) -> None:
        if self._question and answer:
            pair = Told(self._question, answer, stays=True)
            self._pairs += [pair] if fits(pair) else []
        self._question = self._answer = ""

    def _heading(self, node: SyntaxTreeNode) -> None:
        start, end = place(node)
        underlined = not node.markup.startswith("#")
        if self._is_heading(node):
            self._end_prose()
            self._head(int(node.tag[1:]), content(node))
        elif underlined:
            self._paragraph(start, end - 1)
            self._end_prose()
        else:
            self._keep(start, end)

    def _is_heading(self, node: SyntaxTreeNode) -> bool:
        """One `#` begins many a comment: where it does not begin the text, no prose may follow in the next line, and
        where there are no further headings it must stand alone. What is underlined is one line, and no sentence."""
        start, end = place(node)
        alone = not self._line(start - 1).strip() and not self._line(end).strip()
        if not node.markup.startswith("#"):
            title, under = self._line(start), self._line(end - 1).strip()
            ends_so = under[0] == "-" and title.rstrip().endswith((".", "!", ";", ","))
            return alone and end - start == 2 and len(under) > 2 and not ends_so
        if not content(node):
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
        self._lead, self._unsaid = "", None
        self._fresh = level > 1 or self._chaptered
        name, ends = heading_text(heading), inline(heading).rstrip(" \t#*")[-1:]
        asks = ends in ("?", "？", "؟")
        words = len(list(words_of(name)))
        self._opening = self._opening or ("" if self._blocks else name)
        self._question = name + ends if asks and words >= _ASKS_SOMETHING else ""
        if self._fresh:
            if not asks and words >= _SAYS_SOMETHING:
                self._unsaid = Block(name, lead=_lead_of(list(self._headings.values())))
            self._headings[level] = name

    def _say_heading(self) -> None:
        """The last one, if it says something and nothing is below it."""
        if self._unsaid:
            self._add(self._unsaid)

    def _list(self, node: SyntaxTreeNode, lead: str) -> None:
        if self._answer:
            texts = [_item_text(content(one)) for one in node.walk() if one.type == "paragraph"]
            self._pair(f"{self._answer} {'; '.join(texts)}")
        self._question = ""
        lead = self._introduced() or lead or self._lead or _lead_of(list(self._headings.values()))
        self._fresh = False
        for item in node.children:
            first, rest = item.children[:1], item.children[1:]
            if first and first[0].type == "paragraph":
                self._read(rest, self._item(item, lead, nested=any(child.type in LISTS for child in rest)))
            else:
                self._read(item.children, lead)

    def _item(self, item: SyntaxTreeNode, lead: str, *, nested: bool) -> str:
        """What items below it are about: this one too if it is no sentence. Where it ends in a colon it is said only by
        them."""
        start, end = place(item.children[0])
        lines = content(item.children[0]).split("\n")
        own = next((at for at in range(1, len(lines)) if not self._goes_on(start + at)), len(lines))
        said, below = "\n".join(lines[:own]), lead
        text = _item_text(said)
        if nested and not text.endswith((".", "!", "?", ";", ",")):
            below = _lead_of([*filter(None, [lead]), text.rstrip(" :：")]) or lead
        unsaid = text.endswith(_COLONS) and below != lead and below.startswith(lead)
        label = _LABEL.match(self._lines[start]) if item.markup in (".", ")") else None
        if label and not lead and not unsaid:
            self._keep(start, start + own)
        elif not (unsaid or _CONTENTS.fullmatch(said.strip())):
            self._tell(f"{lead} ({label['label']})" if label and lead else lead, Block(text, whole=True))
        self._paragraph(start + own, end)
        return below

    def _goes_on(self, at: int) -> bool:
        """Whether the line is meant to belong to the item of the line before: indented, or in lower case."""
        return self._lines[at][:1].isspace() or self._lines[at].lstrip(" \t>")[:1].islower()

    def _tell(self, lead: str, block: Block) -> None:
        """An item or a row; the first one has what the sentence before says as its news."""
        if not _says_something(block.text):
            return
        self._end_prose()
        untold = self._untold and bool(self._lead) and lead.startswith(self._lead)
        self._untold = False
        known = self._known if untold else lead
        news = lead.removeprefix(known).removeprefix(": ") if untold else ""
        self._add(replace(block, lead=known, news=news))

    def _introduced(self) -> str:
        """The last sentence of the prose before, where it leads to items: it ends in a colon."""
        start, end = self._prose or (0, 0)
        if start == end or not inline(self._lines[end - 1]).rstrip(" \t*_").endswith(_COLONS):
            if self._headings or self._lead:
                self._end_prose()
            return ""
        first = end - 1
        while first > start and self._lines[first - 1].strip(" \t>"):
            first -= 1
        if self._lines[first][:1].isspace():
            self._end_prose()
            return ""
        self._prose = (start, first)
        self._end_prose()
        block = self._below_heading(inline("\n".join(self._lines[first:end])))
        *others, last = sentences(block.text)
        said = last.rstrip(" :：")
        forms = ("" if others else block.lead, "")
        known = next((one for one in forms if size_of(f"{one} {said}".split()) <= MAX_LEAD_WORDS), None)
        self._lead = ""
        if known is None:
            self._add(block)
            return ""
        if others:
            self._add(replace(block, text="\n\n".join(others)))
        self._known, self._untold, self._unsaid = known, True, None
        self._lead = ": ".join(filter(None, (known, said)))
        return self._lead

    def _table(self, node: SyntaxTreeNode) -> None:
        head, *body = node.children
        names = [inline(content(cell)).rstrip(" :") for cell in head.children[0].children]
        places = [place(line)[0] for part in body for line in part.children]
        rows = [(at, _cells(self._lines[at])) for at in places]
        if not any(len(cells) == len(names) for _, cells in rows):
            self._end_prose()
        lead = self._introduced() or _lead_of(list(self._headings.values()))
        self._fresh = False
        for at, cells in rows:
            if len(cells) == len(names):
                for block in _rows(names, cells, room=MAX_WORDS - size_of(lead.split())):
                    self._tell(lead, block)
            else:
                self._keep(at, at + 1)
        self._end_prose()
        self._lead = ""


def _item_text(item: str) -> str:
    box = _BOX.match(item)
    said = " ".join(inline(item[box.end() :] if box else item).split())
    return _GOES_ON.sub("", said) + (" (done)" if box and box[1] != " " else "")


def heading_text(heading: str) -> str:
    """Without marks, numbering and what ends it."""
    said = re.sub(r"\[([^\[\]\n]*)\]", r"\1", inline(heading).strip())
    numbering = _NUMBERING.match(said)
    return (said[numbering.end() :] if numbering else said).strip(" \t.:?!？؟")


def _lead_of(headings: Sequence[str]) -> str:
    """The last two, or the last alone where they are too long to begin each item with."""
    leads = (" – ".join(headings[-2:]), *headings[-1:])
    return next((lead for lead in leads if size_of(lead.split()) <= MAX_LEAD_WORDS), "")


def _rows(names: Sequence[str], texts: Sequence[str], room: int) -> Iterator[Block]:
    """One row; of one that has no room the cells in several, each of which begins with the first."""
    cells = [Cell(text, name) for name, text in zip(names, texts, strict=True) if _says_something(text)]
    held = cells[:1]
    for cell in cells[1:]:
        if len(held) > 1 and size_of(row([*held, cell]).text.split()) > room:
            yield row(held)
            held = cells[:1]
        held.append(cell)
    if held:
        yield row(held)


def _cells(line: str) -> list[str]:
    """What the bars part."""
    parts = _BAR.split(line.strip(" \t>").removeprefix("|"))
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    return [inline(part.replace(r"\|", "|")).strip() for part in parts]
