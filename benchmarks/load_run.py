"""Put questions: at times that were fixed before (open loop), or so many at once (closed loop).

In the open loop a slow answer delays no later question, and each is timed from when it was due, so that waiting in the
client counts as waiting. In the closed loop so many askers put the next question as soon as they have an answer.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

from benchmarks.load_client import Ask, Reply
from benchmarks.load_plan import Planned
from benchmarks.recall_ask import bar

LEAD_S = 0.1
"""Before the first question is due."""
PATIENCE_S = 300.0
"""For a whole answer."""
UNSENT = "unsent"
OVERDUE = f"no whole answer after {PATIENCE_S:g} s"
LEVELS = (1, 2, 4, 8, 16, 32, 64)
GAIN = 1.05
"""More askers are tried as long as they raise the rate by this."""


@dataclass(frozen=True)
class Outcome:
    """`due` in seconds by `time.perf_counter`; no reply: it was never sent."""

    planned: Planned
    due: float
    reply: Reply | None

    @property
    def error(self) -> str:
        return self.reply.error if self.reply else UNSENT

    @property
    def late_s(self) -> float | None:
        """From due to sent."""
        return self.reply.sent - self.due if self.reply else None

    @property
    def ttft_s(self) -> float | None:
        """From due to the first token; None without an answer, or of one without a token."""
        return self.reply.tokens[0] - self.due if self.reply and self.reply.tokens and not self.error else None

    @property
    def e2e_s(self) -> float | None:
        """From due to the end; None without an answer."""
        return self.reply.ended - self.due if self.reply and not self.error else None

    @property
    def per_token_s(self) -> float | None:
        """From the first token to the end, for each token after it; None without an answer of at least two."""
        reply = self.reply
        if reply is None or self.error or not reply.tokens or reply.completion_tokens < 2:
            return None
        return (reply.ended - reply.tokens[0]) / (reply.completion_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Between pieces of the answer, of one token or several, as they reach the client."""
        times = self.reply.tokens if self.reply and not self.error else []
        return [later - earlier for earlier, later in pairwise(times)]


@dataclass(frozen=True)
class Load:
    """An open loop: `seconds` are those of the plan, `took_s` those until the last answer."""

    outcomes: Sequence[Outcome]
    seconds: float
    took_s: float


@dataclass(frozen=True)
class Level:
    """So many at once; `per_s` answers a second."""

    concurrency: int
    per_s: float
    answered: int
    failed: int


async def open_loop(ask: Ask, plan: Sequence[Planned], seconds: float, most_in_flight: int) -> Load:
    """Every question at its time; one that comes while `most_in_flight` are out is not sent."""
    started = time.perf_counter() + LEAD_S
    in_flight: set[asyncio.Task[Reply]] = set()
    sent: list[tuple[Planned, asyncio.Task[Reply] | None]] = []
    for planned in bar(plan, "asking"):
        await asyncio.sleep(max(0.0, started + planned.at_s - time.perf_counter()))
        task = asyncio.create_task(_patient(ask, planned)) if len(in_flight) < most_in_flight else None
        sent.append((planned, task))
        if task is not None:
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
    await asyncio.gather(*in_flight)
    took_s = max(seconds, time.perf_counter() - started)
    outcomes = [Outcome(one, started + one.at_s, task.result() if task else None) for one, task in sent]
    return Load(outcomes, seconds, took_s)


async def measure_capacity(
    ask: Ask, questions: Sequence[Planned], levels: Sequence[int], seconds: float
) -> list[Level]:
    """Ask at each level for `seconds`, until more at once no longer help. The questions are used again and again."""
    found: list[Level] = []
    endless = cycle(questions)
    for concurrency in levels:
        level = await closed_loop(ask, endless, concurrency, seconds)
        found.append(level)
        if len(found) > 1 and level.per_s < GAIN * found[-2].per_s:
            break
    return found


async def closed_loop(ask: Ask, questions: Iterator[Planned], concurrency: int, seconds: float) -> Level:
    started = time.perf_counter()
    replies: list[Reply] = []

    async def asker() -> None:
        while time.perf_counter() < started + seconds:
            replies.append(await _patient(ask, next(questions)))

    await asyncio.gather(*(asker() for _ in range(concurrency)))
    spans = [(reply.sent - started, reply.ended - started) for reply in replies if not reply.error]
    return Level(concurrency, rate_within(spans, seconds), len(spans), len(replies) - len(spans))


def rate_within(spans: Sequence[tuple[float, float]], seconds: float) -> float:
    """Answers a second in a window from 0 to `seconds`; one that ends after it counts by the share inside.

    Counting whole answers would miss those that the window's end cuts, which is half of what runs at once.
    """
    return sum((min(ended, seconds) - sent) / (ended - sent) for sent, ended in spans) / seconds


async def _patient(ask: Ask, planned: Planned) -> Reply:
    sent = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await ask(planned)
    except TimeoutError:
        return Reply(sent, ended=time.perf_counter(), error=OVERDUE)
