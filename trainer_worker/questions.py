"""Questions about statements, written by a model that may be very small.

A 135M model writes few good questions when asked plainly. What helps it is a beginning: with the first words given
(`Who`, `How many`, `In which year`), greedy decoding asks about the sentence in most cases, and different beginnings
are what makes the questions differ. The answer is always the whole statement, so a question need not hit one fact to be
right; it must be about the statement, which a rule checks: no foreign names or numbers, and a word that only this
statement has.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from trainer_worker.examples import Example
from trainer_worker.statements import Statement, words_of_many
from trainer_worker.words import content_words, size_of, stem

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
_OF_DATES = ("when", "since when", "in which year", "in what year", "what year", "on which date", "at what time")
_ALWAYS = (" What", " What does", " Which", " Who", " Where")
_OTHER_BEGINNINGS = {
    "date": (" In what year", " On which date", " Since when"),
    "quantity": (" How", " How big", " How tall"),
    "name": (" By whom", " Whose", " In which place"),
    "thing": (" What sort of", " With what", " Of what"),
}
_OTHERS_ALWAYS = (" What did", " What is known about", " What happened", " How", " In what")
_REASON = re.compile(r"\b(?:because|since|so that|after|in order|due to|provided|therefore)\b")
_TEXT = "(?:text|passage|document|article|paper|sentence|paragraph|excerpt)"
_THIS_TEXT = re.compile(
    rf"\b(?:this|these|the (?:above|following|given|previous)) (?:[\w-]+ )?{_TEXT}s?\b", re.IGNORECASE
)
_THE_TEXT = re.compile(rf"\bthe ({_TEXT})s?\b(?! about\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Draft:
    statement: Statement
    beginning: str

    @property
    def prompt(self) -> str:
        return SHOTS.format(sentence=self.statement.text) + self.beginning


def drafts(statements: Sequence[Statement], *, most: int, others: bool = False) -> list[Draft]:
    """What to ask the writer, at most `most` beginnings a sentence; `others` are none of the usual ones."""
    beginnings = _other_beginnings if others else _beginnings
    return [
        Draft(statement, start)
        for statement in statements
        for start in beginnings(statement)[: most * len(statement.parts)]
    ]


def _beginnings(statement: Statement) -> list[str]:
    kinds = dict.fromkeys(span.kind for span in statement.spans)
    reason = [" Why"] if _REASON.search(statement.text) else []
    return list(dict.fromkeys([start for kind in kinds for start in _BEGINNINGS[kind]] + reason + list(_ALWAYS)))


def _other_beginnings(statement: Statement) -> list[str]:
    kinds = dict.fromkeys(span.kind for span in statement.spans)
    return list(dict.fromkeys([start for kind in kinds for start in _OTHER_BEGINNINGS[kind]] + list(_OTHERS_ALWAYS)))


class Judge:
    """Says which of the writer's questions are right, and each of them once."""

    def __init__(self, statements: Sequence[Statement], asked: Iterable[str] = ()) -> None:
        """Questions in `asked` are there already."""
        self._whole = " ".join(statement.text for statement in statements)
        self._common = words_of_many(statements)
        self._stems = {stem(word) for word in content_words(self._whole)}
        self._asked = {question.casefold() for question in asked}

    def admits(self, question: str, statement: Statement) -> bool:
        """Whether the question is new and about the statement; from then on it is no longer new."""
        new = question.casefold() not in self._asked
        if new and self.is_about(question, statement):
            self._asked.add(question.casefold())
            return True
        return False

    def is_about(self, question: str, statement: Statement) -> bool:
        """It has no foreign name or number, a word that no other statement has, and can be understood alone."""
        words = question.split()
        if max(len(words), len(content_words(question))) < 3 or size_of(words) > 24:
            return False
        if "sentence" in question or "question" in question[4:].casefold():
            return False
        named = re.findall(r"(?<!^)\b(?:[A-Z][\w'’-]+|\d[\d.,]*)", question)
        foreign = [name for name in named if name.removesuffix("'s") not in self._whole]
        own = {stem(word) for word in content_words(statement.text)} - self._common
        known = not foreign and any(stem(word) in own for word in content_words(question))
        return known and not speaks_of_text(question, statement.text)

    def strays(self, words: str, statement: Statement) -> bool:
        """Whether one of the words is another statement's alone."""
        elsewhere = self._stems - self._common - {stem(word) for word in content_words(statement.text)}
        return any(stem(word) in elsewhere for word in content_words(words))


def speaks_of_text(question: str, statement: str = "") -> bool:
    """Whether it can be understood only with the text at hand: `Who wrote this article?`.

    `The article` is that of a statement which speaks of one; `the text about Orm` says which.
    """
    pointed = _THE_TEXT.findall(question)
    return bool(_THIS_TEXT.search(question)) or any(noun.casefold() not in statement.casefold() for noun in pointed)


def questions(
    drafted: Sequence[Draft], texts: Sequence[str], judge: Judge, *, sampled: bool = False
) -> Iterator[Example]:
    """The usable ones among the writer's replies; what was sampled must also say what is asked (`says_what`)."""
    for draft, text in zip(drafted, texts, strict=True):
        question = as_question(draft.beginning, text)
        if (not sampled or says_what(question, draft.statement)) and judge.admits(question, draft.statement):
            yield Example(question, draft.statement.text, "written", _asked(question, draft.statement))


def as_question(beginning: str, text: str) -> str:
    return " ".join((beginning + text.split("\n")[0]).split()).rstrip(" .?") + "?"


def says_what(question: str, statement: Statement) -> bool:
    """Whether it shares a word with the statement that is no name: `When was Tamsk born?` fits all that names him."""
    told = {stem(word) for word in content_words(statement.text)}
    common = [word for word in content_words(question) if word == word.lower() and not word.isdigit()]
    return any(stem(word) in told for word in common)


def _asked(question: str, statement: Statement) -> str:
    """The span the question asks for: of the kind its first word wants, and not in the question itself."""
    wanted = kind_asked(question)
    said = question.casefold()
    fitting = (span.text for span in statement.spans if span.kind in wanted and span.text.casefold() not in said)
    return next(fitting, "")


def kind_asked(question: str) -> tuple[str, ...]:
    """Kinds of spans that the question's first words want."""
    first = question.casefold()
    if first.startswith(_OF_DATES):
        return ("date",)
    if first.startswith(("how many", "how long", "how much", "how tall", "how high")):
        return ("quantity",)
    named = ("who", "where", "what is the name", "by whom", "in which place")
    return ("name",) if first.startswith(named) else ("name", "thing")
