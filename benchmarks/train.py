"""How fast an adapter is trained: against a plain PEFT loop, and four side by side against one after another.

    python -m benchmarks.train --json [--smoke] [--rounds 2] [--seed 0]

Rows are the questions that rules make of the sheets in `benchmarks/sheets`; no writer is asked. Counted are the tokens
of the rows themselves, without padding, however they are packed. The plain loop is the one that most would write: PEFT
on all linear layers, rows padded to one length, the model's own loss on the answers, AdamW on the adapter's parameters.
All start from the same base and see every row equally often; the loss is measured afterwards on all rows. Where TRL is
installed, its `SFTTrainer` does the plain loop's steps too (`benchmarks.sft`).
"""

import argparse
import gc
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import sft
from benchmarks.circumstances import check, circumstances
from benchmarks.sheets import Sheet, read_sheets
from loramem.base_model import BaseModel, resolve_base_model
from loramem.settings import load_settings
from loramem.supervise import SPIN_COUNT
from trainer_worker.blocks import plain
from trainer_worker.cloze import about_questions, cloze_questions
from trainer_worker.examples import Example
from trainer_worker.loop import Hyperparameters, schedule
from trainer_worker.packing import Row
from trainer_worker.statements import statements
from trainer_worker.train import Lesson, Trainer

if TYPE_CHECKING:
    from torch import Tensor

SHEETS = Path(__file__).parent / "sheets"
RANK = 16
BESIDE = 4
FASTER, SIDE_BY_SIDE = 1.3, 1.2
BESIDE_ROUNDS = 5
"""Of four side by side against one by one, which take turns to begin: two rounds have told opposite things."""
FOREVER = 1e9


@dataclass(frozen=True)
class Speed:
    """`tokens` are the rows' own, each time a row is read; `loss` in nats per answer token, afterwards, on all rows;
    `rows` in a step, on average."""

    tokens: int
    seconds: float
    loss: float
    steps: int = 1
    rows: float = 0.0

    @property
    def figures(self) -> dict[str, float]:
        return {
            "tokens_per_s": round(self.tokens / self.seconds, 1),
            "seconds": round(self.seconds, 2),
            "loss": round(self.loss, 4),
            "steps": self.steps,
            "rows_per_step": round(self.rows, 1),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # as the worker has it; read when Torch is loaded
    base = resolve_base_model(load_settings())
    lessons = [rows_of(sheet, options.seed) for sheet in read_sheets(SHEETS)][:BESIDE]
    epochs, rounds = (2, 1) if options.smoke else (8, options.rounds)
    lessons = [lesson[:16] for lesson in lessons] if options.smoke else lessons
    speeds = [compare(base, lessons[0], epochs, options.seed) for _ in range(rounds)]
    turns = range(1 if options.smoke else BESIDE_ROUNDS)
    beside = [side_by_side(base, lessons, options.seed, options.smoke, turned=turn % 2 == 1) for turn in turns]
    report = summary(speeds, beside) | circumstances(
        "python -m benchmarks.train --json" + (" --smoke" if options.smoke else ""), options.seed
    )
    report["model"] = base.name
    if options.smoke:
        report["checks"] = [learning(loss_before(base, lessons[0], options.seed), speeds)]
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def rows_of(sheet: Sheet, seed: int) -> list[Example]:
    facts, rng = statements(sheet.title, plain(sheet.text)), random.Random(seed)
    return [one for fact in facts for one in (*cloze_questions(fact), *about_questions(fact, facts, rng))]


def compare(base: BaseModel, rows: Sequence[Example], epochs: int, seed: int) -> dict[str, Speed]:
    """Ours on all layers, as the plain loop has it, ours as by default, the plain loop, and TRL's where it is."""
    whole = Hyperparameters(epochs=epochs, min_steps=1, frozen_layers=0.0, anchors=0.0)
    speeds = {
        "ours": ours(base, whole, rows, seed),
        "ours, upper half": ours(base, replace(whole, frozen_layers=Hyperparameters.frozen_layers), rows, seed),
    }
    steps, in_a_step = speeds["ours"].steps, round(speeds["ours"].rows)
    speeds["plain"] = Plain(base, seed, in_a_step).train(rows, steps)
    return speeds if sft.unavailable() else speeds | {"sft": Sft(base, seed, in_a_step).train(rows, steps)}


def ours(base: BaseModel, hyperparameters: Hyperparameters, rows: Sequence[Example], seed: int) -> Speed:
    trainer = Trainer(str(base.path), seed=seed, hyperparameters=hyperparameters)
    warm_up(trainer, rows)
    read: list[list[int]] = []
    batch = trainer.batch

    def counted(step: Any, lower: Any) -> Any:
        read.append([row.tokens for row in step.rows])
        return batch(step, lower)

    trainer.batch = counted  # type: ignore[method-assign]
    started = time.monotonic()
    adapter = trainer.train(rows, [], rank=RANK, max_seconds=FOREVER, on_step=_ignore)
    seconds = time.monotonic() - started
    trainer.batch = batch  # type: ignore[method-assign]
    with trainer.adapted(adapter):
        in_a_step = sum(map(len, read)) / len(read)
        return Speed(sum(map(sum, read)), seconds, trainer.mean_loss(rows), len(read), in_a_step)


def warm_up(trainer: Trainer, rows: Sequence[Example]) -> None:
    """A step of every shape, so that generating kernels is not measured."""
    own = trainer.hyperparameters
    trainer.hyperparameters = replace(own, epochs=0, min_steps=1)
    trainer.train(rows, [], rank=RANK, max_seconds=FOREVER, on_step=_ignore)
    trainer.hyperparameters = own


def side_by_side(
    base: BaseModel, lessons: Sequence[Sequence[Example]], seed: int, smoke: bool, *, turned: bool = False
) -> dict[str, float]:
    """Seconds of the same steps, 128 tokens for each adapter in each, at once and one after another; `turned`, in the
    other order."""
    hyperparameters = Hyperparameters(epochs=0, min_steps=1 if smoke else 24, step_tokens=128, anchors=0.0)
    trainer = Trainer(str(base.path), seed=seed, hyperparameters=hyperparameters)
    seconds = {}
    ways: dict[str, list[Sequence[Sequence[Example]]]] = {
        "at once": [lessons],
        "one by one": [[lesson] for lesson in lessons],
    }
    for name, groups in sorted(ways.items(), reverse=turned):
        for _ in range(2):  # the first for the kernels
            started = time.monotonic()
            for group in groups:
                taught = [Lesson(rows) for rows in group]
                trainer.train_all(taught, rank=RANK, max_seconds=FOREVER, on_step=_ignore)
            seconds[name] = time.monotonic() - started
    return seconds


class Plain:
    """PEFT and a loop."""

    def __init__(self, base: BaseModel, seed: int, rows: int = 16) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        gc.collect()
        self.seed, self.rows = seed, rows
        self.encoder = Trainer(str(base.path), seed=seed, hyperparameters=Hyperparameters(anchors=0.0))
        self.device = self.encoder.device
        self.model: Any = AutoModelForCausalLM.from_pretrained(str(base.path), dtype=self.encoder.model.dtype)
        torch.nn.Module.to(self.model, self.device)

    def train(self, examples: Sequence[Example], steps: int) -> Speed:
        rows = [self.encoder.row(example) for example in examples]
        length = -(-max(row.tokens + 1 for row in rows) // 16) * 16
        batches = list(islice(self._batches(rows), steps))
        model = self._adapted()
        seconds = self._run(model, batches, length)
        tokens = sum(row.tokens for batch in batches[1:] for row in batch)
        model.train(mode=False)
        return Speed(tokens, seconds, self._loss(model, rows, length), steps, self.rows)

    def _adapted(self) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(self.seed)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(self.model, config, autocast_adapter_dtype=False)

    def _run(self, model: Any, batches: Sequence[Sequence[Row]], length: int) -> float:
        """Seconds of all steps but the first, which is for the kernels."""
        import torch

        parameters = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.encoder.learning_rate)
        started = 0.0
        for number, chosen in enumerate(batches):
            if number == 1:
                started = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = self.encoder.learning_rate * schedule(number, len(batches), Hyperparameters.warmup_steps)
            model(**_padded(chosen, length, self.device)).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - started

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Without end; every row once before any comes again."""
        rng = random.Random(self.seed)
        order = chain.from_iterable(rng.sample(list(rows), len(rows)) for _ in count())
        while True:
            yield list(islice(order, self.rows))

    def _loss(self, model: Any, rows: Sequence[Row], length: int) -> float:
        import torch

        total = answers = 0.0
        for start in range(0, len(rows), self.rows):
            some = list(rows[start : start + self.rows])
            wanted = sum(len(row.answer) for row in some)
            with torch.no_grad():
                total += wanted * model(**_padded(some, length, self.device)).loss.item()
            answers += wanted
        return total / answers


class Sft(Plain):
    """The same, with TRL's loop."""

    def _run(self, model: Any, batches: Sequence[Sequence[Row]], length: int) -> float:
        return sft.train(
            model,
            batches,
            self.encoder.tokenizer,
            length=length,
            learning_rate=self.encoder.learning_rate,
            seed=self.seed,
        )


def _padded(rows: Sequence[Row], length: int, device: str) -> "dict[str, Tensor]":
    import torch

    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for lane, row in enumerate(rows):
        whole = torch.tensor(row.prompt + row.answer)
        ids[lane, : len(whole)], mask[lane, : len(whole)] = whole, 1
        labels[lane, len(row.prompt) : len(whole)] = whole[len(row.prompt) :]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def summary(speeds: Sequence[dict[str, Speed]], beside: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Ratios are the median over the rounds, each within its own round."""
    faster = median(_rate(round_["ours"]) / _rate(round_["plain"]) for round_ in speeds)
    least = median(round_["plain"].loss - round_["ours"].loss for round_ in speeds)
    won = median(round_["one by one"] / round_["at once"] for round_ in beside)
    checks = [
        check("token/s of the plain PEFT loop", round(faster, 3), f">= {FASTER}", faster >= FASTER),
        check("loss below the plain loop's", round(least, 4), ">= 0", least >= 0),
        check("four side by side", round(won, 3), f">= {SIDE_BY_SIDE}", won >= SIDE_BY_SIDE),
    ]
    rounds = [{name: speed.figures for name, speed in round_.items()} for round_ in speeds]
    seconds = [{name: round(value, 2) for name, value in round_.items()} for round_ in beside]
    return {"training": rounds, "side_by_side_s": seconds, "checks": checks} | _beside_sft(speeds)


def loss_before(base: BaseModel, rows: Sequence[Example], seed: int) -> float:
    """Without an adapter."""
    return Trainer(str(base.path), seed=seed, hyperparameters=Hyperparameters(anchors=0.0)).mean_loss(rows)


def learning(before: float, speeds: Sequence[dict[str, Speed]]) -> dict[str, Any]:
    """Of a smoke run, whose times say nothing. A loss that is no number is not below."""
    losses = [speed.loss for round_ in speeds for speed in round_.values()]
    fell = sum(loss < before for loss in losses)
    return check("trainings whose loss fell", fell, f"= {len(losses)}", 0 < fell == len(losses))


def _beside_sft(speeds: Sequence[dict[str, Speed]]) -> dict[str, Any]:
    """`sft` is null, with a reason, where it was not run."""
    if any("sft" not in round_ for round_ in speeds):
        return {"sft": None, "sft_reason": sft.unavailable()}
    faster = median(_rate(round_["ours"]) / _rate(round_["sft"]) for round_ in speeds)
    less = median(round_["sft"].loss - round_["ours"].loss for round_ in speeds)
    return {
        "sft": {"versions": sft.versions(), "ours_times_its_token_rate": round(faster, 3), "loss_less": round(less, 4)}
    }


def _rate(speed: Speed) -> float:
    return speed.tokens / speed.seconds


def _ignore(step: int, total: int, loss: float) -> None:
    pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.train", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few rows, one round; no promise of speed")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
