"""Who gets a slot, and when."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from loramem.errors import EngineBusy
from server.slots import Slots


class Answers:
    """Each holds its adapter until it is let go; `running` in the order in which they came to it."""

    def __init__(self, count: int) -> None:
        self.slots = Slots(lambda: count)
        self.running: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def start(self, name: str, adapter: int) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._hold(name, adapter))
        await settled()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settled()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await settled()

    async def _hold(self, name: str, adapter: int) -> None:
        async with self.slots.held(adapter):
            self.running.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.running.remove(name)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


def test_one_adapter_too_many_waits_and_those_that_share_do_not() -> None:
    async def scenario() -> None:
        answers = Answers(2)
        for name, adapter in (("a", 1), ("b", 2), ("c", 3), ("d", 2), ("e", 4)):
            await answers.start(name, adapter)
        assert answers.running == ["a", "b", "d"]
        assert (answers.slots.in_use, answers.slots.waiting) == (2, 2)
        await answers.end("b")
        assert answers.running == ["a", "d"]
        await answers.end("d")
        assert answers.running == ["a", "c"]
        await answers.end("a")
        assert answers.running == ["c", "e"]
        assert (answers.slots.in_use, answers.slots.waiting) == (2, 0)

    run(scenario())


def test_none_is_overtaken_but_by_who_shares() -> None:
    async def scenario() -> None:
        answers = Answers(1)
        for name, adapter in (("a", 1), ("b", 2), ("c", 3), ("d", 2), ("e", 1)):
            await answers.start(name, adapter)
        assert answers.running == ["a", "e"]
        await answers.end("a")
        await answers.end("e")
        assert answers.running == ["b", "d"]
        assert not answers.slots.free_for(1)
        assert answers.slots.free_for(2)

    run(scenario())


def test_who_shares_overtakes_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        answers = Answers(1)
        for name, adapter in (("a", 1), ("b", 2), ("c", 1)):
            await answers.start(name, adapter)
        assert answers.running == ["a", "c"]
        monkeypatch.setattr("server.slots.PATIENCE_S", 0.0)
        assert not answers.slots.free_for(1)
        await answers.start("d", 1)
        await answers.end("a")
        assert answers.running == ["c"]
        await answers.end("c")
        assert answers.running == ["b"]
        await answers.end("b")
        assert answers.running == ["d"]

    run(scenario())


def test_one_that_does_not_wait_counts_all_the_same() -> None:
    async def scenario() -> None:
        answers = Answers(1)
        await answers.start("a", 1)
        async with answers.slots.held(2, waits=False):
            await answers.start("b", 3)
            await answers.end("a")
            assert (answers.running, answers.slots.in_use) == ([], 1)
        await settled()
        assert answers.running == ["b"]

    run(scenario())


def test_who_waits_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.slots.MOST_S", 0.02)

    async def scenario() -> None:
        slots = Slots(lambda: 1)
        async with slots.held(1):
            with pytest.raises(EngineBusy, match=r"every slot was held by other answers for 0.02 s; try again"):
                async with slots.held(2):
                    pass
            assert slots.waiting == 0
        assert slots.free_for(2)

    run(scenario())


@pytest.mark.parametrize("given", [False, True])
def test_who_leaves_the_queue_holds_nothing_up(given: bool) -> None:
    async def scenario() -> None:
        answers = Answers(1)
        for name, adapter in (("a", 1), ("b", 2), ("c", 3)):
            await answers.start(name, adapter)
        if given:  # the slot comes in the same turn as the cancellation
            answers._ends["a"].set()
            await asyncio.sleep(0)
        await answers.cancel("b")
        await answers.end("a")
        assert answers.running == ["c"]
        await answers.end("c")
        assert answers.slots.free_for(9)

    run(scenario())


def test_an_error_inside_gives_the_slot_back() -> None:
    async def scenario() -> None:
        slots = Slots(lambda: 1)
        with pytest.raises(ValueError, match="inside"):
            async with slots.held(1):
                raise ValueError("inside")
        assert slots.free_for(2)

    run(scenario())


def test_whatever_comes_and_goes_no_more_are_held_than_there_are_and_all_get_their_turn() -> None:
    async def scenario() -> None:
        drawn, count, done = random.Random(0), 3, 0
        slots = Slots(lambda: count)
        holders: list[int] = []

        async def answer(adapter: int, steps: int) -> None:
            nonlocal done
            async with slots.held(adapter):
                holders.append(adapter)
                assert len(set(holders)) <= count
                try:
                    for _ in range(steps):
                        await asyncio.sleep(0)
                finally:
                    holders.remove(adapter)
            done += 1

        tasks = []
        for _ in range(500):
            tasks.append(asyncio.create_task(answer(drawn.randrange(10), drawn.randrange(8))))
            if drawn.random() < 0.3:
                drawn.choice(tasks).cancel()
            for _ in range(drawn.randrange(4)):
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert done == sum(result is None for result in results) > 100
        assert {type(result) for result in results} == {type(None), asyncio.CancelledError}
        assert holders == []
        assert all(slots.free_for(number) for number in range(10))

    run(scenario())
