"""HTML to lines: block elements become paragraphs, table rows and list items lines; scripts and menus are left out."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from loramem.formats import Extract
from loramem.formats.plain import decode

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

# fmt: off
_DROPPED = frozenset((
    "script", "style", "noscript", "template", "head", "svg", "math", "iframe", "object", "nav", "select", "button",
    "textarea", "audio", "video", "canvas",
))
_PARAGRAPHS = frozenset((
    "address", "article", "aside", "blockquote", "body", "details", "dialog", "div", "dl", "fieldset", "figcaption",
    "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "main", "ol", "p", "pre",
    "section", "table", "ul",
))
_LINES = frozenset(("br", "caption", "dd", "dt", "legend", "li", "option", "summary"))
# fmt: on
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)
_ENCODINGS = re.compile(
    r"utf-?8|us-ascii|iso-8859-\d+|windows-125\d|koi8-[ru]|shift_jis|euc-(jp|kr)|gbk|gb2312|gb18030|big5", re.IGNORECASE
)
_SPACE = re.compile(r"[ \t\n\r\f\xa0]+")
_CELL, _ROW, _KEPT = "\x01", "\x02", "\x03"  # ends of cells and rows, a space inside <pre>; no text holds them
_MARKED = {"td": _CELL, "th": _CELL, "tr": _ROW}
_BLANKS = re.compile(" {2,}")
_MARKS = re.compile("[\x01-\x03]")


def read(content: bytes, name: str) -> Extract:
    """The encoding is the byte order mark's, else the one that a `meta` element names, else UTF-8."""
    return extract(decode(content, name, _encoding(content)))


def extract(html: str) -> Extract:
    """Text and `<title>` of a page; markup that is not well-formed is read as a browser would."""
    from selectolax.lexbor import LexborHTMLParser, SelectolaxError

    try:
        tree = LexborHTMLParser(html)
    except SelectolaxError as error:  # no markup is wrong for it: what fails is an allocation
        raise MemoryError(str(error)) from None
    title = tree.css_first("head > title")
    text = _layout("".join(_pieces(tree.body))) if tree.body is not None else ""
    return Extract(text, title.text() if title is not None else None)


def _encoding(content: bytes) -> str:
    found = _CHARSET.search(content[:4096])
    named = found[1].decode() if found else "utf-8"
    if not _ENCODINGS.fullmatch(named):
        return "utf-8"
    return "windows-1252" if named.lower() in ("iso-8859-1", "us-ascii") else named


def _layout(text: str) -> str:
    """Ends of cells and rows become ` | ` and line ends. Splits, since `\\s*` before a mark would be quadratic."""
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
    if tag in _PARAGRAPHS:
        return "\n\n"
    if tag in _MARKED:
        return "" if entering else _MARKED[tag]
    return "\n" if tag in _LINES and entering else ""


def _walk(body: "LexborNode") -> Iterator[tuple["LexborNode", bool]]:
    """Every node when it opens (True) and when it closes; without recursion, since the sender chooses the depth."""
    ancestors: list[LexborNode] = []
    node: LexborNode | None = body
    while node is not None or ancestors:
        if node is None:
            node = ancestors.pop()
            yield node, False
            node = node.next if ancestors else None
        elif node.tag in _DROPPED or node.is_comment_node:
            node = node.next
        else:
            yield node, True
            ancestors.append(node)
            node = node.child
