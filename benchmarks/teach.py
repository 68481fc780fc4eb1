"""An adapter from rows, trained as the worker trains one, and what it cost."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from trainer_worker.adapter import TrainedAdapter
from trainer_worker.examples import Example
from trainer_worker.loop import Hyperparameters
from trainer_worker.train import Lesson, Trainer

LIMIT_S = 3600.0
"""Far beyond any plan: a training that the clock cuts short would not repeat on another machine."""


@dataclass(frozen=True)
class Cost:
    """`loss` is that of the last step and `first_loss` that of the first, in nats per answer token."""

    rank: int
    parameters: int
    steps: int
    seconds: float
    first_loss: float
    loss: float

    @property
    def figures(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in vars(self).items()}


def teach(
    trainer: Trainer,
    hyperparameters: Hyperparameters,
    examples: Sequence[Example],
    rank: int,
    neighbours: Sequence[Example] = (),
) -> tuple[TrainedAdapter, Cost]:
    """Train on all examples, with none held out, so that the last step counts. Raises `TrainingFailed`."""
    losses: list[float] = []
    trainer.hyperparameters = hyperparameters
    lesson = Lesson(examples, (), neighbours)
    [adapter] = trainer.train_all(
        [lesson], rank=rank, max_seconds=LIMIT_S, on_step=lambda step, total, loss: losses.append(loss)
    )
    parameters = sum(tensor.numel() for tensor in adapter.weights.values())
    cost = Cost(rank, parameters, len(losses), float(adapter.facts["seconds"]), losses[0], losses[-1])
    print(f"rank {rank}, {len(examples)} rows: {cost.steps} steps in {cost.seconds:.0f} s", file=sys.stderr)
    return adapter, cost
