"""Plain text and Markdown: decoding, nothing else. Safe in the gateway's own process."""

import codecs
import re

from loramem.formats import Extract, unreadable

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_FENCE = re.compile(r"^(```|~~~).*?(^\1|\Z)", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(\S[^\n]*)$|^(\S[^\n]*)\n(?:=+|-{3,})[ \t]*$", re.MULTILINE)


def decode(content: bytes, name: str, encoding: str = "utf-8") -> str:
    """A byte order mark wins over `encoding`; a byte that does not fit is an error that gives its offset."""
    for mark, marked in _BOMS:
        if content.startswith(mark):
            return _strictly(content, name, marked, skip=len(mark))
    return _strictly(content, name, encoding, skip=0)


def _strictly(content: bytes, name: str, encoding: str, skip: int) -> str:
    try:
        return content[skip:].decode(encoding)
    except UnicodeDecodeError as error:
        reason = f"the byte at offset {error.start + skip} is not valid {encoding.upper()}"
        raise unreadable(name, reason, "UTF-8, or UTF-16 with a byte order mark") from None


def read_text(content: bytes, name: str) -> Extract:
    return Extract(decode(content, name), None)


def read_markdown(content: bytes, name: str) -> Extract:
    """The title is the first heading outside a code fence."""
    text = decode(content, name)
    unified = text.replace("\r\n", "\n")
    found = _HEADING.search(_FENCE.sub("", unified))
    return Extract(text, (found[1] or found[2]).rstrip("# \t") if found else None)
