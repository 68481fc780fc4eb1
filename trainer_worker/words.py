"""The words of a text. Which of them carry meaning, and which belong together, is known for English alone."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

MARKS = "".join(chr(code) for code in range(0x300, 0xFE30) if unicodedata.category(chr(code))[0] == "M")
"""Vowel signs, points and accents: `\\w` has none of them, and would cut Hindi and pointed Arabic within words."""
IN_WORD = rf"\w{MARKS}'’-"
_WORD = re.compile(f"[{IN_WORD}]+")
_WITHOUT_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese letters."""
_UNSPACED = re.compile(f"([{_WITHOUT_BLANKS}]+)")
WORD_BYTES = 24
"""A longer word, in UTF-8, counts as several: data and some languages have no blanks between theirs."""
_HANGUL = "\uac00-\ud7a3"
"""Blanks part Korean words, but not a name from the particle after it."""
PARTED = rf"(?![{_WITHOUT_BLANKS}{_HANGUL}])[\w{MARKS}]"
_BORDER = rf"(?:(?<!{PARTED})|(?!{PARTED}))"


def words_of(text: str) -> Iterator[str]:
    """In order; of writing without blanks each two letters, or one that stands alone."""
    for word in _WORD.findall(text):
        for run in filter(None, _UNSPACED.split(word)):
            if _UNSPACED.match(run):
                yield from (run[at : at + 2] for at in range(max(1, len(run) - 1)))
            else:
                yield run


def content_words(text: str) -> list[str]:
    """Words of at least three letters that carry meaning, in order; of writing without blanks each two letters."""
    return [word for word in words_of(text) if _carries_meaning(word)]


def _carries_meaning(word: str) -> bool:
    if _UNSPACED.match(word):
        return len(word) > 1
    return len(word) > 2 and word.casefold() not in STOP_WORDS


def is_worded(text: str) -> bool:
    """Whether it holds a letter or a digit."""
    return any(map(str.isalnum, text))


def size_of(words: Iterable[str]) -> int:
    """How many words they count as: long ones, as of texts without blanks, are several."""
    return sum(map(size_of_word, words))


def size_of_word(word: str) -> int:
    return -(-len(word.encode("utf-8", "replace")) // WORD_BYTES)


def says(text: str, name: str) -> bool:
    """In whole words, as far as the writing parts them: `party` does not say `art`. Two letters have their own case:
    `it` does not say `IT`."""
    if len(name) > 2:
        text, name = text.casefold(), name.casefold()
    return re.search(_BORDER + re.escape(name) + _BORDER, text) is not None


def around(text: str, said: str) -> tuple[str, str]:
    """What is before and after it, where it stands as whole words if it does, which `text` must hold."""
    whole = re.search(_BORDER + re.escape(said) + _BORDER, text)
    start = whole.start() if whole else text.index(said)
    return text[:start], text[start + len(said) :]


def stem(word: str) -> str:
    """The first five letters: enough to tell that two English words belong together."""
    return word.casefold().removesuffix("'s")[:5]


STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the and but for are was were had has have been its his her their they them this that these those with from "
        "into onto over under which who whom whose what when where why how there then than only also not all any "
        "called named known can may must will would should could about after before between because while during "
        "such each every one two other some more most very just him she you your our out off did does done being "
        "upon among until since",
    )
)
