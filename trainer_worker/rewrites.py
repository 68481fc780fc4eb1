"""The text said again: each statement in other words, and a summary, by the writer.

A small writer changes facts when it rewrites, so nothing is believed: a rewrite must keep every name and number of its
statement and add none, a summary's sentences may hold only names and numbers of the text. What fails is dropped; with
the embedded model that is most of it, which is why these formats are not among the defaults.
"""

import re
from collections.abc import Callable, Sequence

from loramem.prompts import Message
from trainer_worker.examples import Example
from trainer_worker.statements import Statement, content_words, sentences, stem
from trainer_worker.writer import Writer

MAX_TOKENS = 80
SUMMARY_TOKENS = 120
_NAMED = re.compile(r"(?<![.!?] )(?<!^)\b[A-Z][\w'’-]+|\d[\d.,]*\d|\d")
"""Names (not at a sentence's beginning) and numbers."""


def rewrites(facts: Sequence[Statement], writer: Writer, on_each: Callable[[], None]) -> list[Example]:
    """Rows that lead from a statement in other words to the statement itself."""
    texts = writer.complete([_rewrite(fact.text) for fact in facts], max_tokens=MAX_TOKENS, on_each=on_each)
    said = [" ".join(text.split()) for text in texts]
    return [
        Example(f"Say it as the text does: {other}", fact.text, "rewrite")
        for fact, other in zip(facts, said, strict=True)
        if keeps_facts(fact.text, other)
    ]


def summary(title: str, text: str, writer: Writer, on_each: Callable[[], None]) -> list[Example]:
    """One row with the sentences of a summary that say nothing new; none when all of them do."""
    reply = writer.complete([_summarise(text)], max_tokens=SUMMARY_TOKENS, on_each=on_each)[0]
    kept = [sentence for sentence in sentences(reply) if adds_nothing(text, sentence)]
    lead = f"Summarise the text about {title}." if title else "Summarise the text."
    return [Example(lead, " ".join(kept[:3]), "summary")] if kept else []


def keeps_facts(statement: str, other: str) -> bool:
    """The same names and numbers, and at least one content word that the statement does not have."""
    if not other or len(other.split()) > 2 * len(statement.split()):
        return False
    known = {stem(word) for word in content_words(statement)}
    new = {stem(word) for word in content_words(other)} - known
    return bool(new) and adds_nothing(statement, other) and all(name in other for name in _NAMED.findall(statement))


def adds_nothing(text: str, sentence: str) -> bool:
    """Every name and number of the sentence stands in the text."""
    return bool(sentence.strip()) and all(name in text for name in _NAMED.findall(sentence))


def _rewrite(statement: str) -> list[Message]:
    return [{"role": "user", "content": f"Say this in other words. Keep every name and number.\n\n{statement}"}]


def _summarise(text: str) -> list[Message]:
    return [{"role": "user", "content": f"Summarise this text in two short sentences.\n\n{text}"}]
