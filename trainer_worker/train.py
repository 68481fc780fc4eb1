"""Turns examples into adapters, those of a document side by side."""

import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from torch.nn import Parameter

from loramem.errors import TrainingFailed
from trainer_worker import lora
from trainer_worker.adapter import ALPHA_PER_RANK, Facts, TrainedAdapter, depth_of
from trainer_worker.anchors import anchors, some
from trainer_worker.base import Base
from trainer_worker.distil import taught
from trainer_worker.examples import Example
from trainer_worker.layers import can_be_cut
from trainer_worker.loop import Compute, Draw, Loop, OnStep, Recipe
from trainer_worker.packing import Row, steps_in_order

log = logging.getLogger(__name__)

__all__ = ["Lesson", "Recipe", "TrainedAdapter", "Trainer"]


@dataclass(frozen=True)
class Lesson:
    """What one adapter shall learn, and the questions that decide when it knows it best."""

    examples: Sequence[Example]
    held_out: Sequence[Example] = ()


class Trainer(Base):
    """`seed` fixes LoRA's A, which all adapters of a base share, and the order of the data."""

    def __init__(self, model_path: str, *, seed: int, recipe: Recipe | None = None, base_name: str = "") -> None:
        super().__init__(model_path)
        self.seed = seed
        self.recipe = recipe or Recipe()
        self.base_name = base_name

    def train(
        self,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        *,
        rank: int,
        max_seconds: float,
        on_step: OnStep,
    ) -> TrainedAdapter:
        """One adapter, as `train_all`."""
        lesson = Lesson(examples, held_out)
        return self.train_all([lesson], rank=rank, max_seconds=max_seconds, on_step=on_step)[0]

    def train_all(
        self, lessons: Sequence[Lesson], *, rank: int, max_seconds: float, on_step: OnStep
    ) -> list[TrainedAdapter]:
        """Train an adapter for each lesson, all at once; `on_step(step, total_steps, mean loss)` may raise to stop, the
        base is then as before.

        Raises `TrainingFailed` when there is nothing to learn or a loss is no longer finite. The same seed, lessons and
        number of steps give the same weights; only where `max_seconds`, for all together, cuts a training short does
        time enter.
        """
        started = time.monotonic()
        frozen = self._frozen_layers
        groups = [self._groups(lesson) for lesson in lessons]
        held = steps_in_order([self.groups(lesson.held_out) for lesson in lessons], self.recipe.step_tokens)
        with self._attached(len(lessons), rank, frozen) as parameters:
            lora.start(parameters, self.seed)
            loop = Loop(self._compute(frozen), list(parameters.values()), self._draw(groups), self.recipe, self.seed)
            loop.run(held, max_seconds - (time.monotonic() - started), on_step)
        spent: Facts = {"seconds": round(time.monotonic() - started, 2), "seed": self.seed, "beside": len(lessons) - 1}
        return [
            TrainedAdapter(
                rank,
                {name: best[index].cpu().clone() for name, best in zip(parameters, loop.best_master, strict=True)},
                loop.facts(index) | spent | {"examples": len(lesson.examples)},
                self.base_name,
            )
            for index, lesson in enumerate(lessons)
        ]

    @contextmanager
    def _attached(self, count: int, rank: int, frozen: int) -> Iterator[dict[str, Parameter]]:
        with lora.attached(
            self.model, lambda name: depth_of(name) >= frozen, count=count, rank=rank, scaling=ALPHA_PER_RANK
        ) as parameters:
            yield parameters

    @property
    def _frozen_layers(self) -> int:
        wanted = int(self.recipe.frozen_layers * self.model.config.num_hidden_layers)
        if not wanted or can_be_cut(self.model, wanted):
            return wanted
        log.warning("%s cannot be run in two parts: all its layers get an adapter", self.base_name)
        return 0

    def _compute(self, frozen: int) -> Compute:
        lower = self.lower(frozen)
        return Compute(lambda step: self.batch(step, lower), lambda batch, count: self.losses(batch, count, lower))

    def _groups(self, lesson: Lesson) -> list[list[Row]]:
        """The lesson's rows, with a teacher's labels where there is one."""
        groups = self.groups([one for one in lesson.examples if not self._is_taught(one)])
        told = [one for one in lesson.examples if self._is_taught(one)]
        if told:
            shown = [self.row(replace(one, context=one.source)) for one in told]
            groups.append(taught(self, [self.row(one) for one in told], shown, self.recipe.distil))
        if not groups:
            raise TrainingFailed("no training example has an answer")
        return groups

    def _draw(self, lessons: Sequence[Sequence[Sequence[Row]]]) -> Draw:
        """Each lesson's rows, and among them others every time that hold the adapter to the base."""
        wanted = [round(self.recipe.anchors * sum(map(len, groups))) for groups in lessons]
        held = self._anchors if any(wanted) else []

        def draw(rng: random.Random) -> list[list[Sequence[Row]]]:
            return [[*groups, *some(held, count, rng)] for groups, count in zip(lessons, wanted, strict=True)]

        return draw

    def _is_taught(self, example: Example) -> bool:
        return bool(self.recipe.distil and example.source and example.answer.strip() and not example.context)

    @cached_property
    def _anchors(self) -> list[list[Row]]:
        return anchors(self)
