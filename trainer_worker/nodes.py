"""The blocks of Markdown, as CommonMark has them and GitHub its tables, and the lines that each is made of."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from loramem.formats.plain import FRONT_MATTER

_PARSER = MarkdownIt("commonmark").enable("table").disable(["code", "reference"])
"""Indented lines are prose here, and what looks like a definition of a link may be a record."""
_PARSER.core.ruler.enableOnly(["normalize", "block"])
LISTS = ("bullet_list", "ordered_list")
_LINE_END = re.compile(r"\r\n?|\n")
_LETTERED = re.compile(r"\A(?P<before>[ \t>]*)(?P<label>\(?(?:[a-z]|[ivx]{2,4})\)|\(\d{1,3}\))(?= )")
"""Items of contracts and the like: no marks of Markdown, but read as such."""
_FENCE = re.compile(r"[ \t>]*(?P<ticks>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")
_KEPT = re.compile(r"^[ \t]*/\*(?:(?!/\*)[\s\S])*?\*/[ \t]*$", re.MULTILINE)
"""A comment of C and many others, whose lines look like items."""


@dataclass(frozen=True)
class Parsed:
    """`kept` are numbers of lines that are no Markdown, whatever they look like."""

    nodes: SyntaxTreeNode
    lines: list[str]
    kept: frozenset[int]


def parse(text: str) -> Parsed:
    """Without front matter. Takes time linear in the text's length."""
    lines = _LINE_END.split(FRONT_MATTER.sub("", text))
    shown, source = _prepared(lines)
    nodes = SyntaxTreeNode(_PARSER.parse("\n".join(source)))
    for node in list(nodes.walk()):
        node.children = list(_nested(node.children, shown))
    return Parsed(nodes, shown, frozenset(_lines_kept("\n".join(lines))))


def _prepared(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines, and how they are parsed: outside of code, letters that count items are numbers.

    In both a fence is gone that ends what began before the text: one that opens code without saying which, and is
    not closed, or not before the next one opens.
    """
    shown, source = list(lines), list(lines)
    opened: tuple[int, re.Match[str]] | None = None
    orphans = list[int]()
    for at, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            if opened is None:
                source[at] = _LETTERED.sub(lambda item: f"{item['before']}1){' ' * (len(item['label']) - 2)}", line, 1)
        elif opened is None:
            opened = (at, fence)
        elif not fence["info"] and fence["ticks"].startswith(opened[1]["ticks"]):
            opened = None
        elif fence["info"] and fence["ticks"] == opened[1]["ticks"] and not opened[1]["info"]:
            orphans.append(opened[0])
            opened = (at, fence)
    if opened and not opened[1]["info"]:
        orphans.append(opened[0])
    for at in orphans:
        shown[at] = source[at] = ""
    return shown, source


def _nested(nodes: Sequence[SyntaxTreeNode], lines: Sequence[str]) -> Iterator[SyntaxTreeNode]:
    """A list that is indented more than the one right before it is of that one's last item, however little it is."""
    before: SyntaxTreeNode | None = None
    for node in nodes:
        if before and node.type in LISTS and _indent(node, lines) > _indent(before, lines):
            before.children[-1].children.append(node)
        else:
            yield node
            before = node if node.type in LISTS else None


def _indent(node: SyntaxTreeNode, lines: Sequence[str]) -> int:
    line = lines[place(node)[0]].expandtabs(4)
    return len(line) - len(line.lstrip())


def _lines_kept(text: str) -> Iterator[int]:
    line, counted = 0, 0
    for comment in _KEPT.finditer(text):
        line, counted = line + text.count("\n", counted, comment.start()), comment.start()
        yield from range(line, line + comment[0].count("\n") + 1)


def place(node: SyntaxTreeNode) -> tuple[int, int]:
    """First line, and the one after the last."""
    assert node.map is not None
    return node.map


def content(node: SyntaxTreeNode) -> str:
    return str(node.children[0].content) if node.children else ""
