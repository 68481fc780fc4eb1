"""Closed-book answers by training recipe: kinds of data, objective, placement, variant and rank, by a running server.

    python -m benchmarks.recipes --json [--smoke] [--data squad|paperqa] [--documents N] [--only NAME,...] [--seed 0]
                                 [--max-seconds S] [--url http://127.0.0.1:8000] [--folder FOLDER] [--plot FOLDER]
                                 [--out FILE [--resume]]

An arm is a set of training options (`benchmarks.recipe_arms`). Each uploads the same documents as text alone, with the
same limit of training time per adapter (`--max-seconds`, else the server's), and asks closed book, with the document
named, so that routing between documents does not enter; weak adapters are left as they are. Scores: SQuAD's
token-F1, or for PaperQA ROUGE-L against the reference answer, up to 128 tokens an answer (the longest reference has 57
words; the paper allows 256). Intervals are 95 % bootstraps over documents, as questions about one are not independent;
of a single document over its questions, which tells nothing of others. Differences are paired with the default arm's
answers.

`--only` takes names of arms or groups; the default arm always runs. Options that the server refuses make the arm
`refused`, with the reason. `--out` is written after every arm; with `--resume` the arms in it are not run again.
`rank=16` beside a default of 16 is the same training twice, so it shows what is chance. `--plot` draws bars.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.adapters import Adapters
from benchmarks.circumstances import circumstances, command_of, served_model
from benchmarks.passages import DATA, NotLearnt, Passage, draw, learn, read_papers, read_passages
from benchmarks.recipe_arms import SMOKE, Arm, chosen, same_as
from benchmarks.recipe_report import plot, summary, table
from benchmarks.scores import mean, rouge_l, token_f1
from loramem.client import Client, Refused

SMOKE_S = 2.0
SMOKE_QUESTIONS = 2
Result = dict[str, Any]
Results = dict[str, Result]


@dataclass(frozen=True)
class DataSet:
    read: Callable[[Path], list[Passage]]
    score: Callable[[str, str], float]
    metric: str
    max_tokens: int
    documents: int


DATA_SETS = {
    "squad": DataSet(read_passages, token_f1, "token-F1", 64, 20),
    "paperqa": DataSet(read_papers, rouge_l, "ROUGE-L", 128, 15),
}


@dataclass(frozen=True)
class Server:
    url: str
    api_key: str | None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """In a namespace of its own: the same text is the same document only within one."""
        with Client(self.url, api_key=self.api_key, namespace=f"recipes-{uuid4().hex[:8]}") as client:
            yield client

    def adapters(self) -> Adapters:
        return Adapters(self.url, self.api_key)

    def model(self) -> str:
        return served_model(self.url, self.api_key)


@dataclass(frozen=True)
class Plan:
    """What all arms have in common; results of another plan cannot be resumed."""

    data: str
    passages: Sequence[Passage]
    max_seconds: float | None
    seed: int
    smoke: bool
    model: str

    @property
    def settings(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("model", "data", "max_seconds", "seed", "smoke")}
        questions = sum(len(passage.questions) for passage in self.passages)
        metric = DATA_SETS[self.data].metric
        return plain | {"documents": len(self.passages), "questions": questions, "metric": metric}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options, arms = _options(arguments)
    pyplot = _load_pyplot() if options.plot else None
    server = Server(options.url, options.api_key)
    plan = _plan(options, server.model())
    results = resumed(options.out, plan) if options.resume else {}
    command = _command(options, arms, results)
    report = _report(plan, results, command)
    for number, arm in enumerate(arms):
        if arm.name not in results:
            twin = same_as(arm, [other for other in arms[:number] if other.name in results])
            found = results[twin] | {"same_as": twin} if twin else run_arm(server, arm, plan)
            results[arm.name] = found | {"group": arm.group}
        report = _report(plan, results, command)
        if options.out:
            write(options.out, report)
    if pyplot:
        plot(pyplot, report, options.plot)
    print(json.dumps(report) if options.json else table(report))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def run_arm(server: Server, arm: Arm, plan: Plan) -> Result:
    """Learn and ask every document. `state` is done, refused or failed, the latter two with a `reason`."""
    training = arm.training | ({"max_seconds": plan.max_seconds} if plan.max_seconds else {})
    print(f"-- {arm.name}", file=sys.stderr)
    with server.client() as client, server.adapters() as adapters:
        try:
            return {"state": "done"} | _measured(client, adapters, plan, training)
        except Refused as error:
            if error.status != HTTPStatus.UNPROCESSABLE_ENTITY:
                raise
            return {"state": "refused", "reason": str(error)}
        except NotLearnt as error:  # one recipe may fail where the others, and what is written so far, stand
            return {"state": "failed", "reason": str(error)}
        finally:
            for document in list(client.documents()):
                client.delete(document["id"])


def _measured(client: Client, adapters: Adapters, plan: Plan, training: dict[str, Any]) -> Result:
    data, parts = DATA_SETS[plan.data], list[Result]()
    for passage in plan.passages:
        document, ready_s = learn(client, passage, training)
        learnt = adapters.of(document)
        answers = [_ask(client, item["question"], document, data.max_tokens) for item in passage.questions]
        expected = [item["answer"] for item in passage.questions]
        parts.append(
            {
                "answers": answers,
                "scores": [data.score(*pair) for pair in zip(answers, expected, strict=True)],
                "ready_s": ready_s,
                "recall": [one["exam"]["recall"] for one in learnt],
                "steps": [adapters.archive(one["id"]).manifest.training["steps"] for one in learnt],
                "ranks": [one["rank"] for one in learnt],
            }
        )
    asked = {"questions": [len(part["scores"]) for part in parts]}
    flat = {name: [value for part in parts for value in part[name]] for name in ("answers", "scores", "ranks")}
    means = {name: round(mean([value for part in parts for value in part[name]]), 4) for name in ("recall", "steps")}
    return flat | asked | means | {"ready_s": round(mean([part["ready_s"] for part in parts]), 1)}


def _ask(client: Client, question: str, document: str, max_tokens: int) -> str:
    reply = client.query(question, "lora", document_ids=[document], max_tokens=max_tokens)
    return str(reply["answer"])


def _command(options: argparse.Namespace, arms: Sequence[Arm], earlier: Collection[str]) -> str:
    """With the arms that an earlier run has left in the same report."""
    if options.only:
        more = [name for name in earlier if name not in {arm.name for arm in arms}]
        options = argparse.Namespace(**vars(options) | {"only": [*options.only, *more]})
    return command_of(_parser(), options)


def _report(plan: Plan, results: Results, command: str) -> dict[str, Any]:
    return summary(plan.settings, results, plan.seed) | circumstances(command, plan.seed)


def resumed(file: Path, plan: Plan) -> Results:
    """Results written by an earlier run; none when there is no file. Raises `SystemExit` for those of another plan."""
    if not file.exists():
        return {}
    written = json.loads(file.read_text())
    if written["settings"] != plan.settings:
        raise SystemExit(f"{file} holds results of other settings: {written['settings']}, not {plan.settings}")
    results: Results = written["results"]
    return results


def write(file: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    unfinished = file.with_name(f"{file.name}.tmp")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(file)


def _plan(options: argparse.Namespace, model: str) -> Plan:
    data = DATA_SETS[options.data]
    every = data.read(options.folder)
    count = 1 if options.smoke else min(len(every), options.documents or data.documents)
    max_seconds = SMOKE_S if options.smoke else options.max_seconds
    passages = draw(every, count, options.seed)
    if options.smoke:
        passages = [replace(passage, questions=passage.questions[:SMOKE_QUESTIONS]) for passage in passages]
    return Plan(options.data, passages, max_seconds, options.seed, options.smoke, model)


def _load_pyplot() -> Any:
    from benchmarks.capacity_sweep import load_pyplot

    return load_pyplot()


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[Arm]]:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.resume and not options.out:
        parser.error("--resume needs --out")
    if options.out and options.out.exists() and not options.resume:
        parser.error(f"{options.out} exists: add --resume, or name another file")
    try:
        arms = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    return options, list(SMOKE) if options.smoke and not options.only else arms[: 2 if options.smoke else None]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.recipes", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    parser.add_argument("--data", choices=DATA_SETS, default="squad")
    parser.add_argument("--folder", type=Path, default=DATA, help="where the data sets are")
    parser.add_argument("--documents", type=int, help="how many are drawn; default: 20 of SQuAD, all 15 of PaperQA")
    parser.add_argument("--only", type=lambda names: names.split(","), metavar="NAME,...", help="arms or groups")
    parser.add_argument("--max-seconds", type=float, help="of training, per adapter; default: the server's")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the bootstrap")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw a bar chart; needs matplotlib")
    parser.add_argument("--out", type=Path, metavar="FILE", help="written after every arm")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument(
        "--smoke", action="store_true", help="two arms, one document, two questions, a few seconds of training"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
