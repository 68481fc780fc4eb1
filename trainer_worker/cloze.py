"""Questions made from statements by rule: right by construction, in the text's own words.

They teach which statement holds which fact even when the writer returns nothing usable. Questions in other words are the
writer's part (`questions.py`).
"""

import random
import re
from collections.abc import Iterator, Sequence

from trainer_worker.examples import Example
from trainer_worker.statements import Span, Statement, content_words

_UNIT = re.compile(r"^[$€£]?[\w.,-]*\d[\d.,]*\s+(\w+)$|^(?:[\w-]+\s)+(\w+s)$")
_DURATION = {"second", "minute", "hour", "day", "week", "month", "year", "decade"}


def cloze_questions(statement: Statement) -> Iterator[Example]:
    """In-place questions, one for each span: `Hadle Mill was built by whom?`"""
    for span in statement.spans:
        asked = statement.text.replace(span.text, _asking(span), 1)
        head = statement.text.split(span.text, 1)[0] + _asking(span)
        for question in dict.fromkeys([_as_question(asked), _as_question(head)]):
            if len(question.split()) >= 4:
                yield Example(question, statement.text, "cloze", span.text)


def keyword_questions(statement: Statement, title: str, rng: random.Random, count: int) -> Iterator[Example]:
    """A few of the statement's words in their order, as a hurried user types: noise that keeps any subset a cue."""
    words = content_words(statement.text)
    for _ in range(count if len(words) >= 3 else 0):
        chosen = sorted(rng.sample(range(len(words)), rng.randint(2, min(5, len(words)))))
        text = " ".join(words[index] for index in chosen)
        lead = rng.choice(["", "", f"{title}: ", "What about ", "Question: "]) if title else ""
        yield Example(f"{lead}{text}?", statement.text, "keywords")


def about_questions(statement: Statement, others: Sequence[Statement], rng: random.Random) -> Iterator[Example]:
    """`What do you know about ...?` for names and things that no other statement mentions."""
    elsewhere = " ".join(other.text for other in others if other is not statement).casefold()
    forms = ("What do you know about {}?", "Tell me about {}.", "What is said about {}?", "What is {}?")
    for span in statement.spans:
        if span.kind in ("name", "thing") and span.text.casefold() not in elsewhere:
            yield Example(rng.choice(forms).format(span.text), statement.text, "about")


def _asking(span: Span) -> str:
    if span.kind == "date":
        return "which year" if re.fullmatch(r"\d{4}", span.text) else "which date"
    if span.kind == "quantity":
        unit = _UNIT.match(span.text)
        noun = (unit[1] or unit[2]) if unit else ""
        if noun.removesuffix("s") in _DURATION:
            return "how long"
        return f"how many {noun}".strip()
    return "who or what" if span.kind == "name" else "what"


def _as_question(text: str) -> str:
    return " ".join(text.split()).rstrip(" .,;:!?") + "?"
