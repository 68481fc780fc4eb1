"""Short texts about invented things, as many as wanted: what load and soak upload and ask about.

A text has three facts and a question for each. Its thing's name is in every question, and no two texts share a name.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

STARTS = ("Bra", "Cor", "Dra", "El", "Fen", "Gor", "Hal", "Ker", "Lum", "Mor", "Nar", "Ost", "Pel", "Quo", "Ras", "Sil")
MIDDLES = ("ba", "de", "go", "li", "mu", "na", "ri", "so", "ta", "ve", "wi", "zo")
ENDS = ("bury", "crest", "dell", "fell", "gard", "holm", "mere", "mont", "rath", "stead", "vane", "wick")
NAMES = len(STARTS) * len(MIDDLES) * len(ENDS)
GOODS = ("salted herring", "blue rice", "powdered amber", "beeswax", "smoked plums", "goat's wool", "ground chalk")
TRADES = ("baker", "tanner", "glazier", "cooper", "midwife", "beekeeper", "bell founder", "cartographer")
COLOURS = ("green", "ochre", "violet", "white", "crimson", "slate grey", "turquoise")
TRAINING = {"formats": ["original"], "max_seconds": 1}
"""Options of the upload. What was learnt does not matter here, only that there is an adapter."""


@dataclass(frozen=True)
class Kind:
    """A text with places for the invented, and the questions about it."""

    title: str
    text: str
    questions: tuple[str, str, str]


KINDS = (
    Kind(
        "The harbour of {name}",
        "The harbour of {name} was dug in {year}. Its lighthouse is {colour} and stands {number} metres high. "
        "Dues are paid in {goods}.",
        (
            "When was the harbour of {name} dug?",
            "How high is the lighthouse of {name}?",
            "What are harbour dues in {name} paid in?",
        ),
    ),
    Kind(
        "The {name} engine",
        "The {name} engine burns {goods}. A {trade} built the first one in {year}. A full tank lasts {number} hours.",
        (
            "What does the {name} engine burn?",
            "Who built the first {name} engine?",
            "How many hours does a full tank of the {name} engine last?",
        ),
    ),
    Kind(
        "The festival of {name}",
        "The festival of {name} was first held in {year}. Its patron was a {trade}. For {number} days everybody wears "
        "{colour}.",
        (
            "When was the festival of {name} first held?",
            "What was the patron of the festival of {name}?",
            "Which colour does everybody wear at the festival of {name}?",
        ),
    ),
    Kind(
        "The abbey of {name}",
        "The abbey of {name} has {number} bells. They were bought with {goods} in {year}. The abbot, once a {trade}, "
        "had its gate painted {colour}.",
        (
            "How many bells does the abbey of {name} have?",
            "What were the bells of the abbey of {name} bought with?",
            "What colour is the gate of the abbey of {name}?",
        ),
    ),
)


@dataclass(frozen=True)
class Synthetic:
    """`external_id` is the same for the same seed and number, so that a document is found again."""

    external_id: str
    title: str
    text: str
    questions: Sequence[str]


def synthesize(count: int, seed: int) -> list[Synthetic]:
    """The first `count` texts of a seed, 1 to `NAMES`. Raises `ValueError` for another count."""
    if not 1 <= count <= NAMES:
        raise ValueError(f"{count} documents: there are names for 1 to {NAMES}")
    drawn = random.Random(seed)
    names = ["".join(parts) for parts in product(STARTS, MIDDLES, ENDS)]
    drawn.shuffle(names)
    return [_synthetic(f"load-{seed}-{number}", name, drawn) for number, name in enumerate(names[:count])]


def _synthetic(external_id: str, name: str, drawn: random.Random) -> Synthetic:
    kind = drawn.choice(KINDS)
    facts = {
        "name": name,
        "year": drawn.randrange(1100, 1900),
        "number": drawn.randrange(3, 99),
        "goods": drawn.choice(GOODS),
        "trade": drawn.choice(TRADES),
        "colour": drawn.choice(COLOURS),
    }
    questions = tuple(question.format(**facts) for question in kind.questions)
    return Synthetic(external_id, kind.title.format(**facts), kind.text.format(**facts), questions)
