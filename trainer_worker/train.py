"""Turns examples into adapters, those of a document side by side."""

import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from loramem.errors import TrainingFailed
from trainer_worker import lora, pissa
from trainer_worker.adapter import ALPHA_PER_RANK, Facts, TrainedAdapter
from trainer_worker.anchors import Anchors, anchors, drawn, exam_anchors
from trainer_worker.base import Base
from trainer_worker.distil import taught
from trainer_worker.examples import Example
from trainer_worker.layers import can_be_cut
from trainer_worker.loop import Compute, Draw, Hyperparameters, Keeper, Loop, OnStep
from trainer_worker.packing import Row, steps_in_order

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What one adapter learns, and the questions that decide when it knows it best.

    `neighbours` are similar prompts, with their answers, which must not change.
    """

    examples: Sequence[Example]
    held_out: Sequence[Example] = ()
    neighbours: Sequence[Example] = ()


class Trainer(Base):
    """`seed` fixes LoRA's A, which all adapters of a base share, and the order of the data. `cache` is a folder of this
    base's own, for its answers to unrelated prompts."""

    def __init__(
        self,
        model_path: str,
        *,
        seed: int,
        hyperparameters: Hyperparameters | None = None,
        base_name: str = "",
        cache: Path | None = None,
    ) -> None:
        super().__init__(model_path)
        self.seed = seed
        self.hyperparameters = hyperparameters or Hyperparameters()
        self.base_name = base_name
        self.cache = cache
        self._principal_parts: dict[tuple[str, int], lora.Pair] = {}

    @property
    def learning_rate(self) -> float:
        """That of the hyperparameters, or what the rule gives for this base."""
        wanted = self.hyperparameters.learning_rate
        return learning_rate_of(self.model.config) if wanted is None else wanted

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

    def train_in_room(self, lessons: Sequence[Lesson], *, max_seconds: float, **how: Any) -> list[TrainedAdapter]:
        """As `train_all`, in halves where a GPU has no room for all; raises `TrainingFailed` too where it has none."""
        try:
            return self.train_all(lessons, max_seconds=max_seconds, **how)
        except torch.OutOfMemoryError as error:
            log.warning("no room to train %d adapters side by side: %s", len(lessons), error)
            if len(lessons) == 1:
                raise TrainingFailed(
                    "the GPU has no room to train an adapter: raise LORAMEM_TRAINER_GPU_MEMORY_FRACTION, lower "
                    "LORAMEM_GPU_MEMORY_FRACTION, or lower the rank"
                ) from error
        torch.cuda.empty_cache()  # here, since the error held what the attempt had allocated
        half, each_s = len(lessons) // 2, max_seconds / len(lessons)
        parts = (lessons[:half], lessons[half:])
        return [one for part in parts for one in self.train_in_room(part, max_seconds=len(part) * each_s, **how)]

    def train_all(
        self,
        lessons: Sequence[Lesson],
        *,
        rank: int,
        max_seconds: float,
        on_step: OnStep,
        on_taught: Callable[[int, int], None] = lambda done, total: None,
        keep: Keeper | None = None,
    ) -> list[TrainedAdapter]:
        """Train an adapter for each lesson, all at once; `on_step(step, total_steps, mean loss)` may raise to stop, the
        base is then as before. What comes of `rank` has the hyperparameters' `published_rank`.

        Raises `TrainingFailed` when there is nothing to learn, the base has no layer where adapters are to be, or a
        loss is no longer finite. On a CPU the same seed, lessons and number of steps give the same weights, and time
        enters only where `max_seconds`, for all together, cuts a training short or for a while seems to. What is found
        once for a base, as its answers to unrelated prompts, is not in these seconds, nor is a teacher's reading, of
        which `on_taught(rows done, rows in all)` is told and may raise too.

        With `keep` the training goes on from a state kept of the same one, whose seconds count against `max_seconds`,
        and saves its own whenever that is due.
        """
        unrelated = self._anchors if self.hyperparameters.anchors else []
        lower = self._lower_layers
        layers = lora.placed(self.model, self.hyperparameters.placement, lower)
        parts = self._parts(layers, rank)
        groups = self._groups_of(lessons, on_taught)
        started = time.monotonic()
        neighbours = [self._neighbours(lesson) for lesson in lessons]
        draw = self._draw(groups, neighbours, unrelated)
        asked = steps_in_order([self.groups(lesson.held_out) for lesson in lessons], self.hyperparameters.step_tokens)
        with lora.attached(
            self.model, layers.__contains__, count=len(lessons), rank=rank, scaling=ALPHA_PER_RANK, less=parts
        ) as parameters:
            live = self._started(parameters, parts)
            loop = self._loop(list(live.values()), draw, lower)
            if keep is not None:
                on_step = self._kept(loop, keep, self._digest(lessons, rank), on_step)
            earlier_s = loop.spent_s
            loop.run(asked, max_seconds - (time.monotonic() - started), on_step)
        if loop.total < loop.planned / 2:
            log.warning(
                "%d of %d planned steps in the %.0f s that LORAMEM_TRAIN_MAX_S, or the upload's max_seconds, allows",
                *(loop.step, loop.planned, max_seconds),
            )
        trained = parameters | dict(zip(live, loop.best_master, strict=True))
        seconds = earlier_s + time.monotonic() - started
        spent: Facts = {"seconds": round(seconds, 2), "seed": self.seed, "beside": len(lessons) - 1}
        return [
            TrainedAdapter(
                self.hyperparameters.published_rank(rank),
                pissa.published(_of(index, trained), parts),
                loop.facts(index) | spent | self._kind | {"examples": len(lesson.examples)},
                self.base_name,
            )
            for index, lesson in enumerate(lessons)
        ]

    def _loop(self, live: Sequence[Tensor], draw: Draw, lower: int) -> Loop:
        compute = self._compute(lower if self.hyperparameters.placement == "late" else 0)
        return Loop(compute, live, draw, self.hyperparameters, self.seed, learning_rate=self.learning_rate)

    def _kept(self, loop: Loop, keep: Keeper, of: str, on_step: OnStep) -> OnStep:
        """Take the loop to where `keep` has it; gives the `on_step` that saves when it is due."""
        state = keep.load()
        if state is not None and state.of == of and loop.fits(state):
            loop.restore(state)
            log.info("the training goes on after step %d of %d", loop.step, loop.total)
        elif state is not None:
            log.info("the state that was kept is of another training: this one begins at its first step")

        def on_each(step: int, total: int, loss: float) -> None:
            on_step(step, total, loss)  # first: it raises when the job is no longer ours to save
            if keep.due():
                keep.save(loop.state(of))

        return on_each

    def _digest(self, lessons: Sequence[Lesson], rank: int) -> str:
        """Of all that a training's steps follow from."""
        how = [rank, self.seed, self.learning_rate, asdict(self.hyperparameters), self.base_name]
        told = json.dumps([how, [asdict(lesson) for lesson in lessons]])
        return hashlib.sha256(told.encode()).hexdigest()

    def _started(self, parameters: dict[str, Parameter], parts: Mapping[str, lora.Pair]) -> dict[str, Parameter]:
        """Those that are trained, all at their start."""
        lora.start(parameters, self.seed)
        pissa.start(parameters, parts)
        for name, parameter in parameters.items():
            parameter.requires_grad_(not (self.hyperparameters.freeze_a and ".lora_A." in name))
        return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}

    def _parts(self, layers: Sequence[str], rank: int) -> dict[str, lora.Pair]:
        """By layer, what PiSSA starts from; found once for each layer and rank."""
        if self.hyperparameters.variant != "pissa":
            return {}
        for name in layers:
            if (name, rank) not in self._principal_parts:
                weight = self.model.get_submodule(name).weight
                self._principal_parts[name, rank] = pissa.principal(
                    weight, rank, scaling=ALPHA_PER_RANK, seed=lora.seed_of(name, self.seed)
                )
        return {name: self._principal_parts[name, rank] for name in layers}

    @property
    def _kind(self) -> Facts:
        return {
            "placement": self.hyperparameters.placement,
            "variant": self.hyperparameters.variant,
            "freeze_a": self.hyperparameters.freeze_a,
        }

    @property
    def _lower_layers(self) -> int:
        """How many layers count as the base's lower part; none where an upper part cannot be trained alone."""
        wanted = int(self.hyperparameters.frozen_layers * self.model.config.num_hidden_layers)
        if self.hyperparameters.placement != "late" or not wanted or can_be_cut(self.model, wanted):
            return wanted
        log.warning("%s cannot be run in two parts: all its layers get an adapter", self.base_name)
        return 0

    def _compute(self, frozen: int) -> Compute:
        lower = self.lower(frozen)
        return Compute(lambda step: self.batch(step, lower), lambda batch, count: self.losses(batch, count, lower))

    def _groups_of(self, lessons: Sequence[Lesson], on_taught: Callable[[int, int], None]) -> list[list[list[Row]]]:
        """Each lesson's rows, with a teacher's labels where there is one."""
        total = sum(self._is_taught(one) for lesson in lessons for one in lesson.examples)
        done = 0

        def on_each(count: int) -> None:
            nonlocal done
            done += count
            on_taught(min(done, total), total)

        return [self._groups(lesson, on_each) for lesson in lessons]

    def _groups(self, lesson: Lesson, on_each: Callable[[int], None]) -> list[list[Row]]:
        groups = self.groups([one for one in lesson.examples if not self._is_taught(one)])
        told: dict[tuple[str, ...], list[Example]] = {}
        for one in filter(self._is_taught, lesson.examples):
            told.setdefault(one.source, []).append(one)
        labelled: list[Row] = []
        for source, alike in told.items():  # one by one: the teacher reads what rows have in common once for a pack
            shown = [self.row(replace(one, context=source)) for one in alike]
            labelled += taught(self, [self.row(one) for one in alike], shown, self.hyperparameters.distil, on_each)
        groups += [labelled] if labelled else []
        if not groups:
            raise TrainingFailed("no training example has an answer")
        return groups

    def _neighbours(self, lesson: Lesson) -> list[Row]:
        return [self.row(one) for one in lesson.neighbours]

    def _draw(
        self, lessons: Sequence[Sequence[Sequence[Row]]], neighbours: Sequence[Sequence[Row]], unrelated: Anchors
    ) -> Draw:
        """Each lesson's rows, and among them others every time that hold the adapter to the base: a share of unrelated
        ones, and as many neighbours as there are rows to be learnt."""
        learnt = [sum(map(len, groups)) for groups in lessons]
        wanted = [round(self.hyperparameters.anchors * count) for count in learnt]

        def near(rows: Sequence[Row], most: int, rng: random.Random) -> list[Sequence[Row]]:
            return [rng.sample(rows, min(most, len(rows)))] if rows else []

        def draw(rng: random.Random) -> list[list[Sequence[Row]]]:
            return [
                [*groups, *near(rows, most, rng), *drawn(unrelated, count, rng)]
                for groups, rows, most, count in zip(lessons, neighbours, learnt, wanted, strict=True)
            ]

        return draw

    def _is_taught(self, example: Example) -> bool:
        return bool(self.hyperparameters.distil and example.source and example.answer.strip() and not example.context)

    @cached_property
    def unrelated(self) -> list[Row]:
        """What exams measure harm on, with the base's own answers."""
        return exam_anchors(self, self.cache)

    @cached_property
    def _anchors(self) -> list[list[Row]]:
        return anchors(self, self.cache)


def learning_rate_of(config: Any) -> float:
    """5e-5 * 10 * (2000 / hidden size) ** p, with p = 0.0775 for Qwen and 0.781 for others, as Llama has it.

    The rule of "LoRA Without Regret" (Thinking Machines, 2025), whatever the rank, as tinker-cookbook's
    `hyperparam_utils.get_lr` had it before it became a table of measured rates. `config` is a base's, of Transformers.
    """
    text = config.get_text_config()
    power = 0.0775 if str(text.model_type).startswith("qwen") else 0.781
    return float(5e-5 * 10 * (2000 / text.hidden_size) ** power)


def _of(index: int, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One adapter of those side by side, float32 on the CPU."""
    return {name: tensor.detach()[index].float().cpu().clone() for name, tensor in trained.items()}
