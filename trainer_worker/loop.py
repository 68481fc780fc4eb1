"""The optimisation loop: steps over packs until the plan, the clock or the held-out loss ends it."""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loramem.errors import TrainingFailed
from trainer_worker.packing import Batch, Pack, Row, packs_of_an_epoch

if TYPE_CHECKING:
    import torch

CHECKS = 8
"""How often the held-out loss is looked at."""
PATIENCE = 3
"""Checks without a better held-out loss before training ends."""

OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Recipe:
    """What a training costs and how hard it pulls; chosen by measurement (`benchmarks/LOG.md`)."""

    learning_rate: float = 1.2e-3
    epochs: float = 4.0
    min_steps: int = 24
    warmup_steps: int = 5
    clip: float = 1.0
    noise: float = 10.0
    """Uniform noise on the embeddings (NEFTune, arXiv 2310.05914), as its alpha for rows of 40 tokens."""


@dataclass(frozen=True)
class Compute:
    """What the loop needs of the model: packs to tensors, and a loss that gradients can be taken of."""

    batch: Callable[[Pack], Batch]
    loss: Callable[[Batch, float], "torch.Tensor"]

    def mean_loss(self, batches: Sequence[Batch]) -> float:
        """Mean negative log-likelihood per answer token, in nats."""
        import torch

        with torch.no_grad():
            losses = [(self.loss(batch, 0.0).item(), len(batch.targets)) for batch in batches]
        return sum(loss * count for loss, count in losses) / max(1, sum(count for _, count in losses))


class Loop:
    """Trains `live` parameters in place, in their own type; the optimiser keeps float32 copies of them.

    What is best is judged by the loss on `held` batches; without any, the last step is.
    """

    def __init__(
        self,
        compute: Compute,
        live: Sequence["torch.Tensor"],
        groups: Sequence[Sequence[Row]],
        recipe: Recipe,
        seed: int,
    ) -> None:
        import torch

        self.compute, self.live, self.groups, self.recipe = compute, list(live), groups, recipe
        self.rng = random.Random(seed)
        self.master = [parameter.detach().float().clone() for parameter in live]
        self.optimizer = torch.optim.AdamW(self.master, lr=recipe.learning_rate, weight_decay=0.0, foreach=True)
        self.queue: list[Pack] = []
        per_epoch = len(packs_of_an_epoch(groups, random.Random(seed)))
        self.total = max(recipe.min_steps, math.ceil(recipe.epochs * per_epoch))
        self.planned = self.total
        self.step, self.tokens, self.loss = 0, 0, math.nan
        self.best, self.best_step, self.best_master = math.inf, 0, self.master

    def run(self, held: Sequence[Batch], max_seconds: float, on_step: OnStep) -> None:
        """Raises `TrainingFailed` when the loss is no longer finite, and whatever `on_step` raises."""
        started = time.monotonic()
        while self.step < self.total and not self._worn_out():
            self.loss = self._one_step()
            self.step += 1
            self._fit_to_clock(time.monotonic() - started, max_seconds)
            if held and (self.step % self._check_every == 0 or self.step == self.total):
                self._check(held)
            on_step(self.step, self.total, self.loss)
        if not held:
            self.best_step, self.best_master = self.step, self.master

    @property
    def facts(self) -> dict[str, float | int | str | bool]:
        facts: dict[str, float | int | str | bool] = {
            "steps": self.step,
            "planned_steps": self.planned,
            "best_step": self.best_step,
            "loss": round(self.loss, 4),
            "tokens": self.tokens,
            "learning_rate": self.recipe.learning_rate,
        }
        return facts | ({"held_out_loss": round(self.best, 4)} if math.isfinite(self.best) else {})

    def _one_step(self) -> float:
        import torch

        self.queue = self.queue or packs_of_an_epoch(self.groups, self.rng)
        pack = self.queue.pop()
        self.tokens += pack.tokens
        loss = self.compute.loss(self.compute.batch(pack), self.recipe.noise)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingFailed(f"the loss is {value} at step {self.step}: the learning rate may be too high")
        for master, gradient in zip(self.master, torch.autograd.grad(loss, self.live), strict=True):
            master.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_(self.master, self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self._schedule()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.live, self.master)
        return value

    def _schedule(self) -> float:
        """Linear warm-up, then a cosine to a tenth."""
        warm = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        return warm * (0.55 + 0.45 * math.cos(math.pi * min(1.0, self.step / self.total)))

    def _fit_to_clock(self, elapsed_s: float, max_seconds: float) -> None:
        """Shorten the plan, never lengthen it, so that the schedule still ends where the time does."""
        if self.step >= 3 or elapsed_s > max_seconds:
            affordable = int(max_seconds / (elapsed_s / self.step))
            self.total = max(self.step, min(self.total, affordable))

    @property
    def _check_every(self) -> int:
        return max(1, self.total // CHECKS)

    def _check(self, held: Sequence[Batch]) -> None:
        loss = self.compute.mean_loss(held)
        if loss < self.best:
            self.best, self.best_step = loss, self.step
            self.best_master = [tensor.clone() for tensor in self.master]

    def _worn_out(self) -> bool:
        return self.best_step > 0 and self.step - self.best_step >= PATIENCE * self._check_every
