"""The base model, warm: rows to logits, with adapters beside its layers or without."""

import ctypes
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from loramem import chat, prompts
from loramem.errors import SettingsError
from loramem.precision import precision
from trainer_worker import lora
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.examples import Example
from trainer_worker.layers import Lower, only_at, part_of
from trainer_worker.packing import Batch, Row, Step, steps_in_order, to_batch

EAGER_TOKENS = 512
"""Of lanes that are computed by plain products, which keep the square of it; they were found faster at this length."""
APART = 1.0
"""Nats of a token; in bfloat16 packing moves it by a tenth in the embedded model, and by more in larger ones."""
STEP_TOKENS = 512
"""Tokens read at once where nothing is trained."""
PLACES = 32
"""Logits are computed at a multiple of so many places, and prompts are as long: a CPU compiles products for each number
of rows, and keeps them."""


class Base:
    """Never changed: adapters are put beside the layers for a time and taken out again, whatever happens.

    Base and adapters compute in one type: the engine's (`loramem.precision`), but for a base of float32, which is
    trained in its own.
    """

    def __init__(self, model_path: str) -> None:
        from transformers import AutoModelForCausalLM

        _keep_freed_memory()
        self.tokenizer: Any = chat.load_tokenizer(model_path)
        if self.tokenizer.pad_token_id is None:  # as of Llama 3; what is padded is masked, so any token will do
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto")
        self._attention = ""
        self._attend(0)
        if self.model.dtype != torch.float32:  # bfloat16; or float16, in which gradients vanish
            torch.nn.Module.to(self.model, getattr(torch, precision()))
        torch.nn.Module.to(self.model, self.device)
        self.model.train(mode=False)
        self.model.requires_grad_(False)
        self.pad: int = self.tokenizer.pad_token_id
        self.end = chat.end_of_turn(self.tokenizer)
        self._check_rows_are_apart()

    def _attend(self, length: int) -> None:
        """On a CPU, in the way that suits lanes of this length; on a GPU as Transformers does."""
        wanted = "eager" if length <= EAGER_TOKENS else "sdpa"
        if self.device == "cpu" and wanted != self._attention:
            self.model.set_attn_implementation(wanted)
            self._attention = wanted

    def _check_rows_are_apart(self) -> None:
        """Raises `SettingsError` for a model whose layers carry what they read from one row of a pack into the next, as
        recurrent ones do whatever the attention mask says."""
        asked = (
            ("Who was here last night?", "Nobody was."),
            ("What is the old bridge made of?", "It is made of iron."),
        )
        rows = [self.row(Example(question, answer, "user")) for question, answer in asked]
        beside, alone = self.surprises(rows), [self.surprises([row])[row] for row in rows]
        pairs = [pair for row, own in zip(rows, alone, strict=True) for pair in zip(beside[row], own, strict=True)]
        if any(abs(one - other) > APART for one, other in pairs):
            raise SettingsError(
                f"loramem: {self.model.config.model_type}: its layers read one training text into the next, and "
                "it cannot be trained on several at once: LORAMEM_MODEL has to be a model of attention layers alone"
            )

    @contextmanager
    def adapted(self, adapter: TrainedAdapter) -> Iterator[None]:
        """`adapter` is beside the layers for as long as the block lasts."""
        modules = {name.removeprefix(lora.PEFT_ROOT).rsplit(".lora_", 1)[0] for name in adapter.weights}
        with lora.attached(
            self.model, modules.__contains__, count=1, rank=adapter.rank, scaling=adapter.alpha / adapter.rank
        ) as parameters:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter[0].copy_(adapter.weights[name])
            yield

    # rows

    def groups(self, examples: Sequence[Example]) -> list[list[Row]]:
        """Rows of those that have an answer; a group's may share a pack, as they have the same passages."""
        found: dict[tuple[str, ...], list[Row]] = {}
        for example in examples:
            if example.answer.strip():
                found.setdefault(example.context, []).append(self.row(example))
        return list(found.values())

    def row(self, example: Example) -> Row:
        answer = [*chat.encode_text(self.tokenizer, example.answer.strip()), self.end][: prompts.MAX_ANSWER_TOKENS]
        return Row(tuple(chat.encode_chat(self.tokenizer, self.conversation(example))), tuple(answer))

    def conversation(self, example: Example) -> list[prompts.Message]:
        """What is said before the answer, as in serving."""
        if example.context:
            return prompts.with_passages(example.question, example.context)
        return prompts.closed_book(example.question)

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer, as in serving."""
        listed = self.model.generation_config.eos_token_id
        ends = {self.end, self.tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
        return sorted(ends - {None})

    # what it makes of them

    def lower(self, layers: int = 0) -> Lower:
        return Lower(self.model, layers)

    def batch(self, step: Step, lower: Lower) -> Batch:
        self._attend(step.length)
        batch = to_batch(step, self.pad, self.model.dtype).to(self.device)
        return batch.starting_from(lower.states(step, batch))

    def losses(self, batch: Batch, count: int, lower: Lower) -> tuple[Tensor, Tensor]:
        """For each of `count` adapters its mean loss per answer token, in nats, and how many tokens those are."""
        surprise = self._surprise(batch, lower)
        tokens = torch.bincount(batch.owners, minlength=count)
        total = surprise.new_zeros(count).index_add(0, batch.owners, surprise)
        return total / tokens.clamp(min=1), tokens

    def surprises(self, rows: Sequence[Row]) -> dict[Row, list[float]]:
        """Negative log-likelihood of each answer token of each row, the turn's end last, in nats."""
        lower, found = self.lower(), dict[Row, list[float]]()
        for step in steps_in_order([[rows]], STEP_TOKENS):
            with torch.no_grad():
                values = iter(self._surprise(self.batch(step, lower), lower).tolist())
            found |= {row: [next(values) for _ in row.answer] for row in step.rows}
        return found

    def _surprise(self, batch: Batch, lower: Lower) -> Tensor:
        """(answer tokens,)"""
        likely = torch.log_softmax(self._logits(batch, lower).float(), dim=-1).gather(1, batch.targets)
        return -(batch.weights * likely).sum(dim=1)

    def mean_loss(self, examples: Sequence[Example]) -> float:
        """Mean negative log-likelihood per answer token, in nats, of the model as it is now; NaN without any."""
        steps, lower = steps_in_order([self.groups(examples)], STEP_TOKENS), self.lower()
        with torch.no_grad():
            measured = [self.losses(self.batch(step, lower), 1, lower) for step in steps]
        tokens = sum(int(count) for _, count in measured)
        return sum(float(loss * count) for loss, count in measured) / tokens if tokens else float("nan")

    def answers(self, conversations: Sequence[list[prompts.Message]], *, max_new_tokens: int) -> list[str]:
        """Greedy answers of the model as it is now, all in one batch; as in serving, without the penalty on repeating
        words of the prompt that some models come with."""
        self._attend(0)
        asked = [chat.encode_chat(self.tokenizer, conversation) for conversation in conversations]
        width = -(-max(map(len, asked)) // PLACES) * PLACES
        padding = [width - len(prompt) for prompt in asked]
        padded = [[self.pad] * pad + prompt for pad, prompt in zip(padding, asked, strict=True)]
        with torch.no_grad():
            output = self.model.generate(
                input_ids=torch.tensor(padded, device=self.device),
                attention_mask=torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=self.device),
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.pad,
                eos_token_id=self.ends,
            )
        new = output[:, width:]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def probabilities(self, step: Step) -> Tensor:
        """(answer tokens, vocabulary): what the model as it is now expects at each, in the step's order."""
        lower = self.lower()
        with torch.no_grad():
            return self._logits(self.batch(step, lower), lower).float().softmax(dim=-1)

    def _logits(self, batch: Batch, lower: Lower) -> Tensor:
        """(answer tokens, vocabulary)"""
        places = pad(batch.predicts, (0, -len(batch.predicts) % PLACES))
        with part_of(self.model, slice(lower.count, None), to_end=True), only_at(self.model, places):
            logits: Tensor = self.model(
                inputs_embeds=batch.states,
                position_ids=batch.position_ids,
                attention_mask=batch.attention,
                use_cache=False,
            ).logits[0]
        return logits[: len(batch.predicts)]


def take_at_most(share: float) -> None:
    """Of a GPU's memory, 0 to 1; without one nothing happens. An engine that starts beside needs its own free."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def give_back() -> None:
    """What torch keeps of a GPU's memory after a job: the engine beside may have to start again meanwhile."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _keep_freed_memory() -> None:
    """Let glibc reuse the pages of freed tensors, instead of giving them back and faulting them in at every step."""
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # <malloc.h>
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 32 << 20)  # the most that every glibc accepts
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.mallopt(top_pad, 256 << 20)
