"""Pass an answer on as it is decoded, and keep its times."""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from server.ask import Ask, Token
from server.engine.engine import Delta


@dataclass
class Generation:
    """What is known once decoding has ended. `started` is when the question came in, `routed` when its route stood
    (`time.perf_counter`)."""

    started: float
    routed: float
    finish_reason: str = ""
    completion_tokens: int = 0
    first_token_s: float | None = None
    engine_times: dict[str, float] = field(default_factory=dict)
    ended: float = 0.0

    def routing_ms(self) -> float:
        return (self.routed - self.started) * 1000

    def timings_ms(self) -> dict[str, float]:
        """`queue`, `prefill` and `decode` by the engine's clock; `ttft` and `total` since the question came in."""
        times = {stage: seconds * 1000 for stage, seconds in self.engine_times.items()}
        if self.first_token_s is not None:
            times["ttft"] = self.first_token_s * 1000
        return {**times, "total": (self.ended - self.started) * 1000}


async def generate(
    deltas: AsyncGenerator[Delta, None], ask: Ask, generation: Generation
) -> AsyncGenerator[Token, None]:
    """Yield tokens as they come and fill `generation`. Whoever opened `deltas` closes them.

    Log-probabilities that the question did not ask for, which selecting needs, end here.
    """
    async for delta in deltas:
        if generation.first_token_s is None:
            generation.first_token_s = time.perf_counter() - generation.started
        generation.completion_tokens += delta.token_count
        if delta.finish_reason is not None:
            generation.finish_reason = delta.finish_reason
            generation.engine_times = delta.engine_times
            generation.ended = time.perf_counter()
        logprobs = tuple(delta.logprobs) if ask.sampling.logprobs is not None else ()
        if delta.text or logprobs:
            yield Token(delta.text, logprobs)
