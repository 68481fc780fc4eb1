"""A training that was interrupted ends, bit for bit, where it would have ended without."""

import json
import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loramem.store import AdapterStore
from tests.trainer_worker.tiny import LESSONS
from trainer_worker.adapter import Facts, TrainedAdapter
from trainer_worker.checkpoint import FIRST_SAVE_S, Checkpoint
from trainer_worker.lease import WorkerStopping
from trainer_worker.loop import Hyperparameters, OnStep, TrainingState
from trainer_worker.train import Lesson, Trainer

pytestmark = pytest.mark.usefixtures("short_packs")

QUICK = Hyperparameters(learning_rate=1e-2, epochs=1, min_steps=16, step_tokens=64, frozen_layers=0.0, anchors=0.0)
ALONE = [Lesson(LESSONS)]
EXAMINED = [Lesson(LESSONS, LESSONS[:2])]
BESIDE = [Lesson(LESSONS[:3], LESSONS[:1]), Lesson(LESSONS[2:]), Lesson(LESSONS[:1], LESSONS[1:2])]


def trainer(folder: Path, hyperparameters: Hyperparameters = QUICK, dtype: torch.dtype = torch.float32) -> Trainer:
    found = Trainer(str(folder), seed=3, hyperparameters=hyperparameters, base_name="tiny")
    found.model.to(dtype)
    return found


class Memory:
    """Keeps the state after every step, as JSON and copies would bring it back; gives `state` back."""

    def __init__(self, state: TrainingState | None = None) -> None:
        self._state = state
        self.saved: list[TrainingState] = []

    def load(self) -> TrainingState | None:
        return self._state

    def due(self) -> bool:
        return True

    def save(self, state: TrainingState) -> None:
        scalars = json.loads(json.dumps(state.scalars))
        self.saved.append(replace(state, tensors=deepcopy(state.tensors), scalars=scalars))

    def at_an_epochs_end(self) -> int:
        """How many steps it is until one ends, after the first."""
        consumed = [state.scalars["consumed"] for state in self.saved]
        return next(i for i, now in enumerate(consumed) if i > consumed.index(1, 1) and now == max(consumed[:-1])) + 1


def ignore(step: int, total: int, loss: float) -> None:
    pass


def train(
    trainer: Trainer,
    lessons: Sequence[Lesson],
    keep: Memory | Checkpoint | None = None,
    *,
    rank: int = 8,
    max_seconds: float = 3600,
    on_step: OnStep = ignore,
) -> list[TrainedAdapter]:
    return trainer.train_all(lessons, rank=rank, max_seconds=max_seconds, on_step=on_step, keep=keep)


def timeless(adapter: TrainedAdapter) -> Facts:
    return {name: fact for name, fact in adapter.facts.items() if name != "seconds"}


def assert_equal(found: Sequence[TrainedAdapter], wanted: Sequence[TrainedAdapter]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert timeless(one) == timeless(other)
        assert one.weights.keys() == other.weights.keys()
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


@pytest.mark.parametrize(
    ("lessons", "hyperparameters", "dtype"),
    [
        pytest.param(ALONE, QUICK, torch.float32, id="alone"),
        pytest.param(EXAMINED, QUICK, torch.float32, id="held out"),
        pytest.param(BESIDE, QUICK, torch.float32, id="side by side", marks=pytest.mark.timeout(900)),
        pytest.param(BESIDE, QUICK, torch.bfloat16, id="bfloat16"),
        pytest.param(EXAMINED, replace(QUICK, anchors=0.5), torch.float32, id="anchors"),
        pytest.param(EXAMINED, replace(QUICK, variant="pissa"), torch.float32, id="pissa"),
        pytest.param(EXAMINED, replace(QUICK, freeze_a=True), torch.float32, id="frozen A"),
    ],
)
def test_a_resumed_training_ends_as_one_without_a_break(
    folder: Path, lessons: list[Lesson], hyperparameters: Hyperparameters, dtype: torch.dtype
) -> None:
    memory = Memory()
    wanted = train(trainer(folder, hyperparameters, dtype), lessons)
    assert_equal(train(trainer(folder, hyperparameters, dtype), lessons, memory), wanted)
    last = len(memory.saved)
    border = memory.at_an_epochs_end()
    assert 2 < border < last - 1
    for steps in (1, border - 1, border, border + 1, last):
        rest = Memory(memory.saved[steps - 1])
        assert_equal(train(trainer(folder, hyperparameters, dtype), lessons, rest), wanted)
        assert len(rest.saved) == last - steps


def test_a_worker_that_stops_loses_no_more_than_what_was_not_saved(folder: Path, tmp_path: Path) -> None:
    elapsed_s = 0.0

    def checkpoint() -> Checkpoint:
        return Checkpoint(tmp_path / "job_1", AdapterStore(tmp_path), "about", lambda: elapsed_s)

    def stop(step: int, total: int, loss: float) -> None:
        nonlocal elapsed_s
        elapsed_s = FIRST_SAVE_S if step >= 5 else 0.0
        if step == 8:
            raise WorkerStopping("the worker is stopping")

    steps: list[int] = []
    wanted = train(trainer(folder), BESIDE)
    with pytest.raises(WorkerStopping):
        train(trainer(folder), BESIDE, checkpoint(), on_step=stop)
    again = trainer(folder)
    found = train(again, BESIDE, checkpoint(), on_step=lambda step, total, loss: steps.append(step))
    assert_equal(found, wanted)
    assert steps == list(range(6, 17))


@pytest.mark.parametrize("other", ["examples", "held out", "rank", "hyperparameters", "seed"])
def test_the_state_of_another_training_is_ignored(folder: Path, other: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    memory = Memory()
    train(trainer(folder), EXAMINED, memory)
    new = trainer(folder, replace(QUICK, warmup_steps=2) if other == "hyperparameters" else QUICK)
    new.seed = 4 if other == "seed" else new.seed
    lessons = {"examples": [Lesson(LESSONS[1:], LESSONS[:2])], "held out": [Lesson(LESSONS, LESSONS[:1])]}
    given, rank = lessons.get(other, EXAMINED), 16 if other == "rank" else 8
    resumed = Memory(memory.saved[7])
    assert_equal(train(new, given, resumed, rank=rank), train(new, given, rank=rank))
    assert len(resumed.saved) == 16
    assert "of another training" in caplog.text


@pytest.mark.parametrize("lacks", ["a tensor", "a count"])
def test_a_state_that_does_not_fit_is_ignored(folder: Path, lacks: str) -> None:
    memory = Memory()
    wanted = train(trainer(folder), ALONE, memory)
    state = memory.saved[7]
    _ = state.tensors.pop("best.0") if lacks == "a tensor" else state.scalars.pop("tokens")
    resumed = Memory(state)
    assert_equal(train(trainer(folder), ALONE, resumed), wanted)
    assert len(resumed.saved) == 16


def test_seconds_of_earlier_attempts_count(folder: Path) -> None:
    memory = Memory()
    train(trainer(folder), ALONE, memory)
    state = memory.saved[7]
    state.scalars["spent_s"] = 1000.0
    resumed = Memory(state)
    [adapter] = train(trainer(folder), ALONE, resumed, max_seconds=900)
    assert adapter.facts["steps"] == 9  # one step tells that the time is over
    assert float(adapter.facts["seconds"]) > 1000
    assert resumed.saved[0].scalars["spent_s"] > 1000
