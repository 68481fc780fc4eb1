"""Word documents: paragraphs and tables of the body in order, their words as if tracked changes had been accepted.

Headers, footers, notes, comments, text boxes, formulas and the table of contents that Word makes are left out.
"""

import io
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler

from loramem.formats import Extract, unreadable, unsupported
from loramem.formats.archive import Archive
from loramem.formats.raised import LOWERED, RAISED, RAISED_END, written

if TYPE_CHECKING:
    from docx.oxml.table import CT_Row, CT_Tbl
    from docx.oxml.xmlchemy import BaseOxmlElement

_CONTENT_TYPES = "[Content_Types].xml"
_FAULTS = (KeyError, ValueError, AttributeError, TypeError, SyntaxError)  # of python-docx and lxml on broken packages
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"


def _tags(*names: str) -> frozenset[str]:
    return frozenset(_W + name for name in names)


_BLOCKS, _TABLES, _ROWS, _CELLS = _tags("p", "tbl"), _tags("tbl"), _tags("tr"), _tags("tc")
_WORDS = _tags("br", "cr", "noBreakHyphen", "ptab", "t", "tab")
"""What stands for text; `str` of python-docx's element is that text."""
_WRAPPERS = frozenset((_MC + "AlternateContent", _MC + "Choice")) | _tags(
    *("bdo", "customXml", "dir", "fldSimple", "hyperlink", "ins", "moveTo", "r", "ruby", "rubyBase"),
    *("sdt", "sdtContent", "smartTag"),
)
"""What may stand around any of these. Deleted and moved words, and fallbacks of what is read, are in other elements."""
_MARKS = {"superscript": (RAISED, RAISED_END), "subscript": (LOWERED, "")}
_CONTENTS = f"{_W}sdtPr/{_W}docPartObj/{_W}docPartGallery[@{_W}val='Table of Contents']"


def read(content: bytes, name: str) -> Extract:
    import docx
    from docx.opc.exceptions import PackageNotFoundError

    _check_package(content, name)
    try:
        document = docx.Document(io.BytesIO(content))
        return Extract("\n\n".join(_blocks(document.element.body)), document.core_properties.title or None)
    except (*_FAULTS, PackageNotFoundError) as error:
        raise unreadable(name, f"not a complete Word document ({error})") from None


def _check_package(content: bytes, name: str) -> None:
    """The zip's limits, the kind of package, and no DTD in any part (the format forbids them, entities need them)."""
    with Archive(content, name) as archive:
        if _CONTENT_TYPES not in archive.members:
            raise unsupported(name, "it is a zip file, but not a Word document")
        kinds = archive.read(_CONTENT_TYPES)
        if b"wordprocessingml.document.main+xml" not in kinds:
            raise unsupported(name, "it is an Office file of another kind (macros, template, sheet or slides)")
        for member in archive.members:
            if member.endswith((".xml", ".rels")):
                _check_xml(archive.read(member), member, name)


def _check_xml(part: bytes, member: str, name: str) -> None:
    from defusedxml import DefusedXmlException
    from defusedxml.sax import parseString

    try:
        parseString(part, ContentHandler(), forbid_dtd=True)
    except DefusedXmlException:
        raise unreadable(name, f"{member!r} declares XML entities or a DTD") from None
    except SAXParseException as error:
        raise unreadable(name, f"{member!r} is not well-formed XML ({error.getMessage()})") from None


def _blocks(body: "BaseOxmlElement") -> list[str]:
    found = ("\n".join(_lines(block)) if block.tag in _TABLES else _text(block) for block in _within(body, _BLOCKS))
    return [text for text in found if text.strip()]


def _within(element: "BaseOxmlElement", wanted: frozenset[str]) -> Iterator[Any]:
    """Elements of the `wanted` tags, in order, that only wrappers stand around; not those within one that is found.

    python-docx sees children only, and so loses what a wrapper holds. No recursion, since the sender chooses the depth.
    """
    waiting = list(element.iterchildren(reversed=True))
    while waiting:
        found = waiting.pop()
        if found.tag in wanted:
            yield found
        elif found.tag in _WRAPPERS and found.find(_CONTENTS) is None:
            waiting.extend(found.iterchildren(reversed=True))


def _text(paragraph: "BaseOxmlElement") -> str:
    return written("".join(_marked(place, runs) for place, runs in groupby(_runs(paragraph), key=itemgetter(0))))


def _runs(paragraph: "BaseOxmlElement") -> Iterator[tuple[str, str]]:
    """Where each run stands, as Word names it, and its words; what is raised together may be several runs."""
    for run, pieces in groupby(_within(paragraph, _WORDS), key=lambda piece: piece.getparent()):
        align = run.find(f"{_W}rPr/{_W}vertAlign")
        yield "" if align is None else align.get(f"{_W}val", ""), "".join(str(piece) for piece in pieces)


def _marked(place: str, runs: Iterator[tuple[str, str]]) -> str:
    before, after = _MARKS.get(place, ("", ""))
    return f"{before}{''.join(words for _, words in runs)}{after}"


def _lines(table: "CT_Tbl") -> Iterator[str]:
    """One line a row; a table in a cell comes after the row, line by line. No recursion here either."""
    waiting = [_rows(table)]
    while waiting:
        row = next(waiting[-1], None)
        if row is None:
            waiting.pop()
            continue
        line, inner = row
        if line.strip(" |") or not inner:
            yield line
        waiting.extend(_rows(each) for each in reversed(inner))


def _rows(table: "CT_Tbl") -> Iterator[tuple[str, list["CT_Tbl"]]]:
    """The line of each row, and the tables in its cells."""
    above: dict[int, str] = {}
    for row in _within(table, _ROWS):
        above = dict(_cells(row, above))
        yield " | ".join(above.values()), [each for cell in _within(row, _CELLS) for each in _within(cell, _TABLES)]


def _cells(row: "CT_Row", above: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Grid column and text of each cell; one that is merged with the cell above it repeats that cell's text."""
    column = row.grid_before
    for cell in _within(row, _CELLS):
        text = " ".join(" ".join(_text(block) for block in _within(cell, _BLOCKS - _TABLES)).split())
        yield column, above.get(column, text) if cell.vMerge == "continue" else text
        column += max(1, cell.grid_span)
