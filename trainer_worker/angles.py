"""Questions from other sides: what for, which of two, and the same in other words.

Their answers are statements of the text as well, so a wrong question is all that can go wrong; each kind has a rule for
that. Not covered: questions on the order of a text (`What is said first?`), which cannot be understood without it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from trainer_worker.asking import Asking
from trainer_worker.cloze import unit_of
from trainer_worker.examples import Example
from trainer_worker.gaps import clause_of, says
from trainer_worker.questions import STOP, Judge, as_question, kind_asked, says_what
from trainer_worker.statements import Statement
from trainer_worker.words import content_words, stem

MOST = 60
"""Prompts of each kind."""
MAX_TOKENS = 30
USE = """Write a question about the reason or the purpose.

Sentence: The bell of Tallow was melted down because it had cracked.
Question: Why was the bell of Tallow destroyed?

Sentence: The cellar of Hadle Mill is used for drying apples.
Question: For what purpose is the cellar of Hadle Mill kept?

Sentence: {sentence}
Question:"""
COMPARISON = """Write a question that compares the two.

First: The tower of Brae is 40 metres high.
Second: The mast of the Alder is 22 metres high.
Question: Which is higher, the tower of Brae or the mast of the Alder?

First: Hadle Mill was built in 1820.
Second: The Kite Club was founded in 1912.
Question: Which came first, Hadle Mill or the Kite Club?

First: {first}
Second: {second}
Question: Which"""
PARAPHRASE = """Ask the same in other words.

Question: Who built Hadle Mill?
In other words: By whom was Hadle Mill constructed?

Question: When did the Kite Club begin?
In other words: In which year was the Kite Club founded?

Question: What is the novel of Mira Toll printed on?
In other words: On which material does Mira Toll's novel appear?

Question: {question}
In other words:"""
_REASON = re.compile(r",? \b(because of|because|so that|in order to|due to|used for|used to)\b ")
_BEGINNINGS = {"When": " In which year", "In": " When", "Who": " By whom", "By": " Who", "What": " Which"}


@dataclass(frozen=True)
class _Request:
    """`also` is the second statement of a comparison, `question` the one to be said in other words."""

    prompt: str
    beginning: str
    statement: Statement
    also: Statement | None = None
    question: Example | None = None


def angles(
    facts: Sequence[Statement], written: Sequence[Example], judge: Judge, asking: Asking, *, draw: str = ""
) -> list[Example]:
    """Questions on reasons and purposes, comparisons, and other words for `written` ones; greedy without a `draw`."""
    requests = [*_uses(facts)][:MOST] + [*_comparisons(facts)][:MOST] + [*_paraphrases(facts, written)][:MOST]
    asking.plan(len(requests))
    texts = asking.texts([request.prompt for request in requests], max_tokens=MAX_TOKENS, stop=STOP, draw=draw)
    return list(chain.from_iterable(_accepted(*pair, judge) for pair in zip(requests, texts, strict=True)))


def _uses(facts: Sequence[Statement]) -> Iterator[_Request]:
    for fact in facts:
        match = _REASON.search(fact.text)
        if match:
            start = " For what" if match[1].startswith("used") else f" Why{clause_of(fact.text[: match.start() + 1])}"
            yield _Request(USE.format(sentence=fact.text) + start, start, fact)


def _comparisons(facts: Sequence[Statement]) -> Iterator[_Request]:
    """Neighbours among the statements that count the same, or that each tell a date."""
    measured: dict[str, dict[str, Statement]] = {}
    for fact in facts:
        for span in fact.spans:
            unit = span.kind if span.kind == "date" else unit_of(span)
            if unit:
                measured.setdefault(unit, {})[fact.text] = fact
    for same in measured.values():
        for first, second in pairwise(same.values()):
            prompt = COMPARISON.format(first=first.text, second=second.text)
            yield _Request(prompt, " Which", first, also=second)


def _paraphrases(facts: Sequence[Statement], written: Sequence[Example]) -> Iterator[_Request]:
    """Of each statement's first question whose span is known, and which has another beginning."""
    first: dict[str, Example] = {}
    for example in written:
        if example.span and example.question.split()[0] in _BEGINNINGS:
            first.setdefault(example.answer, example)
    for fact in facts:
        if fact.text in first:
            example = first[fact.text]
            start = _BEGINNINGS[example.question.split()[0]]
            yield _Request(PARAPHRASE.format(question=example.question) + start, start, fact, question=example)


def _accepted(request: _Request, text: str, judge: Judge) -> Iterator[Example]:
    question, statement = as_question(request.beginning, text), request.statement
    if not content_words(text):
        return
    if request.also:
        if _compares(question, statement, request.also, judge) and judge.admits(question, statement):
            yield Example(question, f"{statement.text} {request.also.text}", "written")
    elif request.question:
        if (
            _same_asked(question, request.question)
            and says_what(question, statement)
            and judge.admits(question, statement)
        ):
            yield Example(question, statement.text, "written", request.question.span)
    elif _asks_reason(question, statement) and judge.admits(question, statement):
        yield Example(question, statement.text, "written")


def _asks_reason(question: str, statement: Statement) -> bool:
    """It names what has the reason, in words that are no name, and does not give the reason away."""
    effect, _, reason = _REASON.split(statement.text, maxsplit=1)
    told = {stem(word) for word in content_words(effect)}
    given = {stem(word) for word in content_words(reason)} - told
    words = content_words(question)
    return any(stem(word) in told for word in words if word.islower()) and not any(
        stem(word) in given for word in words
    )


def _compares(question: str, first: Statement, second: Statement, judge: Judge) -> bool:
    """It names both by words of their own, as alternatives, and tells neither's figure."""
    spans = [span.text for span in (*first.spans, *second.spans) if span.kind in ("date", "quantity")]
    own = [{stem(word) for word in content_words(statement.text)} for statement in (first, second)]
    words = {stem(word) for word in content_words(question)}
    return (
        " or " in question
        and not any(says(question, span) for span in spans)
        and bool(words & (own[0] - own[1]))
        and bool(words & (own[1] - own[0]))
        and judge.is_about(question, second)
    )


def _same_asked(question: str, example: Example) -> bool:
    """It wants the same kind of answer of the same thing, and does not give it away."""
    shared = {stem(word) for word in content_words(question)} & {stem(word) for word in content_words(example.question)}
    kinds = set(kind_asked(question)) & set(kind_asked(example.question))
    return bool(shared and kinds) and not says(question, example.span)
