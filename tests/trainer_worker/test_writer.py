import json
from collections.abc import Callable

import httpx
import pytest

from loramem.errors import TrainingFailed, WriterUnavailable
from trainer_worker.writer import Writer

Answer = Callable[[httpx.Request], httpx.Response]


def writer(answer: Answer, model: str = "m", api_key: str = "") -> Writer:
    return Writer("http://writer/v1", model, api_key, transport=httpx.MockTransport(answer))


def echo(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    if "messages" in body:
        return httpx.Response(200, json={"choices": [{"message": {"content": body["messages"][-1]["content"]}}]})
    return httpx.Response(200, json={"choices": [{"text": body["prompt"].upper()}]})


def test_texts_come_back_in_the_order_of_the_prompts() -> None:
    prompts = [f"prompt {number}" for number in range(50)]
    assert writer(echo).complete(prompts, max_tokens=4) == [prompt.upper() for prompt in prompts]


def test_a_conversation_goes_to_chat_and_a_text_to_completions() -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return echo(request)

    texts = writer(answer).complete(["a", [{"role": "user", "content": "b"}]], max_tokens=4)
    assert texts == ["A", "b"]
    assert sorted(paths) == ["/v1/chat/completions", "/v1/completions"]


def test_no_prompts_ask_nothing() -> None:
    assert writer(lambda request: pytest.fail("asked")).complete([], max_tokens=4) == []


def test_options_key_and_model_reach_the_endpoint() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return echo(request)

    writer(answer, api_key="secret").complete(["a"], max_tokens=7, temperature=0.5, seed=3, stop=["\n"])
    assert json.loads(seen[0].content) == {
        "prompt": "a", "model": "m", "max_tokens": 7, "temperature": 0.5, "seed": 3, "stop": ["\n"]
    }  # fmt: skip
    assert seen[0].headers["authorization"] == "Bearer secret"


def test_greedy_requests_carry_no_seed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert "seed" not in json.loads(request.content)
        return echo(request)

    assert writer(answer).complete(["a"], max_tokens=4, seed=3) == ["A"]


def test_without_a_model_the_first_listed_is_taken() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "first"}, {"id": "second"}]})
        assert json.loads(request.content)["model"] == "first"
        return echo(request)

    assert writer(answer, model="").complete(["a"], max_tokens=4) == ["A"]


def test_an_endpoint_without_models_names_the_setting() -> None:
    with pytest.raises(TrainingFailed, match="LORAMEM_WRITER_MODEL"):
        writer(lambda request: httpx.Response(200, json={"data": []}), model="").complete(["a"], max_tokens=4)


def test_refused_connection_is_unavailable() -> None:
    with pytest.raises(WriterUnavailable, match="cannot be reached"):
        Writer("http://127.0.0.1:9", "m").complete(["a"], max_tokens=4)


def test_a_slow_endpoint_is_unavailable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("too slow", request=request)

    with pytest.raises(WriterUnavailable, match="too slow"):
        writer(answer).complete(["a"], max_tokens=4)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failing_endpoint_is_unavailable(status: int) -> None:
    with pytest.raises(WriterUnavailable, match=str(status)):
        writer(lambda request: httpx.Response(status, text="starting")).complete(["a", "b"], max_tokens=4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no such model"}}, "no such model"),
        ({"detail": "wrong key"}, "wrong key"),
        ({"error": "plain"}, "plain"),
        (["odd"], "odd"),
    ],
)
def test_refusal_ends_the_job_with_the_endpoints_message(body: object, message: str) -> None:
    with pytest.raises(TrainingFailed, match=message):
        writer(lambda request: httpx.Response(404, json=body)).complete(["a"], max_tokens=4)


@pytest.mark.parametrize("reply", [httpx.Response(200, text="<html>"), httpx.Response(200, json={"choices": []})])
def test_reply_of_another_shape_ends_the_job(reply: httpx.Response) -> None:
    with pytest.raises(TrainingFailed, match="writer"):
        writer(lambda request: reply).complete(["a"], max_tokens=4)


def test_every_arrival_is_told() -> None:
    arrived: list[None] = []
    writer(echo).complete(["a", "b", "c"], max_tokens=4, on_each=lambda: arrived.append(None))
    assert len(arrived) == 3
