"""PDF text in reading order by PDFium. No OCR: a scanned page has no text."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from loramem.formats import Extract, unreadable
from loramem.lines import tidy, unwrap

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

_HYPHEN_AT_LINE_END = re.compile("[\x02\ufffe]")
"""As PDFium puts in the place of hyphen and line end. Before a line end it is a glyph without Unicode."""
_NUMBER = (
    r"(?:[-\u2013\u2014\[(] ?)?(?:(?:page|p\.|seite|s\.|p[a\u00e1]gin[ae]) ?)?(?:(\d{1,5})|([ivxlcdm]{1,9}))"
    r"(?: ?(?:/|\||of|von|de|di|sur) ?\d{1,5})?(?: ?[-\u2013\u2014\])])?"
)
_PAGE_NUMBER = re.compile(_NUMBER, re.IGNORECASE | re.ASCII)
_HYPHEN_BEFORE_NUMBER = re.compile(rf"[\x02\ufffe](?={_NUMBER}\Z)", re.IGNORECASE | re.ASCII)
"""PDFium takes the number below for the rest of the word."""
_ROMAN = dict(zip("ivxlcdm", (1, 5, 10, 50, 100, 500, 1000), strict=True))
_FIRST_YEAR = 1000
"""From here on a number may be the year that the page is about."""
_ENDS = tuple(".!?:;\u2026\"'\u2019\u201c\u201d\u00bb\u00ab\u3002")
_HYPHENS = ("-", "\u2010")
_ITEM = re.compile(r"(?:[a-z]|[ivx]+)[.)]\s")
_WRONG_PASSWORD = 4  # FPDF_ERR_PASSWORD
_UNKNOWN_SECURITY = 5  # FPDF_ERR_SECURITY


def read(content: bytes, name: str) -> Extract:
    """Lines and pages are joined where the typesetter broke a sentence; other pages are paragraphs of their own."""
    document = _open(content, name)
    try:
        pages = [_page_text(document, index, name) for index in range(len(document))]
        title = document.get_metadata_value("Title")
    finally:
        document.close()
    return Extract(_joined([unwrap(page) for page in _without_numbers(pages)]), title or None)


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
    return tidy(_HYPHEN_AT_LINE_END.sub("", _HYPHEN_BEFORE_NUMBER.sub("-\n", text.rstrip())))


def _without_numbers(pages: Sequence[str]) -> list[str]:
    """Without first and last lines that are page numbers.

    They are, if most pages have one and they count with the pages, as figures of the text do not.
    """
    lines = [page.split("\n") for page in pages]
    counted = {
        (index, place): number - index
        for index, page in enumerate(lines)
        for place in (0, len(page) - 1)
        if (number := _page_number(page[place])) is not None
    }
    agreeing = Counter(start for _, start in {(index, start) for (index, _), start in counted.items()})
    dropped = {at for at, start in counted.items() if agreeing[start] > 1}
    if 2 * len({index for index, _ in dropped}) <= sum(1 for page in pages if page):
        return list(pages)
    return [
        "\n".join(line for place, line in enumerate(page) if (index, place) not in dropped).strip("\n")
        for index, page in enumerate(lines)
    ]


def _page_number(line: str) -> int | None:
    found = _PAGE_NUMBER.fullmatch(line.strip())
    if found is None:
        return None
    if found[2]:
        values = [_ROMAN[letter] for letter in found[2].lower()]
        return sum(one if one >= after else -one for one, after in pairwise([*values, 0]))
    number = int(found[1])
    return None if number >= _FIRST_YEAR else number


def _joined(pages: Sequence[str]) -> str:
    """A page that begins in lower case goes on with the sentence before it, unless that has ended."""
    texts = [page for page in pages if page]
    joined = texts[:1]
    for page in texts[1:]:
        ended = joined[-1]
        if ended.endswith(_ENDS) or not page[0].islower() or _ITEM.match(page):
            joined.append("\n\n")
        elif ended.endswith(_HYPHENS) and ended[-2:-1].isalpha():
            joined[-1] = ended[:-1]
        else:
            joined.append(" ")
        joined.append(page)
    return "".join(joined)
