"""The single-adapter recipe of the paper's code, for comparison: PEFT, all-linear, rank 16, alpha 16, dropout 0.1.

AdamW at 5e-5, cosine over 1000 steps of 8 rows, warm-up of a tenth, clip 1. A row is `Question: ... Answer: ...` in the
user's turn, and all of its tokens are learnt. Base and adapter compute in the base's own type.

Where the seconds do not suffice for 1000 steps, the schedule is scaled to those that do, so that it is gone through to
its end: cut off as it stands, sixty steps would all lie in the warm-up, and what is compared would be little more than
the base model. The first steps, which are timed for it, are made at next to no learning rate, as they are of 1000.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loramem.base_model import resolve_base_model
from loramem.precision import precision
from loramem.settings import load_settings

RANK = 16
LEARNING_RATE = 5e-5
STEPS = 1000
ROWS = 8
MAX_TOKENS = 128
MAX_NEW_TOKENS = 64
TIMED = 3
"""Steps that are looked at to tell how many fit; the first is slower than the others and does not count."""


@dataclass(frozen=True)
class Trained:
    """`steps` that were made of those `planned`, and the `loss` of the last, None without any."""

    steps: int
    planned: int
    loss: float | None


def paced(step: Callable[[float], float], seconds: float, clock: Callable[[], float] = time.monotonic) -> Trained:
    """Make as many steps as fit, at most `STEPS`; `step` takes its share of the learning rate and gives its loss."""
    started, planned, loss = clock(), STEPS, None
    times: list[float] = []
    while len(times) < planned and (now := clock() - started) <= seconds:
        if len(times) == TIMED:
            pace = (times[-1] - times[0]) / (TIMED - 1)
            planned = min(STEPS, TIMED + int((seconds - now) / pace))
        loss = step(scheduled(len(times), planned))
        times.append(clock() - started)
    return Trained(len(times), planned, None if loss is None else round(loss, 4))


def scheduled(step: int, steps: int) -> float:
    """Share of the learning rate at a step from 0, as `transformers.get_cosine_schedule_with_warmup` has it."""
    warmup = steps // 10
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


class PaperRecipe:
    """The base model, a fresh adapter for each call."""

    def __init__(self, seed: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = str(resolve_base_model(load_settings()).path)
        self.seed = seed
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.tokenizer.padding_side = "left"
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=precision())

    def answers(
        self, rows: Sequence[tuple[str, str]], questions: Sequence[str], seconds: float
    ) -> tuple[list[str], Trained]:
        """Greedy closed-book answers after at most `seconds` of training on (question, answer) rows."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=RANK, lora_alpha=RANK, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        wrapped: Any = get_peft_model(self.model, config, autocast_adapter_dtype=False)
        try:
            texts = [f"Question: {question}\nAnswer: {answer}" for question, answer in rows]
            trained = self._train(wrapped, texts, seconds)
            return self._ask(wrapped, [f"Question: {question}" for question in questions]), trained
        finally:
            self.model = wrapped.unload()
            if hasattr(self.model, "peft_config"):
                del self.model.peft_config

    def _train(self, model: Any, texts: Sequence[str], seconds: float) -> Trained:
        import torch

        torch.manual_seed(self.seed)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, batches = torch.optim.AdamW(parameters), self._batches(texts)

        def step(share: float) -> float:
            batch = next(batches)
            loss = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * share
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.detach())

        model.train()
        trained = paced(step, seconds)
        model.train(mode=False)
        return trained

    def _batches(self, texts: Sequence[str]) -> Iterator[Any]:
        """Batches of one shape, in random order, without end."""
        rng = random.Random(self.seed)
        conversations = [self._rendered(text, answering=False) for text in texts]
        while True:
            chosen = [rng.choice(conversations) for _ in range(ROWS)]
            yield self.tokenizer(
                chosen,
                add_special_tokens=False,
                padding="max_length",
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )

    def _ask(self, model: Any, texts: Sequence[str]) -> list[str]:
        import torch

        prompts = [self._rendered(text, answering=True) for text in texts]
        inputs = self.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _rendered(self, text: str, *, answering: bool) -> str:
        message = [{"role": "user", "content": text}]
        rendered: str = self.tokenizer.apply_chat_template(message, add_generation_prompt=answering, tokenize=False)
        return rendered
