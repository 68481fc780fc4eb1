"""CounterFact, statements that contradict what a model has read: its slices, and which of two answers is likelier.

A slice holds statements alone. Those found in the data set itself, by prompt and new target, come with what is needed
to score them: the true answer, a paraphrase, and a neighbour for which the true answer still holds. Taught beside them
are true statements of other records, none of which is scored or stands in a slice: what must stay as it is, by example.
"""

import csv
import gzip
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from trainer_worker.examples import Example
from trainer_worker.train import Trainer

ALIKE = 3
"""True statements for each edit that share its true answer."""
OTHERS = 1.5
"""Further true statements, for each statement of the slice."""

Scores = dict[str, float]
"""Shares, 0 to 1, under `efficacy`, `paraphrase` and `neighbourhood`."""


@dataclass(frozen=True)
class Edit:
    """A record of the data set, as far as it is scored."""

    prompt: str
    target_new: str
    ground_truth: str
    rephrase_prompt: str
    locality_prompt: str
    locality_ground_truth: str

    @property
    def statement(self) -> str:
        return f"{self.prompt} {self.target_new}"


@dataclass(frozen=True)
class Choice:
    """After `prompt`, `wanted` shall be likelier than `other`."""

    prompt: str
    wanted: str
    other: str


@dataclass(frozen=True)
class Slice:
    """Every statement as a lesson, the edits among them that can be scored, and true statements of other records."""

    lessons: list[Example]
    edits: list[Edit]
    others: list[Example] = field(default_factory=list)


def read_counterfact(data: Path, load: int, rows: int | None = None) -> Slice:
    """The first `rows` statements, or all, of the slice of `load` thousand tokens. Raises `FileNotFoundError`."""
    with (data / f"paper/counterfact_slices/counterfact_edit_{load}K.csv").open(newline="") as file:
        statements = [row["text"] for row in csv.DictReader(file)]
    edits = read_edits(data)
    facts = join(statements[:rows], edits)
    return replace(facts, others=true_statements(facts, edits))


def read_edits(data: Path) -> list[Edit]:
    with gzip.open(data / "counterfact/counterfact-edit.json.gz", "rt", encoding="utf-8") as file:
        records = json.load(file)
    records += json.loads((data / "counterfact/counterfact-val.json").read_text(encoding="utf-8"))
    return [_edit(record) for record in records]


def _edit(record: dict[str, Any]) -> Edit:
    return Edit(**{name: record[name] for name in Edit.__dataclass_fields__})


def join(statements: Sequence[str], edits: Sequence[Edit]) -> Slice:
    """Statements that are no edit's are taught as well: a slice's load stays what its name says."""
    by_statement = {edit.statement: edit for edit in reversed(edits)}  # of several the first
    endings = {edit.target_new for edit in edits} | {edit.ground_truth for edit in edits}
    return Slice(
        [_lesson(*split_statement(statement, endings)) for statement in statements],
        [by_statement[statement] for statement in statements if statement in by_statement],
    )


def split_statement(statement: str, endings: set[str]) -> tuple[str, str]:
    """(prompt, answer): the answer is the longest ending that is known as an answer, or else the last word."""
    words = statement.split(" ")
    at = next((i for i in range(1, len(words)) if " ".join(words[i:]) in endings), len(words) - 1)
    return " ".join(words[:at]), " ".join(words[at:])


def _lesson(prompt: str, answer: str) -> Example:
    return Example(f"Complete the sentence: {prompt}", answer, "user")


def choices(edits: Sequence[Edit]) -> dict[str, list[Choice]]:
    return {
        "efficacy": [Choice(e.prompt, e.target_new, e.ground_truth) for e in edits],
        "paraphrase": [Choice(e.rephrase_prompt, e.target_new, e.ground_truth) for e in edits],
        "neighbourhood": [Choice(e.locality_prompt, e.locality_ground_truth, e.target_new) for e in edits],
    }


def true_statements(facts: Slice, edits: Sequence[Edit], *, seed: int = 0) -> list[Example]:
    """Of records that are not taught otherwise and not asked: some with the same true answer as each edit, some others.

    Left out are prompts that `score` asks, of whatever record.
    """
    taught = {lesson.question for lesson in facts.lessons}
    asked = {edit.locality_prompt for edit in edits} | {edit.rephrase_prompt for edit in edits}
    free = [edit for edit in edits if edit.prompt not in asked and _lesson(edit.prompt, "").question not in taught]
    by_answer: dict[str, list[Edit]] = defaultdict(list)
    for edit in free:
        by_answer[edit.ground_truth].append(edit)
    rng = random.Random(seed)
    chosen = [one for edit in facts.edits for one in _some(rng, by_answer[edit.ground_truth], ALIKE)]
    chosen += _some(rng, free, round(OTHERS * len(facts.lessons)))
    return list({one.prompt: _lesson(one.prompt, one.ground_truth) for one in chosen}.values())


def in_passing(lessons: Sequence[Example], sentences: Sequence[str], *, seed: int = 0) -> list[Example]:
    """The same with a sentence about something else before each: a paraphrase of the data set begins so."""
    rng = random.Random(seed)
    asks = "Complete the sentence: "
    return [
        replace(one, question=f"{asks}{rng.choice(sentences)} {one.question.removeprefix(asks)}") for one in lessons
    ]


def _some(rng: random.Random, edits: Sequence[Edit], count: int) -> list[Edit]:
    return rng.sample(edits, min(count, len(edits)))


def score(trainer: Trainer, edits: Sequence[Edit]) -> Scores:
    """How often the model as it is now finds the wanted answer likelier. Raises `ValueError` without an edit."""
    if not edits:
        raise ValueError("no statement of the slice is in the data set: nothing can be scored")
    return {name: wanted_share(trainer, asked) for name, asked in choices(edits).items()}


def wanted_share(trainer: Trainer, asked: Sequence[Choice]) -> float:
    lessons = [_lesson(choice.prompt, answer) for choice in asked for answer in (choice.wanted, choice.other)]
    found = mean_log_probs(trainer, lessons)
    return sum(wanted > other for wanted, other in zip(found[::2], found[1::2], strict=True)) / len(asked)


def mean_log_probs(trainer: Trainer, examples: Sequence[Example]) -> list[float]:
    """Of each answer after its closed-book question, in nats per token; the end of the turn is not counted.

    Packed as rows of training are: every row sees its own question alone. An answer must not be blank.
    """
    rows = [trainer.row(example) for example in examples]
    surprises = trainer.surprises(rows)
    return [-mean(surprises[row][:-1]) for row in rows]
