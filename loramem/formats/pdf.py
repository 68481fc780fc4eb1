"""PDF text in reading order by PDFium. No OCR: a scanned page has no text."""

import re
from typing import TYPE_CHECKING

from loramem.formats import Extract, unreadable
from loramem.lines import tidy, unwrap

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

_HYPHEN_AT_LINE_END = re.compile("[\x02\ufffe]")
"""As PDFium puts in the place of hyphen and line end. Before a line end it is a glyph without Unicode."""
_WRONG_PASSWORD = 4  # FPDF_ERR_PASSWORD
_UNKNOWN_SECURITY = 5  # FPDF_ERR_SECURITY


def read(content: bytes, name: str) -> Extract:
    """Pages are paragraphs of their own; lines that the typesetter broke are joined again."""
    document = _open(content, name)
    try:
        pages = [_page_text(document, index, name) for index in range(len(document))]
        title = document.get_metadata_value("Title")
    finally:
        document.close()
    return Extract("\n\n".join(pages), title or None)


def _open(content: bytes, name: str) -> "PdfDocument":
    from pypdfium2 import PdfDocument, PdfiumError

    try:
        document = PdfDocument(content)
    except PdfiumError as error:
        if error.err_code in (_WRONG_PASSWORD, _UNKNOWN_SECURITY):
            raise unreadable(name, "the PDF is encrypted", "a PDF that opens without a password") from None
        raise unreadable(name, f"the PDF is damaged ({error})") from None
    if len(document) == 0:
        raise unreadable(name, "the PDF has no pages")
    return document


def _page_text(document: "PdfDocument", index: int, name: str) -> str:
    from pypdfium2 import PdfiumError

    try:
        page = document[index]
        text = page.get_textpage().get_text_range()
        page.close()
    except PdfiumError as error:
        raise unreadable(name, f"page {index + 1} of the PDF is damaged ({error})") from None
    return unwrap(tidy(_HYPHEN_AT_LINE_END.sub("", text)))
