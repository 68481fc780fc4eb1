"""What the gateway adds to the engine's own time for a question, and what a merge costs that nobody asked for before.

    python -m benchmarks.overhead --json [--smoke] [--url http://127.0.0.1:8000] [--questions 60]

Uploads three short texts (trained for seconds: their answers do not matter here), asks each mode the same questions
one after another, and reports `total` minus `queue`, `prefill` and `decode`: checking, embedding, search, activation of
the adapter, building the prompt, and the hops between processes. The time that the client sees is beside it. At last,
questions to a cached merge of three take turns with questions to merges that differ from all before by their weights.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from benchmarks.answer_scores import all_worded, worded
from benchmarks.circumstances import check, circumstances
from loramem.client import Client

BOUND_MS = 25.0
NEW_BOUND_MS = 40.0
TEXTS = (
    "The harbour of Quillmere was dug in 1874. Its lighthouse stands 31 metres high. Dues are paid in salted herring.",
    "The Dravona engine burns powdered amber. It was built in a shed near Tarnwick. A full tank lasts eleven hours.",
    "The festival of Ostrava Bells opens in May. Its patron is a baker. Visitors throw blue rice at the mayor.",
)
QUESTIONS = ("When was the harbour dug?", "What does the engine burn?", "What do visitors throw?")
TRAINING = {"formats": ["original"], "max_seconds": 1}
CASES: dict[str, dict[str, Any]] = {
    "base": {"mode": "base"},
    "rag": {"mode": "rag"},
    "lora": {"mode": "lora"},
    "lora, three merged": {"mode": "lora", "top_k": 3, "merge": {"method": "ties"}},
    "hybrid": {"mode": "hybrid"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options = _parser().parse_args(arguments)
    count = 2 if options.smoke else options.questions
    with Client(options.url, api_key=options.api_key, namespace=f"overhead-{uuid4().hex[:8]}") as client:
        documents = [_learn(client, text) for text in TEXTS]
        cases = {name: _measure(client, fields, count) for name, fields in CASES.items()}
        new = _new_combinations(client, count)
        for document in documents:
            client.delete(document)
    promised = [smoke_check(cases)] if options.smoke else checks(cases, new)
    command = "python -m benchmarks.overhead --json" + (" --smoke" if options.smoke else "")
    report = {"cases": cases, "new_combinations": new, "checks": promised, **circumstances(command, 0)}
    print(json.dumps(report if options.json else cases, indent=None if options.json else 2))
    return 0 if all(item["ok"] for item in promised) else 1


def checks(cases: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    medians = {name: case["overhead_ms"]["p50"] for name, case in cases.items()}
    more = new["client_ms"]["new"]["p50"] - new["client_ms"]["cached"]["p50"]
    return [
        *(
            check(f"overhead p50, {name}", value, f"<= {BOUND_MS:g} ms", value <= BOUND_MS)
            for name, value in medians.items()
        ),
        check("new combination, p50 beyond a cached one", more, f"<= {NEW_BOUND_MS:g} ms", more <= NEW_BOUND_MS),
    ]


def smoke_check(cases: Mapping[str, Any]) -> dict[str, Any]:
    return all_worded(
        sum(case["with_a_word"] for case in cases.values()), sum(case["questions"] for case in cases.values())
    )


def _learn(client: Client, text: str) -> str:
    accepted = client.upload(text, training=TRAINING)
    for _ in client.follow(accepted["job"]["id"]):
        pass
    document: str = accepted["document"]["id"]
    return document


def _measure(client: Client, fields: dict[str, Any], count: int) -> dict[str, Any]:
    """Percentiles in milliseconds; the first question of each kind warms the caches and is not counted."""
    for question in QUESTIONS:
        client.query(question, max_tokens=16, **fields)
    overhead, seen, said = [], [], []
    for index in range(count):
        started = time.perf_counter()
        reply = client.query(QUESTIONS[index % len(QUESTIONS)], max_tokens=16, **fields)
        seen.append((time.perf_counter() - started) * 1000)
        timings = reply["timings_ms"]
        overhead.append(timings["total"] - timings["queue"] - timings["prefill"] - timings["decode"])
        said.append(reply["answer"])
    times = {"overhead_ms": _percentiles(overhead), "client_ms": _percentiles(seen)}
    return {"questions": count, "with_a_word": worded(said), **times}


def _new_combinations(client: Client, count: int) -> dict[str, Any]:
    """Percentiles of the client's time in milliseconds; strength changes every weight a little, and nothing else."""
    seen: dict[str, list[float]] = {"cached": [], "new": []}
    merges, caches = [], set()
    client.query(QUESTIONS[0], "lora", top_k=3, merge={"method": "ties"}, max_tokens=1)
    for index in range(count):
        for kind, strength in (("cached", 1.0), ("new", 1.0 - (index + 1) / 10_000)):
            started = time.perf_counter()
            answer = client.query(
                QUESTIONS[index % len(QUESTIONS)],
                "lora",
                top_k=3,
                max_tokens=16,
                merge={"method": "ties", "strength": strength},
            )
            seen[kind].append((time.perf_counter() - started) * 1000)
            caches.add((kind, answer["merge"]["cache"]))
            if kind == "new":
                merges.append(answer["timings_ms"]["merge"])
    assert caches == {("cached", "hit"), ("new", "miss")}, caches
    percentiles = {kind: _percentiles(values) for kind, values in seen.items()}
    return {"questions": count, "client_ms": percentiles, "merge_ms": _percentiles(merges)}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(statistics.median(values), 2), "p95": round(cuts[18], 2), "max": round(max(values), 2)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.overhead")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    parser.add_argument("--questions", type=int, default=60, help="of each kind")
    parser.add_argument("--smoke", action="store_true", help="two questions of each kind; no promise of speed")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
