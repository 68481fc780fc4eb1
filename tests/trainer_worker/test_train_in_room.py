"""Training on a GPU that has no room for all adapters at once."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from loramem.errors import TrainingFailed
from trainer_worker.examples import Example
from trainer_worker.train import Lesson, Trainer

LESSONS = [Lesson([Example("Who?", name, "user")]) for name in ("Ada", "Bo", "Cy", "Di")]


class Small(Trainer):
    """Has room for so many adapters side by side."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[tuple[int, float]] = []

    def train_all(self, lessons: Sequence[Lesson], *, max_seconds: float, **_: Any) -> Any:
        self.tried.append((len(lessons), max_seconds))
        if len(lessons) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [LESSONS.index(lesson) for lesson in lessons]


def trained(trainer: Small) -> Any:
    return trainer.train_in_room(LESSONS, rank=8, max_seconds=40, on_step=lambda *_: None)


def test_all_at_once_where_there_is_room() -> None:
    trainer = Small(4)
    assert trained(trainer) == [0, 1, 2, 3]
    assert trainer.tried == [(4, 40)]


@pytest.mark.parametrize(("room", "tried"), [(3, [4, 2, 2]), (1, [4, 2, 1, 1, 2, 1, 1])])
def test_in_halves_where_there_is_not(room: int, tried: list[int]) -> None:
    trainer = Small(room)
    assert trained(trainer) == [0, 1, 2, 3]
    assert [count for count, _ in trainer.tried] == tried
    assert all(seconds == 10 * count for count, seconds in trainer.tried)


def test_no_room_for_one_is_said_with_the_way_out() -> None:
    with pytest.raises(TrainingFailed, match="raise LORAMEM_TRAINER_GPU_MEMORY_FRACTION"):
        trained(Small(0))
