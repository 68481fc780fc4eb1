"""What is refused because the engine has too few slots for it, or cannot load it, or dies."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from loramem.errors import EngineUnavailable, InvalidValue, StoredDataDamaged
from loramem.records import Compose, Mode
from server.ask import Ask, MergeOptions, Route, RoutedAdapter
from server.engine.engine import Sampling
from server.merge import Merger
from server.select import Opener, check_slots, select
from tests.server.scripted_engine import Script, ScriptedEngine
from tests.server.test_select import LONG, NEWS, answered, engine_of, prompted, running, selecting

ASK = Ask("Who?", "lora", "library", Sampling(16), compose="select")


def route_to(count: int) -> Route:
    adapters = [RoutedAdapter(f"ada_{n}", "0" * 64, 8, "doc", "", n, 0.5, 1 / count) for n in range(count)]
    return Route(tuple(adapters), (), {}, {}, {})


def test_more_candidates_than_slots_are_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidValue, match=r"3 adapters .* has 2; use a smaller top_k.* LORAMEM_MAX_LORAS") as refused:
        check_slots(replace(ASK, top_k=3), route_to(3), slots=2)
    assert refused.value.extra == {"key": "top_k", "value": 3, "allowed": "1 to 2"}


@pytest.mark.parametrize(("mode", "compose"), [("lora", "merge"), ("rag", "select"), ("base", "select")])
def test_what_runs_as_one_row_needs_one_slot(mode: Mode, compose: Compose) -> None:
    check_slots(replace(ASK, top_k=3, mode=mode, compose=compose), route_to(3), slots=1)
    check_slots(replace(ASK, top_k=3), route_to(2), slots=2)  # fewer were found


# while they begin


def merging(engine: ScriptedEngine) -> list[Opener]:
    """Through the engine, as the gateway opens them."""
    merger = Merger(engine, max_rank=64)
    adapters = [replace(one, sha256=str(n) * 64) for n, one in enumerate(route_to(len(engine.scripts)).adapters)]
    return [partial(merger.held, [one], MergeOptions(), waits=False) for one in adapters]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("refused", [0, 1])
def test_nothing_that_an_adapter_said_before_it_was_refused_is_told(count: int, refused: int) -> None:
    scripts = {f"ada_{n}": Script(LONG) for n in range(count)}
    damage = StoredDataDamaged("adapter does not match its sha256")
    scripts[f"ada_{refused % count}"].refusal = damage
    engine = running(ScriptedEngine(None), scripts)
    engine.merge_s = 0.02

    async def scenario() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(StoredDataDamaged):
            async with select(engine, prompted(), ASK, merging(engine), [0.0] * count) as answering:
                pytest.fail(f"{answering} was told")
        assert asyncio.all_tasks() == before
        assert scripts[f"ada_{refused % count}"].said > 0, "the engine began meanwhile"
        assert all(how.startswith("aborted") for how in engine.ended)
        assert len(engine.ended) == len(engine.prompts)

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize("words", [(), NEWS[:1]])
def test_an_engine_that_fails_is_heard_of_by_who_reads(words: tuple[str, ...]) -> None:
    engine = engine_of(ada_0=Script(words, error=EngineUnavailable("the engine died")))
    read: list[str] = []

    async def scenario() -> None:
        async with selecting(engine) as answering:
            await asyncio.sleep(0.01)
            async for delta in answering.deltas:
                read.append(delta.text)

    with pytest.raises(EngineUnavailable, match="died"):
        asyncio.run(asyncio.wait_for(scenario(), 20))
    assert read == list(words)


def test_a_candidate_that_fails_ends_the_others() -> None:
    failure = EngineUnavailable("the engine died; it is being restarted")
    engine = engine_of(ada_0=Script(LONG), ada_1=Script(NEWS[:1], error=failure), ada_2=Script(LONG))
    with pytest.raises(EngineUnavailable, match="died"):
        asyncio.run(answered(engine))
    assert all(engine.scripts[name].ended.startswith("aborted") for name in ("ada_0", "ada_2"))
