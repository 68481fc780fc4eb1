"""Texts with questions for benchmarks, and how a running loramem server is made to learn one.

Data is looked for in LORAMEM_BENCH_DATA, else `shared/data` beside the repository.
"""

import errno
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramem.client import Client

DATA = Path(os.environ.get("LORAMEM_BENCH_DATA") or Path(__file__).parents[2] / "shared" / "data")


class NotLearnt(SystemExit):
    """A job ended otherwise than `succeeded`; ends a benchmark that cannot go on without."""


@dataclass(frozen=True)
class Passage:
    title: str
    context: str
    questions: list[dict[str, str]]


def read_passages(data: Path) -> list[Passage]:
    """SQuAD's. Raises `OSError` when the data is not there."""
    folder = data / "squad11"
    file = next(iter(sorted(folder.glob("*.json"))), None)
    if file is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    return [Passage(one["title"], one["context"], one["questions"]) for one in flattened(json.loads(file.read_text()))]


def flattened(squad: Any) -> list[dict[str, Any]]:
    """Passages from SQuAD as its authors publish it, `{data: [{title, paragraphs: [{context, qas}]}]}`, with the first
    answer to each question that has one; what is a list of passages already stays as it is."""
    if not (isinstance(squad, dict) and isinstance(squad.get("data"), list)):
        return squad if isinstance(squad, list) else [squad]
    return [
        {
            "title": article["title"].replace("_", " "),
            "context": paragraph["context"],
            "questions": [
                {"question": one["question"], "answer": one["answers"][0]["text"]}
                for one in paragraph["qas"]
                if one.get("answers")
            ],
        }
        for article in squad["data"]
        for paragraph in article["paragraphs"]
    ]


def read_papers(data: Path) -> list[Passage]:
    """PaperQA's introductions with their evaluation questions of all levels. Raises `OSError` without the data."""
    papers = json.loads((data / "paper" / "paperqa" / "paperQA.json").read_text())
    return [Passage(one["title"], one["introduction"], one["QA"]) for one in papers]


def draw(passages: Sequence[Passage], count: int, seed: int) -> list[Passage]:
    return random.Random(seed).sample(list(passages), count)


def unrelated(passages: Sequence[Passage], learnt: Sequence[Passage], count: int, seed: int) -> list[Passage]:
    """Drawn from those that share no title with what was learnt; raises `ValueError` when there are fewer."""
    titles = {passage.title for passage in learnt}
    return draw([passage for passage in passages if passage.title not in titles], count, seed)


ASKED_AT_ONCE = {"mend": False}
"""Training options of what is asked as soon as it is live: nothing is trained beside the questions, or replaced."""


def learn(client: Client, passage: Passage, training: dict[str, Any]) -> tuple[str, float]:
    """(document id, seconds from upload to ready)"""
    started = time.monotonic()
    accepted = client.upload(passage.context, training=training | ASKED_AT_ONCE)
    follow(client, accepted["job"]["id"])
    ready_s = time.monotonic() - started
    print(f"{passage.title}: {len(passage.context.split())} words, ready after {ready_s:.0f} s", file=sys.stderr)
    return accepted["document"]["id"], ready_s


def follow(client: Client, job_id: str) -> None:
    """Raises `NotLearnt`."""
    states = [event.data.get("state") for event in client.follow(job_id)]
    if "succeeded" not in states:
        raise NotLearnt(f"job {job_id} ended otherwise: {client.job(job_id)}")
