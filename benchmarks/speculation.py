"""What drafting answers from what their memory was taught saves: two servers of one memory, one of them without it.

    LORAMEM_SPECULATIVE_TOKENS=0 LORAMEM_HOME=COPY LORAMEM_PORT=8001 loramem serve
    python -m benchmarks.speculation --json --plain http://127.0.0.1:8001 [--url http://127.0.0.1:8000]
                                     [--namespace NAME] [--questions FILE | --dataset squad --documents 20]
                                     [--questions-per-document N] [--max-tokens 64] [--seed 0] [--smoke]

Both servers hold the same memory: stop one, copy its data folder. Each question is put to both, one at a time, every
second one to the plain server first. Of a pair of times the first is the drafting server's; ratios are its times by the
plain one's. `tokens_a_step` is what a step of its engine added to an answer, prefill counted, by the engine's counters.

Greedy answers should be the same; where two tokens are nearly equally likely, rows that are computed together may round
otherwise than one alone. With `--smoke`, documents are learnt for seconds into a namespace of their own; without
`--plain` the server is compared with itself.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any, Self
from uuid import uuid4

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.circumstances import check, circumstances, served_model
from benchmarks.datasets import BadData
from benchmarks.option_types import at_least_one
from benchmarks.recall_ask import bar
from benchmarks.scores import mean
from benchmarks.selecting import add_question_options, check_adapters, drawn_questions, smoke_documents
from loramem.client import Client
from server.ask import STRENGTHS

Json = dict[str, Any]
WAYS: Mapping[str, Json] = {
    "base": {"mode": "base"},
    "one adapter": {"mode": "lora", "top_k": 1},
    "selecting among three": {"mode": "lora", "top_k": 3, "compose": "select"},
    "merging three": {"mode": "lora", "top_k": 3, "compose": "merge", "merge": {"method": "ties"}},
    "rag": {"mode": "rag"},
    "hybrid": {"mode": "hybrid"},
}
SAME = 0.97
"""Least share of answers, as a near tie may be rounded otherwise."""
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
GENERATED = "vllm:generation_tokens_total"
STEPS = ("vllm:time_to_first_token_seconds_count", "vllm:inter_token_latency_seconds_count")
"""Together one for each step of each answer."""


@dataclass(frozen=True)
class Answered:
    """Milliseconds by the server's clock: until the first token, and of all."""

    text: str
    tokens: int
    ttft_ms: float
    total_ms: float


@dataclass(frozen=True)
class Pair:
    """One question in one way, of both servers."""

    drafting: Answered
    plain: Answered


@dataclass(frozen=True)
class Way:
    """All questions asked in one way; `counted`: what the drafting server's engine added up meanwhile, and the tokens
    that the plain one's drafted."""

    pairs: Sequence[Pair]
    counted: Mapping[str, float]
    plain_drafted: float = 0.0


class Server:
    """Asked by its client; its counters are read beside."""

    def __init__(self, url: str, options: argparse.Namespace, transport: httpx.BaseTransport | None) -> None:
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        self.client = Client(url, api_key=options.api_key, namespace=options.namespace, transport=transport)
        self._http = httpx.Client(base_url=url, headers=headers, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()
        self.client.close()

    def ask(self, question: str, asked: Json) -> Answered:
        """Raises `ClientError`."""
        reply = self.client.query(question, **asked)
        times = reply["timings_ms"]
        return Answered(reply["answer"], reply["usage"]["completion_tokens"], times["ttft"], times["total"])

    def counted(self) -> dict[str, float]:
        """By the engine since it started; zero for what a server without drafts does not count."""
        found = dict.fromkeys((ACCEPTED, DRAFTED, GENERATED, *STEPS), 0.0)
        for family in text_string_to_metric_families(self._http.get("/metrics").raise_for_status().text):
            for sample in family.samples:
                if sample.name in found:
                    found[sample.name] += sample.value
        return found


def main(arguments: Sequence[str] | None = None, transport: httpx.BaseTransport | None = None) -> int:
    """Exit status 1 when a check fails. The transport stands in for the network in tests."""
    options, questions = _options(arguments)
    model = served_model(options.url, options.api_key, transport)
    with (
        Server(options.url, options, transport) as drafting,
        Server(options.plain or options.url, options, transport) as plain,
        smoke_documents(drafting.client) if options.smoke else nullcontext(),
    ):
        for server in (drafting, plain):
            check_adapters(server.client, questions[0])
        ways = {
            name: measured(drafting, plain, questions, WAYS[name] | {"max_tokens": options.max_tokens})
            for name in bar(list(WAYS), "ways")
        }
    found = {name: figures(way) for name, way in ways.items()}
    settings: Json = {name: getattr(options, name) for name in ("max_tokens", "smoke")}
    report: Json = {"settings": settings | {"model": model, "questions": len(questions)}, "ways": found}
    report["checks"] = checks(found, len(questions), smoke=options.smoke)
    report |= circumstances(_command(options), options.seed)
    print(json.dumps(report) if options.json else json.dumps(found, indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def measured(drafting: Server, plain: Server, questions: Sequence[str], asked: Json) -> Way:
    """Every question is put once before, closed book, so that adapters and merges are there; a prompt with text would
    be found in the prefix cache then, and a user's first question is not. Raises `ClientError`.
    """
    closed = {name: value for name, value in asked.items() if name in ("top_k", "compose", "merge")}
    closed |= {"merge": {"strength": STRENGTHS["hybrid"]}} if asked["mode"] == "hybrid" else {}
    for question, server in product(questions, (drafting, plain)):
        server.ask(question, closed | {"mode": "lora", "max_tokens": 1})
    before, of_plain_before, pairs = drafting.counted(), plain.counted(), []
    for number, question in enumerate(questions):
        if number % 2:
            of_plain = plain.ask(question, asked)
            of_drafting = drafting.ask(question, asked)
        else:
            of_drafting = drafting.ask(question, asked)
            of_plain = plain.ask(question, asked)
        pairs.append(Pair(of_drafting, of_plain))
    counted = {name: value - before[name] for name, value in drafting.counted().items()}
    return Way(pairs, counted, plain.counted()[DRAFTED] - of_plain_before[DRAFTED])


def figures(way: Way) -> Json:
    """Times are means in milliseconds, of both servers; ratios are of their sums."""
    sides = [one.drafting for one in way.pairs], [one.plain for one in way.pairs]
    totals, firsts = ([sum(map(ms, side)) for side in sides] for ms in (_total_ms, _ttft_ms))
    generated, accepted, drafted = (way.counted[name] for name in (GENERATED, ACCEPTED, DRAFTED))
    steps = sum(way.counted[name] for name in STEPS)
    drafting_after, plain_after = (total - first for total, first in zip(totals, firsts, strict=True))
    return {
        "same_answers": sum(one.drafting.text == one.plain.text for one in way.pairs),
        "tokens": round(mean([one.tokens for one in sides[1]]), 2),
        "tokens_a_step": round(generated / steps, 3) if steps else None,
        "accepted_of_drafted": round(accepted / drafted, 3) if drafted else None,
        "drafted_by_plain": int(way.plain_drafted),
        "ttft_ms": [round(first / len(way.pairs), 1) for first in firsts],
        "total_ms": [round(total / len(way.pairs), 1) for total in totals],
        "total_ratio": round(totals[0] / totals[1], 3),
        "after_first_token_ratio": round(drafting_after / plain_after, 3) if plain_after else None,
    }


def _total_ms(one: Answered) -> float:
    return one.total_ms


def _ttft_ms(one: Answered) -> float:
    return one.ttft_ms


def checks(found: Mapping[str, Json], questions: int, *, smoke: bool = False) -> list[Json]:
    """Whether more was changed than rounding does; how much is saved is not promised. In a smoke run both are one
    server, which drafts."""
    share = round(sum(one["same_answers"] for one in found.values()) / (questions * len(found)), 4)
    said = min(one["tokens"] for one in found.values())
    plain = sum(one["drafted_by_plain"] for one in found.values())
    return [
        check("share of answers that are the same", share, f">= {SAME:g}", share >= SAME),
        check("tokens of an answer", said, "> 0", said > 0),
        *([] if smoke else [check("tokens drafted by the server that is to draft none", plain, "= 0", plain == 0)]),
    ]


def _command(options: argparse.Namespace) -> str:
    """What repeats the run; files by their names, no address, no key."""
    per = f" --questions-per-document {options.questions_per_document}" if options.questions_per_document else ""
    drawn = f"--dataset {options.dataset} --documents {options.documents}{per} --seed {options.seed}"
    drawn += f" --data {options.data.name}" if options.data else ""
    what = "--smoke" if options.smoke else f"--questions {options.questions.name}" if options.questions else drawn
    return f"python -m benchmarks.speculation --json --plain URL {what} --max-tokens {options.max_tokens}"


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.smoke:
        options.namespace = f"speculation-{uuid4().hex[:8]}"
    elif not options.plain:
        parser.error("--plain: the address of a server with LORAMEM_SPECULATIVE_TOKENS=0 and the same memory")
    try:
        return options, drawn_questions(options)
    except (BadData, OSError, ValueError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.speculation", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000")
    add("--plain", metavar="URL", help="a server of the same memory with LORAMEM_SPECULATIVE_TOKENS=0")
    add("--api-key", default=os.environ.get("LORAMEM_API_KEY"), help="of both")
    add("--namespace", help="with three live adapters or more; default: the server's")
    add_question_options(parser)
    add("--max-tokens", type=at_least_one, default=64, help="of an answer")
    add("--smoke", action="store_true", help="three short documents of its own, a few seconds of training")
    add("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
