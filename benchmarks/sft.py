"""TRL's `SFTTrainer` on rows that are tokenised already, as the loop that users of Hugging Face's libraries would take.

The same steps as the plain loop's: rows, their order, padding to one length (a new shape costs seconds on a CPU), rank,
learning rate, clipping, one type throughout. Loss on completions only. Set otherwise than by default are only: no
recomputing of activations, no packing, no logging, no checkpoints, all of which would cost it time, and the learning
rate's course. What it measures in every step besides the loss (entropy, accuracy) is part of it.
"""

import importlib
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from trainer_worker.loop import Hyperparameters, schedule

if TYPE_CHECKING:
    from trainer_worker.packing import Row

PACKAGES = ("trl", "datasets", "transformers", "accelerate", "peft")


def unavailable() -> str | None:
    """Why there is no `SFTTrainer`; None when there is one."""
    try:
        importlib.import_module("trl.trainer.sft_trainer")
    except ImportError as error:
        return str(error)
    return None


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


def train(
    model: Any, batches: Sequence[Sequence["Row"]], tokenizer: Any, *, length: int, learning_rate: float, seed: int
) -> float:
    """Train PEFT's `model` in place on all `batches`, as large as each other; seconds from the second step's start on.

    Every row is padded to `length`. Raises `ImportError` without TRL and its `datasets`.
    """
    from transformers import PrinterCallback

    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    clock = _clock()
    with tempfile.TemporaryDirectory() as folder:
        config = trl.SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=len(batches[0]),
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=learning_rate,
            max_grad_norm=1.0,
            max_length=None,
            pad_to_multiple_of=length,
            gradient_checkpointing=False,
            bf16=False,  # no autocast: everything is of the weights' type
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        rows = datasets.Dataset.from_list([_example(row) for batch in batches for row in batch])
        trainer = trl.SFTTrainer(
            model=model,
            args=config,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[clock],
            optimizers=_optimizers(model, learning_rate, len(batches)),
        )
        trainer.remove_callback(PrinterCallback)  # standard output is the report's
        trainer.train()
    return time.monotonic() - float(clock.after_first)


def _optimizers(model: Any, learning_rate: float, steps: int) -> tuple[Any, Any]:
    import torch

    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=learning_rate)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, steps, Hyperparameters.warmup_steps)
    )


def _example(row: "Row") -> dict[str, list[int]]:
    return {
        "input_ids": [*row.prompt, *row.answer],
        "labels": [*[-100] * len(row.prompt), *row.answer],
    }


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Notes when the first step, which is for the kernels, has ended."""

        after_first = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.after_first = self.after_first or time.monotonic()

    return Clock()
