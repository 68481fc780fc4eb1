"""Lines and paragraphs of plain text: what every reader's output and every text from outside passes through."""

import re
import unicodedata

from loramem.errors import BodyTooLarge, InvalidValue

_LINE_ENDS = re.compile(r"\r\n?|[\f\v\x85\u2028\u2029]")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060-\u2064\ufeff]")
"""Soft hyphens, and spaces of no width: words that hold them are found by nobody."""
_TRAILING_SPACE = re.compile(r"(?<![ \t\xa0])[ \t\xa0]+$", re.MULTILINE)
_MANY_BLANK_LINES = re.compile(r"\n{3,}")
_BLANK_LINES = re.compile(r"(\n{2,})")
_WRAP = re.compile(r"(?<=[^\n]{40}[^\s.!?:;|])\n(?!\d+[.)])(?=[\"'(\u2018\u201c]?(\w))")
_LOWER_SHARE = 0.25
_HEADING = re.compile(r"^([^\n]{0,99}[^\s.!?:;,|])(\n+)(?=[^\n]{100})", re.MULTILINE)
_COMPOSABLE = re.compile(r".?[\u0300-\U0010ffff]{1,64}(?:[^\w\s]|[\u1160-\u11ff]){0,30}", re.DOTALL)
"""With the marks, and the Korean letters, that may be one with what is before: what follows begins a letter of its own.
Below U+0300 each character is composed."""
_COMPATIBLE = re.compile(r".?[\x80-\U0010ffff]{1,64}(?:[^\w\s]|[\u1160-\u11ff]){0,30}", re.DOTALL)
"""The same for NFKC, which knows other forms of letters below U+0300 too."""
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def check_text(text: str, *, key: str, max_chars: int) -> str:
    """The text itself, or the reason why it cannot be a document.

    Raises `InvalidValue` when it is empty, blank, or holds a character that no database and no UTF-8 reply can carry
    (NUL, half of a surrogate pair), and `BodyTooLarge` when it is longer than `max_chars`.
    """
    if len(text) > max_chars:
        raise too_long(text, key=key, max_chars=max_chars)
    check_storable(text, key=key)
    if not text.strip():
        raise InvalidValue(f"{key} holds no text", key=key, value=text[:80], allowed="text that is not blank")
    return text


def too_long(text: str, *, key: str, max_chars: int) -> BodyTooLarge:
    detail = f"{key} holds {len(text):,} characters, {max_chars:,} are allowed"
    return BodyTooLarge(detail, key=key, value=len(text), allowed=f"at most {max_chars} characters")


def check_storable(text: str, *, key: str) -> str:
    """Refuses (`InvalidValue`) NUL and unpaired surrogates, which JSON can carry and a database cannot."""
    found = _NOT_STORABLE.search(text)
    if found:
        what = f"U+{ord(found[0]):04X}"
        detail = f"{key} holds the character {what} at offset {found.start()}"
        raise InvalidValue(detail, key=key, value=what, allowed="text without NUL and unpaired surrogates")
    return text


def composed(text: str) -> str:
    """Letters one with their accents (NFC), in linear time: of a whole text, a run of marks may take hours."""
    if text.isascii():
        return text
    return _COMPOSABLE.sub(lambda found: unicodedata.normalize("NFC", found[0]), text)


def compatible(text: str) -> str:
    """One form for what reads alike (NFKC), in linear time as well.

    What becomes a mark, as of half-width Japanese, or a Korean letter may begin a piece: so these are composed again.
    """
    if text.isascii():
        return text
    return composed(_COMPATIBLE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text))


def tidy(text: str) -> str:
    """Line ends as newlines, no trailing blanks, at most one empty line in a row, nothing that nobody sees; NFC."""
    text = _TRAILING_SPACE.sub("", _LINE_ENDS.sub("\n", composed(_INVISIBLE.sub("", text))))
    return _MANY_BLANK_LINES.sub("\n\n", text).strip("\n")


def unwrap(text: str) -> str:
    """Line ends inside a sentence become spaces; the length stays the same, so offsets stay valid.

    A line of at least 41 characters that ends without punctuation was wrapped by its typesetter, if the next one
    starts in lower case, or if a quarter of the lines around do. Lists and records, whose lines start with capitals,
    digits or bullets, are left alone.
    """
    return "".join(_unwrap_block(block) for block in _BLANK_LINES.split(text))


def _unwrap_block(block: str) -> str:
    starts = [line[:1].islower() for line in block.split("\n")[1:]]
    is_prose = sum(starts) >= _LOWER_SHARE * len(starts)
    return _WRAP.sub(lambda found: " " if is_prose or found[1].islower() else "\n", block)


def attach_headings(text: str) -> str:
    """A heading is joined by spaces to the long line below it, so that a splitter keeps them together; same length."""
    return _HEADING.sub(lambda found: found[1] + " " * len(found[2]), text)
