"""What answers from text lose when an adapter of another document is attached.

    python -m benchmarks.harm --json [--smoke] [--url http://127.0.0.1:8000] [--adapters FOLDER] [--documents 15]
                              [--data FOLDER] [--seed 0]

Questions about SQuAD passages are answered with the text in the prompt, by the base model alone and with the adapter of
an unrelated passage, greedily, in one run. A server attaches only adapters that it has routed to, so answers are made
here, by the trainer's own base model; which text stands in a prompt is asked of the running server (`rag`), so that
prompts are its own to the letter. Tried are the whole adapter and the strength that the server uses in `hybrid`.

Adapters are those of five passages that the server learns for it, or `--adapters FOLDER`: archives (`*.tar`) as
`GET /adapters/{id}/download` gives them, of documents that are not among SQuAD's. LORAMEM_MODEL must name the server's
model. Seeds draw the passages and resample them, each with its questions.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from benchmarks.adapters import Adapters, Archive, read_archives
from benchmarks.answer_scores import all_worded, worded
from benchmarks.circumstances import check, circumstances, command_of
from benchmarks.intervals import cluster_interval
from benchmarks.passages import ASKED_AT_ONCE, DATA, NotLearnt, Passage, draw, learn, read_passages, unrelated
from benchmarks.recall_smoke import BRIEF
from benchmarks.scores import mean, token_f1
from loramem.client import Client
from loramem.lines import tidy
from loramem.prompts import Message, with_passages
from loramem.tables import FINAL_JOB_STATES

if TYPE_CHECKING:
    from trainer_worker.base import Base

ADAPTERS = 5
LOST_POINTS = 2.0
MAX_NEW_TOKENS = 64
"""As `POST /query` has it by default."""
BATCH = 8
BRIEF_S = 5.0
UNINDEXED = {"waiting", "chunk", "index"}


@dataclass(frozen=True)
class Shown:
    """A question with the text before it, as the server asks its model, and the expected answer."""

    messages: list[Message]
    expected: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    passages = read_passages(options.data)
    learnt = [] if options.adapters else draw(passages, 1 if options.smoke else ADAPTERS, options.seed)
    others = unrelated(passages, learnt, 1 if options.smoke else options.documents, options.seed)
    archives = read_archives(options.adapters) if options.adapters else _learn(options, learnt)
    report = harm(options.url, options.api_key, archives, others, options.seed)
    report["checks"] = [all_worded(report["with_a_word"], report["answers"])] if options.smoke else checks(report)
    report |= circumstances(command_of(parser, options), options.seed)
    print(json.dumps(report) if options.json else json.dumps(report["strengths"], indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def _learn(options: argparse.Namespace, passages: Sequence[Passage]) -> list[Archive]:
    brief = BRIEF if options.smoke else {}
    with Client(options.url, api_key=options.api_key, namespace=f"harm-{uuid4().hex[:8]}") as client:
        documents = [learn(client, passage, brief)[0] for passage in passages]
        archives = download(options.url, options.api_key, documents)
        for document in documents:
            client.delete(document)
    return archives


def download(url: str, api_key: str | None, documents: Sequence[str]) -> list[Archive]:
    """The first adapter of each document."""
    with Adapters(url, api_key) as adapters:
        return [adapters.archive(adapters.of(document)[0]["id"]) for document in documents]


def harm(
    url: str, api_key: str | None, archives: Sequence[Archive], passages: Sequence[Passage], seed: int
) -> dict[str, Any]:
    """Figures of `archives` on questions about `passages`, none of which they have learnt.

    Raises `ValueError` without adapters, and for adapters of another base model than the one at hand.
    """
    from loramem.base_model import resolve_base_model
    from loramem.settings import load_settings
    from server.ask import STRENGTHS
    from trainer_worker.base import Base

    found = resolve_base_model(load_settings())
    foreign = [one.manifest.adapter_id for one in archives if one.manifest.fingerprint != found.fingerprint]
    if foreign or not archives:
        raise ValueError(f"need adapters of {found.name} (LORAMEM_MODEL); of another model are: {foreign}")
    with Client(url, api_key=api_key, namespace=f"harm-{uuid4().hex[:8]}") as client:
        asked = [shown(client, passage) for passage in passages]
    base = Base(str(found.path))
    return measure(base, archives, asked, {"full": 1.0, "hybrid": STRENGTHS["hybrid"]}, seed) | {"model": found.name}


def shown(client: Client, passage: Passage) -> list[Shown]:
    """The passage's questions with the text that the server shows its model, asked as soon as that is indexed."""
    accepted = client.upload(passage.context, training=ASKED_AT_ONCE | {"max_seconds": BRIEF_S})
    document = accepted["document"]["id"]
    try:
        _await_index(client, accepted["job"]["id"])
        return [
            _shown(client.query(item["question"], "rag", document_ids=[document], max_tokens=1), passage, item)
            for item in passage.questions
        ]
    finally:
        client.delete(document)


def _await_index(client: Client, job_id: str) -> None:
    for event in client.follow(job_id):
        if event.data.get("phase", "waiting") not in UNINDEXED or event.data.get("state") == "succeeded":
            return
        if event.data.get("state") in FINAL_JOB_STATES:
            break
    raise NotLearnt(f"job {job_id} ended before its text was indexed: {client.job(job_id)}")


def _shown(reply: Mapping[str, Any], passage: Passage, item: Mapping[str, str]) -> Shown:
    text = tidy(passage.context)  # as the server stores it; its offsets are into that
    windows = [text[span["start"] : span["end"]] for span in reply["context"]]
    return Shown(with_passages(item["question"], windows), item["answer"])


def measure(
    base: "Base",
    archives: Sequence[Archive],
    passages: Sequence[Sequence[Shown]],
    strengths: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    """Token-F1 without and with each adapter; what is lost in points of 100, with its interval over the passages.

    A question's loss is the mean over the adapters. The interval is None with one passage. `answers` are all, without
    and with adapters; so many of them are `with_a_word`.
    """
    asked = [one for questions in passages for one in questions]
    said = answers(base, asked)
    without = scores(said, asked)
    figures: dict[str, Any] = {}
    for name, strength in strengths.items():
        by_adapter = []
        for archive in archives:
            with base.adapted(archive.adapter(strength)):
                found = answers(base, asked)
            said += found
            by_adapter.append(scores(found, asked))
            print(f"{archive.manifest.adapter_id} at {strength:g}: {mean(by_adapter[-1]):.4f}", file=sys.stderr)
        lost = [100 * (before - mean(after)) for before, *after in zip(without, *by_adapter, strict=True)]
        left = iter(lost)
        ends = cluster_interval([list(islice(left, len(questions))) for questions in passages], seed)
        figures[name] = {
            "strength": strength,
            "f1": round(mean([mean(scores) for scores in by_adapter]), 4),
            "f1_by_adapter": [round(mean(scores), 4) for scores in by_adapter],
            "lost_points": round(mean(lost), 2),
            "lost_interval": ends and [round(end, 2) for end in ends],
        }
    return {
        "adapters": len(archives),
        "questions": len(asked),
        "answers": len(said),
        "with_a_word": worded(said),
        "f1_without": round(mean(without), 4),
        "strengths": figures,
    }


def answers(base: "Base", asked: Sequence[Shown]) -> list[str]:
    """Of the model as it is now."""
    return [
        answer
        for some in _batches(asked)
        for answer in base.answers([one.messages for one in some], max_new_tokens=MAX_NEW_TOKENS)
    ]


def scores(said: Sequence[str], asked: Sequence[Shown]) -> list[float]:
    """Token-F1."""
    return [token_f1(answer, one.expected) for answer, one in zip(said, asked, strict=True)]


def _batches(asked: Sequence[Shown]) -> Iterator[Sequence[Shown]]:
    """Neighbours are of one passage, so of about one length."""
    return (asked[start : start + BATCH] for start in range(0, len(asked), BATCH))


def checks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where nothing was right before, nothing can be lost."""
    without = report["f1_without"]
    return [
        check("token-F1 of rag without an adapter", without, "> 0", without > 0),
        *_lost_checks(report),
    ]


def _lost_checks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        check(
            f"points of rag lost to an unrelated adapter at strength {figures['strength']:g}",
            figures["lost_points"],
            f"<= {LOST_POINTS:g}",
            figures["lost_points"] <= LOST_POINTS,
        )
        for figures in report["strengths"].values()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.harm", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    parser.add_argument("--adapters", type=Path, metavar="FOLDER", help="archives of adapters, instead of learning")
    parser.add_argument("--documents", type=int, default=15, help="passages asked about, about five questions each")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one adapter of a few seconds, one passage")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
