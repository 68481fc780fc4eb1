"""How to tell which of three adapters knows the answer: by what, and after how many tokens.

    python -m benchmarks.lifts --json [--smoke] [--url http://127.0.0.1:8000] --namespace NAME --dataset paperqa
                               --documents 5 [--questions-per-document 10] [--seed 0]

The documents of a draw must be live in the namespace already (`benchmarks.recall --keep` leaves them). For each
question the adapters of its document and the two that the router puts first among the others answer greedily, one after
another, and every token is scored with the adapter and by the base model alone. From these follows which adapter each
criterion would have chosen after so many tokens, how often it is of the right document, and the token-F1 of what was
chosen. Answers are made here, by the trainer's base model with downloaded adapters. `--smoke` asks two
questions of each of two documents.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.adapters import Adapters, Archive, live_draw
from benchmarks.answer_scores import best, some_worded
from benchmarks.circumstances import check, circumstances, command_of
from benchmarks.datasets import DATA_SETS
from benchmarks.scores import mean, token_f1
from loramem.client import Client
from server.route import TEMPERATURE

if TYPE_CHECKING:
    from trainer_worker.base import Base

CANDIDATES = 3
HEADS = (1, 2, 4, 6, 8, 12, 16, 24)
"""Tokens of each answer that are looked at."""
MAX_NEW_TOKENS = 32
BATCH = 16

Lift = Callable[["Answer", int], float]


@dataclass(frozen=True)
class Answer:
    """What one adapter said, and the log-probability of each token with it and without, in nats; `prior` is the
    router's, up to a constant: its score over the temperature of its weights."""

    text: str
    prior: float
    own: Sequence[float]
    base: Sequence[float]
    f1: float


def _lifts(answer: Answer, head: int) -> list[float]:
    return [own - base for own, base in zip(answer.own[:head], answer.base[:head], strict=True)]


CRITERIA: dict[str, Lift] = {
    "mean lift": lambda answer, head: mean(_lifts(answer, head)),
    "summed lift": lambda answer, head: sum(_lifts(answer, head)),
    "greatest lift": lambda answer, head: max(_lifts(answer, head), default=0.0),
    "mean log-probability": lambda answer, head: mean(answer.own[:head]),
    "router": lambda answer, head: answer.prior,
    "router + mean log-probability": lambda answer, head: answer.prior + mean(answer.own[:head]),
    "router + summed log-probability": lambda answer, head: answer.prior + sum(answer.own[:head]),
    "router + mean lift": lambda answer, head: answer.prior + mean(_lifts(answer, head)),
}


@dataclass
class Asking:
    """A question with the adapters that may answer; `answers` and the router's `scores` by adapter id."""

    question: str
    references: Sequence[str]
    right: set[str]
    others: list[str]
    scores: dict[str, float]
    answers: dict[str, Answer] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = command_of(parser, options)
    if options.smoke:
        options.documents, options.questions_per_document = 2, 2
    with (
        Client(options.url, api_key=options.api_key, namespace=options.namespace) as client,
        Adapters(options.url, options.api_key) as adapters,
    ):
        asked = askings(client, adapters, options)
        archives = {one: adapters.archive(one) for asking in asked for one in (*asking.right, *asking.others)}
    answer_all(_base(), asked, archives)
    report: dict[str, Any] = {"data_set": options.dataset, "questions": len(asked)} | figures(asked)
    report["checks"] = checks(asked)
    report |= circumstances(command, options.seed)
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def _base() -> "Base":
    from loramem.base_model import resolve_base_model
    from loramem.settings import load_settings
    from trainer_worker.base import Base

    return Base(str(resolve_base_model(load_settings()).path))


def askings(client: Client, adapters: Adapters, options: argparse.Namespace) -> list[Asking]:
    found = []
    for drawn, document in live_draw(client, options):
        right = {one["id"] for one in adapters.of(document)}
        for asked in drawn.item.questions:
            reply = client.query(asked.question, "lora", top_k=8, merge={"method": "linear"}, max_tokens=1)
            scores = {one["adapter_id"]: one["score"] for one in reply["routed"]}
            others = [one for one in scores if one not in right]
            found.append(Asking(asked.question, asked.answers, right, others[: CANDIDATES - 1], scores))
    return found


def answer_all(base: "Base", asked: Sequence[Asking], archives: Mapping[str, Archive]) -> None:
    """Fill in `answers`; each adapter is attached once for what it says and once for how sure it is."""
    wanted: dict[str, list[Asking]] = defaultdict(list)
    for asking in asked:
        for adapter_id in (*asking.right, *asking.others):
            wanted[adapter_id].append(asking)
    for adapter_id, some in tqdm(wanted.items(), desc="answering", file=sys.stderr):
        answer_with(base, archives[adapter_id], adapter_id, some)


def answer_with(base: "Base", archive: Archive, adapter_id: str, asked: Sequence[Asking]) -> None:
    from trainer_worker.examine import answer_closed_book
    from trainer_worker.examples import Example

    batches = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
    with base.adapted(archive.adapter()):
        texts = [
            text
            for some in batches
            for text in answer_closed_book(base, [one.question for one in some], max_new_tokens=MAX_NEW_TOKENS)
        ]
        rows = [base.row(Example(one.question, text or ".", "user")) for one, text in zip(asked, texts, strict=True)]
        own = base.surprises(rows)
    without = base.surprises(rows)
    for one, text, row in zip(asked, texts, rows, strict=True):
        f1 = best(token_f1, text, one.references)
        score = one.scores.get(adapter_id, min(one.scores.values()))  # what was not routed at all scores no better
        one.answers[adapter_id] = Answer(text, score / TEMPERATURE, _negated(own[row]), _negated(without[row]), f1)


def _negated(values: Sequence[float]) -> list[float]:
    return [-value for value in values]


def figures(asked: Sequence[Asking]) -> dict[str, Any]:
    """Share of the right document, and token-F1, by criterion and tokens looked at; beside them what is possible.

    `f1_one_adapter_documents` is None where every document has several.
    """
    alone = [max(one.answers[adapter_id].f1 for adapter_id in one.right) for one in asked]
    first = [one.answers[min(one.right)].f1 for one in asked if len(one.right) == 1]
    chosen = {name: {str(head): _outcome(asked, lift, head) for head in HEADS} for name, lift in CRITERIA.items()}
    return {
        "f1_right_document": round(mean(alone), 4),
        "f1_one_adapter_documents": round(mean(first), 4) if first else None,
        "f1_any": round(mean([max(answer.f1 for answer in one.answers.values()) for one in asked]), 4),
        "chosen": chosen,
    }


def checks(asked: Sequence[Asking]) -> list[dict[str, Any]]:
    """Which criterion is best is not promised."""
    missing = sum(len({*one.right, *one.others} - one.answers.keys()) for one in asked)
    said = [answer.text for one in asked for answer in one.answers.values()]
    return [check("adapters that did not answer a question", missing, "= 0", missing == 0), some_worded(said)]


def _outcome(asked: Sequence[Asking], lift: Lift, head: int) -> dict[str, float]:
    winners = [max(one.answers, key=lambda adapter_id: lift(one.answers[adapter_id], head)) for one in asked]
    right = [float(winner in one.right) for one, winner in zip(asked, winners, strict=True)]
    f1 = [one.answers[winner].f1 for one, winner in zip(asked, winners, strict=True)]
    return {"right": round(mean(right), 4), "f1": round(mean(f1), 4)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.lifts", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--dataset", choices=DATA_SETS, default="paperqa")
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--questions-per-document", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two questions of two documents")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
