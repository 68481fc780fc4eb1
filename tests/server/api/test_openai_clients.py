"""What OpenAI's own clients send and obey beside the question."""

from typing import Any

import pytest

from tests.server.api.memory import LIGHTHOUSE, QUESTION, Memory
from tests.server.api.test_openai import ANSWER, HELLO, base, chat, complete, refused

__all__ = ["base"]


@pytest.mark.parametrize(
    "neutral",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"logit_bias": {}, "response_format": {"type": "text"}, "store": False},
        {"seed": 2**31},
        {"seed": 2**63 - 1},
    ],
)
def test_what_asks_for_nothing_is_accepted(memory: Memory, base: str, neutral: dict[str, Any]) -> None:
    turns = [*HELLO, {"role": "assistant", "content": "Basalt.", "annotations": [], "tool_calls": []}, *HELLO]
    assert chat(memory, model=base, messages=turns, **neutral).choices[0].message.content == ANSWER


def test_what_asks_a_completion_for_nothing_is_accepted(memory: Memory, base: str) -> None:
    assert complete(memory, model=base, echo=False, best_of=1, logit_bias={}).choices[0].text == ANSWER


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tool_choice", "required"),
        ("logit_bias", {"50": 1}),
        ("response_format", {"type": "json_object"}),
        ("store", True),
        ("tools", {}),
        ("seed", 2**63),
    ],
)
def test_what_asks_for_something_is_refused_by_name(memory: Memory, base: str, key: str, value: Any) -> None:
    error = refused(memory, "chat/completions", 422, {"model": base, "messages": HELLO, key: value})
    assert error["param"] == key


@pytest.mark.parametrize(
    ("texts", "joined"), [(["Tell me", "of it"], "Tell me\nof it"), (["Tell ", "me"], "Tell me"), (["a", " b"], "a b")]
)
def test_parts_of_a_message_are_words_apart(memory: Memory, base: str, texts: list[str], joined: str) -> None:
    parts = [{"type": "text", "text": text} for text in texts]
    chat(memory, model=base, messages=[{"role": "user", "content": parts}])
    assert joined in memory.engine.prompt_text()


def test_a_client_is_told_not_to_repeat_what_stays_refused(memory: Memory) -> None:
    memory.upload(LIGHTHOUSE, namespace="coast")
    reply = memory.client.post("/v1/chat/completions", json={"model": "coast", "messages": HELLO})
    assert (reply.status_code, reply.headers["x-should-retry"]) == (409, "false")
    busy = memory.client.post("/v1/chat/completions", json={"model": "nobody", "messages": HELLO})
    assert "x-should-retry" not in busy.headers


def test_a_namespace_without_documents_is_no_model(memory: Memory, base: str) -> None:
    document = memory.upload(namespace="coast")["document"]["id"]
    assert memory.client.delete(f"/documents/{document}").status_code < 300
    assert [model["id"] for model in memory.client.get("/v1/models").json()["data"]] == [base]
    assert memory.client.get("/v1/models/coast").status_code == 404


def test_an_answer_longer_than_the_window_is_refused_by_its_own_key(memory: Memory) -> None:
    reply = memory.client.post("/query", json={"question": QUESTION, "mode": "base", "max_tokens": 600})
    problem = reply.json()
    assert (reply.status_code, problem["key"], problem["allowed"]) == (422, "max_tokens", "1 to 511")


def test_a_clients_own_key_is_named(memory: Memory, base: str) -> None:
    body = {"model": base, "messages": HELLO, "max_completion_tokens": 600}
    assert refused(memory, "chat/completions", 422, body)["param"] == "max_completion_tokens"


def test_an_id_of_any_length_is_named_in_short(memory: Memory) -> None:
    reply = memory.client.post("/query", json={"question": QUESTION, "mode": "rag", "document_ids": ["x" * 100_000]})
    assert reply.status_code in {404, 422}
    assert len(reply.content) < 2000
