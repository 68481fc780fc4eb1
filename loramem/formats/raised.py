"""Raised and lowered characters in plain text: `10^6`, where `106` would be another number.

Readers put marks into their text, and `written` puts signs in the place of the marks. No text holds the marks itself.
"""

import re

RAISED, RAISED_END, LOWERED = "\x04", "\x05", "\x06"
"""Before and after what is raised, and before what is lowered."""
_MIXED_NUMBER = re.compile("(?<=\\d)\x04+(?=\\d{1,3}\x05+[/\u2044]\x06\\d)")
_AFTER_SENTENCE = re.compile("(?<=[^\\d][.,:])\x04+\\s?\\d{1,3}\x05+(?=\\s|$)")
"""A number raised after the end of a sentence or of a part of it is a note's."""
_POWER = re.compile("(?:(?<=[\\w)\\]\x05])|(?<=\\d[.,:]))\x04+\\s?(?=[-+\u00b1\u2013\u2212]?\\d|[nkx]\x05)")
"""Digits, or letters that stand for a number. Others (`st`, `TM`) are read as they stand."""
_MARKS = re.compile("[\x04-\x06]")


def written(text: str) -> str:
    """With `^` before a raised number that would run into what it follows; `5 1/2` where it is a fraction's."""
    return _MARKS.sub("", _POWER.sub("^", _MIXED_NUMBER.sub(" ", _AFTER_SENTENCE.sub("", text))))
