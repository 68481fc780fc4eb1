"""Closed-book answers about SQuAD passages against answers from retrieved text, by a running loramem server.

    python -m benchmarks.squad --json [--smoke] [--url http://127.0.0.1:8000] [--passages 20] [--paper 20] [--harm 15]
                               [--seed 0]

Passages are drawn with the seed, uploaded as text alone into one namespace, and asked all their questions, routed as
any question is, at the server's defaults. Token-F1 is SQuAD's own. With `--paper N` the first N passages are also
learnt by the recipe of "Understanding LoRA as Knowledge Memory" (`benchmarks.paper_recipe`), from the same training
data, for as many seconds as ours took from upload to ready, with its 1000 steps scaled to those that fit: how many were
made, and the last one's loss, is in `paper_training`, by passage. With `--harm N`, N other passages are asked with the
text in the prompt, with and without the adapters of the first five (`benchmarks.harm`). Data is looked for in
LORAMEM_BENCH_DATA, else `shared/data` beside the repository.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.answer_scores import all_worded, worded
from benchmarks.circumstances import check, circumstances, command_of
from benchmarks.harm import ADAPTERS, download, harm
from benchmarks.harm import checks as harm_checks
from benchmarks.paper_recipe import PaperRecipe, Trained
from benchmarks.passages import DATA, Passage, draw, follow, learn, read_passages, unrelated
from benchmarks.recall_smoke import BRIEF
from benchmarks.scores import mean, token_f1
from loramem.client import Client
from loramem.records import Mode

MODES: tuple[Mode, ...] = ("base", "rag", "lora", "hybrid")
OF_RAG = 0.6
OF_PAPER = 1.5
SMOKE_S, SMOKE_QUESTIONS = 2.0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command, every = command_of(parser, options), read_passages(options.data)
    if options.smoke:
        options.passages, options.harm = 1, min(options.harm, 1)
    passages = draw(every, options.passages, options.seed)
    if options.smoke:
        passages = [replace(one, questions=one.questions[:SMOKE_QUESTIONS]) for one in passages]
    limit = BRIEF if options.smoke else {}
    with Client(options.url, api_key=options.api_key, namespace=f"squad-{uuid4().hex[:8]}") as client:
        learnt = [learn(client, passage, limit) for passage in passages]
        answers = {mode: [ask(client, passage, mode) for passage in passages] for mode in MODES}
        print({mode: round(mean_f1(passages, said), 4) for mode, said in answers.items()}, file=sys.stderr)
        seconds = [SMOKE_S if options.smoke else ready for _, ready in learnt]
        theirs, trained = papers(client, passages[: options.paper], seconds, options.seed)
        documents = [document for document, _ in learnt]
        harmed = harm_of(options, every, passages, documents[:ADAPTERS])
        for document in documents:
            client.delete(document)
    report = summary(passages, answers, theirs, [ready for _, ready in learnt], smoke=options.smoke)
    if trained:
        report["paper_training"] = [asdict(one) for one in trained]
    if harmed:
        report["harm"] = harmed
        report["checks"] += [] if options.smoke else harm_checks(harmed)
    report |= circumstances(command, options.seed)
    print(json.dumps(report) if options.json else json.dumps(report["f1"], indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def ask(client: Client, passage: Passage, mode: Mode) -> list[str]:
    return [client.query(item["question"], mode)["answer"] for item in passage.questions]


def papers(
    client: Client, passages: Sequence[Passage], seconds: Sequence[float], seed: int
) -> tuple[list[list[str]], list[Trained]]:
    """Answers after the paper's recipe, and the training of each passage."""
    if not passages:
        return [], []
    recipe, found = PaperRecipe(seed), []
    for passage, limit_s in zip(passages, seconds, strict=False):
        job = client.upload(passage.context, preview=True)["job"]["id"]
        follow(client, job)
        rows = [(one["question"], one["answer"]) for one in client.job(job)["preview"]]
        found.append(recipe.answers(rows, [item["question"] for item in passage.questions], limit_s))
    return [answers for answers, _ in found], [trained for _, trained in found]


def harm_of(
    options: argparse.Namespace, every: Sequence[Passage], passages: Sequence[Passage], documents: Sequence[str]
) -> dict[str, Any] | None:
    """What the adapters of the first documents cost answers about passages that none of them is about."""
    if not options.harm:
        return None
    fresh = [passage for passage in every if passage not in passages]
    others = unrelated(fresh, passages[: len(documents)], options.harm, options.seed)
    return harm(options.url, options.api_key, download(options.url, options.api_key, documents), others, options.seed)


def summary(
    passages: Sequence[Passage],
    answers: dict[Mode, list[list[str]]],
    theirs: list[list[str]],
    ready: Sequence[float],
    *,
    smoke: bool,
) -> dict[str, Any]:
    """Mean token-F1 over all questions; the paper's beside ours on the passages that it learnt. A smoke run promises
    no more than that every answer has a word.
    """
    f1: dict[str, float] = {mode: mean_f1(passages, found) for mode, found in answers.items()}
    if theirs:
        f1 |= {
            "paper": mean_f1(passages, theirs),
            "lora on the paper's": mean_f1(passages, answers["lora"][: len(theirs)]),
        }
    checks = [
        _at_least("lora of rag", f1["lora"], OF_RAG * f1["rag"]),
        check("lora beyond base", round(f1["lora"] - f1["base"], 4), "> 0", f1["lora"] > f1["base"]),
    ]
    if theirs:
        checks.append(_at_least("lora of the paper's recipe", f1["lora on the paper's"], OF_PAPER * f1["paper"]))
    said = [dict(zip(("question", "expected", *MODES), line, strict=True)) for line in _lines(passages, answers)]
    figures = {name: round(value, 4) for name, value in f1.items()}
    seconds = [round(one, 1) for one in ready]
    if smoke:
        texts = [answer for found in answers.values() for given in found for answer in given]
        checks = [all_worded(worded(texts), len(texts))]
    return {"f1": figures, "ready_s": seconds, "answers": said, "checks": checks}


def _lines(passages: Sequence[Passage], answers: dict[Mode, list[list[str]]]) -> list[tuple[str, ...]]:
    return [
        (item["question"], item["answer"], *(answers[mode][place][number] for mode in MODES))
        for place, passage in enumerate(passages)
        for number, item in enumerate(passage.questions)
    ]


def _at_least(name: str, value: float, bound: float) -> dict[str, Any]:
    return check(name, round(value, 4), f">= {bound:.4f}", value >= bound)


def mean_f1(passages: Sequence[Passage], answers: Sequence[Sequence[str]]) -> float:
    return mean(
        [
            token_f1(answer, item["answer"])
            for passage, given in zip(passages, answers, strict=False)
            for item, answer in zip(passage.questions, given, strict=True)
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.squad", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--paper", type=int, default=0, metavar="N", help="learn the first N by the paper's recipe too")
    parser.add_argument("--harm", type=int, default=0, metavar="N", help="ask N other passages beside our adapters")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, and of the paper's training")
    parser.add_argument("--smoke", action="store_true", help="one passage, a few seconds of training")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
