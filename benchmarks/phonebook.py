"""PhoneBook, the data set of invented names and numbers: its slices, and how many numbers an adapter gives back."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.teach import Cost, teach
from trainer_worker.capacity import bits, statements_of
from trainer_worker.examine import answer_closed_book
from trainer_worker.examples import Example
from trainer_worker.loop import Hyperparameters
from trainer_worker.train import Trainer

MAX_NEW_TOKENS = 20
"""A number takes twelve and the end of the turn; whoever goes on is wrong already."""
ASKED_AT_ONCE = 64
_ROW = re.compile(r"Question: (.+\?) Answer: (\S+)")


@dataclass(frozen=True)
class Stored:
    """How many of `rows` numbers an adapter gave back to the digit; in bits, how far they surprised the base, and what
    the adapter took off that."""

    rows: int
    right: int
    cost: Cost
    load_bits: float = 0.0
    stored_bits: float = 0.0

    @property
    def share(self) -> float:
        return self.right / self.rows

    @property
    def figures(self) -> dict[str, float]:
        density = 1e6 * self.right / self.cost.parameters
        shares = {"exact_match": round(self.share, 4), "facts_per_million_parameters": round(density, 2)}
        bits = {"load_bits": round(self.load_bits, 1), "stored_bits": round(self.stored_bits, 1)}
        return {"rows": self.rows, "right": self.right} | shares | bits | self.cost.figures


def read_phonebook(data: Path, load: int) -> list[Example]:
    """The slice of `load` thousand tokens; each slice begins with all smaller ones.

    Raises `FileNotFoundError`, and `ValueError` for a row of another form.
    """
    with (data / f"paper/phonebook/phonebook_qa_{load}K.csv").open(newline="") as file:
        return [parse_row(row["text"]) for row in csv.DictReader(file)]


def parse_row(text: str) -> Example:
    found = _ROW.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"not a row of a phone book: {text!r}")
    return Example(found[1], found[2], "user")


def cut(rows: Sequence[Example], parts: int) -> list[list[Example]]:
    """Consecutive parts whose lengths differ by one at most. Raises `ValueError` for more parts than rows."""
    if not 1 <= parts <= len(rows):
        raise ValueError(f"{len(rows)} rows cannot be cut into {parts} parts")
    bounds = [len(rows) * part // parts for part in range(parts + 1)]
    return [list(rows[begin:end]) for begin, end in pairwise(bounds)]


def store(trainer: Trainer, hyperparameters: Hyperparameters, rows: Sequence[Example], rank: int) -> Stored:
    """Train one adapter on the rows, then ask it for each number."""
    statements = statements_of(trainer, rows)
    load = bits(trainer, statements)
    adapter, cost = teach(trainer, hyperparameters, rows, rank)
    with trainer.adapted(adapter):
        right = exact_matches(rows, ask(trainer, rows))
        return Stored(len(rows), right, cost, load, load - bits(trainer, statements))


def ask(trainer: Trainer, rows: Sequence[Example]) -> list[str]:
    """Closed-book answers of the model as it is now, greedy."""
    answers: list[str] = []
    for start in range(0, len(rows), ASKED_AT_ONCE):
        questions = [row.question for row in rows[start : start + ASKED_AT_ONCE]]
        answers += answer_closed_book(trainer, questions, max_new_tokens=MAX_NEW_TOKENS)
    return answers


def exact_matches(rows: Sequence[Example], answers: Sequence[str]) -> int:
    return sum(answer.strip() == row.answer for row, answer in zip(rows, answers, strict=True))
