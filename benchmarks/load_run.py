"""Put questions: at times that were fixed before (open loop), or so many at once (closed loop).

In the open loop a slow answer delays no later question, and each is timed from when it was due, so that waiting in the
client counts as waiting. In the closed loop so many askers put the next question as soon as they have an answer.
"""

import asyncio
import sys
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
LEVEL_PATIENCE_S = 120.0
"""For the first answer of every asker, and after the level's seconds for the last, else the level is given up."""
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
    """So many at once; `per_s` answers a second, of those `answered` that were counted. `failed` is of all asked.

    A `note` says why the level was given up; its rate is 0 then.
    """

    concurrency: int
    per_s: float
    answered: int
    failed: int
    note: str = ""


@dataclass(frozen=True)
class Window:
    """Of one asker in the closed loop, from one of its answers to another; the last one is among those `answered`."""

    seconds: float
    answered: int


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
        if level.note:
            print(f"{concurrency} at once: {level.note}", file=sys.stderr)
        if len(found) > 1 and level.per_s < GAIN * found[-2].per_s:
            break
    return found


async def closed_loop(ask: Ask, questions: Iterator[Planned], concurrency: int, seconds: float) -> Level:
    """All go on asking until the last window is closed; questions that are out then are dropped."""
    loop = _ClosedLoop(ask, questions, concurrency, seconds)
    async with asyncio.TaskGroup() as group:
        askers = [group.create_task(loop.asker()) for _ in range(concurrency)]
        note = await loop.over()
        for asker in askers:
            asker.cancel()
    answered = sum(one.answered for one in loop.windows)
    return Level(concurrency, 0.0 if note else rate_within(loop.windows), answered, loop.failed, note)


def rate_within(windows: Sequence[Window]) -> float:
    """Answers a second of all askers together: their number by the mean time from one answer to the next.

    A window of fixed ends cuts answers, which come in waves where all began at once: a wave more or less is a large
    part of few. So each asker's window opens with an answer, the first since every asker has had one, which counts by
    nothing; and it closes with the first one after the level's seconds, which counts as a whole, as does its time.
    Whether it closes with an answer depends on nothing that comes later, so by Wald's identity its expected seconds are
    those of one answer times the expected number, and no share of an answer has to be guessed. A window that closed
    with the last answer within the seconds would prefer short ones.
    """
    seconds = sum(one.seconds for one in windows)
    return len(windows) * sum(one.answered for one in windows) / seconds if seconds else 0.0


class _ClosedLoop:
    """A question that fails ends as an answer does, but is not counted: a server that refuses has a rate of 0."""

    def __init__(self, ask: Ask, questions: Iterator[Planned], concurrency: int, seconds: float) -> None:
        self.windows: list[Window] = []
        self.failed = 0
        self._ask, self._questions = ask, questions
        self._askers = self._without_answer = concurrency
        self._seconds, self._ends = seconds, 0.0
        self._opened, self._closed = asyncio.Event(), asyncio.Event()
        self._now = asyncio.get_running_loop().time

    async def asker(self) -> None:
        """Without an end."""
        await self._put()
        self._count_first()
        while self._without_answer:
            await self._put()
        self.windows.append(await self._window())
        if len(self.windows) == self._askers:
            self._closed.set()
        while True:
            await self._put()

    async def over(self) -> str:
        """Wait until all windows are closed; or say why the level is given up."""
        limit = f"{LEVEL_PATIENCE_S:g} s"
        if not await _within(LEVEL_PATIENCE_S, self._opened):
            return f"given up: {self._without_answer} of {self._askers} askers had no answer after {limit}"
        if not await _within(self._seconds + LEVEL_PATIENCE_S, self._closed):
            left = self._askers - len(self.windows)
            return f"given up: {left} of {self._askers} askers waited for answers {limit} after the level's seconds"
        return ""

    def _count_first(self) -> None:
        self._without_answer -= 1
        if not self._without_answer:
            self._ends = self._now() + self._seconds
            self._opened.set()

    async def _window(self) -> Window:
        opened, answered = self._now(), await self._put()
        while self._now() < self._ends:
            answered += await self._put()
        return Window(self._now() - opened, answered)

    async def _put(self) -> int:
        """How many answers came of it."""
        reply = await _patient(self._ask, next(self._questions))
        self.failed += bool(reply.error)
        return int(not reply.error)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def _patient(ask: Ask, planned: Planned) -> Reply:
    sent = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await ask(planned)
    except TimeoutError:
        return Reply(sent, ended=time.perf_counter(), error=OVERDUE)
