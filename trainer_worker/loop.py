"""The optimisation loop: steps until the plan, the clock or the held-out loss ends it, for adapters side by side.

Losses, clipping and the choice of the best step are each adapter's own, so that one learns beside others what it would
learn alone; plan and clock are common to all.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from loramem.errors import TrainingFailed
from loramem.records import Placement, Variant, published_rank
from trainer_worker.packing import Batch, Curriculum, Step, steps_of_an_epoch

if TYPE_CHECKING:
    import torch

CHECKS = 8
"""How often the held-out loss is looked at in a training that no clock shortens, beside its end."""
PATIENCE = 3
"""Checks without a better held-out loss before training ends."""

SCALARS = ("step", "total", "planned", "losses", "best", "best_step", "tokens", "spent_s")
"""What a `Loop` counts, by the names of its attributes."""

OnStep = Callable[[int, int, float], None]
Draw = Callable[[random.Random], Sequence[Curriculum]]
"""What every adapter reads in the next epoch."""
Fact = float | int | str | bool


@dataclass(frozen=True)
class Hyperparameters:
    """What a training costs and how hard it pulls; chosen by measurement (`benchmarks/LOG.md`)."""

    learning_rate: float | None = None
    """None takes what the base's width asks for (`train.learning_rate_of`)."""
    epochs: float = 7.0
    min_steps: int = 80
    step_tokens: int = 512
    """What an adapter reads in a step, padding included."""
    warmup_steps: int = 5
    clip: float = 1.0
    placement: Placement = "late"
    frozen_layers: float = 0.5
    """Share of the base's layers, from below, that get no adapter where the placement is late, and alone get one where
    it is early."""
    variant: Variant = "lora"
    freeze_a: bool = False
    """B alone is trained; A stays what it is for every adapter of the base."""
    distil: float = 0.0
    """Weight of the teacher's distribution against the written answer, where there is a teacher."""
    anchors: float = 0.2
    """Rows that hold the adapter to the base on unrelated prompts, as a share of those to be learnt."""

    def published_rank(self, rank: int) -> int:
        """Of the adapter that training at `rank` gives."""
        return published_rank(self.variant, rank)


@dataclass(frozen=True)
class Compute:
    """What the loop needs of the model: steps to tensors, and a loss for each adapter (n,) that gradients can be taken
    of, with the number of answer tokens behind each."""

    batch: Callable[[Step], Batch]
    losses: Callable[[Batch, int], tuple["torch.Tensor", "torch.Tensor"]]

    def mean_losses(self, steps: Sequence[Step]) -> list[float]:
        """Mean negative log-likelihood per answer token, in nats, of each adapter; NaN without any."""
        import torch

        total, count = torch.zeros(len(steps[0].packs)), torch.zeros(len(steps[0].packs))
        for step in steps:
            with torch.no_grad():
                losses, counts = self.losses(self.batch(step), len(step.packs))
            total += (losses * counts).cpu()
            count += counts.cpu()
        return [float(loss) for loss in total / count]


@dataclass(frozen=True)
class TrainingState:
    """A training between two of its steps. `tensors` may be the loop's own, so they hold until its next step; `scalars`
    are what JSON can hold; `of` is a digest of all that the training follows from."""

    of: str
    tensors: "dict[str, torch.Tensor]"
    scalars: dict[str, Any]


class Keeper(Protocol):
    """Where a training's state outlives its process."""

    def load(self) -> TrainingState | None:
        """The newest state; None where there is none that can be read."""

    def due(self) -> bool:
        """Whether it is time to save one."""

    def save(self, state: TrainingState) -> None: ...


class Loop:
    """Trains `live` parameters (n, ...) in place, in their own type; the optimiser keeps float32 copies of them.

    What is best is judged by the loss on `held` steps; for an adapter without any, the last step is.
    """

    def __init__(
        self,
        compute: Compute,
        live: Sequence["torch.Tensor"],
        draw: Draw,
        hyperparameters: Hyperparameters,
        seed: int,
        *,
        learning_rate: float,
    ) -> None:
        import torch

        self.compute, self.live, self.draw, self.hyperparameters = compute, list(live), draw, hyperparameters
        self.learning_rate = learning_rate
        self.rng = random.Random(seed)
        self.master = [parameter.detach().float().clone() for parameter in live]
        self.optimizer = torch.optim.AdamW(self.master, lr=learning_rate, weight_decay=0.0, foreach=True)
        self.queue = self._epoch()
        self.spent_s = 0.0
        self.total = self.planned = max(hyperparameters.min_steps, math.ceil(hyperparameters.epochs * len(self.queue)))
        count = len(self.live[0])
        self.step, self.tokens, self.losses = 0, [0] * count, [math.nan] * count
        self.best, self.best_step = [math.inf] * count, [0] * count
        self.best_master = [tensor.clone() for tensor in self.master]

    def run(self, held: Sequence[Step], max_seconds: float, on_step: OnStep) -> None:
        """Raises `TrainingFailed` when a loss is no longer finite, and whatever `on_step` raises."""
        started = time.monotonic() - self.spent_s
        ticks = list[float]()
        while self.step < self.total and not self._worn_out():
            self.losses = self._one_step()
            self.step += 1
            self.spent_s = time.monotonic() - started
            ticks.append(self.spent_s)
            self._fit_to_clock(ticks, max_seconds)
            if held and (self.step % self._check_every == 0 or self.step == self.total):
                self._keep(self.compute.mean_losses(held))
            known = [loss for loss in self.losses if math.isfinite(loss)]
            on_step(self.step, self.total, sum(known) / len(known))
        for index, best in enumerate(self.best):
            if not math.isfinite(best):
                self._remember(index)

    def facts(self, index: int) -> dict[str, Fact]:
        facts: dict[str, Fact] = {
            "steps": self.step,
            "planned_steps": self.planned,
            "best_step": self.best_step[index],
            "tokens": self.tokens[index],
            "learning_rate": self.learning_rate,
        }
        losses = {"loss": self.losses[index], "held_out_loss": self.best[index]}
        return facts | {name: round(loss, 4) for name, loss in losses.items() if math.isfinite(loss)}

    def state(self, of: str) -> TrainingState:
        """All that the next steps depend on; call between steps, which `on_step` is."""
        tensors = {f"master.{i}": master for i, master in enumerate(self.master)}
        tensors |= {f"best.{i}": best for i, best in enumerate(self.best_master)}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": moment for name, moment in moments.items()}
        scalars = {name: copy(getattr(self, name)) for name in SCALARS}
        consumed = self._epoch_steps - len(self.queue)
        return TrainingState(of, tensors, scalars | {"rng": self._epoch_rng, "consumed": consumed})

    def fits(self, state: TrainingState) -> bool:
        """Whether the state is of parameters as many and as large, counts the same things, and is of numbers alone."""
        if not all(bool(tensor.isfinite().all()) for tensor in state.tensors.values()):
            return False
        own = self.state(state.of)
        shapes = [
            {name: tensor.shape for name, tensor in one.tensors.items() if not name.startswith("optimizer.")}
            for one in (own, state)
        ]
        return shapes[0] == shapes[1] and own.scalars.keys() == state.scalars.keys()

    def restore(self, state: TrainingState) -> None:
        """Continue from `state` (see `fits`): the next steps are the ones that were ahead when it was taken.

        They are bit-identical unless the results of lower layers are kept: those are computed again in other batches,
        and may round differently."""
        import torch

        with torch.no_grad():
            for i, (live, master, best) in enumerate(zip(self.live, self.master, self.best_master, strict=True)):
                master.copy_(state.tensors[f"master.{i}"])
                best.copy_(state.tensors[f"best.{i}"])
                live.copy_(master)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in state.tensors.items():
            if name.startswith("optimizer."):
                _, place, moment = name.split(".", 2)
                moments.setdefault(int(place), {})[moment] = value.clone()
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        for name in SCALARS:
            setattr(self, name, copy(state.scalars[name]))
        version, numbers, gauss = state.scalars["rng"]
        self.rng.setstate((version, tuple(numbers), gauss))
        self.queue = self._epoch()  # what of it was read is dropped
        self.queue = self.queue[: max(0, len(self.queue) - state.scalars["consumed"])]

    def _one_step(self) -> list[float]:
        import torch

        self.queue = self.queue or self._epoch()
        step = self.queue.pop()
        self.tokens = [seen + sum(p.tokens for p in packs) for seen, packs in zip(self.tokens, step.packs, strict=True)]
        losses, counts = self.compute.losses(self.compute.batch(step), len(step.packs))
        absent = [index for index, count in enumerate(counts.tolist()) if not count]
        values = [float(loss) for loss in losses.detach()]
        if not all(map(math.isfinite, values)):
            raise TrainingFailed(f"the loss is {values} at step {self.step}: the learning rate may be too high")
        gradients = torch.autograd.grad(losses.sum(), self.live)
        for master, gradient in zip(self.master, gradients, strict=True):
            master.grad = gradient.float()
        self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * schedule(self.step, self.total, self.hyperparameters.warmup_steps)
        with torch.no_grad(), self._left_alone(absent):
            self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.live, self.master)
        return [self.losses[index] if index in absent else value for index, value in enumerate(values)]

    @contextmanager
    def _left_alone(self, adapters: Sequence[int]) -> Iterator[None]:
        """Those that have nothing in a step are not moved by it, as they would be by their momentum."""
        moments = [value for state in self.optimizer.state.values() for value in state.values() if value.dim()]
        kept = [(tensor[index], tensor[index].clone()) for tensor in (*self.master, *moments) for index in adapters]
        yield
        for tensor, before in kept:
            tensor.copy_(before)

    def _epoch(self) -> list[Step]:
        self._epoch_rng = self.rng.getstate()
        steps = steps_of_an_epoch(self.draw(self.rng), self.hyperparameters.step_tokens, self.rng)
        self._epoch_steps = len(steps)
        return steps

    def _clip(self) -> None:
        """Each adapter's gradient to a norm of at most `clip`."""
        import torch

        gradients = [master.grad for master in self.master if master.grad is not None]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factors = (self.hyperparameters.clip / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))

    def _fit_to_clock(self, ticks: Sequence[float], max_seconds: float) -> None:
        """End where the time does, the schedule too. `ticks` are when this run's steps ended, in seconds of the
        training; the later half of them tells how long a step takes, as the first ones have kernels to make."""
        later = ticks[len(ticks) // 2 :]
        if len(ticks) >= 3 and later[-1] > later[0]:
            affordable = int((max_seconds - ticks[-1]) / (later[-1] - later[0]) * (len(later) - 1))
            self.total = max(self.step, min(self.planned, self.step + affordable))
        elif ticks[-1] > max_seconds:
            self.total = self.step

    @property
    def _check_every(self) -> int:
        return max(1, self.planned // CHECKS)

    def _keep(self, losses: Sequence[float]) -> None:
        """Remember the weights of each adapter whose loss is its lowest so far; NaN never is."""
        for index, loss in enumerate(losses):
            if loss < self.best[index]:
                self.best[index] = loss
                self._remember(index)

    def _remember(self, index: int) -> None:
        self.best_step[index] = self.step
        for best, master in zip(self.best_master, self.master, strict=True):
            best[index].copy_(master[index])

    def _worn_out(self) -> bool:
        since = self.step - max(self.best_step)
        return min(self.best_step) > 0 and since >= PATIENCE * self._check_every


def schedule(step: int, total: int, warmup_steps: int) -> float:
    """Factor of the learning rate at a step counted from 0: a linear warm-up, then a cosine to a tenth."""
    warm = min(1.0, (step + 1) / warmup_steps)
    return warm * (0.55 + 0.45 * math.cos(math.pi * min(1.0, step / total)))
