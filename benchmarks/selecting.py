"""What selecting among three adapters costs beside an answer from one, where rivals mostly need not begin.

    python -m benchmarks.selecting --json [--smoke] [--url http://127.0.0.1:8000] [--namespace NAME]
                                   [--questions FILE | --dataset squad --documents 20 --questions-per-document 5]
                                   [--concurrency 16] [--rounds 3] [--max-tokens 32] [--seed 0]

The namespace must hold three live adapters or more (`benchmarks.recall --keep` leaves them). In each round the same
questions are asked closed book, so many at once, in three ways in turn: of the first adapter routed, selecting among
three, and of three merged. Each round begins with another way. A number of its own stands before the questions of
each pass, as one that was asked before would find its prompt in the prefix cache, where blocks are short (a GPU's).
Adapters are brought into memory before the first round; merges are not, and `new_merges` counts those of each pass.

The best-routed adapter begins alone unless a rival may still beat it (`server/select.py`). Questions about documents
that the namespace holds are mostly routed so surely that none may: then selecting costs what it costs to be ready for
it, and the ratio says little of three answers at once. `rivals_begun` says how many of two began, the mean of an
answer; `with_rivals` is the share of answers beside which any did.

`ratios` are seconds a question beside those of one adapter, the median over rounds. With `--smoke` three short
documents are learnt for seconds into a fresh namespace and deleted afterwards, and only that all questions were
answered is checked.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import httpx

from benchmarks.circumstances import check, circumstances, served_model
from benchmarks.datasets import DATA_SETS, BadData
from benchmarks.intervals import percentile
from benchmarks.option_types import at_least_one
from benchmarks.passages import follow
from benchmarks.recall_ask import bar
from benchmarks.recall_plan import draw_plan
from benchmarks.recall_smoke import BRIEF, SMOKE_ITEMS, SMOKE_OTHER
from benchmarks.scores import mean
from loramem.client import Client, Refused

CANDIDATES = 3
ONE, SELECTING, MERGING = "one", "selecting among three", "merging three"
WAYS: dict[str, dict[str, Any]] = {
    ONE: {"top_k": 1},
    SELECTING: {"top_k": CANDIDATES, "compose": "select"},
    MERGING: {"top_k": CANDIDATES, "compose": "merge", "merge": {"method": "ties"}},
}
BOUND = 1.5
MOST_AT_ONCE = 100
"""Connections of the client."""
SMOKE_QUESTIONS = 2
"""Of each document."""


@dataclass(frozen=True)
class Answered:
    """One answer; `ms` from the request to the whole reply, as the client sees it; `rivals` that began beside it."""

    ms: float
    adapters: int
    completion_tokens: int
    dropped_tokens: int
    new_merge: bool
    rivals: int = 0


@dataclass(frozen=True)
class Pass:
    """All questions asked once in one way."""

    seconds: float
    answers: Sequence[Answered]

    @property
    def seconds_per_question(self) -> float:
        return self.seconds / len(self.answers)


Round = Mapping[str, Pass]
"""By way."""


def main(arguments: Sequence[str] | None = None, transport: httpx.BaseTransport | None = None) -> int:
    """Exit status 1 when a check fails. The transport stands in for the network in tests."""
    options, questions = _options(arguments)
    model = served_model(options.url, options.api_key, transport)
    with (
        Client(options.url, api_key=options.api_key, namespace=options.namespace, transport=transport) as client,
        smoke_documents(client) if options.smoke else nullcontext(),
    ):
        check_adapters(client, questions[0])
        rounds = measured(client, questions, options.concurrency, options.rounds, options.max_tokens)
    found = figures(rounds)
    settings = {name: getattr(options, name) for name in ("concurrency", "rounds", "max_tokens", "smoke")}
    report = {"settings": settings | {"model": model, "questions": len(questions)}} | found
    report["checks"] = [answered(rounds, len(questions)) if options.smoke else ratio(found)]
    report |= circumstances(_command(options), options.seed)
    print(json.dumps(report) if options.json else json.dumps(found, indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


@contextmanager
def smoke_documents(client: Client) -> Iterator[None]:
    """Three documents, live. Raises `NotLearnt`."""
    documents = []
    try:
        for item in (*SMOKE_ITEMS, SMOKE_OTHER):
            accepted = client.upload(item.text, title=item.title, training=BRIEF)
            documents.append(accepted["document"]["id"])
            follow(client, accepted["job"]["id"])
        yield
    finally:
        for document in documents:
            client.delete(document)


def check_adapters(client: Client, question: str) -> None:
    """Raises `SystemExit` when the namespace has too few adapters to select among."""
    try:
        reply = client.query(question, "lora", **WAYS[MERGING], max_tokens=1)
    except Refused as error:
        raise SystemExit(f"benchmarks.selecting: the namespace cannot be asked: {error}") from error
    count = len(reply["routed"])
    if count < CANDIDATES:
        raise SystemExit(
            f"benchmarks.selecting: the namespace has {count} live adapters, and {CANDIDATES} are needed: upload more "
            "documents, or name another --namespace"
        )


def measured(client: Client, questions: Sequence[str], at_once: int, rounds: int, max_tokens: int) -> list[Round]:
    """Raises `ClientError` when a question is not answered."""
    names = list(WAYS)
    found: list[Round] = []
    turned = [names[number % len(names) :] + names[: number % len(names)] for number in range(rounds)]
    with ThreadPoolExecutor(at_once) as threads:
        ask_all(client, threads, questions, WAYS[SELECTING] | {"max_tokens": 1})
        for order in bar(turned, "rounds"):
            limit = {"max_tokens": max_tokens}
            found.append({name: ask_all(client, threads, unseen(questions), WAYS[name] | limit) for name in order})
    return found


def unseen(questions: Sequence[str]) -> list[str]:
    """With something before them that no question began with."""
    number = uuid4().hex[:6]
    return [f"({number}) {question}" for question in questions]


def ask_all(client: Client, threads: ThreadPoolExecutor, questions: Sequence[str], options: Mapping[str, Any]) -> Pass:
    """As many at once as there are threads."""
    started = time.perf_counter()
    answers = list(threads.map(lambda question: ask(client, question, options), questions))
    return Pass(time.perf_counter() - started, answers)


def ask(client: Client, question: str, options: Mapping[str, Any]) -> Answered:
    started = time.perf_counter()
    reply = client.query(question, "lora", **options)
    ms, usage, merge = (time.perf_counter() - started) * 1000, reply["usage"], reply["merge"]
    new_merge = merge is not None and merge["cache"] == "miss"
    tokens, dropped, routed = usage["completion_tokens"], usage["dropped_tokens"], reply["routed"]
    return Answered(ms, len(routed), tokens, dropped, new_merge, rivals_begun(routed))


def rivals_begun(routed: Sequence[Mapping[str, Any]]) -> int:
    """One candidate always begins. One that said nothing has no `logprob` either and is not counted; dropped tokens
    would not tell, as with drafts a head may have more than four."""
    begun = sum(one.get("logprob") is not None for one in routed)
    return max(0, begun - 1)


def figures(rounds: Sequence[Round]) -> dict[str, Any]:
    """By way, over all rounds; ratios are medians over rounds, each of the passes of one round."""
    ratios = {name: [one[name].seconds_per_question / one[ONE].seconds_per_question for one in rounds] for name in WAYS}
    del ratios[ONE]
    return {
        "ways": {name: _figures([one[name] for one in rounds]) for name in WAYS},
        "ratios": {f"{name} / {ONE}": round(median(values), 3) for name, values in ratios.items()},
        "ratios_by_round": {f"{name} / {ONE}": [round(one, 3) for one in values] for name, values in ratios.items()},
    }


def _figures(passes: Sequence[Pass]) -> dict[str, Any]:
    """Tokens, adapters and rivals are means an answer, `new_merges` are by pass."""
    answers = [answer for one in passes for answer in one.answers]
    ms = [one.ms for one in answers]
    return {
        "questions_per_s": round(median(1 / one.seconds_per_question for one in passes), 3),
        "latency_ms_mean": round(mean(ms), 1),
        "latency_ms_p95": round(percentile(ms, 95), 1),
        "completion_tokens": round(mean([one.completion_tokens for one in answers]), 2),
        "dropped_tokens": round(mean([one.dropped_tokens for one in answers]), 2),
        "adapters": round(mean([one.adapters for one in answers]), 2),
        "rivals_begun": round(mean([one.rivals for one in answers]), 3),
        "with_rivals": round(mean([one.rivals > 0 for one in answers]), 3),
        "new_merges": [sum(answer.new_merge for answer in one.answers) for one in passes],
    }


def ratio(found: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{SELECTING} / {ONE}"
    value = found["ratios"][name]
    return check(name, value, f"<= {BOUND:g}", value <= BOUND)


def answered(rounds: Sequence[Round], questions: int) -> dict[str, Any]:
    """Of a smoke run, whose times say nothing."""
    said = [bool(one.completion_tokens) for round_ in rounds for way in round_.values() for one in way.answers]
    count, wanted = sum(said), len(rounds) * len(WAYS)
    return check("questions answered", count, f"= {wanted * questions}", count == wanted * questions)


def _command(options: argparse.Namespace) -> str:
    """What repeats the run; files by their names, no address, no key."""
    per = f" --questions-per-document {options.questions_per_document}" if options.questions_per_document else ""
    drawn = f"--dataset {options.dataset} --documents {options.documents}{per} --seed {options.seed}"
    drawn += f" --data {options.data.name}" if options.data else ""
    what = "--smoke" if options.smoke else f"--questions {options.questions.name}" if options.questions else drawn
    what += f" --concurrency {options.concurrency} --rounds {options.rounds} --max-tokens {options.max_tokens}"
    return f"python -m benchmarks.selecting --json {what}"


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.smoke:
        options.namespace, options.concurrency, options.rounds = f"selecting-{uuid4().hex[:8]}", 2, 1
    try:
        questions = drawn_questions(options)
    except (BadData, OSError, ValueError) as error:
        parser.error(str(error))
    if len(questions) < options.concurrency:
        parser.error(f"{len(questions)} questions cannot be asked {options.concurrency} at once: give more")
    return options, questions


def drawn_questions(options: argparse.Namespace) -> list[str]:
    """Of a file a line each; else drawn as `benchmarks.recall` draws them, in random order."""
    if options.smoke:
        return [asked.prompt for item in (*SMOKE_ITEMS, SMOKE_OTHER) for asked in item.questions[:SMOKE_QUESTIONS]]
    if options.questions:
        return [line.strip() for line in options.questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    plan = draw_plan(
        options.dataset,
        options.data,
        [options.seed],
        [],
        documents=options.documents,
        questions=options.questions_per_document,
        max_tokens=None,
        max_seconds=None,
    )
    questions = [asked.prompt for drawn in plan.draws[options.seed] for asked in drawn.item.questions]
    return random.Random(options.seed).sample(questions, len(questions))


def add_question_options(parser: argparse.ArgumentParser) -> None:
    """Those that `drawn_questions` reads."""
    add = parser.add_argument
    add("--questions", type=Path, metavar="FILE", help="a question a line; default: drawn from a question set")
    add("--dataset", choices=DATA_SETS, default="squad")
    add("--data", type=Path, metavar="FILE", help="your copy of the question set; default: under LORAMEM_BENCH_DATA")
    add("--documents", type=at_least_one, default=20, help="how many are drawn, of as many as there are")
    add("--questions-per-document", type=at_least_one, metavar="N", help="how many are drawn of each; default: all")
    add("--seed", type=int, default=0, help="of the draw")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.selecting", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000")
    add("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    add("--namespace", help="with three live adapters or more; default: the server's")
    add_question_options(parser)
    add("--concurrency", type=_at_once, default=16, help="questions asked at once")
    add("--rounds", type=at_least_one, default=3)
    add("--max-tokens", type=at_least_one, default=32, help="of an answer")
    add("--smoke", action="store_true", help="three short documents of its own, a few seconds of training")
    add("--json", action="store_true", help="one JSON object as the last line")
    return parser


def _at_once(text: str) -> int:
    number = at_least_one(text)
    if number > MOST_AT_ONCE:
        raise argparse.ArgumentTypeError(f"must be {MOST_AT_ONCE} or less, not {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
