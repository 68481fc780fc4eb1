"""HTML to lines: block elements become paragraphs, table rows and list items lines.

Scripts, menus and formulas are left out.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from loramem.formats import Extract
from loramem.formats.plain import decode

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
_LINES = frozenset(("br", "caption", "dd", "dt", "legend", "li", "option", "summary"))
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6", "dt", "summary"))
# fmt: on
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)
_ENCODINGS = re.compile(r"utf-?8|iso-8859-\d+|windows-125\d|koi8-[ru]|euc-jp|gb18030|big5", re.IGNORECASE)
_MEANT = {
    **dict.fromkeys(("iso-8859-1", "latin1", "latin-1", "ascii", "us-ascii"), "windows-1252"),
    **dict.fromkeys(("gb2312", "gbk", "gb_2312-80"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis", "windows-31j"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "windows-949"), "cp949"),
    **dict.fromkeys(("windows-874", "tis-620", "iso-8859-11"), "cp874"),
    "iso-8859-8-i": "iso-8859-8",
    "iso-8859-9": "windows-1254",
    "macintosh": "mac_roman",
}
"""Names that pages give, and what browsers read them as."""
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

    if _XML.search(html[:XML_CHARS]):
        html = _EMPTY.sub(r"<\1\2></\1>", html)
    try:
        tree = LexborHTMLParser(html)
    except SelectolaxError as error:  # no markup is wrong for it: what fails is an allocation
        raise MemoryError(str(error)) from None
    title = tree.css_first("head > title")
    text = _layout("".join(_pieces(tree.body))) if tree.body is not None else ""
    return Extract(text, title.text() if title is not None else None)


def _encoding(content: bytes) -> str:
    found = _CHARSET.search(content[:4096])
    named = found[1].decode().lower() if found else "utf-8"
    return _MEANT.get(named) or (named if _ENCODINGS.fullmatch(named) else "utf-8")


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
    return node.tag in _DROPPED or node.is_comment_node


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
