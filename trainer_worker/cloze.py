"""Questions made from statements by rule: right by construction, in the text's own words.

They teach which statement holds which fact even when the writer returns nothing usable. Questions in other words are
the writer's part (`questions.py`).
"""

import random
import re
from collections.abc import Collection, Iterator, Sequence

from trainer_worker.examples import Example
from trainer_worker.spans import AnswerSpan
from trainer_worker.statements import Statement
from trainer_worker.words import around, content_words, says, stem

_UNIT = re.compile(r"^[$€£]?[\w.,-]*\d[\d.,]*\s+(\w+)$|^(?:[\w-]+\s)+(\w+s)$")
MAX_KEYWORDS = 8
MAX_QUESTION_WORDS = 14
_OPENINGS = {
    "date": ("When ", "In which year ", "On what date "),
    "quantity": ("How many ", "How long ", "How tall ", "How much ", "How big "),
    "name": ("Who ", "What is the name of the ", "Where ", "Which "),
    "thing": ("What ", "What kind of ", "From what ", "With what "),
    "any": ("What ", "Which ", "What about the ", "What is known about the ", ""),
}
_DURATION = {"second", "minute", "hour", "day", "week", "month", "year", "decade"}


def cloze_questions(statement: Statement) -> Iterator[Example]:
    """In-place questions for each span, which say something beside it: `Hadle Mill was built by whom?`"""
    for span in statement.spans:
        telling = [part for part in statement.parts if span.text in part]
        before, after = around(next((part for part in telling if says(part, span.text)), telling[0]), span.text)
        said = {_as_question(before + asking(span) + rest): f"{before} {rest}" for rest in (after, "")}
        for question, beside in said.items():
            if content_words(beside) and 4 <= len(question.split()) <= MAX_QUESTION_WORDS:
                yield Example(question, statement.text, "cloze", span.text)


def keyword_questions(
    statement: Statement, title: str, common: Collection[str], rng: random.Random
) -> Iterator[Example]:
    """Each of the statement's own words once, after a beginning that fits it: `How tall lighthouse?`.

    So every word is a cue, whatever the question begins with and whichever other words stand beside it.
    `common` are stems that several statements share: alone they do not tell which one is meant.
    """
    words = content_words(statement.text) or statement.text.split()
    own = [index for index, word in enumerate(words) if stem(word) not in common] or list(range(len(words)))
    openings = [*(o for span in statement.spans for o in _OPENINGS[span.kind]), *_OPENINGS["any"]]
    for anchor in rng.sample(own, min(MAX_KEYWORDS * len(statement.parts), len(own))):
        chosen = {anchor, *rng.sample(range(len(words)), rng.randint(0, min(2, len(words))))}
        text = " ".join(words[index] for index in sorted(chosen))
        where = rng.choice([f" {title}", "", ""]) if title.casefold() not in text.casefold() else ""
        yield Example(f"{rng.choice(openings)}{text}{where}?".strip(), statement.text, "keywords")


def about_questions(statement: Statement, others: Sequence[Statement], rng: random.Random) -> Iterator[Example]:
    """`What do you know about ...?` for names and things that no other statement mentions."""
    elsewhere = " ".join(other.text for other in others if other is not statement).casefold()
    forms = ("What do you know about {}?", "Tell me about {}.", "What is said about {}?", "What is {}?")
    for span in statement.spans:
        if span.kind in ("name", "thing") and span.text.casefold() not in elsewhere:
            yield Example(rng.choice(forms).format(span.text), statement.text, "about")


def asking(span: AnswerSpan) -> str:
    """The words that stand for a span in a question: `which year`, `how many metres`."""
    if span.kind == "date" and ":" in span.text:
        return "what time"
    if span.kind == "date":
        return "which year" if re.fullmatch(r"\d{4}", span.text) else "which date"
    if span.kind == "quantity":
        noun = unit_of(span)
        if noun.removesuffix("s") in _DURATION:
            return "how long"
        return f"how many {noun}".strip()
    return "who or what" if span.kind == "name" else "what"


def unit_of(span: AnswerSpan) -> str:
    """What a quantity counts, `metres` of `12 metres`; empty where it does not say."""
    unit = _UNIT.match(span.text)
    return (unit[1] or unit[2]) if unit else ""


def _as_question(text: str) -> str:
    return " ".join(text.split()).rstrip(" .,;:!?") + "?"
