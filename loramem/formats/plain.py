"""Plain text and Markdown: decoding, nothing else. Safe in the gateway's own process."""

import codecs
import re

from loramem.formats import Extract, unreadable

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_FENCE = re.compile(r"^(```|~~~).*?(^\1|\Z)", re.MULTILINE | re.DOTALL)
_KEY, _CLOSED = r"[\w-]+[ \t]*:", r"(?:---|\.\.\.)[ \t]*$"
FRONT_MATTER = re.compile(
    rf"\A---[ \t]*\n(?={_KEY})((?:(?!{_CLOSED}|#[^\n]*\n(?!#|{_KEY}|{_CLOSED}))[^\n]*\n)*+){_CLOSED}(?!\n{_KEY})",
    re.MULTILINE,
)
"""What begins with `#` and is not followed by a key is no comment but a heading: the text has begun. Where keys go on
after the end, it is the first of several records."""
_TITLE = re.compile(r"^title[ \t]*:[ \t]*([^\s>|][^\n]*)$", re.MULTILINE | re.IGNORECASE)
_HEADING = re.compile(
    r"^ {0,3}#{1,6}[ \t]+(\S[^\n]*)$"
    r"|(?:(?<=\n\n)|\A\n?)(?!(?:[-*+]|\d{1,9}[.)])[ \t]|[>|])(?=[^\n]*\w)(\S[^\n]*)\n(?:=+|(?<![.!;,]\n)-{3,})[ \t]*$",
    re.MULTILINE,
)
"""What is underlined is none within a paragraph, or where it is an item, a quotation, a row, a rule or a sentence."""


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
    """The title is the front matter's (YAML), or else the first heading outside a code fence."""
    text = decode(content, name)
    unified = text.replace("\r\n", "\n")
    front = FRONT_MATTER.match(unified)
    named = _TITLE.search(front[1]) if front else None
    title = _unquoted(named[1].strip()) if named else ""
    return Extract(text, title or _first_heading(unified[front.end() :] if front else unified))


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _first_heading(text: str) -> str | None:
    found = _HEADING.search(_FENCE.sub("", text))
    return (found[1] or found[2]).rstrip("# \t") if found else None
