"""What no written question asks for yet, and questions for exactly that.

The writer is told what the answer should be. A small one still misses it, so the question's beginning is made from the
statement where its grammar allows (`In which year was the harbour of Orm`): what is left to write is a word or two.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer_worker.asking import Asking
from trainer_worker.cloze import asking as asking_for
from trainer_worker.examples import Example
from trainer_worker.questions import MAX_TOKENS, STOP, Judge, as_question, says_what
from trainer_worker.spans import AnswerSpan
from trainer_worker.statements import Statement
from trainer_worker.words import around, content_words

MOST_GAPS = 60
"""Prompts a round."""
SHOTS = """Write a question that has the answer.

Sentence: Hadle Mill was built by Jon Ask in 1820.
Answer: Jon Ask
Question: Who constructed Hadle Mill?

Sentence: The river Orm is crossed by four stone bridges.
Answer: four stone bridges
Question: How many bridges span the river Orm?

Sentence: Mira Toll's first novel, The Grey Tide, was printed on rice paper.
Answer: rice paper
Question: On what kind of material was Mira Toll's first book published?

Sentence: The Kite Club was founded in Tallow on 4 May 1912.
Answer: 4 May 1912
Question: When did the Kite Club begin?

Sentence: {sentence}
Answer: {answer}
Question:"""
_CLAUSE = re.compile(
    r"((?:(?!(?:and|or|but|that|which|who|where)\b)[^\s,]+ ){1,5}?)(was|is|were|are|can|may|must|will) "
)
_NO_SUBJECT = re.compile(r"(?:in|on|at|by|for|from|with|as|since|after|before|when|while|until|because|if)\b", re.I)
_LOWERED = {"The", "A", "An", "Its", "His", "Her", "Their"}
_AFTER = {
    "because of": (" Why", " Why"),
    "by": (" By whom", " By what"),
    "from": (" From where", " From what"),
    "of": ("", " Of what"),
    "with": (" With whom", " With what"),
    "for": (" For whom", " For what"),
    "as": (" As what", " As what"),
    "into": (" Into what", " Into what"),
    "in": (" Where", " In what"),
    "at": (" Where", " At what"),
    "near": (" Near what", " Near what"),
}
"""Beginnings for names, and for things, by the word before them; none where it does not tell enough."""
_AT = {"which year": "In", "which date": "On", "what time": "At"}
_GENERIC = {
    "date": (" When",),
    "quantity": (" How many", " How much"),
    "name": (" Who", " Which", " What is the name of"),
    "thing": (" What", " What kind of"),
}


@dataclass(frozen=True)
class Gap:
    """A part of a statement that no question asks for; `span` is None where the statement has no part to ask for."""

    statement: Statement
    span: AnswerSpan | None

    def prompt(self, beginning: str) -> str:
        answer = self.span.text if self.span else self.statement.text
        return SHOTS.format(sentence=self.statement.text, answer=answer) + beginning


def gaps(facts: Sequence[Statement], examples: Iterable[Example]) -> list[Gap]:
    """Statements without a written question first; each statement's first gap before any second."""
    written = [example for example in examples if example.kind == "written"]
    about = {example.answer for example in written}
    asked = {(example.answer, example.span) for example in written}
    found: list[tuple[bool, int, Gap]] = []
    for fact in facts:
        spans = [span for span in fact.spans if (fact.text, span.text) not in asked]
        found += [(fact.text in about, turn, Gap(fact, span)) for turn, span in enumerate(spans)]
        if not fact.spans and fact.text not in about:
            found.append((False, 0, Gap(fact, None)))
    return [gap for _, _, gap in sorted(found, key=lambda entry: entry[:2])]


def fill_gaps(
    facts: Sequence[Statement],
    have: Sequence[Example],
    judge: Judge,
    asking: Asking,
    *,
    rounds: int,
    enough: int | None = None,
) -> list[Example]:
    """Questions for the gaps that `have` leaves; a round asks for what the ones before did not get.

    Ends early without gaps, or when `have` and these are `enough` together.
    """
    found: list[Example] = []
    for turn in range(rounds):
        left = gaps(facts, [*have, *found])[:MOST_GAPS]
        if not left or (enough is not None and len(have) + len(found) >= enough):
            break
        starts = [_turn(beginnings(gap), turn) for gap in left]
        prompts = [gap.prompt(start) for gap, start in zip(left, starts, strict=True)]
        asking.plan(len(prompts))
        texts = asking.texts(prompts, max_tokens=MAX_TOKENS, stop=STOP, draw=f"gaps {turn} {len(have)}")
        for gap, start, text in zip(left, starts, texts, strict=True):
            question = as_question(start, text)
            if _asks_for(gap, start, text, judge) and judge.admits(question, gap.statement):
                found.append(_example(question, gap))
    return found


def beginnings(gap: Gap) -> list[str]:
    """Question words that fit the span's kind, the most telling first."""
    if gap.span is None:
        return [" What", " Which"]
    special = _special(gap.statement.text, gap.span)
    clause = clause_of(gap.statement.text, gap.span.text)
    inverted = [special + clause] if special and clause and gap.span.kind != "quantity" else []
    return list(dict.fromkeys([*inverted, *([special] if special else []), *_GENERIC[gap.span.kind]]))


def clause_of(statement: str, without: str = "") -> str:
    """` was the harbour of Orm`, of a statement that begins so; else empty, as where that holds `without`."""
    match = _CLAUSE.match(statement)
    if not match or _NO_SUBJECT.match(statement) or (without and without in match[1]):
        return ""
    first, *others = match[1].split()
    return " ".join(["", match[2], first.lower() if first in _LOWERED else first, *others])


def says(question: str, span: str) -> bool:
    """Whether the question gives its answer away."""
    return re.sub(r"^(?:an?|the)\s+", "", span.casefold()) in question.casefold()


def _special(statement: str, span: AnswerSpan) -> str:
    if span.kind in ("date", "quantity"):
        asked = asking_for(span)
        return f" {_AT[asked]} {asked}" if span.kind == "date" else f" H{asked[1:]}"
    before = around(statement, span.text)[0].casefold().split()
    forms = _AFTER.get(" ".join(before[-2:])) or _AFTER.get(" ".join(before[-1:]))
    return forms[span.kind == "thing"] if forms else ""


def _turn(starts: Sequence[str], turn: int) -> str:
    return starts[turn % len(starts)]


def _asks_for(gap: Gap, start: str, text: str, judge: Judge) -> bool:
    """What was written asks about the statement, whose words in the beginning prove nothing, and hides the answer."""
    if gap.span and says(as_question(start, text), gap.span.text):
        return False
    clause = clause_of(gap.statement.text)
    goes_on = bool(clause) and start.endswith(clause) and bool(content_words(text))
    return (goes_on or says_what(text, gap.statement)) and not judge.strays(text, gap.statement)


def _example(question: str, gap: Gap) -> Example:
    return Example(question, gap.statement.text, "written", gap.span.text if gap.span else "")
