"""The blocks of Markdown, as CommonMark has them and GitHub its tables, and the lines that each is made of.

Four blanks make no code here, as texts and lists are indented anyhow. HTML is no block, but a line that begins with a
tag is.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, lheading, list_block
from markdown_it.tree import SyntaxTreeNode

from loramem.formats.plain import FRONT_MATTER

LISTS = ("bullet_list", "ordered_list")
_LINE_END = re.compile(r"\r\n?")
_CLOSES = re.compile(r"[ \t>]*(?:`{3,}|~{3,})[ \t]*")
_OPENS = re.compile(r"[ \t>]*(?:`{3,}|~{3,})[ \t]*[^`~\s][^`]*")
_MOST_PARSES = 5
TAG = r"</?(?:details|summary|div|p|br|hr|img|picture|source|center|section)\b[^<>\n]*>"
_TAGGED = re.compile(TAG)
_DEEPEST = 40
"""Columns; lists that are indented further are not put into the one before."""
_COUNTED = re.compile(r"(?P<before>[ \t>]*)(?P<label>\(?(?:[a-z]|[ivx]{2,4})\)|\(\d{1,3}\))(?= )")
"""Items of contracts and the like: no marks of Markdown, but parsed as numbers."""
_BREAKS_OFF = re.compile(r"(?:[:;,.：；，。]|\b(?:and|or))$")
"""Before such an item; elsewhere `(b)` is a part of a sentence."""
_COMMENT_OF_C = re.compile(r"^[ \t]*/\*(?:(?!/\*)[\s\S])*?\*/[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Parsed:
    """`lines` are the text's, but for what no reader sees, which is empty in them. `comments` are numbers of those
    within comments of C and many others, which look like items."""

    nodes: SyntaxTreeNode
    lines: list[str]
    comments: frozenset[int]


def parse(text: str) -> Parsed:
    """Without front matter, and comments of HTML outside code. Takes time linear in the text's length."""
    lines = FRONT_MATTER.sub("", _LINE_END.sub("\n", text)).split("\n")
    code = _code(lines)
    _hide_comments(lines, code)
    comments = frozenset(_comments_of_c("\n".join(lines)))
    nodes = _parsed(_with_numbers(lines, code))
    for node in list(nodes.walk()):
        node.children = list(_nested(node.children, lines))
    return Parsed(nodes, lines, comments)


def place(node: SyntaxTreeNode) -> tuple[int, int]:
    """First line, and the one after the last."""
    assert node.map is not None
    return node.map


def content(node: SyntaxTreeNode) -> str:
    return str(node.children[0].content) if node.children else ""


def _end_of_paragraph(state: StateBlock, start: int) -> int:
    """An empty line, or one where another block begins, however far it is indented."""
    rules, at = state.md.block.ruler.getRules("paragraph"), start + 1
    kind, state.parentType = state.parentType, "paragraph"
    while at < state.lineMax and not state.isEmpty(at):
        if state.sCount[at] >= 0 and any(rule(state, at, state.lineMax, True) for rule in rules):
            break
        at += 1
    state.parentType = kind
    return at


def _paragraph(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    state.line = _end_of_paragraph(state, start)
    state.push("paragraph_open", "p", 1).map = [start, state.line]
    inner = state.push("inline", "", 0)
    inner.map, inner.children = [start, state.line], []
    inner.content = state.getLines(start, state.line, state.blkIndent, False).strip()
    state.push("paragraph_close", "p", -1)
    return True


def _underlined(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A line and one of signs; the library's rule looks through a whole paragraph, for each of its lines."""
    kind = state.parentType
    found = lheading(state, start, min(start + 2, end), silent)
    state.parentType = kind
    return found


def _tags(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A line that begins with a tag: of no paragraph, and the end of a list; within an item's first line they go."""
    in_item = not silent and bool(state.tokens) and state.tokens[-1].type == "list_item_open"
    if in_item or not _TAGGED.match(state.src, state.bMarks[start] + state.tShift[start], state.eMarks[start]):
        return False
    if not silent:
        state.push("tags", "", 0).map = [start, start + 1]
        state.line = start + 1
    return True


def _list(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Where the indent of the list around it is known, one that is indented much more would be its item's text."""
    around, state.listIndent = state.listIndent, -1
    found = list_block(state, start, end, silent)
    state.listIndent = around
    return found


_PARSER = MarkdownIt("commonmark", {"maxNesting": 100}).enable("table")
_PARSER.disable(["code", "reference", "html_block"])  # what looks like the definition of a link may be a record
_PARSER.core.ruler.enableOnly(["normalize", "block"])
_PARSER.block.ruler.before("list", "tags", _tags, {"alt": ["paragraph", "blockquote", "list"]})
_PARSER.block.ruler.at("lheading", _underlined)
_PARSER.block.ruler.at("paragraph", _paragraph)
_PARSER.block.ruler.at("list", _list, {"alt": ["paragraph", "blockquote"]})


def _parsed(lines: Iterable[str]) -> SyntaxTreeNode:
    return SyntaxTreeNode(_PARSER.parse("\n".join(lines)))


def _code(lines: list[str]) -> set[int]:
    """Lines of code, with its fences. A fence is taken out of `lines` that ends what began before the text: one that
    opens code without saying of what kind, and is not closed, or not before the next one opens."""
    for _ in range(_MOST_PARSES):
        fences = [node for node in _parsed(lines).walk() if node.type == "fence"]
        ends = [node for node in fences if not node.info.strip() and _is_end(lines, *place(node))]
        for node in ends:
            lines[place(node)[0]] = ""
        if not ends:
            return {at for node in fences for at in range(*place(node))}
    return {at for node in _parsed(lines).walk() if node.type == "fence" for at in range(*place(node))}


def _is_end(lines: Sequence[str], start: int, end: int) -> bool:
    is_closed = end - start > 1 and _CLOSES.fullmatch(lines[end - 1])
    return not is_closed or any(_OPENS.fullmatch(line) for line in lines[start + 1 : end])


def _hide_comments(lines: list[str], code: set[int]) -> None:
    """Those that begin a line and are closed before another begins."""
    at = 0
    while at < len(lines):
        end = at
        if at not in code and lines[at].lstrip(" \t>").startswith("<!--"):
            rest = lines[at].split("<!--", 1)[1]
            while "-->" not in rest and "<!--" not in rest and end + 1 < len(lines):
                end += 1
                rest = lines[end]
            if "-->" in rest and "<!--" not in rest.split("-->", 1)[0]:
                lines[at : end + 1] = [""] * (end - at) + [rest.split("-->", 1)[1]]
        at = max(at + 1, end)


def _with_numbers(lines: Sequence[str], code: set[int]) -> Iterator[str]:
    before = ""
    for at, line in enumerate(lines):
        item = _COUNTED.match(line) if at not in code else None
        bare = before.strip(" \t>")
        deeper = len(before) - len(before.lstrip(" \t>")) + 1 < len(item["before"]) if item else False
        if item and (deeper or not bare or _BREAKS_OFF.search(bare) or _COUNTED.match(before)):
            yield f"{item['before']}1){' ' * (len(item['label']) - 2)}{line[item.end() :]}"
        else:
            yield line
        before = line


def _nested(nodes: Sequence[SyntaxTreeNode], lines: Sequence[str]) -> Iterator[SyntaxTreeNode]:
    """A list that is indented more than the one right before it is of that one's last item, however little it is."""
    before: SyntaxTreeNode | None = None
    for node in nodes:
        if before and node.type in LISTS and _indent(before, lines) < _indent(node, lines) <= _DEEPEST:
            before.children[-1].children.append(node)
        else:
            yield node
            before = node if node.type in LISTS else None


def _indent(node: SyntaxTreeNode, lines: Sequence[str]) -> int:
    line = lines[place(node)[0]].expandtabs(4)
    return len(line) - len(line.lstrip(" >"))


def _comments_of_c(text: str) -> Iterator[int]:
    line, counted = 0, 0
    for comment in _COMMENT_OF_C.finditer(text):
        line, counted = line + text.count("\n", counted, comment.start()), comment.start()
        yield from range(line, line + comment[0].count("\n") + 1)
