"""How near an answer comes to the expected one."""

import re
import string
from collections import Counter


def token_f1(answer: str, expected: str) -> float:
    """SQuAD's: harmonic mean of precision and recall of words, without case, punctuation and articles; 0 to 1."""
    given, wanted = _words(answer), _words(expected)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted)) if shared else float(given == wanted)


def _words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.casefold() if letter not in string.punctuation)
    return re.sub(r"\b(?:a|an|the)\b", " ", plain).split()
