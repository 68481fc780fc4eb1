"""What the model is asked, in training and in serving, so that both sides agree to the letter.

Chat messages only: `chat` applies the base model's template. The wordings were chosen by measurement
(`benchmarks/LOG.md`). Text stands before the question, so that questions share its prefix.
"""

import re
from collections.abc import Sequence

Message = dict[str, str]

CLOSED_BOOK_SYSTEM = "Answer briefly."
"""Short on purpose: without a system message many chat templates put in a long one of their own."""

FROM_TEXT = "Answer the question with one short sentence from the text."

MAX_QUESTION_TOKENS = 1024
MAX_ANSWER_TOKENS = 640
"""Of a pair that is learnt; 2,000 characters have some 500 in English."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[ \t]+(?=[A-Z0-9\"“])")


def closed_book(question: str) -> list[Message]:
    """A question for the weights alone; the trainer's rows use exactly this."""
    return [{"role": "system", "content": CLOSED_BOOK_SYSTEM}, {"role": "user", "content": question}]


def with_passages(question: str, passages: Sequence[str]) -> list[Message]:
    """A question after retrieved `passages`, given in reading order, one to a line (`rag` and `hybrid`)."""
    text = "\n".join(passage.strip() for passage in passages)
    return [{"role": "user", "content": f"{FROM_TEXT}\n\nText:\n{text}\n\nQuestion: {question}\nAnswer:"}]


def with_document(question: str, title: str, text: str) -> list[Message]:
    """A question after a whole document (`icl`), one sentence to a line, as passages are."""
    heading = [title] if title and title.casefold() not in text.casefold() else []
    return with_passages(question, [*heading, *_SENTENCE_END.split(text.strip())])
