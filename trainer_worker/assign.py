"""Give each of a user's question-answer pairs to the chunk that it is about."""

from collections.abc import Sequence

from loramem.records import QAPair
from trainer_worker.words import words_of

_WITHIN_WORDS = str.maketrans("'’-", "   ")


def pairs_of(rows: Sequence[object]) -> list[QAPair]:
    """As a revision's row has them."""
    return [QAPair.model_validate(row) for row in rows]


def assign_pairs(pairs: Sequence[QAPair], chunks: Sequence[str]) -> list[list[QAPair]]:
    """One list per chunk: each pair goes where most of its distinct words occur, to the first chunk among equals."""
    words = [_words(chunk) for chunk in chunks]
    assigned: list[list[QAPair]] = [[] for _ in chunks]
    for pair in pairs:
        wanted = _words(f"{pair.question} {pair.answer}")
        best = max(range(len(chunks)), key=lambda i: (len(wanted & words[i]), -i))
        assigned[best].append(pair)
    return assigned


def _words(text: str) -> set[str]:
    return set(words_of(text.casefold().translate(_WITHIN_WORDS)))
