"""Choosing among adapters by how their answers begin, on an engine that follows a script."""

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

import pytest

from loramem.records import Recipe, Source
from server.ask import Ask, Opened, Prepared, Prompt, Selection
from server.engine.engine import Delta, EngineAdapter, Sampling
from server.select import HEAD, Answering, Opener, select
from tests.server.scripted_engine import Script, ScriptedEngine
from tests.simulated_time import run_simulated

LONG = tuple(f"w{n} " for n in range(HEAD + 3))
KNOWN, NEWS = ("I ", "do ", "not ", "know ", "that."), ("It ", "was ", "Tobias ", "Wrenfield ", "himself.")
PROMPT = [1, 2, 3]
T = TypeVar("T")


def prepared(*adapter_ids: str) -> tuple[Prepared, ...]:
    recipes = [Recipe.of("linear", [Source(adapter_id=name, sha256="0" * 64, weight=1)]) for name in adapter_ids]
    return tuple(
        Prepared(EngineAdapter(recipe.digest(), number, recipe.canonical()), recipe, False, False, 0.0)
        for number, recipe in enumerate(recipes, 1)
    )


def ask(logprobs: int | None = None, max_tokens: int = 16, **fields: object) -> Ask:
    asked = Ask("Who?", "lora", "library", Sampling(max_tokens, logprobs=logprobs), compose="select")
    return replace(asked, **fields)  # type: ignore[arg-type]


def engine_of(**scripts: Script) -> ScriptedEngine:
    return running(ScriptedEngine(None), scripts)


def running(engine: ScriptedEngine, scripts: dict[str, Script]) -> ScriptedEngine:
    engine.scripts = scripts
    engine.up = True
    return engine


@dataclass
class Chosen:
    text: str
    selection: Selection | None
    finish_reason: str | None
    tokens: int
    brought: list[EngineAdapter]


def selecting(
    engine: ScriptedEngine, priors: Sequence[float] | None = None, wanted: Ask | None = None
) -> AbstractAsyncContextManager[Answering]:
    all_of_them = prepared(*engine.scripts)
    openers: list[Opener] = [lambda one=one: nullcontext(opened(one)) for one in all_of_them]  # type: ignore[misc]
    return select(engine, prompted(), wanted or ask(), openers, priors or [0.0] * len(openers))


def opened(one: Prepared) -> Opened:
    return Opened(one.adapter, known(one))


def prompted() -> asyncio.Future[Prompt]:
    return known(Prompt(PROMPT, ()))


def known(value: T) -> asyncio.Future[T]:
    future = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


async def answered(engine: ScriptedEngine, wanted: Ask | None = None, *priors: float) -> Chosen:
    async with selecting(engine, priors, wanted) as answering:
        said = [delta async for delta in answering.deltas]
    tokens = sum(delta.token_count for delta in said)
    answer, brought = "".join(delta.text for delta in said), [one.adapter for one in answering.prepared]
    return Chosen(answer, answering.selection, said[-1].finish_reason, tokens, brought)


def sure(chosen: Chosen) -> tuple[float | None, ...]:
    assert chosen.selection is not None
    return chosen.selection.logprobs


def test_of_equal_priors_the_one_that_is_surest_of_its_first_words_wins() -> None:
    engine = engine_of(ada_0=Script(KNOWN, logprob=-1.5), ada_1=Script(NEWS, logprob=-0.5))
    chosen = asyncio.run(answered(engine))
    assert chosen.text == "".join(NEWS)
    assert (chosen.finish_reason, chosen.tokens) == ("stop", len(NEWS))
    assert sure(chosen) == pytest.approx((-1.5, -0.5))
    assert chosen.selection is not None
    assert (chosen.selection.winner, chosen.selection.dropped_tokens) == (1, HEAD)
    assert chosen.brought == [one.adapter for one in reversed(prepared("ada_0", "ada_1"))]


@pytest.mark.parametrize(("lead", "winner"), [(0.9, 1), (1.1, 0)])
def test_a_lead_of_the_router_weighs_as_much_as_the_words(lead: float, winner: int) -> None:
    engine = engine_of(ada_0=Script(KNOWN, logprob=-1.5), ada_1=Script(NEWS, logprob=-0.5))
    chosen = asyncio.run(answered(engine, None, 7.0 + lead, 7.0))
    assert chosen.selection is not None
    assert chosen.selection.winner == winner


def test_of_equals_the_better_routed_answers() -> None:
    engine = engine_of(ada_0=Script(KNOWN), ada_1=Script(NEWS))
    assert asyncio.run(answered(engine)).text == "".join(KNOWN)


def test_all_see_the_same_prompt_each_under_its_own_adapter() -> None:
    engine = engine_of(ada_0=Script(KNOWN), ada_1=Script(NEWS), ada_2=Script(LONG))
    asyncio.run(answered(engine, ask(sampling=Sampling(16, temperature=0.7, seed=5))))
    assert engine.prompts == [PROMPT] * 3
    assert engine.used == [one.adapter for one in prepared("ada_0", "ada_1", "ada_2")]
    assert engine.salts == ["library"] * 3
    assert engine.samplings == [Sampling(16, temperature=0.7, seed=5, logprobs=0)] * 3


def test_losers_are_aborted_right_after_their_heads_and_the_winner_goes_on() -> None:
    engine = engine_of(ada_0=Script(LONG), ada_1=Script(LONG, logprob=-0.1), ada_2=Script(LONG))

    async def scenario() -> None:
        async with selecting(engine) as answering:
            assert [script.ended for script in engine.scripts.values()] == [
                f"aborted after {HEAD}", "", f"aborted after {HEAD}",
            ]  # fmt: skip
            assert "".join([delta.text async for delta in answering.deltas]) == "".join(LONG)
        assert engine.scripts["ada_1"].ended == "finished"

    asyncio.run(scenario())


def test_an_answer_shorter_than_the_head_is_compared_as_it_is() -> None:
    engine = engine_of(ada_0=Script(LONG, logprob=-1.0), ada_1=Script(("Amber.",), logprob=-0.5))
    chosen = asyncio.run(answered(engine))
    assert (chosen.text, chosen.finish_reason, sure(chosen)) == ("Amber.", "stop", (-1.0, -0.5))


def test_answers_cut_before_the_head_is_full_say_so() -> None:
    engine = engine_of(ada_0=Script(LONG), ada_1=Script(NEWS))
    chosen = asyncio.run(answered(engine, ask(max_tokens=2)))
    assert (chosen.text, chosen.finish_reason) == ("".join(LONG[:2]), "length")


def test_an_answer_without_a_token_is_the_last_choice() -> None:
    engine = engine_of(ada_0=Script(()), ada_1=Script(NEWS, logprob=-5.0))
    chosen = asyncio.run(answered(engine, None, 99.0, 0.0))
    assert (chosen.text, sure(chosen)) == ("".join(NEWS), (-math.inf, -5.0))
    blank = engine_of(ada_0=Script((" ", "\n"), logprob=-0.01), ada_1=Script(NEWS, logprob=-5.0))
    assert asyncio.run(answered(blank)).text == "".join(NEWS)
    nothing = asyncio.run(answered(engine_of(ada_0=Script(()), ada_1=Script(()))))
    assert (nothing.text, nothing.finish_reason) == ("", "stop")


class Bursts(ScriptedEngine):
    """Hands out three tokens at a time, as vLLM does when its reader is slow."""

    async def generate(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        adapter: EngineAdapter | None = None,
        salt: str | None = None,
        drafts: bytes = b"",
    ) -> AsyncGenerator[Delta, None]:
        held: list[Delta] = []
        async with aclosing(super().generate(prompt, sampling, adapter=adapter, salt=salt, drafts=drafts)) as deltas:
            async for delta in deltas:
                held.append(delta)
                if len(held) == 3 or delta.finish_reason is not None:
                    yield Delta(
                        "".join(one.text for one in held),
                        [token for one in held for token in one.token_ids],
                        [logprob for one in held for logprob in one.logprobs],
                        delta.finish_reason,
                    )
                    held = []


def test_tokens_that_come_in_bursts_change_nothing_but_what_was_dropped() -> None:
    scripts = {"ada_0": Script(LONG, logprob=-0.5), "ada_1": Script(LONG)}
    burst = asyncio.run(answered(running(Bursts(None), scripts)))
    single = asyncio.run(answered(engine_of(**scripts)))
    assert (burst.text, sure(burst)) == (single.text, sure(single))
    assert burst.selection is not None
    assert burst.selection.dropped_tokens == 6


def test_log_probabilities_asked_for_reach_every_candidate() -> None:
    engine = engine_of(ada_0=Script(LONG), ada_1=Script(NEWS))
    asyncio.run(answered(engine, ask(logprobs=3)))
    assert [sampling.logprobs for sampling in engine.samplings] == [3, 3]


def test_one_adapter_or_none_answers_without_a_choice() -> None:
    engine = engine_of(ada_0=Script(NEWS))
    engine.words = ["base"]
    alone = asyncio.run(answered(engine))
    assert (alone.text, alone.selection) == ("".join(NEWS), None)

    async def base() -> list[str]:
        async with select(engine, prompted(), ask()) as answering:
            assert answering.prepared == ()
            return [delta.text async for delta in answering.deltas]

    assert asyncio.run(base()) == ["base", ""]
    assert [sampling.logprobs for sampling in engine.samplings] == [None, None]


# who begins


def test_a_rival_that_can_no_longer_win_never_begins() -> None:
    engine = engine_of(ada_0=Script(LONG, logprob=-0.5), ada_1=Script(NEWS), ada_2=Script(NEWS))
    chosen = asyncio.run(answered(engine, None, 9.0, 8.5, 1.0))
    assert engine.used == chosen.brought == [prepared("ada_0")[0].adapter]
    assert (chosen.text, sure(chosen)) == ("".join(LONG), (-0.5, None, None))
    assert chosen.selection is not None
    assert chosen.selection.dropped_tokens == 0


@pytest.mark.parametrize(("lead", "heard"), [(-1.0, 0), (0.0, 1), (0.3, 2), (0.6, 3), (0.95, 4)])
def test_a_rival_begins_as_soon_as_the_first_may_fall_behind_it(lead: float, heard: int) -> None:
    engine = engine_of(ada_0=Script(LONG, logprob=-1.0), ada_1=Script(NEWS, logprob=-0.01))
    engine.pause_s = 0.01
    assert run_simulated(answered(engine, None, lead, 0.0)).text == "".join(NEWS)
    assert engine.said_before == [0, heard]


@pytest.mark.parametrize("bursts", [False, True])
def test_the_choice_is_the_one_that_all_would_have_been_compared_for(bursts: bool) -> None:
    drawn = random.Random(0)
    for _ in range(200):
        scripts = {
            f"ada_{n}": Script(
                drawn.choice([LONG, ("", " ", "\n", "")])[: drawn.randint(0, len(LONG))],
                logprobs=[-2 * drawn.random() for _ in LONG],
            )
            for n in range(4)
        }
        priors = sorted((2 * drawn.random() for _ in scripts), reverse=True)
        scores = [prior + evidence(one) for prior, one in zip(priors, scripts.values(), strict=True)]
        engine = running(Bursts(None) if bursts else ScriptedEngine(None), scripts)
        chosen = asyncio.run(answered(engine, None, *priors))
        assert chosen.selection is not None
        assert chosen.selection.winner == scores.index(max(scores))


def evidence(script: Script) -> float:
    """Of everything that a candidate reads of its head, in bursts of up to three tokens or not."""
    said = script.words[:HEAD]
    heard = script.words[: 3 * -(-HEAD // 3)]
    return fmean(script.logprobs[: len(said)]) if "".join(said).strip() or "".join(heard).strip() else -math.inf


def test_the_engine_begins_before_the_answer_is_read() -> None:
    engine = engine_of(ada_0=Script(NEWS))

    async def scenario() -> None:
        async with selecting(engine) as answering:
            while not engine.scripts["ada_0"].said:  # noqa: ASYNC110 the engine has no event for it
                await asyncio.sleep(0)
            assert [delta.text async for delta in answering.deltas] == [*NEWS, ""]
        assert engine.ended == ["finished"]

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize("pause_s", [0.0, 30.0])
def test_leaving_before_a_word_was_read_aborts_what_began_and_leaves_no_task(pause_s: float) -> None:
    engine = engine_of(ada_0=Script(NEWS))
    engine.pause_s = pause_s

    async def scenario() -> None:
        before = asyncio.all_tasks()
        async with selecting(engine):
            await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == before
        assert engine.ended == [f"aborted after {0 if pause_s else 1}"]

    run_simulated(scenario())


# ends


def test_leaving_early_aborts_the_winner_before_its_first_token_and_after() -> None:
    for read in (0, 1, HEAD + 1):
        engine = engine_of(ada_0=Script(LONG), ada_1=Script(LONG))

        async def scenario(engine: ScriptedEngine = engine, read: int = read) -> None:
            async with selecting(engine) as answering:
                for _ in range(read):
                    await anext(answering.deltas)
            assert engine.scripts["ada_0"].ended == f"aborted after {max(read, HEAD)}"

        asyncio.run(scenario())


def test_cancelling_while_they_begin_aborts_all_and_leaves_no_task() -> None:
    engine = engine_of(ada_0=Script(LONG), ada_1=Script(NEWS), ada_2=Script(LONG))
    engine.pause_s = 30

    async def scenario() -> None:
        task = asyncio.ensure_future(answered(engine, None, 0.0, 1.0, 1.0))
        while len(engine.prompts) < 3:  # noqa: ASYNC110 the engine has no event for it
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [script.ended for script in engine.scripts.values()] == ["aborted after 0"] * 3

    asyncio.run(scenario())


# slots


class Slots(ScriptedEngine):
    """Runs as vLLM does: at most `slot_count` at once, each to its end whether its reader reads or not."""

    def __init__(self, tokenizer: object) -> None:
        super().__init__(tokenizer)
        self.free: asyncio.Semaphore | None = None

    async def generate(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        adapter: EngineAdapter | None = None,
        salt: str | None = None,
        drafts: bytes = b"",
    ) -> AsyncGenerator[Delta, None]:
        said: asyncio.Queue[Delta] = asyncio.Queue()
        self.free = free = self.free or asyncio.Semaphore(self.slot_count)
        stock = super().generate

        async def run() -> None:
            async with free, aclosing(stock(prompt, sampling, adapter=adapter, salt=salt, drafts=drafts)) as deltas:
                async for delta in deltas:
                    said.put_nowait(delta)

        running = asyncio.ensure_future(run())
        try:
            while True:
                delta = await said.get()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("slot_count", [1, 2, 4])
def test_candidates_that_wait_for_slots_held_by_their_siblings_get_them(slot_count: int) -> None:
    scripts = {f"ada_{n}": Script(LONG, logprob=-1.0 + n / 10) for n in range(4)}
    engine = Slots(None)
    engine.slot_count = slot_count
    running(engine, scripts)
    chosen = asyncio.run(asyncio.wait_for(answered(engine), 20))
    assert chosen.text == "".join(LONG)
    assert chosen.selection is not None
    assert chosen.selection.winner == 3
    assert engine.free is not None
    assert engine.free._value == slot_count  # none is kept


def test_two_questions_share_too_few_slots() -> None:
    engine = running(Slots(None), {"ada_0": Script(LONG), "ada_1": Script(LONG, logprob=-0.1)})
    engine.slot_count = 1

    async def both() -> tuple[Chosen, Chosen]:
        return await asyncio.wait_for(asyncio.gather(answered(engine), answered(engine)), 20)

    assert [chosen.selection.winner for chosen in asyncio.run(both()) if chosen.selection] == [1, 1]
