"""One reader a format, each `read(content, name) -> Extract`. Siblings that know nothing of each other.

They parse what strangers send, so they run in the parser process (`loramem.sandbox`), never in the gateway. Parser
libraries are imported inside the functions that need them: a PDF does not pay for lxml.
"""

from typing import NamedTuple

from loramem.errors import UnreadableDocument, UnsupportedMediaType

ALLOWED = "txt, md, html, pdf, docx, epub"


class Extract(NamedTuple):
    """What a reader found: the text with its paragraphs as lines, and the file's own title if it has one."""

    text: str
    title: str | None


def unreadable(name: str, reason: str, allowed: str = "a file that its own program opens") -> UnreadableDocument:
    """To raise when the type is right and the content is not."""
    return UnreadableDocument(f"{name!r} cannot be read: {reason}", key="file", value=name, allowed=allowed)


def unsupported(name: str, reason: str) -> UnsupportedMediaType:
    """To raise when the type is not one of ours, or not the one its name or declaration says."""
    detail = f"{name!r} is not accepted: {reason}; allowed: {ALLOWED}"
    return UnsupportedMediaType(detail, key="file", value=name, allowed=ALLOWED)
