"""A decoder in two parts gives what it gives in one."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_worker.tiny import LESSONS, save_tiny_model
from trainer_worker import layers
from trainer_worker.base import Base
from trainer_worker.layers import can_be_cut, only_at, part_of
from trainer_worker.packing import Step, steps_in_order, to_batch


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(str(save_tiny_model(tmp_path_factory.mktemp("tiny"))))


def steps(base: Base) -> list[Step]:
    """Two adapters, the second with fewer rows, in lanes of two lengths."""
    groups = base.groups(LESSONS * 8)
    return steps_in_order([groups, groups[:1]], 256)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_losses_do_not_depend_on_where_the_model_is_cut(base: Base, layers: int) -> None:
    whole, cut = base.lower(0), base.lower(layers)
    for step in steps(base):
        with torch.no_grad():
            expected, tokens = base.losses(base.batch(step, whole), 2, whole)
            for _ in range(2):  # computed, then recalled
                found, same = base.losses(base.batch(step, cut), 2, cut)
                assert torch.allclose(found, expected, atol=1e-5)
                assert torch.equal(tokens, same)


def test_a_row_is_read_once_whatever_pack_it_comes_in(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = base.lower(1)
    for step in steps(base):
        base.batch(step, lower)
    monkeypatch.setattr(lower, "_computed", lambda batch: pytest.fail("computed again"))
    groups = [list(reversed(group)) for group in base.groups(LESSONS * 8)]
    for step in steps_in_order([groups], 512):
        batch = to_batch(step, base.pad, torch.float32)
        states = lower.states(step, batch)
        fresh = base.lower(1).states(step, batch)
        real = batch.position_ids.flatten() > 0
        assert torch.allclose(states.flatten(0, 1)[real], fresh.flatten(0, 1)[real], atol=1e-5)


def test_rows_that_are_too_many_are_read_again(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, none = base.lower(1), base.lower(1)
    for step in steps(base):
        expected = kept.states(step, base.batch(step, kept))
        monkeypatch.setattr(layers, "KEPT_BYTES", 100)
        for _ in range(2):
            assert torch.allclose(none.states(step, base.batch(step, none)), expected, atol=1e-5)
        assert not none._rows
        monkeypatch.undo()
    assert kept._rows


def test_the_decoder_is_whole_again_after_an_error(base: Base) -> None:
    decoder: Any = base.model.get_decoder()
    layers, norm = decoder.layers, decoder.norm
    with pytest.raises(ZeroDivisionError), part_of(base.model, slice(0, 1), to_end=False):
        _ = 1 / (len(decoder.layers) - 1)
    assert decoder.layers is layers
    assert decoder.norm is norm


def test_a_decoder_of_another_build_is_known(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_be_cut(base.model, 1)
    decoder: Any = base.model.get_decoder()
    monkeypatch.setattr(decoder, "forward", partial(scaled, decoder.forward))
    assert not can_be_cut(base.model, 1)
    monkeypatch.setattr(base.model, "get_decoder", lambda: base.model.lm_head)
    assert not can_be_cut(base.model, 1)


def scaled(forward: Any, *, inputs_embeds: Any = None, **inputs: Any) -> Any:
    """As a decoder that scales what it gets in place of its own embeddings."""
    return forward(inputs_embeds=None if inputs_embeds is None else 3 * inputs_embeds, **inputs)


def test_logits_are_computed_at_the_places_asked_for(base: Base, tmp_path: Path) -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    whole = base.model(ids).logits
    with only_at(base.model, torch.tensor([0, 4])):
        some = base.model(ids).logits
    assert torch.allclose(some, torch.stack([whole[0, 0], whole[1, 1]])[None], atol=1e-6)
    assert base.model(ids).logits.shape == whole.shape
