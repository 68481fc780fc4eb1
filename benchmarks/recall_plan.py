"""What a run of `benchmarks.recall` asks: documents and questions drawn by seed, methods, and in which order."""

import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.datasets import DATA_SETS, Asked, BadData, Item, read_items
from benchmarks.recall_journal import Key
from benchmarks.recall_methods import Method
from benchmarks.recall_smoke import BRIEF, SMOKE_ITEMS, SMOKE_OTHER


@dataclass(frozen=True)
class Drawn:
    """A document of a draw. `key` is its external id: the same text has the same one in every run."""

    key: str
    item: Item


@dataclass(frozen=True)
class Plan:
    """What the run asks. `draws` by seed; `training` are options of every upload.

    `unanswerable`, by seed, are questions of documents that are not uploaded.
    """

    data_set: str
    file: str
    draws: dict[int, list[Drawn]]
    methods: list[Method]
    training: dict[str, Any]
    max_tokens: int
    smoke: bool
    unanswerable: dict[int, list[Drawn]] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on. A run may go on with other methods, not with other settings."""
        drawn = {str(seed): _listed(items) for seed, items in self.draws.items()}
        drawn |= {f"unanswerable {seed}": _listed(items) for seed, items in self.unanswerable.items()}
        documents = sum(len(items) for items in self.draws.values())
        questions = sum(map(_question_count, self.draws.values()))
        plain = {name: getattr(self, name) for name in ("data_set", "file", "training", "max_tokens", "smoke")}
        counts: dict[str, Any] = {"seeds": list(self.draws), "documents": documents, "questions": questions}
        if self.unanswerable:
            counts["unanswerable"] = sum(map(_question_count, self.unanswerable.values()))
        return plain | counts | {"draw": _digest(json.dumps(drawn))}


def _listed(items: Sequence[Drawn]) -> list[list[str]]:
    return [[one.key, *(asked.question for asked in one.item.questions)] for one in items]


def _question_count(items: Sequence[Drawn]) -> int:
    return sum(len(one.item.questions) for one in items)


@dataclass(frozen=True)
class Step:
    """One question to be asked by one method. `answerable`: its document is among those uploaded."""

    seed: int
    drawn: Drawn
    number: int
    method: Method
    answerable: bool = True

    @property
    def asked(self) -> Asked:
        return self.drawn.item.questions[self.number]

    @property
    def key(self) -> Key:
        return self.seed, self.drawn.key, self.number, self.method.name


def steps(
    seed: int, items: Sequence[Drawn], methods: Sequence[Method], unanswerable: Sequence[Drawn] = ()
) -> list[Step]:
    """Questions in random order, the methods one after another at each, in random order: none has the cold caches.

    Those that nothing uploaded answers are mixed in, for the methods that may say so.
    """
    chance = random.Random(seed)
    kinds = ((items, True, list(methods)), (unanswerable, False, [one for one in methods if one.takes_unanswerable]))
    questions = [
        (drawn, number, answerable, asking)
        for documents, answerable, asking in kinds
        for drawn in documents
        for number in range(len(drawn.item.questions))
    ]
    chance.shuffle(questions)
    return [
        Step(seed, drawn, number, method, answerable)
        for drawn, number, answerable, asking in questions
        for method in chance.sample(asking, len(asking))
    ]


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
    formats: str | None = None,
    unanswerable: int = 0,
) -> Plan:
    """At most so many documents, and questions of each (none: all), and per seed `unanswerable` questions of others.

    Says on standard error where the set has fewer documents than are asked for.

    Raises `BadData`, and `OSError` without a file.
    """
    items, found = read_items(data_set, file)
    if len(items) < documents:
        print(f"{found.name} has {len(items)} of the {documents} documents asked for: all are taken", file=sys.stderr)
    draws = {seed: _draw(data_set, items, documents, questions, seed) for seed in seeds}
    others = {seed: _beyond(data_set, items, drawn, unanswerable, seed) for seed, drawn in draws.items()}
    return Plan(
        data_set,
        found.name,
        draws,
        list(methods),
        {name: value for name, value in (("max_seconds", max_seconds), ("formats", formats)) if value},
        max_tokens or DATA_SETS[data_set].max_tokens,
        smoke=False,
        unanswerable=others if unanswerable else {},
    )


def smoke_plan(seed: int, methods: Sequence[Method], unanswerable: int = 0) -> Plan:
    drawn = [Drawn(_key("smoke", item), item) for item in SMOKE_ITEMS]
    others = {seed: _beyond("smoke", [*SMOKE_ITEMS, SMOKE_OTHER], drawn, unanswerable, seed)} if unanswerable else {}
    return Plan("smoke", "", {seed: drawn}, list(methods), dict(BRIEF), 64, True, others)


def _draw(name: str, items: Sequence[Item], documents: int, questions: int | None, seed: int) -> list[Drawn]:
    chance = random.Random(seed)
    drawn = chance.sample(items, min(documents, len(items)))
    return [Drawn(_key(name, item), _fewer(item, questions, chance)) for item in drawn]


def _fewer(item: Item, count: int | None, chance: random.Random) -> Item:
    if count is None or count >= len(item.questions):
        return item
    return replace(item, questions=tuple(chance.sample(item.questions, count)))


def _beyond(name: str, items: Sequence[Item], drawn: Sequence[Drawn], count: int, seed: int) -> list[Drawn]:
    """Documents outside a draw, with `count` of all their questions. Raises `BadData` when there are fewer.

    A document with the title of one that was drawn is passed over: texts about the same thing answer one another's
    questions.
    """
    titles = {one.item.title for one in drawn}
    asked = [(item, number) for item in items if item.title not in titles for number in range(len(item.questions))]
    if len(asked) < count:
        raise BadData(
            f"--unanswerable {count}: {len(asked)} questions are of documents with other titles than a draw's"
        )
    numbers: dict[Item, list[int]] = defaultdict(list)
    for item, number in random.Random(f"unanswerable {seed}").sample(asked, count):
        numbers[item].append(number)
    kept = {item: tuple(item.questions[number] for number in some) for item, some in numbers.items()}
    return [Drawn(_key(name, item), replace(item, questions=questions)) for item, questions in kept.items()]


def joined(items: Sequence[Drawn]) -> Drawn:
    """All documents of a draw as one, without questions."""
    text = "\n\n".join(f"{one.item.title}\n\n{one.item.text}" for one in items)
    return Drawn(_key("joined", Item("", text, ())), Item("Joined", text, ()))


def _key(name: str, item: Item) -> str:
    return f"{name}-{_digest(item.title + chr(10) + item.text)}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
