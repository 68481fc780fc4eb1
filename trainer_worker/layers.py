"""A decoder run in two parts: its lower layers once for each row, its upper ones at every step.

Where the lower layers have no adapter, what they make of a row never changes. It is computed once and kept, and from
the second epoch on a training step costs the upper layers alone, forward and backward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer_worker.packing import Batch, Pack, Row, Step, places

KEPT_BYTES = 1 << 30


class Lower:
    """The first `count` layers of `model` (0: its embeddings), and what they made of rows.

    If all of that exceeds `KEPT_BYTES`, nothing is kept: a step with a single missing row has to compute all its rows.
    """

    def __init__(self, model: Any, count: int) -> None:
        self.model, self.count = model, count
        self._rows: dict[Row, Tensor] = {}
        self._bytes = 0

    def states(self, step: Step, batch: Batch) -> Tensor:
        """What the upper layers get, (lanes, length, hidden); computed where a row of the step is new."""
        if not self.count:
            embedded: Tensor = self.model.get_input_embeddings()(batch.input_ids)
            return embedded
        lanes = [pack for packs in step.packs for pack in (*packs, *[None] * (step.lanes - len(packs)))]
        if all(row in self._rows for row in step.rows):
            return torch.stack([self._recalled(pack, step.length) for pack in lanes])
        found = self._computed(batch)
        for pack, states in zip(lanes, found, strict=True):
            if pack is not None:
                self._remember(pack, states)
        return found

    def _computed(self, batch: Batch) -> Tensor:
        with torch.no_grad(), part_of(self.model, slice(0, self.count), to_end=False) as decoder:
            out: Tensor = decoder(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=batch.attention,
                use_cache=False,
            ).last_hidden_state
        return out

    def _remember(self, pack: Pack, states: Tensor) -> None:
        start = len(pack.prefix)
        for begin, row in places(pack):
            end = begin + row.tokens - start
            if row not in self._rows and self._bytes <= KEPT_BYTES:
                self._rows[row] = torch.cat([states[:start], states[begin:end]])
                self._bytes += self._rows[row].nbytes
        if self._bytes > KEPT_BYTES:
            self._rows.clear()

    def _recalled(self, pack: Pack | None, length: int) -> Tensor:
        if pack is None:
            return next(iter(self._rows.values())).new_zeros(length, self.model.config.hidden_size)
        start = len(pack.prefix)
        known = [self._rows[row] for row in pack.rows]
        lane = torch.cat([known[0][:start], *(states[start:] for states in known)])
        return nn.functional.pad(lane, (0, 0, 0, length - len(lane)))


@contextmanager
def part_of(model: Any, part: slice, *, to_end: bool) -> Iterator[Any]:
    """The decoder has only these layers, and its last norm only with `to_end`, for as long as the block lasts."""
    decoder = model.get_decoder()
    if to_end and not part.start:
        yield decoder
        return
    layers, norm = decoder.layers, decoder.norm
    decoder.layers = nn.ModuleList(layers[part])
    if not to_end:
        decoder.norm = nn.Identity()
    try:
        yield decoder
    finally:
        decoder.layers, decoder.norm = layers, norm


def can_be_cut(model: Any, count: int) -> bool:
    """Whether the model gives the same logits when its first `count` layers and the others run apart: not so where the
    decoder is built otherwise, or treats what it is given in another way than its own embeddings."""
    ids = torch.arange(1, 5, device=model.device)[None]
    try:
        with torch.no_grad():
            with part_of(model, slice(0, count), to_end=False) as decoder:
                states = decoder(input_ids=ids, use_cache=False).last_hidden_state
            with part_of(model, slice(count, None), to_end=True):
                apart = model(inputs_embeds=states, use_cache=False).logits
            whole = model(input_ids=ids, use_cache=False).logits
    except AttributeError:
        return False
    return bool(torch.allclose(apart, whole, atol=1e-3 * float(whole.abs().max())))


@contextmanager
def only_at(model: Any, places: Tensor) -> Iterator[None]:
    """Logits are computed at these places of the flattened lanes only, as (1, places, vocabulary), while it lasts."""

    def choose(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0].flatten(0, 1)[None, places],)

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
