"""The closed loop's rate beside that of simulated servers, whose time is not real: an hour of it takes a moment."""

import asyncio
import random
from collections.abc import Callable, Sequence
from itertools import repeat
from statistics import fmean

import pytest

from benchmarks import load_run
from benchmarks.load_client import Ask, Reply
from benchmarks.load_plan import Planned
from benchmarks.load_run import Level, Window, closed_loop, measure_capacity, rate_within
from tests.simulated_time import run_simulated

SLOTS, MEAN_S, SECONDS = 8, 1.3, 10.0
QUESTION = Planned(0.0, "lora", 0, "?", 16)


def simulated(concurrency: int, took_s: Callable[[], float], seconds: float = SECONDS) -> Level:
    """Of a server that answers `SLOTS` questions at once, each in so many seconds; others wait in turn."""

    async def run() -> Level:
        free = asyncio.Semaphore(SLOTS)

        async def ask(_: Planned) -> Reply:
            async with free:
                await asyncio.sleep(took_s())
            return Reply(0.0)

        return await closed_loop(ask, repeat(QUESTION), concurrency, seconds)

    return run_simulated(run())


def true_rate(concurrency: int) -> float:
    return min(concurrency, SLOTS) / MEAN_S


@pytest.mark.parametrize("concurrency", [1, 4, 8, 16, 64])
def test_waves_of_equal_answers_are_counted_exactly(concurrency: int) -> None:
    level = simulated(concurrency, lambda: MEAN_S)
    assert level.per_s == pytest.approx(true_rate(concurrency))
    assert level.answered >= 0.9 * SECONDS * true_rate(concurrency)
    assert level.failed == 0


@pytest.mark.parametrize("concurrency", [1, 4, 8, 16, 64])
def test_answers_of_any_length_give_the_servers_rate(concurrency: int) -> None:
    drawn = random.Random(concurrency)
    exponential, narrow = (lambda: drawn.expovariate(1 / MEAN_S)), (lambda: drawn.uniform(0.9, 1.7))
    long = simulated(concurrency, exponential, seconds=5000)
    assert long.per_s == pytest.approx(true_rate(concurrency), rel=0.05)
    short = fmean(simulated(concurrency, narrow).per_s for _ in range(40))
    assert short == pytest.approx(true_rate(concurrency), rel=0.03)


def test_answers_that_take_longer_than_the_level_are_counted() -> None:
    assert simulated(32, lambda: 12.0).per_s == pytest.approx(SLOTS / 12)


def test_a_rate_is_askers_by_the_time_of_an_answer() -> None:
    assert rate_within([Window(10.0, 5), Window(14.0, 7)]) == 2 / 2
    assert rate_within([Window(10.0, 0)]) == 0  # all were refused
    assert rate_within([]) == 0


def run_levels(ask: Ask, levels: Sequence[int]) -> list[Level]:
    return run_simulated(measure_capacity(ask, [QUESTION], levels, SECONDS))


def test_a_level_whose_first_answers_do_not_come_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    free = asyncio.Semaphore(1)

    async def ask(_: Planned) -> Reply:
        async with free:
            await asyncio.sleep(50)
        return Reply(0.0)

    (one, four, *more) = run_levels(ask, (1, 4, 16))
    assert one.note == ""
    assert one.per_s == pytest.approx(0.02)
    assert (four.note, four.per_s) == ("given up: 2 of 4 askers had no answer after 120 s", 0)
    assert not more
    assert capsys.readouterr().err == f"4 at once: {four.note}\n"


def test_a_level_whose_last_answers_do_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_run, "LEVEL_PATIENCE_S", 5.0)
    asked = iter(range(1000))

    async def ask(_: Planned) -> Reply:
        await asyncio.sleep(1 if next(asked) < 4 else 200)
        return Reply(0.0)

    (level,) = run_levels(ask, (2,))
    assert level.note == "given up: 2 of 2 askers waited for answers 5 s after the level's seconds"
    assert level.per_s == 0


def test_what_was_refused_takes_time_and_is_no_answer() -> None:
    asked = iter(range(10**6))

    async def ask(_: Planned) -> Reply:
        await asyncio.sleep(0.5)
        return Reply(0.0, error="503 engine-unavailable" if next(asked) % 2 else "")

    (level,) = run_levels(ask, (1,))
    assert level.per_s == pytest.approx(1, rel=0.1)
    assert level.failed >= level.answered - 1


def test_an_error_of_the_driver_is_not_swallowed() -> None:
    async def ask(_: Planned) -> Reply:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        run_levels(ask, (2,))
    assert raised.value.subgroup(ZeroDivisionError)
