"""Word documents: paragraphs and tables of the body in order. Headers, footers, notes and comments are left out."""

import io
from typing import TYPE_CHECKING
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler

from loramem.formats import Extract, unreadable, unsupported
from loramem.formats.archive import Archive

if TYPE_CHECKING:
    from docx.document import Document
    from docx.table import Table

_CONTENT_TYPES = "[Content_Types].xml"
_FAULTS = (KeyError, ValueError, AttributeError, TypeError, SyntaxError)  # of python-docx and lxml on broken packages


def read(content: bytes, name: str) -> Extract:
    import docx
    from docx.opc.exceptions import PackageNotFoundError

    _check_package(content, name)
    try:
        document = docx.Document(io.BytesIO(content))
        return Extract("\n\n".join(_blocks(document)), document.core_properties.title or None)
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


def _blocks(document: "Document") -> list[str]:
    from docx.table import Table

    found = (_rows(item) if isinstance(item, Table) else item.text for item in document.iter_inner_content())
    return [text for text in found if text.strip()]


def _rows(table: "Table") -> str:
    """One line a row; a merged cell, which python-docx repeats, is written once."""
    lines = []
    for row in table.rows:
        cells = {id(cell._tc): " ".join(cell.text.split()) for cell in row.cells}
        lines.append(" | ".join(cells.values()))
    return "\n".join(lines)
