"""/query: what an answer carries in each mode, streamed and not, and what happens when the engine fails."""

from typing import Any

import pytest

from loramem.client import read_events
from loramem.errors import EngineUnavailable
from loramem.records import Recipe
from tests.server.api.conftest import MakeMemory
from tests.server.api.memory import BAKERY, LIGHTHOUSE, QUESTION, Memory, events_of
from tests.server.learned import learn

ANSWER = "Paris, naturally."


def test_lora_answers_from_the_one_adapter_that_fits_best(memory: Memory) -> None:
    document_id = memory.teach(LIGHTHOUSE, title="Korrin")
    memory.teach(BAKERY)
    answer = memory.ask(mode="lora")
    assert answer["answer"] == ANSWER
    assert answer["id"].startswith("ans_")
    (routed,) = answer["routed"]
    assert (routed["document_id"], routed["title"], routed["chunk"], routed["weight"]) == (
        document_id,
        "Korrin",
        0,
        1.0,
    )
    assert 0.2 < routed["score"] <= 1
    assert answer["merge"] is None
    assert answer["context"] == []
    assert memory.engine.used[-1] is not None
    used = Recipe.from_path(memory.engine.used[-1].path)
    assert [(source.adapter_id, source.weight) for source in used.sources] == [(routed["adapter_id"], 1.0)]
    assert (memory.engine.prefetched, len(memory.engine.activated)) == ([], 1)
    assert "basalt" not in memory.engine.prompt_text()  # closed book


def test_base_uses_nothing(memory: Memory) -> None:
    answer = memory.ask(mode="base")
    assert (answer["routed"], answer["merge"], answer["context"]) == ([], None, [])
    assert (answer["compose"], answer["selected"]) == (None, None)
    assert memory.engine.used == [None]


def test_a_question_is_asked_with_its_accents_as_in_what_was_learnt(memory: Memory) -> None:
    memory.ask(mode="base", question="Who is Bjo\u0308rn?")
    assert "Who is Björn?" in memory.engine.prompt_text()


@pytest.mark.parametrize("mode", ["rag", "hybrid"])
def test_the_context_is_where_the_answer_says(memory: Memory, mode: str) -> None:
    document_id = memory.teach()
    answer = memory.ask(mode=mode)
    assert answer["context"]
    for span in answer["context"]:
        assert span["document_id"] == document_id
        assert LIGHTHOUSE[span["start"] : span["end"]].strip() in memory.engine.prompt_text()
    assert bool(answer["routed"]) is (mode == "hybrid")
    assert (memory.engine.used[-1] is not None) is (mode == "hybrid")


def test_as_many_passages_are_read_as_the_setting_has_room_for(make_memory: MakeMemory) -> None:
    memory = make_memory(rag_tokens=4000, max_model_len=8192)
    memory.teach(
        " ".join(f"On day {n} keeper {n} mended the lamp of the lighthouse with wick {n}." for n in range(250))
    )
    answer = memory.ask(mode="rag")
    assert len(answer["context"]) > 64
    assert 3000 < answer["usage"]["prompt_tokens"] < 5000


def test_icl_reads_the_documents_named_however_far_from_the_question(memory: Memory) -> None:
    """One document has more windows near the question than a search looks at; the other is named all the same."""
    near = memory.teach(" ".join(f"Keeper {n} mended the lamp of the lighthouse on day {n}." for n in range(150)))
    far = memory.teach(BAKERY)
    answer = memory.ask(mode="icl", document_ids=[far, near], truncate=True)
    assert [span["document_id"] for span in answer["context"]] == [far, near]
    assert "rye loaves" in memory.engine.prompt_text()


@pytest.mark.parametrize(("weights", "gain"), [("uniform", 2.0), ("router", 2.0)])
def test_top_k_merges_by_a_recipe_that_repeats(memory: Memory, weights: str, gain: float) -> None:
    memory.teach(LIGHTHOUSE)
    memory.teach(BAKERY)
    body = {"mode": "lora", "top_k": 2, "compose": "merge", "merge": {"method": "ties", "weights": weights}}
    first, second = memory.ask(**body), memory.ask(**body)
    assert [answer["merge"]["cache"] for answer in (first, second)] == ["miss", "hit"]
    recipe = Recipe.model_validate(first["merge"]["recipe"])
    assert sum(source.weight for source in recipe.sources) == gain
    assert sum(routed["weight"] for routed in first["routed"]) == 1.0
    assert {source.adapter_id for source in recipe.sources} == {routed["adapter_id"] for routed in first["routed"]}
    assert memory.engine.used[-1] is not None
    assert memory.engine.used[-1].path == recipe.path()


def test_usage_times_and_reason(memory: Memory) -> None:
    memory.teach()
    answer = memory.ask(mode="lora")
    usage, times = answer["usage"], answer["timings_ms"]
    assert usage["prompt_tokens"] == len(memory.engine.prompts[-1])
    assert usage["completion_tokens"] == 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + 3
    assert (times["prefill"], times["decode"], times["merge"]) == (2.0, 3.0, 4.0)
    assert times["queue"] >= 1.0  # the engine's, and until there was a slot
    assert 0 < times["embed"] < times["total"]
    assert 0 < times["search"] < times["total"]
    assert 0 < times["ttft"] <= times["total"]
    assert answer["finish_reason"] == "stop"
    assert memory.ask(mode="lora", max_tokens=2)["finish_reason"] == "length"


def test_what_is_asked_for_reaches_the_engine(memory: Memory) -> None:
    memory.ask(mode="base", max_tokens=9, temperature=0.7, top_p=0.9, seed=4)
    sampling = memory.engine.samplings[-1]
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (9, 0.7, 0.9, 4)
    memory.ask(mode="base")
    assert (memory.engine.samplings[-1].max_tokens, memory.engine.samplings[-1].temperature) == (64, 0.0)


def test_a_conversation_is_routed_by_its_last_message(memory: Memory) -> None:
    document_id = memory.teach(LIGHTHOUSE)
    memory.teach(BAKERY)
    turns = [
        {"role": "user", "content": "When does the bakery open?"},
        {"role": "assistant", "content": "At four."},
        {"role": "user", "content": QUESTION},
    ]
    answer = memory.ask(question=None, messages=turns, mode="lora")
    assert answer["routed"][0]["document_id"] == document_id
    assert "At four." in memory.engine.prompt_text()


def test_an_answer_broken_off_before_its_first_word_is_left_out_with_its_question(memory: Memory) -> None:
    asked = {"role": "user", "content": QUESTION}
    memory.ask(question=None, messages=[asked], mode="base")
    expected = memory.engine.prompt_text()
    memory.ask(question=None, messages=[asked, {"role": "assistant", "content": "\n"}, asked], mode="base")
    assert memory.engine.prompt_text() == expected


def test_namespaces_do_not_see_each_other(memory: Memory) -> None:
    memory.teach(LIGHTHOUSE, namespace="coast")
    document_id = memory.teach(BAKERY, namespace="town")
    answer = memory.ask(mode="lora", namespace="town")
    assert [routed["document_id"] for routed in answer["routed"]] == [document_id]
    assert memory.engine.salts[-1] == "town"
    assert memory.client.post("/query", json={"question": QUESTION}).status_code == 409


@pytest.mark.parametrize("mode", ["lora", "hybrid"])
def test_before_the_adapters_are_live_the_job_is_named(memory: Memory, mode: str) -> None:
    job_id = memory.upload()["job"]["id"]
    learn(memory.gateway, memory.embedder, live=False)
    reply = memory.client.post("/query", json={"question": QUESTION, "mode": mode})
    assert reply.status_code == 409
    problem = reply.json()
    assert (problem["code"], problem["job_id"]) == ("memory-not-ready", job_id)
    assert job_id in problem["detail"]
    assert memory.ask(mode="rag")["answer"] == ANSWER
    assert memory.ask(mode="icl")["answer"] == ANSWER


# streams


def stream(memory: Memory, **body: Any) -> list[tuple[str, Any]]:
    reply = memory.client.post("/query", json={"question": QUESTION, "stream": True, **body})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return events_of(reply.text)


def test_a_stream_is_route_then_tokens_then_done(memory: Memory) -> None:
    memory.teach()
    found = stream(memory, mode="hybrid")
    assert [kind for kind, _ in found] == ["route", "token", "token", "token", "done"]
    route, done = found[0][1], found[-1][1]
    assert "".join(data["text"] for kind, data in found if kind == "token") == done["answer"] == ANSWER
    assert route == {
        key: done[key]
        for key in ("id", "mode", "compose", "choice", "refused", "selected", "routed", "merge", "context")
    }
    assert route["routed"]
    assert route["context"]
    assert done["usage"]["completion_tokens"] == 3


def test_line_separators_of_unicode_survive_a_stream(memory: Memory) -> None:
    memory.teach(title="Kor\u2028rin")
    memory.engine.words = ["a\u2028", "b\u2029", "c\x85", "d"]
    reply = memory.client.post("/query", json={"question": QUESTION, "stream": True})
    route, *tokens, done = read_events([reply.text])
    assert route.data["routed"][0]["title"] == "Kor\u2028rin"
    assert [token.data["text"] for token in tokens] == memory.engine.words
    assert done.data["answer"] == "".join(memory.engine.words)


def test_streamed_or_not_the_answer_is_the_same(memory: Memory) -> None:
    memory.teach()
    whole, done = memory.ask(mode="rag"), stream(memory, mode="rag")[-1][1]
    assert whole.keys() == done.keys()
    assert all(whole[key] == done[key] for key in whole if key not in ("id", "timings_ms"))


def test_an_error_after_the_first_byte_is_an_event(memory: Memory) -> None:
    memory.engine.error = EngineUnavailable("the engine died; it is being restarted")
    found = stream(memory, mode="base")
    assert [kind for kind, _ in found] == ["route", "token", "token", "token", "error"]
    assert (found[-1][1]["code"], found[-1][1]["status"]) == ("engine-unavailable", 503)
    assert found[-1][1]["request_id"]


def test_an_error_that_nobody_expected_is_one_too(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    memory.engine.error = ZeroDivisionError("deep inside")
    found = stream(memory, mode="base")
    assert [kind for kind, _ in found][-1] == "error"
    assert (found[-1][1]["code"], found[-1][1]["status"]) == ("internal-error", 500)
    assert "deep inside" not in str(found)
    assert any(record.exc_info and "deep inside" in str(record.exc_info[1]) for record in caplog.records)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_byte_keeps_its_status(memory: Memory, stream: bool) -> None:
    body = {"question": QUESTION, "mode": "lora", "stream": stream}
    reply = memory.client.post("/query", json=body)
    assert (reply.status_code, reply.headers["content-type"]) == (409, "application/problem+json")


@pytest.mark.parametrize("mode", ["base", "rag", "icl", "lora"])
def test_while_the_engine_loads_questions_are_asked_to_come_again(memory: Memory, mode: str) -> None:
    memory.teach()
    memory.engine.up, memory.engine._tokenizer = False, None
    reply = memory.client.post("/query", json={"question": QUESTION, "mode": mode})
    assert reply.status_code == 503
    assert reply.json()["code"] == "engine-unavailable"
    assert int(reply.headers["retry-after"]) > 0


def test_an_engine_that_dies_under_an_answer_is_503(memory: Memory) -> None:
    memory.engine.error = EngineUnavailable("the engine died; it is being restarted")
    assert memory.client.post("/query", json={"question": QUESTION, "mode": "base"}).status_code == 503


def test_a_conversation_over_the_window_is_named_as_it_was_sent(memory: Memory) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 600}], "mode": "base"}
    problem = memory.client.post("/query", json=body).json()
    assert (problem["code"], problem["key"]) == ("window-exceeded", "messages")
