"""The text said again: each statement in other words, and summaries, by the writer.

A small writer changes facts when it rewrites, so nothing is believed: a rewrite must keep every name and number of its
statement and add none, a summary's sentences may hold only names and numbers of the text. What fails is dropped; with
the embedded model that is most of it, which is why these formats are not among the defaults.
"""

import re
from collections.abc import Sequence

from loramem.prompts import Message
from trainer_worker.asking import Asking
from trainer_worker.examples import Example
from trainer_worker.sentences import sentences
from trainer_worker.statements import Statement
from trainer_worker.words import content_words, stem

MAX_TOKENS = 80
SUMMARY_TOKENS = 120
_NAMED = re.compile(r"(?<![.!?] )(?<!^)\b[A-Z][\w'’-]+|\d[\d.,]*\d|\d")
"""Names (not at a sentence's beginning) and numbers."""
WORDINGS = (
    "Say this in other words.",
    "Tell this to a child in simple words.",
    "Begin this sentence with another part of it.",
    "Write this as a note in an encyclopedia.",
)
SUMMARIES = (
    ("Summarise the text about {}.", "Summarise this text in two short sentences.", 3),
    ("What matters most about {}?", "Say in one sentence what matters most in this text.", 1),
    ("Give the main facts about {}.", "Give the main facts of this text in three short sentences.", 3),
    ("Who and what has to do with {}?", "Summarise this text with regard to the people and places in it.", 3),
    ("Which figures and dates are known of {}?", "Summarise this text with regard to its numbers and dates.", 3),
    ("Explain {} to a newcomer.", "Explain this text to a newcomer in a few simple sentences.", 4),
    ("Describe {} in some detail.", "Summarise this text in five sentences.", 5),
    ("What should be remembered about {}?", "Say what a reader should remember of this text.", 3),
)
"""What leads to the summary, what the writer is asked for, and how many sentences are kept at most."""


def rewrites(facts: Sequence[Statement], asking: Asking, passes: int = 1) -> list[Example]:
    """Rows that lead from a statement in other words to the statement itself; the first pass is greedy.

    Each pass asks once for every statement, which the caller has planned.
    """
    found: dict[tuple[str, str], Example] = {}
    for turn in range(passes):
        wording = WORDINGS[turn % len(WORDINGS)]
        prompts = [_rewrite(wording, fact.text) for fact in facts]
        texts = asking.texts(prompts, max_tokens=MAX_TOKENS, draw=f"rewrites {turn}" if turn else "")
        for fact, text in zip(facts, texts, strict=True):
            other = " ".join(text.split())
            if keeps_facts(fact.text, other):
                row = Example(f"Say it as the text does: {other}", fact.text, "rewrite")
                found.setdefault((fact.text, other.casefold()), row)
    return list(found.values())


def summaries(title: str, text: str, asking: Asking, count: int = 1) -> list[Example]:
    """Rows with the sentences of at most `count` different summaries that say nothing new; the first is greedy.

    Asks `count` times, which the caller has planned. Without a title no request can say what it is about, so that only
    the first summary is kept.
    """
    wanted = [SUMMARIES[turn % len(SUMMARIES)] for turn in range(count)]
    prompts = [_summarise(instruction, text) for _, instruction, _ in wanted]
    replies = asking.texts(prompts[:1], max_tokens=SUMMARY_TOKENS)
    replies += asking.texts(prompts[1:], max_tokens=SUMMARY_TOKENS, draw="summaries")
    found: dict[str, Example] = {}
    for (request, _, most), reply in zip(wanted, replies, strict=True):
        kept = " ".join([sentence for sentence in sentences(reply) if adds_nothing(text, sentence)][:most])
        lead = request.format(title) if title else "Summarise the text."
        if kept:
            found.setdefault(kept.casefold(), Example(lead, kept, "summary"))
    return list(found.values())[: None if title else 1]


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


def _rewrite(wording: str, statement: str) -> list[Message]:
    return [{"role": "user", "content": f"{wording} Keep every name and number.\n\n{statement}"}]


def _summarise(instruction: str, text: str) -> list[Message]:
    return [{"role": "user", "content": f"{instruction}\n\n{text}"}]
