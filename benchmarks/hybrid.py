"""What text beside an adapter is worth: how much of either, and whether the prompt is read with the adapter.

    python -m benchmarks.hybrid --json [--smoke] [--url http://127.0.0.1:8000] --namespace NAME --dataset squad
                                --documents 5 [--questions-per-document 5] [--seed 0]

The documents of a draw must be live in the namespace already (`benchmarks.recall --keep` leaves them), each with one
adapter. For each question its document's adapter answers greedily beside the passages that the server retrieves
(`passages`) and beside the whole text (`document`), at several strengths, and in two ways: the adapter reads the prompt
and answers, or the base model reads it and the adapter only answers. The server can do the first alone, so answers are
made here, by the trainer's base model with downloaded adapters; prompts are the server's to the letter. Scored is
token-F1; `minus` is the paired difference to text alone with its 95 % interval, for which whole documents are redrawn
(null with one document). `--smoke`: a question of each of two.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.adapters import Adapters, Archive, live_draw
from benchmarks.answer_scores import best, some_worded
from benchmarks.circumstances import check, circumstances, command_of
from benchmarks.datasets import DATA_SETS, Item
from benchmarks.intervals import cluster_interval
from benchmarks.scores import mean, token_f1
from loramem.chat import rendered
from loramem.client import Client
from loramem.lines import tidy
from loramem.prompts import Message, closed_book, with_document, with_passages

if TYPE_CHECKING:
    from trainer_worker.base import Base

STRENGTHS = (0.25, 0.5, 1.0)
MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Asking:
    """A question, its prompts by the text in them (`none`: closed book), and its document's adapter."""

    references: Sequence[str]
    prompts: dict[str, list[Message]]
    adapter_id: str


@dataclass(frozen=True)
class Arm:
    """`strength` 0 is the base model alone; `reads`: the prompt is read with the adapter."""

    text: str
    strength: float
    reads: bool = True

    @property
    def name(self) -> str:
        if not self.strength:
            return f"{self.text}, no adapter"
        return f"{self.text}, {self.strength:g}{'' if self.reads else ', adapter only answers'}"


ARMS = [
    Arm("none", 1.0),
    *(Arm(text, 0.0) for text in ("passages", "document")),
    *(
        Arm(text, strength, reads)
        for text in ("passages", "document")
        for strength in STRENGTHS
        for reads in (True, False)
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command = command_of(parser, options)
    if options.smoke:
        options.documents, options.questions_per_document = 2, 1
    with (
        Client(options.url, api_key=options.api_key, namespace=options.namespace) as client,
        Adapters(options.url, options.api_key) as adapters,
    ):
        asked = list(askings(client, adapters, options))
        archives = {one.adapter_id: adapters.archive(one.adapter_id) for one in asked}
    said = answer_all(_base(), asked, archives)
    report: dict[str, Any] = {"data_set": options.dataset, "questions": len(asked)}
    report |= {"arms": figures(scores(said, asked), [one.adapter_id for one in asked], options.seed)}
    report["checks"] = checks(said, len(asked))
    report |= circumstances(command, options.seed)
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def _base() -> "Base":
    from loramem.base_model import resolve_base_model
    from loramem.settings import load_settings
    from trainer_worker.base import Base

    return Base(str(resolve_base_model(load_settings()).path))


def askings(client: Client, adapters: Adapters, options: argparse.Namespace) -> Iterator[Asking]:
    """Raises `SystemExit` for a document that does not have one live adapter."""
    for drawn, document in live_draw(client, options):
        own = adapters.of(document)
        if len(own) != 1:
            raise SystemExit(f"benchmarks.hybrid: {drawn.key} has {len(own)} live adapters, and needs one")
        for asked in drawn.item.questions:
            found = client.query(asked.question, "rag", document_ids=[document], max_tokens=1)
            yield Asking(asked.answers, _prompts(asked.question, drawn.item, found["context"]), own[0]["id"])


def _prompts(question: str, item: Item, context: Sequence[dict[str, Any]]) -> dict[str, list[Message]]:
    text = tidy(item.text)  # as the server stores it; its offsets are into that
    passages = [text[span["start"] : span["end"]] for span in context]
    return {
        "none": closed_book(question),
        "passages": with_passages(question, passages),
        "document": with_document(question, item.title, text),
    }


def answer_all(base: "Base", asked: Sequence[Asking], archives: dict[str, Archive]) -> dict[str, list[str]]:
    """What is said to each question, by arm."""
    return {
        arm.name: [_answer(base, one, archives, arm) for one in asked]
        for arm in tqdm(ARMS, desc="arms", file=sys.stderr)
    }


def scores(said: dict[str, list[str]], asked: Sequence[Asking]) -> dict[str, list[float]]:
    """Token-F1 of each question, by arm."""
    return {
        arm: [best(token_f1, answer, one.references) for answer, one in zip(answers, asked, strict=True)]
        for arm, answers in said.items()
    }


def checks(said: dict[str, list[str]], questions: int) -> list[dict[str, Any]]:
    """Which arm is best is not promised."""
    missing = sum(questions - len(said.get(arm.name, ())) for arm in ARMS)
    every = [answer for answers in said.values() for answer in answers]
    return [check("answers that an arm lacks", missing, "= 0", missing == 0), some_worded(every)]


def _answer(base: "Base", asking: Asking, archives: dict[str, Archive], arm: Arm) -> str:
    """Greedy. What is before the prompt's last token is read by the one, the rest by the other."""
    import torch

    text = rendered(base.tokenizer, asking.prompts[arm.text])
    tokens = base.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(base.device)
    adapter = archives[asking.adapter_id].adapter(arm.strength) if arm.strength else None
    reading = base.adapted(adapter) if adapter and arm.reads else nullcontext()
    with torch.no_grad():
        with reading:
            cache = base.model(tokens[:, :-1], use_cache=True).past_key_values
        with base.adapted(adapter) if adapter else nullcontext():
            return _continued(base, tokens[:, -1:], cache)


def _continued(base: "Base", last: Any, cache: Any) -> str:
    said: list[int] = []
    while len(said) < MAX_NEW_TOKENS:
        last = base.model(last, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        if int(last) == base.end:
            break
        said.append(int(last))
    return str(base.tokenizer.decode(said, skip_special_tokens=True)).strip()


def figures(scored: dict[str, list[float]], documents: Sequence[str], seed: int) -> dict[str, Any]:
    """`documents`: what each question is about."""
    found: dict[str, Any] = {}
    for arm in ARMS:
        found[arm.name] = {"f1": round(mean(scored[arm.name]), 4)}
        alone = scored.get(Arm(arm.text, 0.0).name)
        if alone and arm.strength:
            lead = [one - other for one, other in zip(scored[arm.name], alone, strict=True)]
            ends = cluster_interval(_by_document(lead, documents), seed)
            found[arm.name] |= {"minus": round(mean(lead), 4), "interval": ends and [round(end, 4) for end in ends]}
    return found


def _by_document(values: Sequence[float], documents: Sequence[str]) -> list[list[float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for value, document in zip(values, documents, strict=True):
        groups[document].append(value)
    return list(groups.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.hybrid", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--dataset", choices=DATA_SETS, default="squad")
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--questions-per-document", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one question of each of two documents")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
