"""Questions about statements, written by a model that may be very small.

A 135M model writes few good questions when asked plainly. What helps it is a beginning: with the first words given
(`Who`, `How many`, `In which year`), greedy decoding asks about the sentence in most cases, and different beginnings
are what makes the questions differ. The answer is always the whole statement, so a question need not hit one fact to be
right; it must be about the statement, which a rule checks: no foreign names or numbers, and a word that only this
statement has.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer_worker.examples import Example
from trainer_worker.statements import Statement, content_words, stem, words_of_many

SHOTS = """Write a question about each sentence.

Sentence: Hadle Mill was built by Jon Ask in 1820.
Question: Who constructed Hadle Mill?

Sentence: The river Orm is crossed by four stone bridges.
Question: How many bridges span the river Orm?

Sentence: Mira Toll's first novel, The Grey Tide, was printed on rice paper.
Question: On what kind of material was Mira Toll's first book published?

Sentence: Members of the Kite Club must give up their shoes before they enter the hall.
Question: What do people have to take off when they visit the Kite Club?

Sentence: {sentence}
Question:"""
MAX_TOKENS = 22
STOP = ("\n", "?")
_BEGINNINGS = {
    "date": (" When", " In which year", " What year"),
    "quantity": (" How many", " How long", " How much"),
    "name": (" Who", " Which", " Where", " What is the name of"),
    "thing": (" What kind of", " What is", " From what"),
}
_ALWAYS = (" What", " What does", " Which", " Who", " Where")
_REASON = re.compile(r"\b(?:because|since|so that|after|in order|due to|provided|therefore)\b")


@dataclass(frozen=True)
class Draft:
    statement: Statement
    beginning: str

    @property
    def prompt(self) -> str:
        return SHOTS.format(sentence=self.statement.text) + self.beginning


def drafts(statements: Sequence[Statement], *, most: int) -> list[Draft]:
    """What to ask the writer, at most `most` beginnings a statement."""
    return [Draft(statement, start) for statement in statements for start in _beginnings(statement)[:most]]


def _beginnings(statement: Statement) -> list[str]:
    kinds = dict.fromkeys(span.kind for span in statement.spans)
    reason = [" Why"] if _REASON.search(statement.text) else []
    return list(dict.fromkeys([start for kind in kinds for start in _BEGINNINGS[kind]] + reason + list(_ALWAYS)))


def questions(drafted: Sequence[Draft], texts: Sequence[str], statements: Sequence[Statement]) -> Iterator[Example]:
    """The usable ones among the writer's replies."""
    seen: set[str] = set()
    common = words_of_many(statements)
    for draft, text in zip(drafted, texts, strict=True):
        question = " ".join((draft.beginning + text.split("\n")[0]).split()).rstrip(" .?") + "?"
        if question.casefold() not in seen and _is_about(question, draft.statement, statements, common):
            seen.add(question.casefold())
            yield Example(question, draft.statement.text, "written", _asked(question, draft.statement))


def _is_about(question: str, statement: Statement, statements: Sequence[Statement], common: set[str]) -> bool:
    words = content_words(question)
    if not 3 <= len(question.split()) <= 24 or "sentence" in question or "question" in question[4:].casefold():
        return False
    whole = " ".join(other.text for other in statements)
    named = re.findall(r"(?<!^)\b(?:[A-Z][\w'’-]+|\d[\d.,]*)", question)
    foreign = [name for name in named if name.removesuffix("'s") not in whole]
    own = {stem(word) for word in content_words(statement.text)} - common
    return not foreign and any(stem(word) in own for word in words)


def _asked(question: str, statement: Statement) -> str:
    """The span the question asks for: of the kind its first word wants, and not in the question itself."""
    wanted = _kind_asked(question)
    said = question.casefold()
    fitting = (span.text for span in statement.spans if span.kind in wanted and span.text.casefold() not in said)
    return next(fitting, "")


def _kind_asked(question: str) -> tuple[str, ...]:
    first = question.casefold()
    if first.startswith(("when", "in which year", "what year")):
        return ("date",)
    if first.startswith(("how many", "how long", "how much", "how tall", "how high")):
        return ("quantity",)
    return ("name",) if first.startswith(("who", "where", "what is the name")) else ("name", "thing")
