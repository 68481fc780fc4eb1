"""Adapters that start from the base's principal parts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainer_worker.test_train import QUICK, ignore, train
from tests.trainer_worker.tiny import LESSONS
from trainer_worker import lora, pissa
from trainer_worker.examine import examine
from trainer_worker.train import Trainer

pytestmark = pytest.mark.usefixtures("short_packs")

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture
def trainer(folder: Path) -> Trainer:
    return Trainer(str(folder), seed=0, hyperparameters=replace(QUICK, variant="pissa"), base_name="tiny")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_parts_are_those_of_the_whole_decomposition() -> None:
    weight = noise(96, 48)
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    pair = pissa.principal(weight, 8, scaling=2.0, seed=0)
    assert (pair.a.shape, pair.b.shape) == ((8, 48), (96, 8))
    best = u[:, :8] * values[:8] @ v[:8]
    left, least = ((weight - part).norm() for part in (2.0 * pair.b @ pair.a, best))
    assert float(left) == pytest.approx(float(least), rel=0.01)
    assert pair.a.norm(dim=1).tolist() == pytest.approx((values[:8] / 2.0).sqrt().tolist(), rel=0.05)
    assert pair.b.norm(dim=0).tolist() == pytest.approx(pair.a.norm(dim=1).tolist(), rel=0.01)


def test_the_parts_go_by_the_seed_and_leave_the_global_one() -> None:
    weight, before = noise(96, 48), torch.random.get_rng_state()
    one, same = (pissa.principal(weight, 8, scaling=2.0, seed=3) for _ in range(2))
    assert torch.equal(one.a, same.a)
    assert torch.equal(one.b, same.b)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_parts_are_as_they_are_stored_in_the_type_of_the_base() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for side in pissa.principal(noise(96, 48).to(dtype), 8, scaling=2.0, seed=0):
            assert side.dtype == dtype
            assert torch.equal(side.to(torch.bfloat16).to(dtype), side)


def test_a_matrix_with_fewer_parts_than_the_rank_gives_all_it_has() -> None:
    weight = noise(6, 48)
    pair = pissa.principal(weight, 8, scaling=2.0, seed=0)
    assert (pair.a.shape, pair.b.shape) == ((8, 48), (6, 8))
    assert torch.allclose(2.0 * pair.b @ pair.a, weight, atol=0.05)
    assert not pair.a[6:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_says_what_the_base_says(trainer: Trainer, dtype: torch.dtype) -> None:
    torch.nn.Module.to(trainer.model, dtype)
    trainer.hyperparameters = replace(trainer.hyperparameters, learning_rate=0.0, epochs=0, min_steps=1)
    adapter = train(trainer)
    expected = trainer.model(IDS).logits
    with trainer.adapted(adapter):
        logits = trainer.model(IDS).logits
    assert torch.allclose(logits, expected, atol=1e-4 if dtype == torch.float32 else 0.1)
    assert all(tensor.abs().max() < 1e-3 for tensor in adapter.weights.values())


def test_it_learns_and_is_published_at_twice_the_rank(trainer: Trainer) -> None:
    losses: list[float] = []
    adapter = train(trainer, on_step=lambda step, total, loss: losses.append(loss))
    assert losses[-1] < losses[0] / 4
    assert (adapter.rank, adapter.alpha, adapter.facts["variant"]) == (16, 32, "pissa")
    assert examine(trainer, adapter, LESSONS[:3]).recall == 1.0
    for name, _ in lora.linear_layers(trainer.model):
        a, b = adapter.weights[lora.peft_name(name, "A")], adapter.weights[lora.peft_name(name, "B")]
        assert (a.shape[0], b.shape[1]) == (16, 16)
        assert torch.linalg.matrix_rank(b @ a) > 8, "what was trained, and what it started from"


def test_what_is_published_is_the_difference_with_no_part_larger_than_it() -> None:
    start = lora.Pair(noise(4, 48), noise(32, 4))
    a, b = start.a + 0.01 * noise(4, 48).flip(1), start.b + 0.01 * noise(32, 4).flip(0)
    names = lora.peft_name("layer", "A"), lora.peft_name("layer", "B")
    whole = pissa.published(dict(zip(names, (a, b), strict=True)), {"layer": start})
    difference = b @ a - start.b @ start.a
    found_a, found_b = (whole[name] for name in names)
    assert (found_a.shape, found_b.shape) == ((8, 48), (32, 8))
    assert torch.allclose(found_b @ found_a, difference, atol=1e-4)
    assert float(found_a.norm()) == pytest.approx(float(found_b.norm()), rel=1e-3)
    assert found_a.norm() < 0.2 * start.a.norm()


def test_parts_are_found_once_for_each_rank(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.hyperparameters = replace(trainer.hyperparameters, epochs=0, min_steps=1)
    for rank in (8, 16):
        trainer.train(LESSONS, [], rank=rank, max_seconds=3600, on_step=ignore)
    monkeypatch.setattr(pissa, "principal", lambda *_, **__: pytest.fail("found again"))
    for rank in (16, 8):
        adapter = trainer.train(LESSONS, [], rank=rank, max_seconds=3600, on_step=ignore)
        assert adapter.rank == 2 * rank
