"""Rows of training text laid into packs, packs into steps.

    prefix  | tail 1 answer 1 | tail 2 answer 2 | ... | padding        a pack, one lane of a batch

All rows of a pack begin with the same tokens (the chat template's opening, or the passages a question is about). They
are stored once; each row sees the prefix and itself, at the positions it would have alone, so losses and gradients
equal those of separate rows. Lanes have few lengths, because on a CPU every new shape costs seconds of kernel
generation, and are short, because attention within a lane grows with its square.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LANE_TOKENS = 128
"""Length of a lane; longer ones are 2, 4, 8 ... times as long."""
LONGEST_SHARED = 512
"""A lane is made longer, up to this, until a prefix takes at most a quarter of it."""

OPEN_PACKS = 256
"""Packs that a row may still go into; the text of a book has thousands."""

Labels = tuple[tuple[int, float], ...]
"""Tokens with the probability that each is to have."""


@dataclass(frozen=True)
class Row:
    """Token ids of one conversation: what is given, and what must be answered, with the end of the turn.

    `labels` are a teacher's: for each answer token, its most probable tokens. Without them the answer itself is meant.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    labels: tuple[Labels, ...] = field(default=(), compare=False, repr=False)

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.answer) - 1  # the last token is only predicted

    @property
    def wanted(self) -> Sequence[Labels]:
        return self.labels or [((token, 1.0),) for token in self.answer]


@dataclass(frozen=True)
class Pack:
    prefix: tuple[int, ...]
    rows: tuple[Row, ...]
    length: int

    @property
    def tokens(self) -> int:
        """Without padding."""
        return len(self.prefix) + sum(row.tokens - len(self.prefix) for row in self.rows)


@dataclass(frozen=True)
class Step:
    """What all adapters read at once: `packs[i]` are adapter i's, at most `lanes`, each of `length` tokens."""

    packs: tuple[tuple[Pack, ...], ...]
    lanes: int
    length: int

    @property
    def rows(self) -> Iterator[Row]:
        """In the order in which their answers are predicted."""
        return (row for packs in self.packs for pack in packs for row in pack.rows)


Curriculum = Sequence[Sequence[Row]]
"""One adapter's rows, in groups that may share packs."""


def steps_of_an_epoch(curricula: Sequence[Curriculum], step_tokens: int, rng: random.Random) -> list[Step]:
    """Every row of every adapter at least once, in random order; who has less begins again.

    `step_tokens` is what one adapter reads in a step, padding included.
    """
    packs = [[pack for group in groups for pack in _packs(group, rng)] for groups in curricula]
    steps = [step for length in _lengths(packs) for step in _steps(packs, length, step_tokens, again=True)]
    rng.shuffle(steps)
    return steps


def steps_in_order(curricula: Sequence[Curriculum], step_tokens: int) -> list[Step]:
    """Every row once, for measuring a loss."""
    packs = [[pack for group in groups for pack in fill(group)] for groups in curricula]
    return [step for length in _lengths(packs) for step in _steps(packs, length, step_tokens, again=False)]


def _lengths(packs: Sequence[Sequence[Pack]]) -> list[int]:
    return sorted({pack.length for mine in packs for pack in mine})


def _steps(packs: Sequence[Sequence[Pack]], length: int, step_tokens: int, *, again: bool) -> Iterator[Step]:
    """With `again`, who has fewer packs begins anew until all have as many."""
    lanes = max(1, step_tokens // length)
    lines = [[pack for pack in mine if pack.length == length] for mine in packs]
    count = -(-max(map(len, lines)) // lanes) * lanes
    if again:
        lines = [list(islice(cycle(line), count)) for line in lines]
    for i in range(0, count, lanes):
        yield Step(tuple(tuple(line[i : i + lanes]) for line in lines), lanes, length)


def _packs(group: Sequence[Row], rng: random.Random) -> list[Pack]:
    packs = fill(rng.sample(group, len(group)))
    rng.shuffle(packs)
    return [_topped_up(pack, rng.sample(group, min(len(group), 2 * len(pack.rows)))) for pack in packs]


def fill(rows: Sequence[Row]) -> list[Pack]:
    """Each row into the first pack with room; a row that needs a longer lane than others goes among its like."""
    found: list[Pack] = []
    for length in sorted({_bucket(row.tokens) for row in rows}):
        found += _first_fit([row for row in rows if _bucket(row.tokens) == length])
    return found


def _first_fit(rows: Sequence[Row]) -> list[Pack]:
    prefix = shared_prefix(rows)
    whole = len(prefix) + sum(row.tokens - len(prefix) for row in rows)
    length = max(_bucket(max(row.tokens for row in rows)), _bucket(min(4 * len(prefix), LONGEST_SHARED, whole)))
    least = min(row.tokens for row in rows) - len(prefix)
    packs: list[list[Row]] = []
    room: dict[int, int] = {}  # by pack, of those that are not full, the oldest first
    for row in rows:
        own = row.tokens - len(prefix)
        at = next((i for i, left in room.items() if left >= own), len(packs))
        if at == len(packs):
            packs.append([])
            room[at] = length - len(prefix)
        packs[at].append(row)
        room[at] -= own
        if room[at] < least:
            del room[at]
        if len(room) > OPEN_PACKS:
            del room[next(iter(room))]
    return [Pack(prefix, tuple(pack), length) for pack in packs]


def _topped_up(pack: Pack, others: Sequence[Row]) -> Pack:
    rows, room = list(pack.rows), pack.length - pack.tokens
    start = len(pack.prefix)
    for row in others:
        if row.prompt[:start] == pack.prefix and start < len(row.prompt) and row.tokens - start <= room:
            rows.append(row)
            room -= row.tokens - start
    return Pack(pack.prefix, tuple(rows), pack.length)


def _bucket(tokens: int) -> int:
    length = LANE_TOKENS
    while length < tokens:
        length *= 2
    return length


def shared_prefix(rows: Sequence[Row]) -> tuple[int, ...]:
    """What all prompts begin with, less one token, so that every row keeps one to predict from."""
    first, last = min(row.prompt for row in rows), max(row.prompt for row in rows)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: max(0, min(common, min(len(row.prompt) for row in rows) - 1))]


@dataclass(frozen=True)
class Batch:
    """A step as tensors, for n adapters of `lanes` lanes each (L = n * lanes, P answer tokens in all).

    `input_ids` and `position_ids` (L, length); `attention` (L, 1, length, length), additive; `predicts` (P,) where in
    the flattened lanes an answer's token is predicted; `targets` and `weights` (P, K) the tokens wanted there with
    their probabilities; `owners` (P,) whose token it is; `states` (L, length, hidden) what the
    first trained layer gets.
    """

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor"
    attention: "torch.Tensor"
    predicts: "torch.Tensor"
    targets: "torch.Tensor"
    weights: "torch.Tensor"
    owners: "torch.Tensor"
    states: "torch.Tensor | None" = None

    def starting_from(self, states: "torch.Tensor") -> "Batch":
        return replace(self, states=states)

    def to(self, device: str) -> "Batch":
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items() if tensor is not None})


def to_batch(step: Step, pad: int, dtype: "torch.dtype") -> Batch:
    import torch

    lanes = len(step.packs) * step.lanes
    ids = torch.full((lanes, step.length), pad)
    positions = torch.zeros(lanes, step.length, dtype=torch.long)
    allowed = torch.zeros(lanes, step.length, step.length, dtype=torch.bool)
    predicts, wanted, owners = list[int](), list[Labels](), list[int]()
    for owner, packs in enumerate(step.packs):
        for lane, pack in enumerate(packs, owner * step.lanes):
            _lay(pack, ids[lane], positions[lane], allowed[lane])
            predicts += [lane * step.length + at for at in _answer_places(pack)]
            wanted += [labels for row in pack.rows for labels in row.wanted]
            owners += [owner] * sum(len(row.answer) for row in pack.rows)
    allowed = allowed.tril()
    allowed.diagonal(dim1=1, dim2=2).fill_(True)  # padding sees itself: a row of nothing but -inf is NaN
    attention = torch.zeros(lanes, step.length, step.length, dtype=dtype)
    attention.masked_fill_(~allowed, torch.finfo(dtype).min)
    targets, weights = _as_table(wanted)
    return Batch(ids, positions, attention[:, None], torch.tensor(predicts), targets, weights, torch.tensor(owners))


def _lay(pack: Pack, ids: "torch.Tensor", positions: "torch.Tensor", allowed: "torch.Tensor") -> None:
    import torch

    start = len(pack.prefix)
    ids[:start] = torch.tensor(pack.prefix, dtype=ids.dtype)
    positions[:start] = torch.arange(start)
    allowed[:start, :start] = True
    for begin, row in places(pack):
        own = row.prompt[start:] + row.answer[:-1]
        end = begin + len(own)
        ids[begin:end] = torch.tensor(own)
        positions[begin:end] = torch.arange(start, start + len(own))
        allowed[begin:end, :start] = True
        allowed[begin:end, begin:end] = True


def places(pack: Pack) -> Iterator[tuple[int, Row]]:
    """Each row with where what is its own begins."""
    begin = len(pack.prefix)
    for row in pack.rows:
        yield begin, row
        begin += row.tokens - len(pack.prefix)


def _answer_places(pack: Pack) -> Iterator[int]:
    for begin, row in places(pack):
        end = begin + row.tokens - len(pack.prefix)
        yield from range(end - len(row.answer), end)


def _as_table(wanted: Sequence[Labels]) -> tuple["torch.Tensor", "torch.Tensor"]:
    import torch

    width = max(map(len, wanted), default=1)
    padded = [[*labels, *[(0, 0.0)] * (width - len(labels))] for labels in wanted]
    targets = torch.tensor([[token for token, _ in labels] for labels in padded]).reshape(-1, width)
    weights = torch.tensor([[weight for _, weight in labels] for labels in padded]).reshape(-1, width)
    return targets.long(), weights.float()
