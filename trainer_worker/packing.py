"""Rows of training text laid into packs of one length, sharing the tokens they begin with.

    prefix  | tail 1 answer 1 | tail 2 answer 2 | ... | padding

All rows of a pack begin with the same tokens (the chat template's opening, or the passages a question is about). They
are stored once; each row sees the prefix and itself, at the positions it would have alone, so losses and gradients
equal those of separate rows. Two things are won on a CPU: short questions cost a third fewer tokens, and there is one
batch shape, where every new shape costs seconds of kernel generation.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACK_TOKENS = 512
"""Length of a pack; a row that is longer alone gets a pack of the next multiple."""


@dataclass(frozen=True)
class Row:
    """Token ids of one conversation: what is given, and what must be answered, with the end of the turn."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.answer) - 1  # the last token is only predicted


@dataclass(frozen=True)
class Pack:
    prefix: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def tokens(self) -> int:
        return _packed_tokens(len(self.prefix), self.rows)

    @property
    def length(self) -> int:
        return -(-self.tokens // PACK_TOKENS) * PACK_TOKENS


@dataclass(frozen=True)
class Batch:
    """A pack as tensors: `input_ids` and `position_ids` (1, length), `attention` (1, 1, length, length) additive,
    `predicts` the indices whose next token is an answer's, `targets` those tokens."""

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor"
    attention: "torch.Tensor"
    predicts: "torch.Tensor"
    targets: "torch.Tensor"


def packs_of_an_epoch(groups: Sequence[Sequence[Row]], rng: random.Random) -> list[Pack]:
    """Every row once, in random order; the last pack of a group is filled up with rows drawn again."""
    packs = [pack for group in groups if group for pack in _packs(group, rng)]
    rng.shuffle(packs)
    return packs


def in_order(group: Sequence[Row]) -> list[Pack]:
    """Every row once, for measuring a loss."""
    return list(_fill(shared_prefix(group), list(group))) if group else []


def shared_prefix(rows: Sequence[Row]) -> tuple[int, ...]:
    """What all prompts begin with, less one token, so that every row keeps one to predict from."""
    first, last = min(row.prompt for row in rows), max(row.prompt for row in rows)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: max(0, min(common, min(len(row.prompt) for row in rows) - 1))]


def _packs(group: Sequence[Row], rng: random.Random) -> Iterator[Pack]:
    prefix = shared_prefix(group)
    packs = list(_fill(prefix, rng.sample(group, len(group))))
    yield from packs[:-1]
    rows = list(packs[-1].rows)
    for row in rng.sample(group, len(group)):
        if _packed_tokens(len(prefix), [*rows, row]) <= packs[-1].length:
            rows.append(row)
    yield Pack(prefix, tuple(rows))


def _fill(prefix: tuple[int, ...], rows: Sequence[Row]) -> Iterator[Pack]:
    taken: list[Row] = []
    for row in rows:
        if taken and _packed_tokens(len(prefix), [*taken, row]) > PACK_TOKENS:
            yield Pack(prefix, tuple(taken))
            taken = []
        taken.append(row)
    if taken:
        yield Pack(prefix, tuple(taken))


def _packed_tokens(prefix: int, rows: Sequence[Row]) -> int:
    return prefix + sum(row.tokens - prefix for row in rows)


def to_batch(pack: Pack, pad: int, dtype: "torch.dtype") -> Batch:
    import torch

    start = len(pack.prefix)
    ids, positions, predicts, targets = list(pack.prefix), list(range(start)), list[int](), list[int]()
    allowed = torch.zeros(pack.length, pack.length, dtype=torch.bool)
    allowed[:start, :start] = True
    for row in pack.rows:
        own = row.prompt[start:] + row.answer[:-1]
        begin, end = len(ids), len(ids) + len(own)
        ids.extend(own)
        positions.extend(range(start, start + len(own)))
        predicts.extend(range(end - len(row.answer), end))
        targets.extend(row.answer)
        allowed[begin:end, :start] = True
        allowed[begin:end, begin:end] = True
    padding = pack.length - len(ids)
    allowed = allowed.tril()
    allowed.fill_diagonal_(True)  # padding sees itself: a row of nothing but -inf is NaN
    attention = torch.zeros(pack.length, pack.length, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return Batch(
        torch.tensor([ids + [pad] * padding]),
        torch.tensor([positions + [0] * padding]),
        attention[None, None],
        torch.tensor(predicts),
        torch.tensor(targets),
    )
