"""What a run of `benchmarks.recall` asks: documents and questions drawn by seed, methods, and in which order."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.datasets import DATA_SETS, Asked, Item, read_items
from benchmarks.recall_journal import Key
from benchmarks.recall_methods import Method
from benchmarks.recall_smoke import SMOKE_ITEMS, SMOKE_S


@dataclass(frozen=True)
class Drawn:
    """A document of a draw. `key` is its external id: the same text has the same one in every run."""

    key: str
    item: Item


@dataclass(frozen=True)
class Plan:
    """What the run asks. `draws` by seed; `training` are options of every upload."""

    data_set: str
    file: str
    draws: dict[int, list[Drawn]]
    methods: list[Method]
    training: dict[str, Any]
    max_tokens: int
    smoke: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on. A run may go on with other methods, not with other settings."""
        drawn = {
            str(seed): [[one.key, *(asked.question for asked in one.item.questions)] for one in items]
            for seed, items in self.draws.items()
        }
        documents = sum(len(items) for items in self.draws.values())
        questions = sum(len(one.item.questions) for items in self.draws.values() for one in items)
        plain = {name: getattr(self, name) for name in ("data_set", "file", "training", "max_tokens", "smoke")}
        counts = {"seeds": list(self.draws), "documents": documents, "questions": questions}
        return plain | counts | {"draw": _digest(json.dumps(drawn))}


@dataclass(frozen=True)
class Step:
    """One question to be asked by one method."""

    seed: int
    drawn: Drawn
    number: int
    method: Method

    @property
    def asked(self) -> Asked:
        return self.drawn.item.questions[self.number]

    @property
    def key(self) -> Key:
        return self.seed, self.drawn.key, self.number, self.method.name


def steps(seed: int, items: Sequence[Drawn], methods: Sequence[Method]) -> list[Step]:
    """Questions in random order, the methods one after another at each, in random order: none has the cold caches."""
    chance = random.Random(seed)
    questions = [(drawn, number) for drawn in items for number in range(len(drawn.item.questions))]
    chance.shuffle(questions)
    mixed = [(drawn, number, chance.sample(list(methods), len(methods))) for drawn, number in questions]
    return [Step(seed, drawn, number, method) for drawn, number, order in mixed for method in order]


def draw_plan(
    data_set: str,
    file: Path | None,
    seeds: Sequence[int],
    methods: Sequence[Method],
    *,
    documents: int,
    questions: int | None,
    max_tokens: int | None,
    max_seconds: float | None,
) -> Plan:
    """At most so many documents, and questions of each (none: all). Raises `BadData`, and `OSError` without a file."""
    items, found = read_items(data_set, file)
    draws = {seed: _draw(data_set, items, documents, questions, seed) for seed in seeds}
    training = {"max_seconds": max_seconds} if max_seconds else {}
    return Plan(
        data_set, found.name, draws, list(methods), training, max_tokens or DATA_SETS[data_set].max_tokens, False
    )


def smoke_plan(seed: int, methods: Sequence[Method]) -> Plan:
    draws = {seed: [Drawn(_key("smoke", item), item) for item in SMOKE_ITEMS]}
    return Plan("smoke", "", draws, list(methods), {"max_seconds": SMOKE_S}, 64, True)


def _draw(name: str, items: Sequence[Item], documents: int, questions: int | None, seed: int) -> list[Drawn]:
    chance = random.Random(seed)
    drawn = chance.sample(items, min(documents, len(items)))
    return [Drawn(_key(name, item), _fewer(item, questions, chance)) for item in drawn]


def _fewer(item: Item, count: int | None, chance: random.Random) -> Item:
    if count is None or count >= len(item.questions):
        return item
    return replace(item, questions=tuple(chance.sample(item.questions, count)))


def joined(items: Sequence[Drawn]) -> Drawn:
    """All documents of a draw as one, without questions."""
    text = "\n\n".join(f"{one.item.title}\n\n{one.item.text}" for one in items)
    return Drawn(_key("joined", Item("", text, ())), Item("Joined", text, ()))


def _key(name: str, item: Item) -> str:
    return f"{name}-{_digest(item.title + chr(10) + item.text)}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
