"""Timing of one question, of an open and of a closed loop: against a server that streams at a known pace."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import repeat

import pytest

from benchmarks import load_run
from benchmarks.load_client import Asking, Reply, Sampling, ask_engine, ask_gateway, connect
from benchmarks.load_plan import Planned
from benchmarks.load_run import (
    OVERDUE,
    UNSENT,
    Level,
    Load,
    Outcome,
    closed_loop,
    measure_capacity,
    open_loop,
)
from tests.benchmarks.fake_load_server import TOKENS, FakeLoadServer, served

ASKING = Asking("n")


def planned(at_s: float = 0.0, question: str = "When?", mode: str = "lora") -> Planned:
    return Planned(at_s, mode, 0, question, 16)  # type: ignore[arg-type]


def asked(server: FakeLoadServer, question: str = "When?") -> Reply:
    async def once() -> Reply:
        async with connect(server.url, "key") as http:
            return await ask_gateway(http, ASKING.body(planned(question=question)))

    return asyncio.run(once())


# one question


def test_tokens_are_timed_as_they_come() -> None:
    with served(FakeLoadServer(first_s=0.2, next_s=0.4)) as server:
        server.documents = {"one": {}, "two": {}}
        reply = asked(server)
    gaps = Outcome(planned(), reply.sent, reply).gaps_s
    assert reply.error == ""
    assert reply.answer == "".join(TOKENS)
    assert len(reply.tokens) == 4
    assert reply.tokens[0] - reply.sent >= 0.2
    assert reply.tokens[-1] - reply.sent >= 0.2 + 3 * 0.4
    assert len(gaps) == 3
    assert sum(gaps) > 0.4  # not all at the end, however slow the machine
    assert reply.ended >= reply.tokens[-1]
    assert (reply.prompt_tokens, reply.completion_tokens, reply.merge_cache) == (20, 4, "miss")
    assert reply.adapters == ("ada_one", "ada_two")


def test_the_engine_is_timed_alike_and_gets_the_prompt_of_a_closed_book() -> None:
    async def once(url: str) -> Reply:
        async with connect(url, None) as http:
            await ask_engine(http, "ada_1", planned(), Sampling(0.5, 7))
            return await ask_engine(http, "ada_1", planned())

    with served(FakeLoadServer(first_s=0.2, next_s=0.05)) as server:
        reply = asyncio.run(once(server.url))
    assert reply.error == ""
    assert len(reply.tokens) == 4  # the first event, which has no text, is none
    assert reply.tokens[0] - reply.sent >= 0.2
    assert (reply.answer, reply.prompt_tokens, reply.completion_tokens) == ("".join(TOKENS), 20, 4)
    sampled, body = server.engine_asked
    assert body["model"] == "loramem:ada_1"
    assert [one["role"] for one in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "When?"
    assert (body["temperature"], body["max_tokens"]) == (0, 16)
    assert sampled == body | {"temperature": 0.5, "seed": 7}


@pytest.mark.parametrize(
    ("server", "error"),
    [
        (FakeLoadServer(refuses={"When": (409, "memory-not-ready")}), "409 memory-not-ready"),
        (FakeLoadServer(refuses={"When": (502, "")}), "502"),
        (FakeLoadServer(fails="When"), "in the stream: 503 engine-unavailable"),
        (FakeLoadServer(breaks="When"), "cut off"),
    ],
)
def test_what_goes_wrong_is_told_apart(server: FakeLoadServer, error: str) -> None:
    with served(server):
        assert asked(server).error == error


def test_a_server_that_is_gone_is_an_error_like_others() -> None:
    assert asked(FakeLoadServer(url="http://127.0.0.1:9")).error == "ConnectError"


def test_a_question_is_put_as_its_mode_takes_it() -> None:
    named = Asking("n", top_k=2, compose="select", ids=("doc_a",))
    assert named.body(planned(mode="rag")) == {
        "question": "When?",
        "mode": "rag",
        "namespace": "n",
        "max_tokens": 16,
        "stream": True,
        "document_ids": ["doc_a"],
    }
    lora = named.body(planned())
    assert (lora["top_k"], lora["compose"], lora["document_ids"]) == (2, "select", ["doc_a"])
    assert "document_ids" not in named.body(planned(mode="base"))
    assert "document_ids" not in ASKING.body(planned())
    assert "temperature" not in lora  # it is greedy by default
    sampled = Asking("n", sampling=Sampling(0.5, 7)).body(planned())
    assert (sampled["temperature"], sampled["seed"]) == (0.5, 7)


# open loop


def timed(seconds: float) -> Callable[[Planned], Awaitable[Reply]]:
    async def ask(_: Planned) -> Reply:
        reply = Reply(time.perf_counter())
        await asyncio.sleep(seconds)
        reply.tokens = [time.perf_counter()]
        reply.ended = time.perf_counter()
        return reply

    return ask


def test_questions_go_out_at_their_times_whatever_the_answers_take() -> None:
    plan = [planned(0.05 * number) for number in range(10)]
    load = asyncio.run(open_loop(timed(0.4), plan, 0.5, 1000))
    assert [one.planned for one in load.outcomes] == plan
    assert all(one.late_s is not None and one.late_s >= 0 for one in load.outcomes)
    assert load.took_s < 10 * 0.4  # they overlapped
    assert load.took_s >= 0.45 + 0.4


def test_waiting_counts_from_when_a_question_was_due() -> None:
    """One slot of 0.2 s and five questions due at once: the last waits for all others."""
    with served(FakeLoadServer(first_s=0.2, slots=1)) as server:

        async def run() -> Load:
            async with connect(server.url, None) as http:
                return await open_loop(lambda one: ask_gateway(http, ASKING.body(one)), [planned()] * 5, 0.1, 1000)

        ttft = sorted(one.ttft_s or 0 for one in asyncio.run(run()).outcomes)
    assert ttft[0] >= 0.2
    assert ttft[-1] >= 1.0


def test_a_driver_that_is_late_says_so_and_pays_for_it() -> None:
    """A blocked loop: the second question is sent late, and its latency has that in it."""

    async def blocking(_: Planned) -> Reply:
        sent = time.perf_counter()
        time.sleep(0.3)  # noqa: ASYNC251 - the driver itself is to fall behind
        return Reply(sent, [time.perf_counter()], time.perf_counter())

    load = asyncio.run(open_loop(blocking, [planned(0.0), planned(0.01)], 0.1, 1000))
    second = load.outcomes[1]
    assert second.late_s is not None
    assert second.late_s > 0.2
    assert second.ttft_s is not None
    assert second.ttft_s >= second.late_s + 0.3


def test_beyond_the_limit_questions_are_not_sent() -> None:
    load = asyncio.run(open_loop(timed(0.5), [planned()] * 5, 0.1, 2))
    assert [one.error for one in load.outcomes] == ["", "", UNSENT, UNSENT, UNSENT]
    assert load.outcomes[4].e2e_s is None


def test_an_answer_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_run, "PATIENCE_S", 0.05)
    load = asyncio.run(open_loop(timed(10), [planned()], 0.1, 10))
    assert [one.error for one in load.outcomes] == [OVERDUE]
    assert load.took_s < 5


# closed loop


def test_so_many_at_once_are_asked_and_no_more() -> None:
    with served(FakeLoadServer(first_s=0.05)) as server:

        async def run() -> Level:
            async with connect(server.url, None) as http:
                return await closed_loop(
                    lambda one: ask_gateway(http, ASKING.body(one)), repeat(planned()), concurrency=3, seconds=0.6
                )

        level = asyncio.run(run())
    assert server.most_at_once == 3
    assert (level.concurrency, level.failed) == (3, 0)
    assert level.answered >= 3
    assert 0 < level.per_s < 3 / 0.05


def test_capacity_grows_until_more_at_once_do_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {1: 2.0, 2: 3.8, 4: 6.0, 8: 6.2, 16: 99.0}

    async def loop(_: object, __: object, concurrency: int, seconds: float) -> Level:
        return Level(concurrency, rates[concurrency], round(rates[concurrency] * seconds), 0)

    monkeypatch.setattr(load_run, "closed_loop", loop)
    levels = asyncio.run(measure_capacity(timed(0), [planned()], (1, 2, 4, 8, 16), 10))
    assert [level.concurrency for level in levels] == [1, 2, 4, 8]
    assert [level.per_s for level in levels] == [2.0, 3.8, 6.0, 6.2]


def test_capacity_uses_the_questions_again_and_again() -> None:
    seen: list[str] = []

    async def ask(one: Planned) -> Reply:
        seen.append(one.question)
        sent = time.perf_counter()
        await asyncio.sleep(0.01)
        return Reply(sent, ended=time.perf_counter())

    (level,) = asyncio.run(measure_capacity(ask, [planned(question=name) for name in "ab"], (2,), 0.3))
    assert seen[:4] == ["a", "b", "a", "b"]
    assert 0 < level.answered <= len(seen) - 2 - 1  # two before the windows, at least one after them


def test_refused_questions_are_no_capacity() -> None:
    async def ask(_: Planned) -> Reply:
        await asyncio.sleep(0.01)
        return Reply(0.0, ended=1.0, error="503 engine-unavailable")

    (level,) = asyncio.run(measure_capacity(ask, [planned()], (1,), 0.1))
    assert (level.per_s, level.answered, level.note) == (0, 0, "")
    assert level.failed > 0
