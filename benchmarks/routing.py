"""How often a question is routed to the document that answers it, and with how many adapters.

    python -m benchmarks.routing --json [--smoke] [--only paperqa|phonebook] [--writer http://127.0.0.1:8000/v1]
                                 [--questions FILE] [--seed 0]

Index and router are the server's, adapters are not trained. `paperqa`: 15 introductions, 30 bare questions each, which
name no paper; those of level 3 do not even hint at one. `phonebook`: 16 sectors of 128K tokens of names and numbers,
100 questions of each. What adapters were asked, which helps to find them, is written by `--writer` (a loramem server's
own model will do) and kept in `--questions`, to be read from there the next time; with neither there is none. Each kind
of evidence is also measured on its own. Data is looked for in LORAMEM_BENCH_DATA, else `shared/data` beside the
repository.

These questions are not unseen: the router that this measures and the thresholds of `server/confidence.py` were tuned in
part on the same PaperQA and PhoneBook. The checks notice when routing gets worse; they do not tell how well questions
about other documents are routed.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.circumstances import check, circumstances, command_of
from benchmarks.datasets import Item, read_items
from benchmarks.untrained import NAMESPACE, Questioner, Untrained
from loramem.base_model import resolve_base_model
from loramem.chunk import Span
from loramem.embed import load_embedder
from loramem.settings import load_settings
from server.ask import Route
from server.candidates import Evidence
from trainer_worker.examples import Asked, asked_of
from trainer_worker.synthesize import split_exam, synthesize
from trainer_worker.writer import Writer

FORMATS = ("qa",)
PER_SECTOR = 100
SMOKE_DOCUMENTS, SMOKE_QUESTIONS = 3, 5
WITHOUT_LEVEL = "3"
"""PaperQA's questions that name nothing of their paper."""
NOT_FOUND = 10**6
"""The place of a right document that no search found."""


@dataclass(frozen=True)
class Asking:
    """One question of the data set, and the document that answers it."""

    question: str
    document: str
    level: str


@dataclass
class Kept:
    """Written questions by (title, start, end) of their chunk, in a JSONL file that grows as they are written."""

    file: Path | None
    writer: Writer | None
    seed: int
    known: dict[tuple[str, int, int], list[Asked]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                one = json.loads(line)
                self.known[one["title"], one["start"], one["end"]] = [Asked(*asked) for asked in one["asked"]]

    def ask(self, title: str, text: str, span: Span) -> Sequence[Asked]:
        key = (title, span.start, span.end)
        if key not in self.known and self.writer is not None:
            self.known[key] = self._written(title, text)
            self._keep(key)
        return self.known.get(key, [])

    def _written(self, title: str, text: str) -> list[Asked]:
        assert self.writer is not None
        examples = synthesize(title, text, self.writer, formats=FORMATS, seed=self.seed, on_progress=lambda *step: None)
        return list(asked_of(*split_exam(examples, seed=self.seed)))

    def _keep(self, key: tuple[str, int, int]) -> None:
        if self.file is not None:
            asked = [[one.question, one.answer, one.held_out] for one in self.known[key]]
            line = {"title": key[0], "start": key[1], "end": key[2], "asked": asked}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


KINDS: dict[str, Callable[[Evidence], float]] = {
    "windows": lambda one: one.window,
    "questions": lambda one: one.question,
    "words": lambda one: one.words,
    "words together": lambda one: one.together,
    "words of questions": lambda one: one.asked,
    "text": lambda one: (one.window + one.words + one.together) / 3,
    "all": lambda one: one.score,
}


@dataclass(frozen=True)
class Outcome:
    """Of one question: by kind of evidence the place of the right document, and what `top_k: auto` chose."""

    level: str
    places: dict[str, int]
    chosen: int
    inside: bool
    confidence: str
    search_ms: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    parts = [options.only] if options.only else list(PARTS)
    figures = {name: PARTS[name](options) for name in parts}
    checks = [
        one
        for name in parts
        for one in ([smoke_check(name, figures[name])] if options.smoke else CHECKS[name](figures[name]))
    ]
    report = {"parts": figures, "checks": checks}
    report |= circumstances(command_of(parser, options), options.seed)
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))
    return 0 if all(one["ok"] for one in checks) else 1


def paperqa(options: argparse.Namespace) -> dict[str, Any]:
    items, _ = read_items("paperqa", None)
    return _measured("paperqa", *_drawn(items, len(items[0].questions), smoke=options.smoke), options)


def phonebook(options: argparse.Namespace) -> dict[str, Any]:
    items, _ = read_items("phonebook", None)
    return _measured("phonebook", *_drawn(items, PER_SECTOR, smoke=options.smoke), options)


def _drawn(items: Sequence[Item], most: int, *, smoke: bool) -> tuple[Sequence[Item], int]:
    """Documents, and how many questions are asked of each."""
    return (items[:SMOKE_DOCUMENTS], SMOKE_QUESTIONS) if smoke else (items, most)


PARTS = {"paperqa": paperqa, "phonebook": phonebook}


def _measured(name: str, items: Sequence[Item], most: int, options: argparse.Namespace) -> dict[str, Any]:
    settings = load_settings()
    writer = Writer(options.writer) if options.writer and name == "paperqa" else None
    kept = Kept(options.questions if name == "paperqa" else None, writer, options.seed)
    base = resolve_base_model(settings)
    with tempfile.TemporaryDirectory() as folder:
        memory = Untrained(Path(folder), settings, load_embedder(settings), base.path / "tokenizer.json")
        asking = _learnt(memory, items, kept.ask, most, options.seed)
        memory.router.calibrations.of(NAMESPACE)
        memory.router.calibrations.renew()
        outcomes = [_outcome(memory, one) for one in tqdm(asking, desc=f"{name}: routing", file=sys.stderr)]
        thresholds = memory.router.calibrations.of(NAMESPACE)
        memory.database.close()
    written = sum(not one.held_out for asked in kept.known.values() for one in asked)
    return {
        "documents": len(items),
        "questions": len(asking),
        "written_questions": written,
        "thresholds": {name: round(value, 4) for name, value in vars(thresholds).items()},
        "levels": _by_level(outcomes),
    }


def _learnt(memory: Untrained, items: Sequence[Item], ask: Questioner, most: int, seed: int) -> list[Asking]:
    rng = random.Random(seed)
    asking = []
    for item in tqdm(items, desc="indexing", file=sys.stderr):
        document = memory.learn(item.title, item.text, ask)
        chosen = rng.sample(item.questions, min(most, len(item.questions)))
        asking += [Asking(one.question, document, one.level or "all") for one in chosen]
    return asking


def _outcome(memory: Untrained, asking: Asking) -> Outcome:
    found = memory.router.candidates(asking.question, namespace=NAMESPACE)
    places = {}
    for kind, score in KINDS.items():
        best: dict[str, float] = defaultdict(float)
        for one in found:
            best[one.document_id] = max(best[one.document_id], score(one.evidence))
        right = best.pop(asking.document, None)
        places[kind] = NOT_FOUND if right is None else sum(score >= right for score in best.values())
    route: Route = memory.router.route(asking.question, namespace=NAMESPACE, document_ids=None, top_k="auto")
    inside = asking.document in {adapter.document_id for adapter in route.adapters}
    return Outcome(
        asking.level, places, len(route.adapters), inside, route.choice.confidence, route.timings_ms["search"]
    )


def _by_level(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    levels = sorted({one.level for one in outcomes})
    groups = {level: [one for one in outcomes if one.level == level] for level in levels} if len(levels) > 1 else {}
    if len(levels) > 1:
        groups["named"] = [one for one in outcomes if one.level != WITHOUT_LEVEL]
    return {name: _summary(some) for name, some in {**groups, "all": outcomes}.items()}


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    def share(found: Sequence[bool]) -> float:
        return round(fmean(found), 4)

    return {
        "questions": len(outcomes),
        "top1": {kind: share([one.places[kind] < 1 for one in outcomes]) for kind in KINDS},
        "top3": {kind: share([one.places[kind] < 3 for one in outcomes]) for kind in KINDS},
        "auto": {
            "inside": share([one.inside for one in outcomes]),
            "mean_k": round(fmean(one.chosen for one in outcomes), 3),
            "none": share([one.confidence == "none" for one in outcomes]),
        },
        "search_ms": round(fmean(one.search_ms for one in outcomes), 2),
    }


def _paperqa_checks(figures: dict[str, Any]) -> list[dict[str, Any]]:
    named, every = figures["levels"]["named"], figures["levels"]["all"]
    return [
        _at_least("paperqa, levels 1 and 2: top-1", named["top1"]["all"], 0.96),
        _at_least("paperqa, all levels: top-1", every["top1"]["all"], 0.91),
        _at_least("paperqa, levels 1 and 2: right adapter inside, auto", named["auto"]["inside"], 0.96),
        check("paperqa, all levels: mean k, auto", every["auto"]["mean_k"], "<= 1.4", every["auto"]["mean_k"] <= 1.4),
    ]


def _phonebook_checks(figures: dict[str, Any]) -> list[dict[str, Any]]:
    every = figures["levels"]["all"]
    return [
        _at_least("phonebook sectors: top-1", every["top1"]["all"], 0.99),
        _at_least("phonebook sectors: right adapter inside, auto", every["auto"]["inside"], 0.99),
    ]


CHECKS = {"paperqa": _paperqa_checks, "phonebook": _phonebook_checks}


def smoke_check(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Whether any search finds what it looks for. There are three documents, so that what was found is in the top 3."""
    share = figures["levels"]["all"]["top3"]["all"]
    return check(f"{name}: right document found", share, "> 0", share > 0)


def _at_least(name: str, value: float, bound: float) -> dict[str, Any]:
    return check(name, value, f">= {bound:g}", value >= bound)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.routing", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=tuple(PARTS))
    parser.add_argument("--writer", help="OpenAI root of what writes the questions")
    parser.add_argument("--questions", type=Path, help="file that written questions are kept in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="three documents of each set; checks that any is found")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
