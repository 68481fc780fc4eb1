"""How many facts of a one-page text are answered in each mode, by a running loramem server.

    python -m benchmarks.sheets --json [--smoke] [--url http://127.0.0.1:8000] [--folder benchmarks/sheets] [--seed 0]

A sheet is a JSON file `{title, text, questions: [{question, answer}]}`: about 200 words, ten facts on invented things,
asked in other words than the text's. An answer counts when it holds the expected string, case folded, in at most 30
words. Every sheet is uploaded as text alone and asked at the server's defaults. `--smoke` takes one sheet and a few
seconds of training, and promises no more than that every answer has a word.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

from benchmarks.answer_scores import all_worded, worded
from benchmarks.circumstances import circumstances
from benchmarks.passages import ASKED_AT_ONCE
from benchmarks.recall_smoke import BRIEF
from loramem.client import Client
from loramem.records import Mode

MODES: tuple[Mode, ...] = get_args(Mode)
MAX_WORDS = 30
SMOKE_QUESTIONS = 2


@dataclass(frozen=True)
class Sheet:
    name: str
    title: str
    text: str
    questions: list[dict[str, str]]


@dataclass(frozen=True)
class Bound:
    """What a mode promises of ten questions."""

    value: float
    at_most: bool = False


BOUNDS: dict[Mode, Bound] = {
    "base": Bound(1.0, at_most=True),
    "rag": Bound(13 / 3),
    "icl": Bound(13 / 3),
    "lora": Bound(10 / 3),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options = _parser().parse_args(arguments)
    sheets = read_sheets(options.folder)
    if options.smoke:
        sheets = [replace(one, questions=one.questions[:SMOKE_QUESTIONS]) for one in sheets[:1]]
    with Client(options.url, api_key=options.api_key, namespace=f"sheets-{uuid4().hex[:8]}") as client:
        limit = BRIEF if options.smoke else {}
        results = [run_sheet(client, sheet, options.seed, limit) for sheet in sheets]
    command = "python -m benchmarks.sheets --json" + (" --smoke" if options.smoke else "")
    report = summary(results) | circumstances(command, options.seed)
    if options.smoke:
        report["checks"] = [smoke_check(results)]
    print(json.dumps(report) if options.json else _table(results))
    return 0 if all(check["ok"] for check in report["checks"]) else 1


def read_sheets(folder: Path) -> list[Sheet]:
    """Raises `SystemExit` where there are none."""
    sheets = [Sheet(name=path.stem, **json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    if not sheets:
        raise SystemExit(f"benchmarks.sheets: {folder} holds no sheets (*.json)")
    return sheets


def run_sheet(client: Client, sheet: Sheet, seed: int, limit: dict[str, Any]) -> dict[str, Any]:
    """Upload with the training options in `limit`, wait for the job, ask everything in every mode, delete."""
    started = time.monotonic()
    accepted = client.upload(sheet.text, title=sheet.title, training=limit | ASKED_AT_ONCE)
    state = ""
    for event in client.follow(accepted["job"]["id"]):
        state = event.data.get("state", state)
    if state != "succeeded":
        raise SystemExit(f"{sheet.name}: the job ended as {state}: {client.job(accepted['job']['id']).get('error')}")
    ready_s = time.monotonic() - started
    document = accepted["document"]["id"]
    answers = {mode: [_ask(client, item, mode, document, seed) for item in sheet.questions] for mode in MODES}
    client.delete(document)
    right = {mode: sum(answer["right"] for answer in answers[mode]) for mode in MODES}
    asked = len(sheet.questions)
    return {"sheet": sheet.name, "questions": asked, "ready_s": ready_s, "right": right, "answers": answers}


def _ask(client: Client, item: dict[str, str], mode: Mode, document: str, seed: int) -> dict[str, Any]:
    where = {} if mode == "base" else {"document_ids": [document]}
    reply = client.query(item["question"], mode, seed=seed, **where)
    right = is_right(reply["answer"], item["answer"])
    return {"question": item["question"], "expected": item["answer"], "answer": reply["answer"], "right": right}


def is_right(answer: str, expected: str) -> bool:
    return expected.casefold() in answer.casefold() and len(answer.split()) <= MAX_WORDS


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals over the sheets, and the checks, whose bounds scale with the number of questions."""
    asked = sum(result["questions"] for result in results)
    right = {mode: sum(result["right"][mode] for result in results) for mode in MODES}
    checks = [_check(mode, right[mode], bound, asked) for mode, bound in BOUNDS.items()]
    least = right["rag"]
    checks.append({"name": "hybrid", "value": right["hybrid"], "bound": f">= {least}", "ok": right["hybrid"] >= least})
    return {"questions": asked, "right": right, "sheets": list(results), "checks": checks}


def smoke_check(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    said = [one["answer"] for result in results for answers in result["answers"].values() for one in answers]
    return all_worded(worded(said), len(said))


def _check(mode: Mode, value: int, bound: Bound, asked: int) -> dict[str, Any]:
    limit = round(bound.value * asked / 10, 2)
    ok = value <= limit if bound.at_most else value >= limit
    return {"name": mode, "value": value, "bound": f"{'<=' if bound.at_most else '>='} {limit:g}", "ok": ok}


def _table(results: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'sheet':<16}{'ready s':>8}" + "".join(f"{mode:>8}" for mode in MODES)]
    for result in results:
        counts = "".join(f"{result['right'][mode]:>8}" for mode in MODES)
        lines.append(f"{result['sheet']:<16}{result['ready_s']:>8.0f}{counts}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.sheets", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "sheets")
    parser.add_argument("--seed", type=int, default=0, help="sampling seed of the questions; greedy answers ignore it")
    parser.add_argument("--smoke", action="store_true", help="one sheet, a few seconds of training; checks no facts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
