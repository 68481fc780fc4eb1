"""Decoding with times, on an engine that follows a script."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from loramem.errors import EngineUnavailable
from server.ask import Ask, Token
from server.engine.engine import Delta, EngineAdapter, Sampling
from server.generate import Generation, generate
from tests.server.scripted_engine import TIMES, ScriptedEngine
from tests.simulated_time import run_simulated

ADAPTER = EngineAdapter("ada_1", 1, "/adapters/ada_1")


def ask(max_tokens: int = 16, logprobs: int | None = None) -> Ask:
    return Ask("Why?", "lora", "library", Sampling(max_tokens, logprobs=logprobs))


async def started_engine(*words: str, pause_s: float = 0.0) -> ScriptedEngine:
    engine = ScriptedEngine(None, words or ("Paris", ", ", "naturally."))
    engine.pause_s = pause_s
    await engine.start()
    return engine


def asked(engine: ScriptedEngine, wanted: Ask) -> AsyncGenerator[Delta, None]:
    return engine.generate([1, 2, 3], wanted.sampling, adapter=ADAPTER, salt=wanted.namespace)


async def run(engine: ScriptedEngine, wanted: Ask, generation: Generation) -> list[Token]:
    async with aclosing(asked(engine, wanted)) as deltas:
        return [token async for token in generate(deltas, wanted, generation)]


def test_tokens_pass_and_the_generation_is_filled() -> None:
    generation = Generation(time.perf_counter(), 0.0)

    async def scenario() -> list[Token]:
        return await run(await started_engine(pause_s=0.02), ask(), generation)

    tokens = asyncio.run(scenario())
    assert [token.text for token in tokens] == ["Paris", ", ", "naturally."]  # the last, empty delta is no token
    assert generation.completion_tokens == 3
    assert generation.finish_reason == "stop"
    times = generation.timings_ms()
    assert {stage: times[stage] for stage in TIMES} == {stage: 1000 * seconds for stage, seconds in TIMES.items()}
    assert 20 <= times["ttft"] < times["total"]
    assert times["total"] >= 60


def test_an_answer_cut_at_max_tokens_says_so() -> None:
    generation = Generation(0, 0)

    async def scenario() -> list[Token]:
        return await run(await started_engine(), ask(max_tokens=2), generation)

    assert len(asyncio.run(scenario())) == 2
    assert (generation.finish_reason, generation.completion_tokens) == ("length", 2)


def test_a_step_with_log_probabilities_and_no_text_is_a_token() -> None:
    async def scenario() -> list[Token]:
        return await run(await started_engine("", "é"), ask(logprobs=2), Generation(0, 0))

    tokens = asyncio.run(scenario())
    assert [token.text for token in tokens] == ["", "é"]  # half of a character says nothing yet, but was sampled
    assert [len(token.logprobs[0].top) for token in tokens] == [2, 2]


def test_log_probabilities_that_nobody_asked_for_do_not_come_out() -> None:
    async def scenario() -> list[Token]:
        engine = await started_engine("", "é")
        deltas = engine.generate([1], ask(logprobs=2).sampling)
        return [token async for token in generate(deltas, ask(), Generation(0, 0))]

    assert asyncio.run(scenario()) == [Token("é")]


def test_closing_leaves_the_rest_to_whoever_opened_it() -> None:
    async def scenario() -> list[str]:
        engine = await started_engine()
        deltas = asked(engine, ask())
        tokens = generate(deltas, ask(), Generation(0, 0))
        await anext(tokens)
        await tokens.aclose()
        assert engine.ended == []
        await deltas.aclose()
        return list(engine.ended)

    assert asyncio.run(scenario()) == ["aborted after 1"]


def test_cancelling_aborts_the_generation() -> None:
    async def scenario() -> list[str]:
        engine = await started_engine(pause_s=30)
        task = asyncio.ensure_future(run(engine, ask(), Generation(0, 0)))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return list(engine.ended)

    assert run_simulated(scenario()) == ["aborted after 0"]


def test_an_answer_without_a_token_has_no_time_to_first() -> None:
    assert "ttft" not in Generation(0, 0, ended=1.0).timings_ms()


def test_an_engine_that_is_down_raises_before_the_first_token() -> None:
    async def scenario() -> None:
        await run(ScriptedEngine(None), ask(), Generation(0, 0))

    with pytest.raises(EngineUnavailable):
        asyncio.run(scenario())
