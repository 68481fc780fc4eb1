"""`compose: select` over HTTP: what the answer tells of the choice, streamed and not, and what it refuses."""

import asyncio
from typing import Any

import pytest

from loramem.errors import EngineUnavailable, LoramemError, StoredDataDamaged, WindowExceeded
from loramem.records import Recipe
from server.ask import Ask, Routed
from server.engine.engine import Sampling
from server.select import HEAD
from tests.server.api.memory import BAKERY, LIGHTHOUSE, QUESTION, Memory, events_of
from tests.server.scripted_engine import Script

SELECT = {"mode": "lora", "top_k": 2, "compose": "select"}
RIGHT, WRONG = ("Ansel ", "Brandt ", "mended ", "it ", "himself."), ("Three ", "crowns ", "each, ", "usually, ", "yes.")


def teach_two(memory: Memory) -> tuple[str, str]:
    """Adapter ids: of the best-routed one, which is far from sure of what it says, and of the one that knows."""
    ids = []
    for text, script in ((LIGHTHOUSE, Script(WRONG, logprob=-20.0)), (BAKERY, Script(RIGHT, logprob=-1.0))):
        document_id = memory.teach(text)
        (adapter,) = memory.client.get("/adapters", params={"document_id": document_id}).json()["data"]
        memory.engine.scripts[adapter["id"]] = script
        ids.append(adapter["id"])
    return ids[0], ids[1]


def sources(memory: Memory) -> list[list[tuple[str, float]]]:
    """What each generation's recipe is made of."""
    recipes = [Recipe.from_path(adapter.path) for adapter in memory.engine.used if adapter is not None]
    return [[(source.adapter_id, source.weight) for source in recipe.sources] for recipe in recipes]


def test_the_answer_is_the_winners_and_tells_of_all(memory: Memory) -> None:
    first, second = teach_two(memory)
    answer = memory.ask(**SELECT)
    assert answer["answer"] == "".join(RIGHT)
    assert (answer["compose"], answer["selected"], answer["merge"]) == ("select", second, None)
    assert [(hit["adapter_id"], hit["logprob"]) for hit in answer["routed"]] == [(first, -20.0), (second, -1.0)]
    assert sum(hit["weight"] for hit in answer["routed"]) == 1
    usage, times = answer["usage"], answer["timings_ms"]
    assert (usage["completion_tokens"], usage["dropped_tokens"]) == (len(RIGHT), HEAD)
    assert usage["total_tokens"] == usage["prompt_tokens"] + len(RIGHT)
    assert times["merge"] == 8.0  # two adapters at 4 ms
    assert 0 <= times["select"] < times["ttft"] <= times["total"]  # less the rival's 4 ms, which were not spent here
    assert sources(memory) == [[(first, 1.0)], [(second, 1.0)]]
    assert (memory.engine.prefetched, len(memory.engine.activated)) == ([], 2)


def test_a_stream_tells_the_choice_and_then_its_tokens(memory: Memory) -> None:
    teach_two(memory)
    whole = memory.ask(**SELECT)
    reply = memory.client.post("/query", json={"question": QUESTION, "stream": True, **SELECT})
    found = events_of(reply.text)
    assert [kind for kind, _ in found] == ["route", *["token"] * len(RIGHT), "done"]
    assert [data["text"] for kind, data in found if kind == "token"] == list(RIGHT)
    assert found[0][1]["selected"] == whole["selected"]
    assert found[0][1]["routed"] == whole["routed"]
    done = found[-1][1]
    assert all(whole[key] == done[key] for key in whole if key not in ("id", "timings_ms"))


def test_selecting_is_what_happens_when_nothing_is_said(memory: Memory) -> None:
    teach_two(memory)
    assert memory.ask(mode="lora", top_k=2)["compose"] == "select"
    assert memory.ask(mode="lora", top_k=2, merge={"strength": 0.5})["compose"] == "select"


def test_who_says_how_to_merge_wants_to_merge(memory: Memory) -> None:
    teach_two(memory)
    answer = memory.ask(mode="lora", top_k=2, merge={"method": "linear", "weights": "router"})
    assert (answer["compose"], answer["merge"]["method"]) == ("merge", "linear")
    reply = memory.client.post("/query", json={"question": QUESTION, **SELECT, "merge": {"method": "ties"}})
    assert reply.status_code == 422
    assert "leave one of them out" in reply.json()["detail"]


def test_merging_is_for_those_who_ask_for_it(memory: Memory) -> None:
    teach_two(memory)
    answer = memory.ask(mode="lora", top_k=2, compose="merge")
    assert (answer["compose"], answer["selected"], answer["usage"]["dropped_tokens"]) == ("merge", None, 0)
    assert answer["merge"]["method"] == "cat"
    assert [hit["logprob"] for hit in answer["routed"]] == [None, None]
    assert answer["timings_ms"]["select"] == 0
    assert len(sources(memory)) == 1


def test_beside_text_each_candidate_has_a_quarter_of_its_strength(memory: Memory) -> None:
    first, second = teach_two(memory)
    answer = memory.ask(**SELECT | {"mode": "hybrid"})
    assert sources(memory) == [[(first, 0.25)], [(second, 0.25)]]
    assert [source["adapter_id"] for source in answer["merge"]["recipe"]["sources"]] == [second]
    assert answer["context"]


def test_one_candidate_answers_as_a_merge_of_one_does(memory: Memory) -> None:
    first, _ = teach_two(memory)
    selected, merged = (memory.ask(mode="lora", top_k=1, compose=compose) for compose in ("select", "merge"))
    same = ("answer", "merge", "routed", "usage", "finish_reason")
    assert all(selected[key] == merged[key] for key in same)
    assert (selected["compose"], selected["selected"]) == ("select", first)
    assert memory.engine.used[0] == memory.engine.used[1]


@pytest.mark.parametrize("mode", ["base", "rag", "icl"])
def test_modes_without_adapters_ignore_it(memory: Memory, mode: str) -> None:
    teach_two(memory)
    answer = memory.ask(**SELECT | {"mode": mode})
    assert (answer["compose"], answer["selected"], answer["routed"]) == (None, None, [])
    assert memory.engine.used == [None]


def test_more_candidates_than_slots_are_refused_before_anything_is_loaded(memory: Memory) -> None:
    teach_two(memory)
    memory.engine.slot_count = 1
    reply = memory.client.post("/query", json={"question": QUESTION, **SELECT})
    assert reply.status_code == 422
    assert (reply.json()["key"], reply.json()["value"], reply.json()["allowed"]) == ("top_k", 2, "1 to 1")
    assert "LORAMEM_MAX_LORAS" in reply.json()["detail"]
    assert memory.engine.prefetched == memory.engine.activated == []
    assert memory.ask(mode="lora", top_k=2, compose="merge")["compose"] == "merge"
    assert len(memory.ask(mode="lora")["routed"]) == 1  # left to the server, it takes no more than it has slots


FAILURES: list[tuple[dict[str, Any], int]] = [
    ({"refusal": StoredDataDamaged("adapter ada_x does not match its sha256")}, 500),
    (
        {
            "error": EngineUnavailable("the engine died; it is being restarted"),
            "words": ("Three ", "keepers "),
            "logprob": -99.0,
        },
        503,
    ),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("failure", "status"), FAILURES)
def test_what_goes_wrong_with_one_candidate_is_the_answer(
    memory: Memory, failure: dict[str, LoramemError], status: int, stream: bool
) -> None:
    first, second = teach_two(memory)
    for name, value in failure.items():
        setattr(memory.engine.scripts[first], name, value)
    reply = memory.client.post("/query", json={"question": QUESTION, "stream": stream, **SELECT})
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
    began = bool(memory.engine.prompts)
    assert memory.engine.scripts[second].ended.startswith("aborted") is began


def test_closing_an_answer_after_the_choice_aborts_what_is_left(memory: Memory) -> None:
    first, second = teach_two(memory)
    wanted = Ask(QUESTION, "lora", "default", Sampling(16), top_k=2, compose="select")

    async def scenario() -> list[str]:
        events, slots = memory.gateway.answerer.answer(wanted), memory.gateway.answerer.merger.slots
        routed = await anext(events)
        assert isinstance(routed, Routed)
        assert slots.in_use == 1  # the loser let go of its own
        assert slots.free_for(routed.prepared[0].adapter.int_id)
        await events.aclose()
        assert slots.in_use == 0
        return [memory.engine.scripts[name].ended for name in (first, second)]

    assert asyncio.run(scenario()) == [f"aborted after {HEAD}"] * 2


@pytest.mark.parametrize("harm", ["error", "refusal", "too long"])
def test_an_answer_that_fails_gives_its_slots_back(memory: Memory, harm: str) -> None:
    first, second = teach_two(memory)
    if harm != "too long":
        setattr(memory.engine.scripts[second], harm, EngineUnavailable("the engine died"))
    question = QUESTION * 400 if harm == "too long" else QUESTION
    assert memory.client.post("/query", json={"question": question, **SELECT}).status_code in (422, 503)
    assert memory.gateway.answerer.merger.slots.in_use == 0
    assert bool(memory.engine.scripts[first].said) is (harm != "too long")


def test_a_prompt_that_is_refused_waits_for_no_slot(memory: Memory) -> None:
    teach_two(memory)
    memory.engine.slot_count = 1
    wanted = Ask(QUESTION * 400, "lora", "default", Sampling(16), top_k=1)

    async def scenario() -> None:
        merger = memory.gateway.answerer.merger
        async with merger.slots.held(999):
            with pytest.raises(WindowExceeded):
                await anext(memory.gateway.answerer.answer(wanted))
            assert merger.slots.waiting == 0

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_log_probabilities_stay_inside_unless_asked_for(memory: Memory) -> None:
    teach_two(memory)
    for logprobs, kept in ((None, 0), (2, len(RIGHT))):
        wanted = Ask(QUESTION, "lora", "default", Sampling(16, logprobs=logprobs), top_k=2, compose="select")

        async def scenario(wanted: Ask = wanted) -> int:
            events = [event async for event in memory.gateway.answerer.answer(wanted)]
            return sum(len(event.logprobs) for event in events[1:-1] if hasattr(event, "logprobs"))

        assert asyncio.run(scenario()) == kept
