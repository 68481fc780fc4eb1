"""/v1 as OpenAI's own client types read it: chats, completions, log-probabilities, streams, refusals."""

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from loramem.errors import EngineUnavailable
from tests.server.api.conftest import MakeMemory
from tests.server.api.memory import LIGHTHOUSE, QUESTION, Json, Memory, events_of
from tests.server.learned import learn

HELLO = [{"role": "user", "content": QUESTION}]
ANSWER = "Paris, naturally."


@pytest.fixture
def base(memory: Memory) -> str:
    return memory.gateway.base.name


def chat(memory: Memory, **body: Any) -> ChatCompletion:
    reply = memory.client.post("/v1/chat/completions", json={"messages": HELLO, **body})
    assert reply.status_code == 200, reply.text
    return ChatCompletion.model_validate(reply.json())


def complete(memory: Memory, **body: Any) -> Completion:
    reply = memory.client.post("/v1/completions", json={"prompt": "Once upon", **body})
    assert reply.status_code == 200, reply.text
    return Completion.model_validate(reply.json())


def refused(memory: Memory, path: str, status: int, body: Json) -> Json:
    asked = len(memory.engine.prompts)
    reply = memory.client.post(f"/v1/{path}", json=body)
    assert reply.status_code == status, reply.text
    assert reply.json().keys() == {"error"}
    error: Json = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert len(memory.engine.prompts) == asked
    return error


# models


def test_models_are_the_base_and_each_namespace_in_each_mode(memory: Memory, base: str) -> None:
    memory.upload(namespace="coast")
    names = [model["id"] for model in memory.client.get("/v1/models").json()["data"]]
    assert memory.client.get("/v1/models/").json() == memory.client.get("/v1/models").json()
    assert names == [base, "coast", *(f"coast:{mode}" for mode in ("lora", "rag", "icl", "hybrid", "auto", "base"))]


def test_each_model_listed_is_found_by_its_name(memory: Memory) -> None:
    memory.upload(namespace="coast")
    for model in memory.client.get("/v1/models").json()["data"]:
        assert memory.client.get(f"/v1/models/{model['id']}").json() == model


@pytest.mark.parametrize("model", ["gpt-4", "coast:magic", "other", "some/model"])
def test_no_other_model_is_found(memory: Memory, model: str) -> None:
    memory.upload(namespace="coast")
    reply = memory.client.get(f"/v1/models/{model}")
    assert reply.status_code == 404
    assert model in reply.json()["error"]["message"]


def test_a_model_whose_name_no_database_can_hold(memory: Memory) -> None:
    reply = memory.client.get("/v1/models/a%00b")
    assert (reply.status_code, reply.json()["error"]["param"]) == (422, "model")


@pytest.mark.parametrize("mode", ["", ":lora", ":rag", ":icl", ":hybrid", ":base"])
def test_each_model_listed_answers_in_its_mode(memory: Memory, mode: str) -> None:
    memory.teach(namespace="coast")
    assert chat(memory, model=f"coast{mode}").choices[0].message.content == ANSWER
    assert (memory.engine.used[-1] is not None) is (mode in ("", ":lora", ":hybrid"))
    assert ("basalt" in memory.engine.prompt_text()) is (mode in (":rag", ":icl", ":hybrid"))


@pytest.mark.parametrize("model", ["gpt-4", "coast:magic", "coast:", ":lora", "other:rag", "coast:rag:icl"])
@pytest.mark.parametrize(
    ("path", "body"), [("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "a"})]
)
def test_an_unknown_model_is_404(memory: Memory, model: str, path: str, body: Json) -> None:
    memory.upload(namespace="coast")
    error = refused(memory, path, 404, {**body, "model": model})
    assert (error["param"], error["code"]) == ("model", "not-found")
    assert model in error["message"]


# chats


def test_a_chat_reply(memory: Memory, base: str) -> None:
    reply = chat(memory, model=base)
    (choice,) = reply.choices
    assert (reply.model, choice.message.content, choice.finish_reason, choice.logprobs) == (base, ANSWER, "stop", None)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(memory.engine.prompts[-1]), 3)
    assert memory.engine.salts == [""]  # the base model's cache is nobody's namespace


def test_the_temperature_is_openais_for_the_base_model_and_0_for_a_memory(memory: Memory, base: str) -> None:
    memory.teach(namespace="coast")
    chat(memory, model=base)
    chat(memory, model="coast")
    chat(memory, model="coast", temperature=0.5)
    assert [sampling.temperature for sampling in memory.engine.samplings] == [1.0, 0.0, 0.5]


def test_all_that_openai_calls_sampling_reaches_the_engine(memory: Memory, base: str) -> None:
    options = {"top_p": 0.5, "seed": 3, "presence_penalty": 1.0, "frequency_penalty": -1.0}
    chat(memory, model=base, max_completion_tokens=5, stop=["\n", "END"], user="somebody", **options)
    sampling = memory.engine.samplings[-1]
    assert {key: getattr(sampling, key) for key in options} == options
    assert (sampling.max_tokens, sampling.stop) == (5, ("\n", "END"))
    assert chat(memory, model=base, max_tokens=2).choices[0].finish_reason == "length"
    assert memory.engine.samplings[-1].stop == ()


@pytest.mark.parametrize(("limit", "most"), [(1024, 128), (100, 100), (32, 32)])
def test_without_max_tokens_an_answer_may_have_a_quarter_of_the_window(
    make_memory: MakeMemory, limit: int, most: int
) -> None:
    memory = make_memory(max_tokens_limit=limit)
    chat(memory, model=memory.gateway.base.name)
    complete(memory, model=memory.gateway.base.name)
    assert [sampling.max_tokens for sampling in memory.engine.samplings] == [most, most]


def test_without_max_tokens_a_prompt_that_leaves_room_for_64_is_answered(memory: Memory, base: str) -> None:
    complete(memory, model=base, prompt=_of_tokens(memory, 512 - 64))
    error = refused(memory, "completions", 422, {"model": base, "prompt": _of_tokens(memory, 512 - 63)})
    assert (error["code"], error["param"]) == ("window-exceeded", "prompt")
    refused(memory, "completions", 422, {"model": base, "prompt": _of_tokens(memory, 512 - 64), "max_tokens": 65})


def _of_tokens(memory: Memory, count: int) -> str:
    text = "word" + " word" * (count - 1)
    assert len(memory.engine.encode_prompt(text)) == count
    return text


def test_system_developer_and_parts_are_read(memory: Memory, base: str) -> None:
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "mended it?"}]
    messages = [{"role": "developer", "content": "Be a captain."}, {"role": "user", "content": parts}]
    chat(memory, model=base, messages=messages)
    assert "Be a captain." in memory.engine.prompt_text()
    assert "Who mended it?" in memory.engine.prompt_text()


def test_chat_log_probabilities(memory: Memory, base: str) -> None:
    logprobs = chat(memory, model=base, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(item.token for item in logprobs.content) == ANSWER
    assert [item.logprob for item in logprobs.content] == [-0.25] * 3
    assert [top.token for top in logprobs.content[0].top_logprobs] == ["Paris", "other1"]
    assert logprobs.content[0].bytes == list(b"Paris")
    none_asked = chat(memory, model=base, logprobs=True).choices[0].logprobs
    assert none_asked is not None
    assert none_asked.content is not None
    assert none_asked.content[0].top_logprobs == []


def test_a_chat_stream(memory: Memory, base: str) -> None:
    body = {"model": base, "messages": HELLO, "stream": True, "logprobs": True, "top_logprobs": 1}
    reply = memory.client.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}})
    data = [item for _, item in events_of(reply.text)]
    assert data.pop() == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(item) for item in data]
    assert len({chunk.id for chunk in chunks}) == 1
    *deltas, last = [choice for chunk in chunks for choice in chunk.choices]
    assert deltas[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in deltas) == ANSWER
    assert [choice.finish_reason for choice in deltas] == [None] * len(deltas)
    assert last.finish_reason == "stop"
    assert sum(len(choice.logprobs.content or ()) for choice in deltas if choice.logprobs) == 3
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_an_answer_of_the_client_can_be_its_next_turn(memory: Memory, base: str) -> None:
    answered = chat(memory, model=base).choices[0].message
    turn = answered.model_dump()  # with null for tool calls, annotations and the like
    assert None in turn.values()
    messages = [*HELLO, turn, {"role": "user", "content": "And then?", "name": None}]
    body = {"model": base, "messages": messages, "stream_options": {"include_usage": None}}
    assert memory.client.post("/v1/chat/completions", json=body).status_code == 200
    assert ANSWER in memory.engine.prompt_text()


@pytest.mark.parametrize("content", ["", " ", [{"type": "text", "text": ""}]])
def test_an_answer_broken_off_before_its_first_word_is_left_out_with_its_question(
    memory: Memory, base: str, content: Any
) -> None:
    chat(memory, model=base, messages=HELLO)
    expected = memory.engine.prompt_text()
    chat(memory, model=base, messages=[*HELLO, {"role": "assistant", "content": content}, *HELLO])
    assert memory.engine.prompt_text() == expected


def test_usage_is_streamed_only_when_asked_for(memory: Memory, base: str) -> None:
    reply = memory.client.post("/v1/chat/completions", json={"model": base, "messages": HELLO, "stream": True})
    assert not any(item.get("usage") for _, item in events_of(reply.text) if item != "[DONE]")


@pytest.mark.parametrize(
    ("path", "body"), [("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "a"})]
)
def test_an_error_in_a_stream_has_openais_shape(memory: Memory, base: str, path: str, body: Json) -> None:
    memory.engine.error = EngineUnavailable("the engine died")
    reply = memory.client.post(f"/v1/{path}", json={**body, "model": base, "stream": True})
    last = events_of(reply.text)[-1][1]
    assert last["error"]["code"] == "engine-unavailable"
    assert "[DONE]" not in reply.text


def test_a_chat_that_ends_with_the_assistant_is_refused(memory: Memory, base: str) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well"}]
    error = refused(memory, "chat/completions", 422, {"model": base, "messages": messages})
    assert error["param"] == "messages"


# completions


def test_a_completion_continues_the_text_itself(memory: Memory, base: str) -> None:
    reply = complete(memory, model=base)
    assert memory.engine.prompt_text() == "Once upon"
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (ANSWER, "stop")
    assert reply.usage is not None
    assert reply.usage.total_tokens == len(memory.engine.prompts[-1]) + 3


def test_several_prompts_are_several_choices(memory: Memory, base: str) -> None:
    reply = complete(memory, model=base, prompt=["One", "Two", "Three"])
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert sorted(memory.engine.prompt_text(n) for n in range(3)) == ["One", "Three", "Two"]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 9


def test_one_prompt_that_does_not_fit_ends_the_others(memory: Memory, base: str) -> None:
    memory.engine.pause_s = 5
    body = {"model": base, "prompt": ["One", "word " * 600]}
    reply = memory.client.post("/v1/completions", json=body)
    assert reply.status_code == 422
    assert reply.json()["error"]["code"] == "window-exceeded"
    assert set(memory.engine.ended) <= {"aborted after 0"}
    assert len(memory.engine.ended) == len(memory.engine.prompts)


@pytest.mark.parametrize("asked", [0, 2])
def test_completion_log_probabilities(memory: Memory, base: str, asked: int) -> None:
    logprobs = complete(memory, model=base, logprobs=asked).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["Paris", ", ", "naturally."]
    assert logprobs.token_logprobs == [-0.25] * 3
    assert logprobs.text_offset == [0, 5, 7]
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs] == [max(1, asked)] * 3


def test_a_completion_stream(memory: Memory, base: str) -> None:
    body = {"model": base, "prompt": "Once", "stream": True, "logprobs": 1, "stream_options": {"include_usage": True}}
    data = [item for _, item in events_of(memory.client.post("/v1/completions", json=body).text)]
    assert data.pop() == "[DONE]"
    usage = Completion.model_validate(data.pop())
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 3
    assert "".join(item["choices"][0]["text"] for item in data) == ANSWER
    assert [item["choices"][0]["finish_reason"] for item in data] == [None, None, None, "stop"]
    assert data[0]["choices"][0]["logprobs"]["tokens"] == ["Paris"]
    assert [item["choices"][0]["logprobs"]["text_offset"] for item in data[:3]] == [[0], [5], [7]]


def test_a_completion_of_a_memory_is_a_question_to_it(memory: Memory) -> None:
    memory.teach(namespace="coast")
    complete(memory, model="coast:rag", prompt=QUESTION)
    assert "red basalt" in memory.engine.prompt_text()


def test_only_one_prompt_can_be_streamed(memory: Memory, base: str) -> None:
    error = refused(memory, "completions", 422, {"model": base, "prompt": ["a", "b"], "stream": True})
    assert error["param"] == "prompt"


# refusals


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("chat/completions", "tools", [{"type": "function"}]),
        ("chat/completions", "response_format", {"type": "json_object"}),
        ("chat/completions", "n", 2),
        ("chat/completions", "logit_bias", {"1": 5}),
        ("chat/completions", "top_logprobs", 21),
        ("chat/completions", "top_logprobs", 2),
        ("chat/completions", "messages", [{"role": "user", "content": [{"type": "text", "text": " "}]}]),
        ("chat/completions", "messages", [{"role": "user", "content": ""}]),
        ("chat/completions", "messages", [{"role": "developer", "content": " "}, *HELLO]),
        ("chat/completions", "model", None),
        ("chat/completions", "temperature", 3),
        ("chat/completions", "max_tokens", 100_000),
        ("chat/completions", "max_completion_tokens", 100_000),
        ("chat/completions", "messages", []),
        ("chat/completions", "stop", [""]),
        ("chat/completions", "stop", ["x"] * 17),
        ("completions", "echo", True),
        ("completions", "suffix", "end"),
        ("completions", "best_of", 3),
        ("completions", "prompt", [1, 2, 3]),
        ("completions", "prompt", [[1, 2]]),
        ("completions", "prompt", ""),
        ("completions", "prompt", []),
        ("completions", "logprobs", 21),
    ],
)
def test_what_is_not_supported_is_refused_by_name(memory: Memory, base: str, path: str, field: str, value: Any) -> None:
    content: Json = {"messages": HELLO} if path.startswith("chat") else {"prompt": "a"}
    error = refused(memory, path, 422, {"model": base, **content, field: value})
    assert error["param"] is not None
    assert error["param"].split(".")[0] == field
    assert "[" not in error["param"]


def test_what_exceeds_the_window_is_named_as_it_was_sent(memory: Memory) -> None:
    memory.upload(namespace="coast")
    long, model = "word " * 600, "coast:base"
    error = refused(memory, "chat/completions", 422, {"model": model, "messages": [{"role": "user", "content": long}]})
    assert (error["code"], error["param"]) == ("window-exceeded", "messages")
    error = refused(memory, "completions", 422, {"model": model, "prompt": long})
    assert (error["code"], error["param"]) == ("window-exceeded", "prompt")


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 200_001}]}, "messages.0.content"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 1001}] * 200}]},
            "messages.0.content",
        ),
        ("completions", {"prompt": "x" * 200_001}, "prompt"),
    ],
    ids=["a message", "its parts", "a prompt"],
)
def test_a_text_of_too_many_characters(memory: Memory, base: str, path: str, body: Json, key: str) -> None:
    error = refused(memory, path, 422, {"model": base, **body})
    assert error["param"] == key
    assert "at most 200000 characters" in error["message"]


@pytest.mark.parametrize("content", [b'{"model":', b'{"model": "\xff"}'])
def test_malformed_json_and_unknown_paths_have_openais_shape(memory: Memory, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    reply = memory.client.post("/v1/chat/completions", content=content, headers=headers)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert reply.json()["error"]["param"] == "body"
    unknown = memory.client.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not-found")


@pytest.mark.parametrize(
    ("path", "body"), [("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "a"})]
)
def test_a_body_that_is_not_said_to_be_json_is_415(memory: Memory, base: str, path: str, body: Json) -> None:
    reply = memory.client.post(f"/v1/{path}", content=json.dumps({"model": base, **body}).encode())
    assert (reply.status_code, reply.json()["error"]["param"]) == (415, "Content-Type")


def test_null_is_the_same_as_nothing(memory: Memory, base: str) -> None:
    optional = ("top_p", "n", "stream", "stream_options", "presence_penalty", "frequency_penalty", "logprobs", "stop")
    unsaid = dict.fromkeys((*optional, "max_tokens", "temperature", "seed", "user"))
    assert chat(memory, model=base, top_logprobs=None, **unsaid).choices[0].message.content == ANSWER
    assert complete(memory, model=base, **unsaid).choices[0].text == ANSWER


def test_a_memory_that_is_not_ready_is_409(memory: Memory) -> None:
    job_id = memory.upload(LIGHTHOUSE, namespace="coast")["job"]["id"]
    error = refused(memory, "chat/completions", 409, {"model": "coast", "messages": HELLO})
    assert (error["code"], job_id in error["message"]) == ("memory-not-ready", True)
    learn(memory.gateway, memory.embedder)
    chat(memory, model="coast")


def test_while_the_engine_loads_it_is_503(memory: Memory, base: str) -> None:
    memory.engine.up, memory.engine._tokenizer = False, None
    assert refused(memory, "completions", 503, {"model": base, "prompt": "a"})["code"] == "engine-unavailable"
