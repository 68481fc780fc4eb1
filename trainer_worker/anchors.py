"""Prompts that no document is about, held to what the base says to them, so that an adapter does no harm elsewhere."""

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from loramem.cache import made_once
from trainer_worker.base import Base
from trainer_worker.distil import labels_of
from trainer_worker.examples import Example
from trainer_worker.packing import Row

log = logging.getLogger(__name__)

PROMPTS = Path(__file__).with_name("anchors.json")
MAX_NEW_TOKENS = 32
KEPT = "rows.json"
SOURCES = ("anchors.py", "base.py", "distil.py", "layers.py", "packing.py")
"""Code that what is kept follows from."""

Anchors = Sequence[Sequence[Row]]
"""Groups of labelled rows; those of a group share their passages."""


def anchors(base: Base, cache: Path | None = None) -> list[list[Row]]:
    """Every prompt with the base's own answer and, for each of its tokens, what else the base holds probable; found
    once where there is a `cache` for this base."""
    examples = list(_prompts())
    closed = [example for example in examples if not example.context]
    open_book = [example for example in examples if example.context]
    return [*_kept(base, closed, cache), *_kept(base, open_book, cache)]


def exam_anchors(base: Base, cache: Path | None = None) -> list[Row]:
    """Other prompts like them, which no adapter is held to: what an exam measures harm on."""
    asked = [Example(question, "", "anchor") for question in _written()["exam"]]
    return [row for group in _kept(base, asked, cache) for row in group]


def _kept(base: Base, prompts: Sequence[Example], cache: Path | None) -> list[list[Row]]:
    """As `with_own_answers`, to the bit."""
    if cache is None:
        return with_own_answers(base, prompts)
    folder, rows = cache / _digest(base, prompts), TypeAdapter(list[list[Row]])

    def ask(made: Path) -> None:
        (made / KEPT).write_bytes(rows.dump_json(with_own_answers(base, prompts)))

    try:
        made_once(folder, ask)
        return rows.validate_json((folder / KEPT).read_bytes())
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used, and the base is asked: %s", folder, error)
        return with_own_answers(base, prompts)


def _digest(base: Base, prompts: Sequence[Example]) -> str:
    """Of all that the base's answers and their probabilities follow from, but for the weights."""
    machine = [base.device, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
    model = [str(base.model.dtype), base.ends, base.model.generation_config.to_json_string()]
    rows = [base.row(prompt) for prompt in prompts]
    digest = hashlib.sha256(repr([machine, model, rows, version("torch"), version("transformers")]).encode())
    digest.update(base.tokenizer.backend_tokenizer.to_str().encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def with_own_answers(base: Base, prompts: Sequence[Example]) -> list[list[Row]]:
    """Rows whose answers and labels are the base's own, in groups by their passages; prompts of about one length."""
    groups = base.groups(list(_answered(base, prompts)))
    return [_labelled(base, group) for group in groups]


def _answered(base: Base, prompts: Sequence[Example]) -> Iterator[Example]:
    answers = base.answers([base.conversation(prompt) for prompt in prompts], max_new_tokens=MAX_NEW_TOKENS)
    for prompt, said in zip(prompts, answers, strict=True):
        yield replace(prompt, answer=said)


def _labelled(base: Base, group: Sequence[Row]) -> list[Row]:
    labels = labels_of(base, group)
    return [replace(row, labels=labels[row]) for row in group]


def drawn(anchors: Anchors, count: int, rng: random.Random) -> list[Sequence[Row]]:
    """About `count` rows, half of them with passages. Whole groups: shared passages cost as much for one row as for
    all."""
    if not count:
        return []
    closed, *open_book = anchors
    chosen: list[Sequence[Row]] = [rng.sample(closed, min(len(closed), max(1, count // 2)))]
    for group in rng.sample(open_book, len(open_book)):
        if sum(map(len, chosen)) < count:
            chosen.append(group)
    return chosen


def _prompts() -> Iterator[Example]:
    written = _written()
    for question in written["closed_book"]:
        yield Example(question, "", "anchor")
    for passage in written["passages"]:
        for question in passage["questions"]:
            yield Example(question, "", "anchor", context=tuple(passage["text"]))


def _written() -> Any:
    return json.loads(PROMPTS.read_text())
