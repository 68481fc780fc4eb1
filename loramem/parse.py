"""A file's bytes to plain text, its paragraphs and headings kept as lines.

The type is decided by three witnesses: the first bytes, the extension and the declared content type. All that say
something must agree. `parse` trusts nothing but is not a jail: `loramem.sandbox` runs it in a process with limits.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from loramem.errors import InvalidValue
from loramem.formats import Extract, docx, epub, html, pdf, plain, unsupported
from loramem.lines import check_text, composed, tidy

TEXT, MARKDOWN, HTML, PDF = "text/plain", "text/markdown", "text/html", "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
EPUB = "application/epub+zip"
IN_PROCESS = frozenset((TEXT, MARKDOWN))
"""Types that need decoding only, no parser."""
MAX_TITLE_CHARS = 300

_READERS: dict[str, Callable[[bytes, str], Extract]] = {
    TEXT: plain.read_text,
    MARKDOWN: plain.read_markdown,
    HTML: html.read,
    PDF: pdf.read,
    DOCX: docx.read,
    EPUB: epub.read,
}
_EXTENSIONS = {
    **dict.fromkeys(("txt", "text"), TEXT),
    **dict.fromkeys(("md", "markdown"), MARKDOWN),
    **dict.fromkeys(("html", "htm", "xhtml"), HTML),
    "pdf": PDF,
    "docx": DOCX,
    "epub": EPUB,
}
_ALIASES = {"text/x-markdown": MARKDOWN, "application/xhtml+xml": HTML, "application/x-pdf": PDF}
_SILENT = frozenset(("", "application/octet-stream", "binary/octet-stream"))
_ZIP_TYPES = frozenset(("application/zip", "application/x-zip-compressed"))
_SIGNATURES = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a zip file"),
    (b"PK\x05\x06", "an empty zip file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "a gzip file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip file"),
    (b"\x7fELF", "a program"),
    (b"\xd0\xcf\x11\xe0", "an OLE2 file (an old .doc, or a .docx with a password)"),
    (b"{\\rtf", "an RTF document"),
)
_HTML_START = re.compile(rb"\s*<(!doctype\s+html|html[\s>])", re.IGNORECASE)
_PDF_WITHIN = 1024  # readers accept that many bytes of junk before the signature


@dataclass(frozen=True)
class Parsed:
    """A document's text, ready to be stored."""

    text: str
    title: str
    media_type: str


def identify(content: bytes, *, filename: str, content_type: str | None) -> str:
    """The media type on which first bytes, extension and declaration agree; else `UnsupportedMediaType`."""
    name = display_name(filename)
    if not content:
        raise InvalidValue(f"{name!r} is empty", key="file", value=name, allowed="a file that holds text")
    media_type = _agreed(name, _extension(name), _declared(content_type))
    _check_first_bytes(content, name, media_type)
    return media_type


def parse(content: bytes, *, media_type: str, filename: str, max_chars: int) -> Parsed:
    """Reads a file of an identified type.

    Raises `UnreadableDocument` (damaged, encrypted, zip bomb, wrong encoding), `UnsupportedMediaType` (a container of
    another kind), `InvalidValue` (no text, NUL characters) and `BodyTooLarge` (longer than `max_chars`).
    """
    name = display_name(filename)
    extract = _READERS[media_type](content, name)
    text = check_text(tidy(extract.text), key="file", max_chars=max_chars)
    return Parsed(text, _title(extract.title) or _title(_stem(name)) or "untitled", media_type)


def display_name(filename: str) -> str:
    """The last part of a client's file name, fit for messages: no folders, no control characters, at most 200 long."""
    last = re.split(r"[/\\]", filename)[-1].encode(errors="replace").decode()
    return re.sub(r"[\x00-\x1f\x7f]", "", last)[-200:]


def _extension(name: str) -> str | None:
    stem, dot, extension = name.rpartition(".")
    if not dot or not stem:
        return None
    if extension.lower() not in _EXTENSIONS:
        raise unsupported(name, f"files named .{extension} are not read")
    return _EXTENSIONS[extension.lower()]


def _declared(content_type: str | None) -> str | None:
    declared = (content_type or "").partition(";")[0].strip().lower()
    return None if declared in _SILENT else _ALIASES.get(declared, declared)


def _agreed(name: str, named: str | None, declared: str | None) -> str:
    media_type = named or declared
    if media_type is None:
        raise unsupported(name, "neither its name nor its content type says what it is")
    if media_type not in _READERS:
        raise unsupported(name, f"the content type {media_type} is not read")
    if declared in (None, media_type) or {media_type, declared} == {TEXT, MARKDOWN}:
        return media_type
    if declared in _ZIP_TYPES and media_type in (DOCX, EPUB):
        return media_type
    raise unsupported(name, f"its name says {media_type}, its content type says {declared}")


def _check_first_bytes(content: bytes, name: str, media_type: str) -> None:
    found = next((what for signature, what in _SIGNATURES if content.startswith(signature)), None)
    if media_type == PDF:
        matches = b"%PDF-" in content[:_PDF_WITHIN] and found in (None, "a PDF")
    elif media_type in (DOCX, EPUB):
        matches = found == "a zip file"
    else:
        if media_type != HTML and _HTML_START.match(content[:1024]):
            found = "an HTML page"
        matches = found is None
    if not matches:
        raise unsupported(name, f"it should be {media_type}, but it is {found or 'something else'}")


def _stem(name: str) -> str:
    stem, _, extension = name.rpartition(".")
    return stem if extension.lower() in _EXTENSIONS else name


def _title(found: str | None) -> str:
    return re.sub(r"[\x00-\x20\x7f\ud800-\udfff]+", " ", composed(found or "")).strip()[:MAX_TITLE_CHARS].strip()
