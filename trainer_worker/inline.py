"""Marks within lines of Markdown: of code, links, images and emphasis.

By rules of our own, since a text may be no Markdown at all: signs go only where they surely mark something, and neither
`*.md,*.txt` nor `x*y*z` nor `a[0](1)` loses any, all of which CommonMark would read as marks.
"""

import re

from trainer_worker.words import PARTED

_COMMENT = r"<!--(?:(?!<!--)[\s\S])*?-->"
"""None holds the beginning of another: so each search ends where the next one begins."""
_TARGET = r"\((?:<[^<>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:[ \t]+\"[^\"\n]*\")?\)"
_IMAGE = rf"!\[[^\[\]\n]*\]{_TARGET}"
_IN_PARAGRAPH = r"\n(?![ \t]*\n)"
_LINK = (
    rf"(?<!{PARTED})(?<![)\]])\[(?:{_IMAGE}|(?P<link>(?=[^\[\]\n]*\w)(?:[^\[\]\n]|{_IN_PARAGRAPH})+))\]"
    rf"(?:{_TARGET}|(?<=[^\W\d]\])\[[^\[\]\n]*\])"
)
_OPENS = rf"(?<![*\\/])(?<!{PARTED})"
_SAYS = r"(?=[^\s*.,;:)])(?=[^*\n]*\w)"
_GLUED = r"(?<![\s(\[{<,=/])"
"""No emphasis ends after these."""
_CLOSES = rf"(?!\*)(?!{PARTED})"
_UNDERSCORED = (
    r"(?:(?<=[\s(\[\"'“‘*])|^)(?P<ticks>_{1,2})(?=[\w*\"“‘])(?!_)(?P<under>[^_\n]+)(?<=[\w.!?*\"”’])(?P=ticks)"
    r"(?=[\s.,;:!?)\]\"'”’*]|\Z)"
)
_INLINE = re.compile(
    rf"(?<!`)`(?P<code>[^`\n]+)`(?!`)|{_COMMENT}|</?(?:br|kbd|sub|sup|b|i|em|strong|details)[ \t]*/?>|{_IMAGE}|{_LINK}"
    rf"|{_OPENS}\*\*\*{_SAYS}(?P<both>[^*\n]+){_GLUED}\*\*\*{_CLOSES}"
    rf"|{_OPENS}\*\*{_SAYS}(?P<strong>(?:[^*\n]|{_IN_PARAGRAPH}|\*(?!\*))+?){_GLUED}\*\*{_CLOSES}"
    rf"|{_OPENS}\*{_SAYS}(?P<em>[^*\n]+){_GLUED}\*{_CLOSES}"
    rf"|{_UNDERSCORED}",
    re.MULTILINE,
)


def inline(text: str) -> str:
    """Without these marks. Takes time linear in the text's length."""
    return _INLINE.sub(_inner, text)


def _inner(mark: re.Match[str]) -> str:
    if mark["code"]:
        return mark["code"]
    if mark[0].startswith("<br"):
        return " "
    if mark["under"]:
        is_name = mark["ticks"] == "__" and mark["under"].isidentifier() and mark["under"].islower()  # `__init__`
        return mark[0] if is_name else inline(mark["under"])
    return inline(mark["link"] or mark["both"] or mark["strong"] or mark["em"] or "")
