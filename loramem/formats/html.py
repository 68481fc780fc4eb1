"""HTML to lines: block elements become paragraphs, table rows and list items lines.

Scripts, menus, formulas and references to notes are left out.
"""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from loramem.formats import Extract, unreadable
from loramem.formats.encodings import CODECS
from loramem.formats.plain import decode
from loramem.formats.raised import LOWERED, RAISED, RAISED_END, written

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

# fmt: off
_DROPPED = frozenset((
    "script", "style", "noscript", "template", "head", "svg", "math", "iframe", "object", "nav", "select",
    "textarea", "audio", "video", "canvas",
))
_PARAGRAPHS = frozenset((
    "address", "article", "aside", "blockquote", "body", "details", "dialog", "div", "dl", "fieldset", "figcaption",
    "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "main", "ol", "p", "pre",
    "section", "table", "ul",
))
_LINES = frozenset(("caption", "dd", "dt", "legend", "li", "option", "summary"))
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6", "dt", "summary"))
# fmt: on
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_SEVEN_BITS = re.compile(r"utf-?7")
_ESCAPE = b"\x1b"
"""With such a byte, and under such a name, ASCII stands for other letters: all of it would be valid UTF-8."""
_NEAR = 3
"""Elements around a button, in which a heading is looked for."""
_XML = re.compile(r"<\?xml\b|xmlns\s*=\s*[\"']http://www\.w3\.org/1999/xhtml")
_EMPTY = re.compile(
    r"<(title|script|style|iframe|object|audio|video|canvas|textarea|button|select|nav|noscript|template)\b"
    r"((?:[^<>\"']|\"[^<\"]*\"|'[^<']*')*)/>",
    re.IGNORECASE,
)
"""In XML an element without contents; for a browser the beginning of one that holds the rest of the page."""
XML_CHARS = 2048
"""In which a page says that it is XML."""
_SPACE = re.compile(r"[ \t\n\r\f\xa0]+")
_CELL, _ROW, _KEPT, _END = "\x01", "\x02", "\x03", "\x07"
"""Ends of cells and rows, a space inside <pre>, and the end of a line unless it ends anyway; no text holds them."""
_OPENED = {"br": "\n", "sup": RAISED, "sub": LOWERED, **dict.fromkeys(_LINES, "\n")}
_CLOSED = {"td": _CELL, "th": _CELL, "tr": _ROW, "sup": RAISED_END, **dict.fromkeys(_LINES, _END)}
_BLANKS = re.compile(" {2,}")
_MARKS = re.compile("[\x01-\x07]")
_LINE_END = re.compile(f"\n?{_END}[ {_END}]*\n?")
_NOTE_REFERENCE = re.compile(r"foot-?note\b|(?:note|fn)[-_]?ref|^reference$", re.IGNORECASE)
_NOTE_MARK = re.compile(
    r"\s*[\[(]?(?:(?:note )?\d{1,3}(?:\s?[,\u2013-]\s?\d{1,3})*|[a-z]|[*\u2020\u2021\u00a7]{1,3})[\])]?\s*"
)
_MARK_NODES, _MARK_CHARS = 16, 64


def read(content: bytes, name: str) -> Extract:
    """The encoding is the byte order mark's, else the one that a `meta` element names, else UTF-8."""
    return extract(decode(content, name, _encoding(content, name)))


def extract(html: str) -> Extract:
    """Text and `<title>` of a page; markup that is not well-formed is read as a browser would."""
    from selectolax.lexbor import LexborHTMLParser, SelectolaxError

    if _XML.search(html[:XML_CHARS]):
        html = _EMPTY.sub(r"<\1\2></\1>", html)
    try:
        tree = LexborHTMLParser(html)
    except SelectolaxError as error:  # no markup is wrong for it: what fails is an allocation
        raise MemoryError(str(error)) from None
    title = tree.css_first("head > title")
    text = _layout(written("".join(_pieces(tree.body)))) if tree.body is not None else ""
    return Extract(text, title.text() if title is not None else None)


def _encoding(content: bytes, name: str) -> str:
    """Python's name of it. One that nobody knows (`ansi`, `utf`) does no harm where the page is UTF-8 all the same."""
    found = _CHARSET.search(content[:4096]) if not content.startswith(codecs.BOM_UTF8) else None
    named = found[1].decode().lower() if found else "utf-8"
    if named in CODECS:
        return CODECS[named]
    if _SEVEN_BITS.search(named) or _ESCAPE in content or not _is_utf8(content):
        reason = f"it says that its encoding is {named!r}, which is not read"
        raise unreadable(name, reason, "UTF-8, or another encoding of the WHATWG Encoding Standard, under its name")
    return "utf-8"


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _layout(text: str) -> str:
    """Ends of cells and rows become ` | ` and line ends. Splits, since `\\s*` before a mark would be quadratic."""
    text = _LINE_END.sub("\n", text)
    rows = (row.strip().removesuffix(_CELL) if row.rstrip().endswith(_CELL) else row for row in text.split(_ROW))
    cells = (cell.strip() for cell in "\n".join(rows).split(_CELL))
    lines = (line.strip(" ") for line in " | ".join(cells).split("\n"))
    return _BLANKS.sub(" ", "\n".join(lines)).replace(_KEPT, " ")


def _pieces(body: "LexborNode") -> Iterator[str]:
    preformatted = 0
    for node, entering in _walk(body):
        if node.is_text_node:
            if entering:
                yield _words(node.text_content or "", preformatted > 0)
            continue
        preformatted += (1 if entering else -1) * (node.tag == "pre")
        yield _break(node.tag or "", entering)


def _words(text: str, preformatted: bool) -> str:
    text = _MARKS.sub("", text)
    if preformatted:
        return text.replace("\t", _KEPT * 4).replace(" ", _KEPT)
    return _SPACE.sub(" ", text)


def _break(tag: str, entering: bool) -> str:
    return "\n\n" if tag in _PARAGRAPHS else (_OPENED if entering else _CLOSED).get(tag, "")


def _walk(body: "LexborNode") -> Iterator[tuple["LexborNode", bool]]:
    """Every node when it opens (True) and when it closes; without recursion, since the sender chooses the depth."""
    ancestors: list[LexborNode] = []
    node: LexborNode | None = body
    while node is not None or ancestors:
        if node is None:
            node = ancestors.pop()
            yield node, False
            node = node.next if ancestors else None
        elif _is_dropped(node, ancestors):
            node = node.next
        else:
            yield node, True
            ancestors.append(node)
            node = node.child


def _is_dropped(node: "LexborNode", ancestors: Sequence["LexborNode"]) -> bool:
    """Of buttons those that begin no heading: an accordion has its headings in them."""
    if node.tag == "button":
        return not _begins_heading(node, ancestors)
    return node.tag in _DROPPED or node.is_comment_node or _is_note_reference(node)


def _begins_heading(button: "LexborNode", ancestors: Sequence["LexborNode"]) -> bool:
    for inner, outer in pairwise((button, *reversed(ancestors[-_NEAR:]))):
        if not _is_first(inner):
            return False
        if outer.tag in _HEADINGS:
            return True
    return False


def _is_first(node: "LexborNode") -> bool:
    before = node.prev
    return before is None or (before.prev is None and before.is_text_node and not (before.text_content or "").strip())


def _is_note_reference(node: "LexborNode") -> bool:
    """What is raised and says that it is one, or is nothing but a link to a place; or a link that is nothing else. All
    with the text of a mark alone, so that no words are lost."""
    if node.tag not in ("sup", "a") or not _is_marked(node):
        return False
    if node.tag == "sup":
        return _says_note(node) or _holds_only(node, _is_link_to_place)
    if node.tag != "a" or not _is_link_to_place(node):
        return False
    return _holds_only(node, lambda inner: inner.tag == "sup") or (_says_note(node) and _is_note_mark(node.child))


def _is_marked(node: "LexborNode") -> bool:
    """Whether its text is a mark; looks at no more of it than a mark has."""
    text = ""
    for seen, inner in enumerate(node.traverse(include_text=True)):
        text += (inner.text_content or "") if inner.is_text_node else ""
        if seen > _MARK_NODES or len(text) > _MARK_CHARS:
            return False
    return _NOTE_MARK.fullmatch(" ".join(text.split())) is not None


def _says_note(node: "LexborNode") -> bool:
    values = (node.attributes.get(key) or "" for key in ("class", "role", "epub:type"))
    return any(_NOTE_REFERENCE.search(word) for value in values for word in value.split())


def _is_link_to_place(node: "LexborNode") -> bool:
    return node.tag == "a" and "#" in (node.attributes.get("href") or "")


def _is_note_mark(only: "LexborNode | None") -> bool:
    """The link may also be on words of the text, which are no mark."""
    if only is None or only.next is not None or not only.is_text_node:
        return False
    return _NOTE_MARK.fullmatch(only.text_content or "") is not None


def _holds_only(node: "LexborNode", wanted: Callable[["LexborNode"], bool]) -> bool:
    """At least one that is wanted, and beside it nothing that can be read."""
    found, child = False, node.child
    while child is not None:
        if child.is_text_node:
            if any(char.isalnum() for char in child.text_content or ""):
                return False
        elif wanted(child):
            found = True
        elif not child.is_comment_node:
            return False
        child = child.next
    return found
