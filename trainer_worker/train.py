"""Turns examples into an adapter.

The base stays in memory between jobs and is never changed: an adapter is put into it for the time of a training and
taken out again, whatever happens. Base and adapter compute in the base's own type (bfloat16 for the embedded model).
"""

import ctypes
import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loramem import prompts
from loramem.errors import TrainingFailed
from trainer_worker.adapter import ALPHA_PER_RANK, Facts, TrainedAdapter
from trainer_worker.examples import Example
from trainer_worker.loop import Compute, Loop, OnStep, Recipe
from trainer_worker.packing import Batch, Pack, Row, in_order, to_batch

if TYPE_CHECKING:
    import torch

__all__ = ["Recipe", "TrainedAdapter", "Trainer"]

MAX_ANSWER_TOKENS = 256
Named = list[tuple[Any, str]]
"""Parameters of an adapter with their names in a PEFT file."""


class Trainer:
    """The base model, warm. `seed` fixes LoRA's A, which all adapters of a base share, and the order of the data."""

    def __init__(self, model_path: str, *, seed: int, recipe: Recipe | None = None, base_name: str = "") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        _keep_freed_memory()
        self.seed = seed
        self.recipe = recipe or Recipe()
        self.base_name = base_name
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto")
        torch.nn.Module.to(self.model, self.device)
        self.model.train(mode=False)
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

        Raises `TrainingFailed` when there is nothing to learn or the loss is no longer finite. The same seed, examples
        and number of steps give the same weights; only where `max_seconds` cuts a training short does time enter.
        """
        groups = self._groups(examples)
        if not groups:
            raise TrainingFailed("no training example has an answer")
        started = time.monotonic()
        held = [self._batch(pack) for pack in in_order(self._rows(held_out))]
        with self._with_lora(rank) as named:
            loop = Loop(self._compute, [parameter for parameter, _ in named], groups, self.recipe, self.seed)
            loop.run(held, max_seconds, on_step)
            weights = {name: tensor.cpu().clone() for (_, name), tensor in zip(named, loop.best_master, strict=True)}
        spent: Facts = {"seconds": round(time.monotonic() - started, 2), "examples": len(examples), "seed": self.seed}
        return TrainedAdapter(rank, weights, loop.facts | spent, self.base_name)

    @contextmanager
    def adapted(self, adapter: TrainedAdapter) -> Iterator[None]:
        """`adapter` is in the model for as long as the block lasts."""
        import torch

        with self._with_lora(adapter.rank) as named:
            with torch.no_grad():
                for parameter, name in named:
                    parameter.copy_(adapter.weights[name])
            yield

    def mean_loss(self, examples: Sequence[Example]) -> float:
        """Mean negative log-likelihood per answer token, in nats, of the model as it is now."""
        return self._compute.mean_loss([self._batch(pack) for pack in in_order(self._rows(examples))])

    @property
    def _compute(self) -> Compute:
        return Compute(self._batch, self._loss)

    def _loss(self, batch: Batch, noise: float = 0.0) -> "torch.Tensor":
        import torch

        embedded = self.model.get_input_embeddings()(batch.input_ids)
        if noise:
            spread = noise / math.sqrt(40 * embedded.shape[-1])
            embedded = embedded + torch.empty_like(embedded).uniform_(-spread, spread)
        logits = self.model(
            inputs_embeds=embedded,
            position_ids=batch.position_ids,
            attention_mask=batch.attention,
            logits_to_keep=batch.predicts,
            use_cache=False,
        ).logits
        return torch.nn.functional.cross_entropy(logits[0].float(), batch.targets)

    def _batch(self, pack: Pack) -> Batch:
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
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = self._tokens(text)
        answer = self._tokens(example.answer.strip())[:MAX_ANSWER_TOKENS]
        return Row(tuple(prompt), (*answer, self.tokenizer.eos_token_id))

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    @contextmanager
    def _with_lora(self, rank: int) -> Iterator[Named]:
        """A fresh adapter is in the base for as long as the block lasts."""
        from peft import LoraConfig, get_peft_model

        alpha = ALPHA_PER_RANK * rank
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
        wrapped: Any = get_peft_model(self.model, config, autocast_adapter_dtype=False)
        try:
            trained = [pair for pair in wrapped.named_parameters() if pair[1].requires_grad]
            named = [(parameter, name.replace(".default.", ".")) for name, parameter in trained]
            self._start_lora(named)
            yield named
        finally:
            wrapped.unload()
            self.model.requires_grad_(False)
            if hasattr(self.model, "peft_config"):
                del self.model.peft_config  # PEFT warns of a second adapter when it finds this

    def _start_lora(self, named: Named) -> None:
        """A from the seed alone (Kaiming uniform, as PEFT draws it), so that all adapters share it; B zero."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        torch.manual_seed(self.seed)  # for the noise on embeddings
        with torch.no_grad():
            for parameter, name in sorted(named, key=lambda pair: pair[1]):
                if ".lora_B." in name:
                    parameter.zero_()
                    continue
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def _keep_freed_memory() -> None:
    """Let glibc reuse the pages of freed tensors, instead of giving them back and faulting them in at every step."""
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # <malloc.h>
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 32 << 20)  # the most that every glibc accepts
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.mallopt(top_pad, 256 << 20)
