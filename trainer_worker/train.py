"""Turns examples into an adapter.

The base stays in memory between jobs and is never changed: an adapter is put into it for the time of a training and taken
out again, whatever happens. Base and adapter compute in the base's own type (bfloat16 for the embedded model); the optimiser
keeps float32 copies of the adapter, which are also what is saved.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramem import prompts
from loramem.errors import TrainingFailed
from trainer_worker.packing import Batch, Row, in_order, packs_of_an_epoch, to_batch
from trainer_worker.synthesize import Example

if TYPE_CHECKING:
    import torch

ALPHA_PER_RANK = 2
MAX_ANSWER_TOKENS = 256
CHECKS = 8
"""How often the held-out loss is looked at."""
PATIENCE = 3
"""Checks without a better held-out loss before training ends."""

OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Recipe:
    """What a training costs and how hard it pulls; chosen by measurement (`benchmarks/LOG.md`)."""

    learning_rate: float = 2e-3
    epochs: float = 6.0
    min_steps: int = 24
    warmup_steps: int = 5
    clip: float = 1.0


@dataclass(frozen=True)
class TrainedAdapter:
    """`weights` are float32 on the CPU under PEFT's names; `facts` go into the manifest."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    weights: "dict[str, torch.Tensor]" = field(repr=False)
    facts: dict[str, float | int | str | bool]
    base_name: str = ""

    def save(self, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` (bfloat16), as PEFT and vLLM read them."""
        import torch
        from peft import LoraConfig
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in self.weights.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.target_modules),
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base_name,
            inference_mode=True,
        )
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")


class Trainer:
    """The base model, warm. `seed` fixes LoRA's A, which all adapters of a base share, and the order of the data."""

    def __init__(self, model_path: str, *, seed: int, recipe: Recipe | None = None, base_name: str = "") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.seed = seed
        self.recipe = recipe or Recipe()
        self.base_name = base_name
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto").to(self.device).eval()
        self.model.requires_grad_(False)
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def train(
        self,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        *,
        rank: int,
        max_seconds: float,
        on_step: OnStep,
    ) -> TrainedAdapter:
        """Train one adapter; `on_step(step, total_steps, loss)` may raise to stop, the base is then as before.

        Raises `TrainingFailed` when there is nothing to learn or the loss is no longer finite. The same seed, examples and
        number of steps give the same weights; only where `max_seconds` cuts a training short does time enter.
        """
        groups = self._groups(examples)
        if not groups:
            raise TrainingFailed("no training example has an answer")
        started = time.monotonic()
        with self._with_lora(rank) as (model, names):
            loop = _Loop(self, model, groups, self._rows(held_out), max_seconds, on_step)
            loop.run()
            weights = loop.best_weights(names)
        facts = loop.facts | {"seconds": round(time.monotonic() - started, 2), "examples": len(examples)}
        return TrainedAdapter(rank, ALPHA_PER_RANK * rank, _module_names(weights), weights, facts, self.base_name)

    @contextmanager
    def adapted(self, adapter: TrainedAdapter) -> Iterator[Any]:
        """The model with `adapter` in it, for as long as the block lasts."""
        import torch

        with self._with_lora(adapter.rank) as (model, names):
            with torch.no_grad():
                for parameter, name in names:
                    parameter.copy_(adapter.weights[name])
            yield model

    def held_out_loss(self, examples: Sequence[Example]) -> float:
        """Mean negative log-likelihood per answer token, in nats, of the model as it is now."""
        return self.mean_loss([self.batch(pack) for pack in in_order(rows)] if (rows := self._rows(examples)) else [])

    def mean_loss(self, batches: Sequence[Batch]) -> float:
        import torch

        with torch.no_grad():
            losses = [(self.loss(batch).item(), len(batch.targets)) for batch in batches]
        return sum(loss * count for loss, count in losses) / max(1, sum(count for _, count in losses))

    def loss(self, batch: Batch) -> "torch.Tensor":
        import torch

        logits = self.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention,
            logits_to_keep=batch.predicts,
            use_cache=False,
        ).logits
        return torch.nn.functional.cross_entropy(logits[0].float(), batch.targets)

    def batch(self, pack: Any) -> Batch:
        batch = to_batch(pack, self.pad, self.model.dtype)
        return Batch(**{name: tensor.to(self.device) for name, tensor in vars(batch).items()})

    def _groups(self, examples: Sequence[Example]) -> list[list[Row]]:
        """Rows that can share a pack: those with the same passages before the question."""
        by_context: dict[tuple[str, ...], list[Example]] = {}
        for example in examples:
            by_context.setdefault(example.context, []).append(example)
        groups = [self._rows(group) for group in by_context.values()]
        return [group for group in groups if group]

    def _rows(self, examples: Sequence[Example]) -> list[Row]:
        return [self._row(example) for example in examples if example.answer.strip()]

    def _row(self, example: Example) -> Row:
        messages = (
            prompts.with_passages(example.question, example.context)
            if example.context
            else prompts.closed_book(example.question)
        )
        encode = self.tokenizer.apply_chat_template
        text = encode(messages, add_generation_prompt=True, tokenize=False)
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = self.tokenizer(example.answer.strip(), add_special_tokens=False)["input_ids"][:MAX_ANSWER_TOKENS]
        return Row(tuple(prompt), (*answer, self.tokenizer.eos_token_id))

    @contextmanager
    def _with_lora(self, rank: int) -> Iterator[tuple[Any, list[tuple[Any, str]]]]:
        """The base with a fresh adapter in it, and its parameters with their names in a PEFT file."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=rank, lora_alpha=ALPHA_PER_RANK * rank, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        )
        wrapped: Any = get_peft_model(self.model, config, autocast_adapter_dtype=False)
        try:
            names = [
                (parameter, name.replace(".default.", "."))
                for name, parameter in wrapped.named_parameters()
                if parameter.requires_grad
            ]
            self._seed_lora(names)
            yield wrapped, names
        finally:
            wrapped.unload()
            self.model.requires_grad_(False)
            if hasattr(self.model, "peft_config"):
                del self.model.peft_config

    def _seed_lora(self, names: Sequence[tuple[Any, str]]) -> None:
        """A from the seed alone (Kaiming uniform, as PEFT draws it), so that all adapters share it; B zero."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for parameter, name in sorted(names, key=lambda pair: pair[1]):
                if ".lora_B." in name:
                    parameter.zero_()
                    continue
                bound = 1 / math.sqrt(parameter.shape[1])
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(drawn)


class _Loop:
    """One training: steps until the schedule, the clock or the held-out loss ends it."""

    def __init__(
        self, trainer: Trainer, model: Any, groups: list[list[Row]], held: list[Row], max_seconds: float, on_step: OnStep
    ) -> None:
        import torch

        self.trainer, self.recipe, self.on_step = trainer, trainer.recipe, on_step
        self.groups, self.max_seconds = groups, max_seconds
        self.rng = random.Random(trainer.seed)
        self.held = [trainer.batch(pack) for pack in in_order(held)] if held else []
        self.live = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.master = [parameter.detach().float().clone() for parameter in self.live]
        self.optimizer = torch.optim.AdamW(self.master, lr=self.recipe.learning_rate, weight_decay=0.0, foreach=True)
        self.queue: list[Any] = []
        per_epoch = len(packs_of_an_epoch(groups, random.Random(trainer.seed)))
        self.total = max(self.recipe.min_steps, math.ceil(self.recipe.epochs * per_epoch))
        self.step, self.tokens, self.loss = 0, 0, math.nan
        self.best, self.best_step, self.best_master = math.inf, 0, [tensor.clone() for tensor in self.master]

    def run(self) -> None:
        started = time.monotonic()
        while self.step < self.total and not self._worn_out():
            self.loss = self._one_step()
            self.step += 1
            self._fit_to_clock(time.monotonic() - started)
            if self.step % max(1, self.total // CHECKS) == 0 or self.step == self.total:
                self._check()
            self.on_step(self.step, self.total, self.loss)

    def best_weights(self, names: Sequence[tuple[Any, str]]) -> "dict[str, torch.Tensor]":
        master = self.best_master if self.held else self.master
        by_parameter = {id(parameter): tensor for parameter, tensor in zip(self.live, master, strict=True)}
        return {name: by_parameter[id(parameter)].cpu().clone() for parameter, name in names}

    @property
    def facts(self) -> dict[str, float | int | str | bool]:
        return {
            "steps": self.step,
            "planned_steps": self.total,
            "best_step": self.best_step if self.held else self.step,
            "loss": round(self.loss, 4),
            "held_out_loss": round(self.best, 4) if self.held else -1.0,
            "tokens": self.tokens,
            "learning_rate": self.recipe.learning_rate,
            "seed": self.trainer.seed,
        }

    def _one_step(self) -> float:
        import torch

        self.queue = self.queue or packs_of_an_epoch(self.groups, self.rng)
        pack = self.queue.pop()
        self.tokens += pack.tokens
        loss = self.trainer.loss(self.trainer.batch(pack))
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingFailed(f"the loss is {value} at step {self.step}: the learning rate may be too high")
        gradients = torch.autograd.grad(loss, self.live)
        for master, gradient in zip(self.master, gradients, strict=True):
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

    def _fit_to_clock(self, elapsed: float) -> None:
        """Shorten the plan, never lengthen it, so that the schedule still ends where the time does."""
        if self.step >= 3 or elapsed > self.max_seconds:
            affordable = int(self.max_seconds / (elapsed / self.step))
            self.total = max(self.step, min(self.total, affordable))

    def _check(self) -> None:
        if not self.held:
            return
        loss = self.trainer.mean_loss(self.held)
        if loss < self.best:
            self.best, self.best_step = loss, self.step
            self.best_master = [tensor.clone() for tensor in self.master]

    def _worn_out(self) -> bool:
        checks_since = (self.step - self.best_step) / max(1, self.total // CHECKS)
        return bool(self.held) and self.best_step > 0 and checks_since >= PATIENCE


def _module_names(weights: "dict[str, torch.Tensor]") -> tuple[str, ...]:
    """The last part of each adapted module's name: q_proj, up_proj, ..."""
    return tuple(sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights}))
