import argparse
import json
from pathlib import Path

import httpx
import pytest

from benchmarks import lifts
from benchmarks.adapters import Adapters
from benchmarks.datasets import Asked, Item
from benchmarks.lifts import CRITERIA, Answer, Asking, answer_all, askings, checks, figures
from benchmarks.recall_plan import Drawn
from benchmarks.scores import token_f1
from loramem.client import Client
from server.route import TEMPERATURE
from tests.benchmarks.tiny_adapter import learnt_archive
from tests.trainer_worker.tiny import LESSONS

OPTIONS = argparse.Namespace(namespace="n")
DRAWN = Drawn("squad-1", Item("Mill", "Jon Ask built it.", (Asked("Who built the mill?", ("Jon Ask", "Ask")),)))


def test_each_criterion_has_its_own_favourite() -> None:
    answers = {
        "lifted": Answer("", 0.0, [-4.0, -4.0], [-9.0, -9.0], 0.0),
        "spiked": Answer("", 0.0, [-1.0, -6.0], [-8.0, -6.0], 0.0),
        "sure": Answer("", 0.0, [-0.5, -0.5], [-0.5, -0.5], 0.0),
        "routed": Answer("", 2.0, [-2.0, -2.0], [-2.0, -2.0], 1.0),
    }

    def favourite(criterion: str, head: int) -> str:
        return max(answers, key=lambda name: CRITERIA[criterion](answers[name], head))

    assert {name: favourite(name, 24) for name in CRITERIA} == {
        "mean lift": "lifted",
        "summed lift": "lifted",
        "greatest lift": "spiked",
        "mean log-probability": "sure",
        "router": "routed",
        "router + mean log-probability": "routed",
        "router + summed log-probability": "sure",
        "router + mean lift": "lifted",
    }
    assert favourite("mean lift", 1) == "spiked"  # the second token is not looked at


def test_figures_say_what_was_chosen_and_what_was_possible() -> None:
    late = Asking("", [], {"a"}, ["b"], {})
    late.answers = {"a": Answer("", 0.0, [-2, 0, 0], [-2, 0, 0], 0.8), "b": Answer("", 0.0, [-1, -5, -5], [0] * 3, 0.1)}
    parts = Asking("", [], {"c", "d"}, ["e"], {})
    parts.answers = {
        "c": Answer("", 0.0, [-3], [-3], 0.2),
        "d": Answer("", 0.0, [-2], [-2], 0.4),
        "e": Answer("", 0.0, [-1], [-1], 0.6),
    }
    found = figures([late, parts])
    assert {name: value for name, value in found.items() if name != "chosen"} == {
        "f1_right_document": 0.6,  # the better of its adapters
        "f1_one_adapter_documents": 0.8,
        "f1_any": 0.7,
    }
    assert figures([parts])["f1_one_adapter_documents"] is None
    sure = found["chosen"]["mean log-probability"]
    assert list(sure) == [str(head) for head in lifts.HEADS]
    assert (sure["1"], sure["4"]) == ({"right": 0.0, "f1": 0.35}, {"right": 0.5, "f1": 0.7})


def test_every_adapter_answers_every_question_and_some_say_something() -> None:
    def held(*answers: dict[str, str]) -> list[bool]:
        asked = [Asking("", [], {"a"}, ["b"], {}) for _ in answers]
        for one, texts in zip(asked, answers, strict=True):
            one.answers = {name: Answer(text, 0.0, [], [], 0.0) for name, text in texts.items()}
        return [one["ok"] for one in checks(asked)]

    assert held({"a": "larch", "b": ""}, {"a": "", "b": ""}) == [True, True]
    assert held({"a": "", "b": " "}) == [True, False]
    assert held({"a": "larch", "b": "larch"}, {"a": "larch"}) == [False, True]
    assert held() == [True, False]


def test_a_question_is_for_its_documents_adapters_and_the_first_two_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/adapters":
            data = [{"id": name, "chunk": number, "state": "live"} for number, name in enumerate(("own1", "own2"))]
            return httpx.Response(200, json={"data": data, "has_more": False, "next_cursor": None})
        asked.append(json.loads(request.content))
        routed = [("x", 0.9), ("own2", 0.5), ("y", 0.4), ("z", 0.2)]
        return httpx.Response(200, json={"routed": [{"adapter_id": name, "score": score} for name, score in routed]})

    monkeypatch.setattr(lifts, "live_draw", lambda client, options: [(DRAWN, "doc1")])
    transport = httpx.MockTransport(reply)
    with Client(transport=transport, namespace="n") as client, Adapters("http://server", transport=transport) as found:
        (one,) = askings(client, found, OPTIONS)
    assert (one.right, one.others, one.references) == ({"own1", "own2"}, ["x", "y"], ("Jon Ask", "Ask"))
    assert one.scores == {"x": 0.9, "own2": 0.5, "y": 0.4, "z": 0.2}
    assert [(each["mode"], each["top_k"], each["max_tokens"]) for each in asked] == [("lora", 8, 1)]


def test_what_an_adapter_knows_it_says_surer_than_the_base_model(tmp_path: Path) -> None:
    trainer, learnt = learnt_archive(tmp_path)
    one = Asking(LESSONS[0].question, [LESSONS[0].answer], {"ad1"}, [], {"other": 0.3, "further": 0.1})
    answer_all(trainer, [one], {"ad1": learnt})
    assert [each["ok"] for each in checks([one])] == [True, True]
    answer = one.answers["ad1"]
    assert answer.text.startswith(LESSONS[0].answer)  # so small a model does not learn to stop
    assert answer.f1 == token_f1(answer.text, LESSONS[0].answer)
    assert len(answer.own) == len(answer.base) > 1
    assert sum(answer.own) > sum(answer.base) + 1
    assert answer.prior == pytest.approx(0.1 / TEMPERATURE)  # not routed at all: as the last that was
