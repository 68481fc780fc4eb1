import json

import httpx
import pytest

from benchmarks.judge import KEY_VARIABLE, Judge, Judgement, NoJudgement, parse_judgement


def reply(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})


class Replies:
    """Gives one reply after the other, or raises it."""

    def __init__(self, *replies: httpx.Response | Exception) -> None:
        self.left, self.asked, self.waited = list(replies), list[httpx.Request](), list[float]()

    def judge(self) -> Judge:
        return Judge("http://judge/v1", "grader", httpx.MockTransport(self._next), self.waited.append)

    def _next(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        given = self.left.pop(0)
        if isinstance(given, Exception):
            raise given
        return given


def test_the_judge_sees_question_references_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    replies = Replies(reply('```json\n{"reason": "all there", "score": 10}\n```'))
    with replies.judge() as judge:
        assert judge.judge("Who?", ["Jon", "Jon Ask"], "It was Jon") == Judgement(10, "all there")
    (request,) = replies.asked
    body = json.loads(request.content)
    assert str(request.url) == "http://judge/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("grader", 0)
    said = {"question": "Who?", "references": ["Jon", "Jon Ask"], "answer": "It was Jon"}
    assert json.loads(body["messages"][1]["content"]) == said


def test_it_is_asked_again_after_what_may_pass() -> None:
    replies = Replies(httpx.ConnectError("gone"), httpx.Response(429), reply("eight"), reply('{"score": 8}'))
    with replies.judge() as judge:
        assert judge.judge("Who?", ["Jon"], "Jon").score == 8
    assert replies.waited == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ([reply('{"score": 11}')] * 4, r"4 tries.*not 11"),
        ([httpx.Response(200, text="hello"), *[httpx.Response(503)] * 3], "503"),
        ([httpx.Response(200, text="hello")] * 4, "not a chat completion"),
    ],
)
def test_it_gives_up_with_the_last_reason(replies: list[httpx.Response], reason: str) -> None:
    with Replies(*replies).judge() as judge, pytest.raises(NoJudgement, match=reason):
        judge.judge("Who?", ["Jon"], "Jon")


def test_a_refusal_is_not_repeated() -> None:
    replies = Replies(httpx.Response(401, text="no key"))
    with replies.judge() as judge, pytest.raises(NoJudgement, match="401: no key"):
        judge.judge("Who?", ["Jon"], "Jon")
    assert not replies.waited


@pytest.mark.parametrize(
    "text", ["", "7", '{"score": "7"}', '{"score": 7.5}', '{"score": true}', '{"score": 1,}', "{}"]
)
def test_another_form_is_no_judgement(text: str) -> None:
    with pytest.raises(ValueError):
        parse_judgement(text)
