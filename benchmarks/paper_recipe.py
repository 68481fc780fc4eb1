"""The single-adapter recipe of the paper's code, for comparison: PEFT, all-linear, rank 16, alpha 16, dropout 0.1.

AdamW at 5e-5, cosine over 1000 steps of 8 rows, warm-up of a tenth, clip 1. A row is `Question: ... Answer: ...` in the
user's turn, and all of its tokens are learnt. Base and adapter compute in the base's own type.
"""

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from loramem.base_model import resolve_base_model
from loramem.settings import load_settings

RANK = 16
LEARNING_RATE = 5e-5
STEPS = 1000
ROWS = 8
MAX_TOKENS = 128
MAX_NEW_TOKENS = 64


class PaperRecipe:
    """The base model, a fresh adapter for each call."""

    def __init__(self, seed: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = str(resolve_base_model(load_settings()).path)
        self.seed = seed
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.tokenizer.padding_side = "left"
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto")

    def answers(self, rows: Sequence[tuple[str, str]], questions: Sequence[str], seconds: float) -> list[str]:
        """Greedy closed-book answers after at most `seconds` of training on (question, answer) rows."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=RANK, lora_alpha=RANK, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        wrapped: Any = get_peft_model(self.model, config, autocast_adapter_dtype=False)
        try:
            self._train(wrapped, [f"Question: {question}\nAnswer: {answer}" for question, answer in rows], seconds)
            return self._ask(wrapped, [f"Question: {question}" for question in questions])
        finally:
            self.model = wrapped.unload()
            if hasattr(self.model, "peft_config"):
                del self.model.peft_config

    def _train(self, model: Any, texts: Sequence[str], seconds: float) -> None:
        import torch
        from transformers import get_cosine_schedule_with_warmup

        torch.manual_seed(self.seed)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
        schedule = get_cosine_schedule_with_warmup(optimizer, STEPS // 10, STEPS)
        started = time.monotonic()
        model.train()
        for batch in self._batches(texts):
            if time.monotonic() - started > seconds:
                break
            model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        model.train(mode=False)

    def _batches(self, texts: Sequence[str]) -> Iterator[Any]:
        """At most `STEPS` batches of one shape, in random order."""
        rng = random.Random(self.seed)
        conversations = [self._rendered(text, answering=False) for text in texts]
        for _ in range(STEPS):
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
