"""An engine that says what a test tells it to, under the interface of `server.engine.engine.Engine`. For tests only.

What it is asked is kept (`prompts`, `activated`), and so is how each generation came to its end (`ended`).
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from loramem.base_model import BaseModel
from loramem.errors import EngineUnavailable, LoramemError
from server.engine.engine import Activation, Delta, Engine, EngineAdapter, Sampling, TokenLogprob

TIMES = {"queue": 0.001, "prefill": 0.002, "decode": 0.003}
BASE = BaseModel(Path("nowhere"), "scripted", "f" * 64)


class ScriptedEngine(Engine):
    """Says `words`, one a step, `pause_s` apart; raises `error` once they are said."""

    def __init__(self, tokenizer: Any, words: Sequence[str] = ("Paris", ", ", "naturally."), base: BaseModel = BASE):
        self.base = base
        self.words = list(words)
        self.pause_s = 0.0
        self.error: Exception | None = None
        self.refusal: LoramemError | None = None
        self.prompts: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.salts: list[str | None] = []
        self.prefetched: list[EngineAdapter] = []
        self.activated: list[EngineAdapter] = []
        self.used: list[EngineAdapter | None] = []
        self.ended: list[str] = []
        self.up = False
        self.broken = False
        self._known = tokenizer
        self._tokenizer: Any = None

    async def start(self) -> None:
        self._tokenizer = self._known
        self.up = True

    def stop(self) -> None:
        self.up = False

    @property
    def dead(self) -> bool:
        return self.up and self.broken

    @property
    def running(self) -> bool:
        return self.up and not self.broken

    async def activate(self, adapter: EngineAdapter) -> Activation:
        self._need()
        if self.refusal is not None:
            raise self.refusal
        hit = adapter in self.activated
        self.activated.append(adapter)
        return Activation(hit, 0.004)

    async def prefetch(self, adapter: EngineAdapter) -> None:
        self._need()
        self.prefetched.append(adapter)

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, adapter: EngineAdapter | None = None, salt: str | None = None
    ) -> AsyncGenerator[Delta, None]:
        self._need()
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        self.salts.append(salt)
        self.used.append(adapter)
        said = 0
        try:
            for word in self.words[: sampling.max_tokens]:
                await asyncio.sleep(self.pause_s)
                said += 1
                yield Delta(word, 1, _logprobs(word, sampling))
            if self.error is not None:
                raise self.error
            cut = said == sampling.max_tokens and said < len(self.words)
            self.ended.append("finished")
            yield Delta("", 0, finish_reason="length" if cut else "stop", engine_times=TIMES)
        except (GeneratorExit, asyncio.CancelledError):
            self.ended.append(f"aborted after {said}")
            raise

    def prompt_text(self, number: int = -1) -> str:
        """What the model was given to read."""
        return str(self._known.decode(self.prompts[number]))

    def _need(self) -> None:
        if not self.running:
            raise EngineUnavailable("the engine is not running")


def _logprobs(word: str, sampling: Sampling) -> list[TokenLogprob]:
    if sampling.logprobs is None:
        return []
    alternatives = ((word, -0.25), *((f"other{n}", -1.0 - n) for n in range(1, sampling.logprobs)))
    return [TokenLogprob(word, -0.25, alternatives[: max(1, sampling.logprobs)])]
