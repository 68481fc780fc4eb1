"""How much an adapter has to hold and how much it can hold, in bits of what the base model does not know.

A statement weighs as many bits as it surprises the base after its question. What an adapter can hold is taken for what
one had learnt of many invented names and numbers in a training of the usual length; that is a measure of time more than
of room, since one that is trained on holds more (`python -m benchmarks.capacity --only sweep`).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from loramem.records import Fullness
from trainer_worker.base import Base
from trainer_worker.examples import Example
from trainer_worker.packing import Row

RANKS = (8, 16, 32, 64)
"""What `rank: auto` chooses from."""
HELD_BITS = {1: 3835, 4: 5250, 16: 6739}
"""By rank: what was stored of 8,767 bits in 12 passes, on the upper half of the embedded model. In 40 passes each
stored more than 99 % of them."""
ROOM = 0.5
"""Share of its capacity that `rank: auto` fills: questions in other words need some as well."""


def statements_of(base: Base, examples: Sequence[Example]) -> list[Row]:
    """A row for each different answer that is to be given with the book closed, after the first of its questions.

    Rows that say again what others say (the text in stretches, summaries, paragraphs under a question) count only where
    there are no others.
    """
    closed = [example for example in examples if example.answer.strip() and not example.context]
    first: dict[str, Example] = {}
    for example in [one for one in closed if one.kind not in ("original", "summary", "heading")] or closed:
        first.setdefault(example.answer.strip(), example)
    return [base.row(example) for example in first.values()]


def bits(base: Base, rows: Sequence[Row]) -> float:
    """What the model as it is now does not expect of the rows' answers."""
    return sum(map(sum, base.surprises(rows).values())) / math.log(2)


def capacity_bits(rank: int) -> float:
    """Of an adapter of this rank: a power of the rank between two that were measured, the nearest two's beyond them."""
    pairs = list(pairwise(sorted(HELD_BITS.items())))
    (low, less), (high, more) = next((pair for pair in pairs if rank <= pair[1][0]), pairs[-1])
    return float(less * (more / less) ** (math.log(rank / low) / math.log(high / low)))


def least_rank(load_bits: float) -> int:
    """The smallest of `RANKS` that holds `load_bits` with room to spare, or the largest."""
    return next((rank for rank in RANKS if ROOM * capacity_bits(rank) >= load_bits), RANKS[-1])


def next_rank(rank: int, most: int) -> int | None:
    """The next greater of `RANKS` that is at most `most`."""
    return next((greater for greater in RANKS if rank < greater <= most), None)


def fullness(load_bits: float, left_bits: float, rank: int) -> Fullness:
    """`left_bits` are what the adapter still does not expect of its load."""
    capacity = capacity_bits(rank)
    return Fullness(
        load_bits=round(load_bits, 1),
        stored_bits=round(load_bits - left_bits, 1),
        capacity_bits=round(capacity, 1),
        full=round(load_bits / capacity, 4),
    )
