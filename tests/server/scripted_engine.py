"""An engine that says what a test tells it to, under the interface of `server.engine.engine.Engine`. For tests only.

What it is asked is kept (`prompts`, `activated`), and so is how many words of all scripts were said when each prompt
came (`said_before`) and how each generation came to its end (`ended`). Adapters may have scripts of their own
(`scripts`, by the adapter id in their recipe).
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramem.base_model import BaseModel
from loramem.errors import EngineUnavailable, LoramemError
from server.engine.engine import Activation, Delta, Engine, EngineAdapter, Sampling, TokenLogprob
from server.tasks import beside

TIMES = {"queue": 0.001, "prefill": 0.002, "decode": 0.003}
BASE = BaseModel(Path("nowhere"), "scripted", "f" * 64)


@dataclass
class Script:
    """What one adapter says, how sure it is of each word, and what goes wrong with it; `said` and `ended` tell how far
    it came. Text comes `holds` words late, as what may begin a stop string does; `end` is a token that ends the answer
    and is no text of it."""

    words: Sequence[str]
    logprob: float = -0.25
    logprobs: Sequence[float] = ()
    error: Exception | None = None
    refusal: LoramemError | None = None
    holds: int = 0
    end: str = ""
    said: int = 0
    ended: str = ""


class ScriptedEngine(Engine):
    """Says `words`, one a step, `pause_s` apart; raises `error` once they are said. A merge takes `merge_s`."""

    def __init__(self, tokenizer: Any, words: Sequence[str] = ("Paris", ", ", "naturally."), base: BaseModel = BASE):
        self.base = base
        self.words = list(words)
        self.pause_s = 0.0
        self.merge_s = 0.0
        self.error: Exception | None = None
        self.refusal: LoramemError | None = None
        self.prompts: list[list[int]] = []
        self.said_before: list[int] = []
        self.samplings: list[Sampling] = []
        self.salts: list[str | None] = []
        self.drafts: list[bytes] = []
        self.prefetched: list[EngineAdapter] = []
        self.activated: list[EngineAdapter] = []
        self.used: list[EngineAdapter | None] = []
        self.ended: list[str] = []
        self.scripts: dict[str, Script] = {}
        self.slot_count = 8
        self.trimmed = 0
        self.speculates = True
        self.up = False
        self.broken = False
        self._vocabulary: list[str] = []
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

    @property
    def slots(self) -> int:
        return self.slot_count

    @asynccontextmanager
    async def activating(self, adapter: EngineAdapter) -> AsyncGenerator[asyncio.Task[Activation], None]:
        self._need()
        async with beside(self._activate(adapter)) as activation:
            yield activation

    async def _activate(self, adapter: EngineAdapter) -> Activation:
        await asyncio.sleep(self.merge_s)
        refusal = self._script(adapter).refusal or self.refusal
        if refusal is not None:
            raise refusal
        hit = adapter in self.activated
        self.activated.append(adapter)
        return Activation(hit, 0.004)

    async def prefetch(self, adapter: EngineAdapter) -> None:
        self._need()
        self.prefetched.append(adapter)

    async def trim_memory(self) -> None:
        self._need()
        self.trimmed += 1

    async def generate(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        adapter: EngineAdapter | None = None,
        salt: str | None = None,
        drafts: bytes = b"",
    ) -> AsyncGenerator[Delta, None]:
        self._need()
        self.prompts.append(prompt)
        self.said_before.append(sum(script.said for script in self.scripts.values()))
        self.samplings.append(sampling)
        self.salts.append(salt)
        self.drafts.append(drafts)
        self.used.append(adapter)
        script = self._script(adapter)
        said = 0
        held: list[str] = []
        try:
            for word in script.words[: sampling.max_tokens]:
                await asyncio.sleep(self.pause_s)
                said += 1
                script.said = said
                logprob = script.logprobs[said - 1] if script.logprobs else script.logprob
                held.append(word)
                text = held.pop(0) if len(held) > script.holds else ""
                yield Delta(text, [self._id_of(word)], _logprobs(word, logprob, sampling))
            if script.error is not None:
                raise script.error
            cut = said == sampling.max_tokens and said < len(script.words)
            self._end(script, "finished")
            with_end = bool(script.end) and not cut
            yield Delta(
                "".join(held),
                [self._id_of(script.end)] if with_end else [],
                _logprobs(script.end, script.logprob, sampling) if with_end else [],
                "length" if cut else "stop",
                TIMES,
            )
        except (GeneratorExit, asyncio.CancelledError):
            self._end(script, f"aborted after {said}")
            raise

    def _script(self, adapter: EngineAdapter | None) -> "Script":
        for adapter_id, script in self.scripts.items():
            if adapter is not None and f'"{adapter_id}"' in adapter.path:
                return script
        return Script(self.words, error=self.error)

    def _end(self, script: "Script", how: str) -> None:
        script.ended = how
        self.ended.append(how)

    def _id_of(self, word: str) -> int:
        if word not in self._vocabulary:
            self._vocabulary.append(word)
        return self._vocabulary.index(word)

    def prompt_text(self, number: int = -1) -> str:
        """What the model was given to read."""
        return str(self._known.decode(self.prompts[number]))

    def _need(self) -> None:
        if not self.running:
            raise EngineUnavailable("the engine is not running")


def _logprobs(word: str, logprob: float, sampling: Sampling) -> list[TokenLogprob]:
    if sampling.logprobs is None:
        return []
    alternatives = ((word, logprob), *((f"other{n}", -1.0 - n) for n in range(1, sampling.logprobs)))
    return [TokenLogprob(word, logprob, alternatives[: max(1, sampling.logprobs)])]
