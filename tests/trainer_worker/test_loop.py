"""Adapters side by side whose rows do not fill the same lanes: each waits while the other reads."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.trainer_worker.test_resume import QUICK, Memory, ignore, train, trainer
from tests.trainer_worker.tiny import LESSONS
from trainer_worker.examples import Example
from trainer_worker.loop import TrainingState
from trainer_worker.train import Lesson

pytestmark = pytest.mark.usefixtures("short_packs")

LONG = Example(" ".join([LESSONS[2].question] * 5), LESSONS[2].answer, "written", LESSONS[2].span)
APART = [Lesson(LESSONS[:1]), Lesson([LONG])]
"""In lanes of two lengths, so that no step has rows of both."""


def parts(state: TrainingState, index: int) -> dict[str, torch.Tensor]:
    """Weights and moments of one adapter."""
    return {name: tensor[index] for name, tensor in state.tensors.items() if tensor.dim()}


def is_moved(before: TrainingState, after: TrainingState, index: int) -> bool:
    old, new = parts(before, index), parts(after, index)
    return any(not torch.equal(old[name], new[name]) for name in old)


def test_a_step_leaves_those_alone_that_have_nothing_in_it(folder: Path) -> None:
    memory = Memory()
    train(trainer(folder, QUICK), APART, memory)
    for before, after in pairwise(memory.saved):
        read = [now > then for then, now in zip(before.scalars["tokens"], after.scalars["tokens"], strict=True)]
        assert sum(read) == 1
        assert [is_moved(before, after, index) for index in (0, 1)] == read


def test_a_loss_stays_until_the_next_step_that_has_something_to_lose(folder: Path) -> None:
    memory, told = Memory(), list[float]()
    train(trainer(folder, QUICK), APART, memory, on_step=lambda step, total, loss: told.append(loss))
    for before, after in pairwise(memory.saved):
        waits = 0 if before.scalars["tokens"][0] == after.scalars["tokens"][0] else 1
        assert after.scalars["losses"][waits] == pytest.approx(before.scalars["losses"][waits], nan_ok=True)
    assert all(map(math.isfinite, told))
    assert told[-1] == pytest.approx(sum(memory.saved[-1].scalars["losses"]) / 2)


def test_an_adapter_that_read_nothing_before_the_time_was_over_has_no_loss(folder: Path) -> None:
    facts = [one.facts for one in train(trainer(folder, QUICK), APART, max_seconds=1e-9, on_step=ignore)]
    assert sorted(one["tokens"] == 0 for one in facts) == [False, True]
    assert all(("loss" in one) == (one["tokens"] != 0) for one in facts)
