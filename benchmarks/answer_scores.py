"""Scores of an answer against several references, and which option of a multiple-choice question it chose.

The best reference counts. Words are SQuAD's for `em` and `f1` (no case, punctuation, articles), those of
`benchmarks.scores.rouge_l` for `rouge_l`. A question with options has `accuracy` alone. Beside scores, whether answers
say anything at all.
"""

import re
import string
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.circumstances import check
from benchmarks.datasets import LETTERS, Asked
from benchmarks.scores import rouge_l, token_f1

TEXT_METRICS = ("em", "f1", "rouge_l")
CHOICE_METRICS = ("accuracy",)
MIN_PREFIX_WORDS = 3
_FIRST_LETTER = re.compile(r"^\W*(?:([A-J])(?=\s*(?:[).:,\]]|$))|\(([A-Ja-j])\))")
_NAMED_LETTER = re.compile(r"\(([A-J])\)|\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is|:)?\s+\(?([A-J])\b")


def scores(answer: str, asked: Asked) -> dict[str, float]:
    """0 to 1 by metric: those of `CHOICE_METRICS` for a question with options, else those of `TEXT_METRICS`."""
    if asked.options is not None:
        return {"accuracy": float(chosen(answer, asked.options) == asked.gold)}
    metrics = {"em": exact_match, "f1": token_f1, "rouge_l": rouge_l}
    return {name: best(metric, answer, asked.answers) for name, metric in metrics.items()}


def best(metric: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    """Raises `ValueError` without a reference."""
    return max(metric(answer, reference) for reference in references)


def exact_match(answer: str, expected: str) -> float:
    return float(normalised(answer) == normalised(expected))


def normalised(text: str) -> str:
    """As SQuAD's script: lower case, no punctuation, no articles, single spaces."""
    plain = "".join(letter for letter in text.casefold() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", plain).split())


def worded(answers: Sequence[str]) -> int:
    """How many hold a letter or a digit."""
    return sum(any(letter.isalnum() for letter in answer) for answer in answers)


def all_worded(count: int, asked: int) -> dict[str, Any]:
    """Of a run too small to promise more of its answers."""
    return check("answers with a word", count, f"= {asked}", 0 < count == asked)


def some_worded(answers: Sequence[str]) -> dict[str, Any]:
    count = worded(answers)
    return check("answers with a word", count, ">= 1", count >= 1)


def chosen(answer: str, options: Sequence[str]) -> int | None:
    """The option that an answer means, from 0; None when it means none or several. The first rule that finds one:

    1. The answer begins with a letter: `B`, `B.`, `(b)`; a letter that goes on as a sentence (`A man`) is none.
    2. It names exactly one letter, as `(B)` or after `answer`, `option` or `choice`.
    3. Exactly one option's text stands in it. One within another's that stands there too does not count.
    4. It is, from three words on, the beginning of exactly one option: a long one was cut.
    """
    letters = LETTERS[: len(options)]
    begun = _FIRST_LETTER.match(answer.strip())
    if begun is not None and (letter := (begun[1] or begun[2]).upper()) in letters:
        return letters.index(letter)
    named = {one or other for one, other in _NAMED_LETTER.findall(answer)} & set(letters)
    if named:
        return letters.index(named.pop()) if len(named) == 1 else None
    return _by_text(normalised(answer), [normalised(option) for option in options])


def _by_text(said: str, options: Sequence[str]) -> int | None:
    held = [number for number, option in enumerate(options) if option and f" {option} " in f" {said} "]
    outer = [one for one in held if not any(one != other and options[one] in options[other] for other in held)]
    if held:
        return outer[0] if len(outer) == 1 else None
    begun = [number for number, option in enumerate(options) if option.startswith(said)]
    return begun[0] if len(begun) == 1 and len(said.split()) >= MIN_PREFIX_WORDS else None
