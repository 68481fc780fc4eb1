"""Closed-book answers about SQuAD passages against answers from retrieved text, by a running loramem server.

    python -m benchmarks.squad --json [--smoke] [--url http://127.0.0.1:8000] [--passages 20] [--paper 20] [--seed 0]

Passages are drawn with the seed, uploaded as text alone into one namespace, and asked all their questions, routed as
any question is, at the server's defaults. Token-F1 is SQuAD's own. With `--paper N` the first N passages are also
learnt by the recipe of "Understanding LoRA as Knowledge Memory" (`benchmarks.paper_recipe`), from the same training
data, for as many seconds as ours took from upload to ready. Data is looked for in LORAMEM_BENCH_DATA, else
`shared/data` beside the repository.
"""

import argparse
import json
import os
import random
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.circumstances import check, circumstances
from benchmarks.paper_recipe import PaperRecipe
from loramem.client import Client
from loramem.records import Mode

DATA = Path(__file__).parents[2] / "shared" / "data"
MODES: tuple[Mode, ...] = ("base", "rag", "lora", "hybrid")
OF_RAG = 0.6
OF_PAPER = 1.5
SMOKE_S = 5.0


@dataclass(frozen=True)
class Passage:
    title: str
    context: str
    questions: list[dict[str, str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options = _parser().parse_args(arguments)
    passages = draw(read_passages(options.data), 1 if options.smoke else options.passages, options.seed)
    limit = {"training": {"max_seconds": SMOKE_S}} if options.smoke else {}
    with Client(options.url, api_key=options.api_key, namespace=f"squad-{uuid4().hex[:8]}") as client:
        learnt = [learn(client, passage, limit) for passage in passages]
        answers = {mode: [ask(client, passage, mode) for passage in passages] for mode in MODES}
        theirs = papers(client, passages[: options.paper], [ready for _, ready in learnt], options.seed)
        for document, _ in learnt:
            client.delete(document)
    report = summary(passages, answers, theirs, [ready for _, ready in learnt], smoke=options.smoke)
    command = f"python -m benchmarks.squad --json --passages {len(passages)} --paper {len(theirs)}"
    report |= circumstances(command + (" --smoke" if options.smoke else ""), options.seed)
    print(json.dumps(report) if options.json else json.dumps(report["f1"], indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def read_passages(data: Path) -> list[Passage]:
    """Raises `OSError` when the data is not there."""
    (file,) = sorted((data / "squad11").glob("*.json"))
    return [Passage(one["title"], one["context"], one["questions"]) for one in json.loads(file.read_text())]


def draw(passages: Sequence[Passage], count: int, seed: int) -> list[Passage]:
    return random.Random(seed).sample(list(passages), count)


def learn(client: Client, passage: Passage, options: dict[str, Any]) -> tuple[str, float]:
    """(document id, seconds from upload to ready)"""
    started = time.monotonic()
    accepted = client.upload(passage.context, **options)
    follow(client, accepted["job"]["id"])
    ready_s = time.monotonic() - started
    print(f"{passage.title}: {len(passage.context.split())} words, ready after {ready_s:.0f} s", file=sys.stderr)
    return accepted["document"]["id"], ready_s


def follow(client: Client, job_id: str) -> None:
    states = [event.data.get("state") for event in client.follow(job_id)]
    if "succeeded" not in states:
        raise SystemExit(f"job {job_id} ended otherwise: {client.job(job_id)}")


def ask(client: Client, passage: Passage, mode: Mode) -> list[str]:
    return [client.query(item["question"], mode)["answer"] for item in passage.questions]


def papers(client: Client, passages: Sequence[Passage], seconds: Sequence[float], seed: int) -> list[list[str]]:
    """Answers after the paper's recipe, a training for each passage."""
    if not passages:
        return []
    recipe, answers = PaperRecipe(seed), []
    for passage, limit_s in zip(passages, seconds, strict=False):
        job = client.upload(passage.context, preview=True)["job"]["id"]
        follow(client, job)
        rows = [(one["question"], one["answer"]) for one in client.job(job)["preview"]]
        answers.append(recipe.answers(rows, [item["question"] for item in passage.questions], limit_s))
    return answers


def summary(
    passages: Sequence[Passage],
    answers: dict[Mode, list[list[str]]],
    theirs: list[list[str]],
    ready: Sequence[float],
    *,
    smoke: bool,
) -> dict[str, Any]:
    """Mean token-F1 over all questions; the paper's beside ours on the passages that it learnt."""
    f1: dict[str, float] = {mode: mean_f1(passages, found) for mode, found in answers.items()}
    if theirs:
        f1 |= {
            "paper": mean_f1(passages, theirs),
            "lora on the paper's": mean_f1(passages, answers["lora"][: len(theirs)]),
        }
    checks = [_at_least("lora of rag", f1["lora"], OF_RAG * f1["rag"])]
    if theirs:
        checks.append(_at_least("lora of the paper's recipe", f1["lora on the paper's"], OF_PAPER * f1["paper"]))
    said = [dict(zip(("question", "expected", *MODES), line, strict=True)) for line in _lines(passages, answers)]
    figures = {name: round(value, 4) for name, value in f1.items()}
    seconds = [round(one, 1) for one in ready]
    return {"f1": figures, "ready_s": seconds, "answers": said, "checks": [] if smoke else checks}


def _lines(passages: Sequence[Passage], answers: dict[Mode, list[list[str]]]) -> list[tuple[str, ...]]:
    return [
        (item["question"], item["answer"], *(answers[mode][place][number] for mode in MODES))
        for place, passage in enumerate(passages)
        for number, item in enumerate(passage.questions)
    ]


def _at_least(name: str, value: float, bound: float) -> dict[str, Any]:
    return check(name, round(value, 4), f">= {bound:.4f}", value >= bound)


def mean_f1(passages: Sequence[Passage], answers: Sequence[Sequence[str]]) -> float:
    scores = [
        token_f1(answer, item["answer"])
        for passage, given in zip(passages, answers, strict=False)
        for item, answer in zip(passage.questions, given, strict=True)
    ]
    return sum(scores) / max(1, len(scores))


def token_f1(answer: str, expected: str) -> float:
    """SQuAD's: harmonic mean of precision and recall of words, without case, punctuation and articles; 0 to 1."""
    given, wanted = _words(answer), _words(expected)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted)) if shared else float(given == wanted)


def _words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.casefold() if letter not in string.punctuation)
    return re.sub(r"\b(?:a|an|the)\b", " ", plain).split()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.squad", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LORAMEM_BENCH_DATA") or DATA))
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--paper", type=int, default=0, metavar="N", help="learn the first N by the paper's recipe too")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, and of the paper's training")
    parser.add_argument("--smoke", action="store_true", help="one passage, a few seconds of training")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
