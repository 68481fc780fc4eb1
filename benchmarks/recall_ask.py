"""One question to the server, and what is noted of the reply."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.answer_scores import scores
from benchmarks.recall_journal import Journal, Line
from benchmarks.recall_methods import ORACLES, Corpus
from benchmarks.recall_plan import Step
from loramem.client import Client, Json, Refused

T = TypeVar("T")

MOST_ROUTED = 8
MOST_NAMED = 64
"""What `POST /query` takes in `top_k` and in `document_ids`."""


@dataclass(frozen=True)
class Learnt:
    """A corpus on the server; `ids` are the server's document ids by key, `lengths` the characters of each by id.
    `others` are those that the router puts first beside the right one, by the question's document and number."""

    client: Client
    ids: dict[str, str]
    lengths: dict[str, int] = field(default_factory=dict)
    others: dict[tuple[str, int], list[str]] = field(default_factory=dict)


def ask_all(corpora: Mapping[Corpus, Learnt], journal: Journal, todo: Sequence[Step], max_tokens: int) -> None:
    for step in bar(todo, "asking"):
        if step.method.name in journal.refused:
            continue
        try:
            journal.add("answer", ask(corpora[step.method.corpus], step, max_tokens))
        except Refused as error:
            if error.status != HTTPStatus.UNPROCESSABLE_ENTITY:
                raise
            journal.add("refused", {"method": step.method.name, "reason": str(error)})  # the others stand


def ask(corpus: Learnt, step: Step, max_tokens: int) -> Line:
    """The answer with its scores and where it is from. One that no document answers has neither."""
    method, asked = step.method, step.asked
    right, named = corpus.ids.get(step.drawn.key, ""), named_documents(corpus, step)
    options = {**method.options} | ({"document_ids": named} if named else {})
    reply = corpus.client.query(asked.prompt, method.mode, **options, max_tokens=max_tokens)
    sources = [one["document_id"] for one in reply["routed"] or reply["context"]]
    found = method.routes and step.answerable
    return {
        "seed": step.seed,
        "document": step.drawn.key,
        "question_number": step.number,
        "method": method.name,
        "level": asked.level,
        "answerable": step.answerable,
        "question": asked.question,
        "references": list(asked.answers),
        "answer": reply["answer"],
        "mode": reply["mode"],
        "choice": reply["choice"],
        "refused": reply["refused"] if method.can_refuse else None,
        "scores": scores(reply["answer"], asked) if step.answerable else {},
        "right_document": right,
        "named": named,
        "routed": [one["document_id"] for one in reply["routed"]],
        "first": sources[:1] == [right] if found else None,
        "inside": right in sources if found else None,
        "cut": was_cut(corpus, reply["context"]) if method.whole_text else None,
        "usage": reply["usage"],
        "timings_ms": reply["timings_ms"],
    }


def was_cut(corpus: Learnt, context: Sequence[Json]) -> bool | None:
    """Whether the prompt lacks the end of a document in it. None where no span and known length tell."""
    ends = [(one["document_id"], one["end"]) for one in context if "end" in one]
    known = [end < corpus.lengths[document] for document, end in ends if document in corpus.lengths]
    return any(known) if known else None


def named_documents(corpus: Learnt, step: Step) -> list[str]:
    """What goes into `document_ids`: nothing, the right document, or with it those that the router puts first."""
    count, question = step.method.oracle, (step.drawn.key, step.number)
    if not count:
        return []
    right = corpus.ids[step.drawn.key]
    if count > 1 and question not in corpus.others:
        corpus.others[question] = other_documents(corpus, step.asked.prompt, right, max(ORACLES.values()) - 1)
    return [right, *corpus.others.get(question, [])[: count - 1]]


def other_documents(corpus: Learnt, question: str, right: str, count: int) -> list[str]:
    """The first `count` in the router's order beside the right one, or as many as there are.

    Only an answer from adapters says what was routed. The cheapest makes one linear sum of them, which trims nothing,
    and says one token; selecting would have each begin an answer. Chunks of the right document, or of one other, may
    take all places: then those of the draw that were not seen are asked for by name.
    """
    found: list[str] = []
    named: dict[str, Any] = {}
    cheap: dict[str, Any] = {"compose": "merge", "merge": {"method": "linear"}, "max_tokens": 1}
    while True:
        routed = corpus.client.query(question, "lora", top_k=MOST_ROUTED, **cheap, **named)["routed"]
        new = {one["document_id"]: None for one in routed if one["document_id"] not in (right, *found)}
        found += new
        unseen = [one for one in corpus.ids.values() if one not in (right, *found)]
        if len(found) >= count or not unseen or (named and not new):
            return found[:count]
        named = {"document_ids": unseen[:MOST_NAMED]}


def bar(steps: Sequence[T], name: str) -> Iterator[T]:
    """A progress bar, where somebody looks on."""
    return iter(tqdm(steps, desc=name, file=sys.stderr, disable=not sys.stderr.isatty(), dynamic_ncols=True))
