import argparse
from pathlib import Path

import pytest

from benchmarks import hybrid
from benchmarks.adapters import Adapters
from benchmarks.datasets import Asked, Item
from benchmarks.hybrid import ARMS, Arm, Asking, answer_all, askings, checks, figures, scores
from benchmarks.recall_plan import Drawn
from loramem.client import Client
from loramem.prompts import closed_book, with_document, with_passages
from tests.benchmarks.fake_server import FakeServer
from tests.benchmarks.tiny_adapter import learnt_archive
from tests.trainer_worker.tiny import LESSONS

OPTIONS = argparse.Namespace(namespace="n")
DRAWN = Drawn("squad-1", Item("Mill", "Jon Ask built it.  \nIt is larch.", (Asked("Who?", ("Jon Ask",)),)))


def live_server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer(lambda *_: "", refuses={}, fails={})
    server.documents["doc1"] = {"id": "doc1", "text": "Jon Ask built it.\nIt is larch.", "namespace": "n"}
    monkeypatch.setattr(hybrid, "live_draw", lambda client, options: [(DRAWN, "doc1")])
    return server


def test_prompts_are_those_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = live_server(monkeypatch)
    with (
        Client(transport=server.transport, namespace="n") as client,
        Adapters("http://server", transport=server.transport) as adapters,
    ):
        (one,) = askings(client, adapters, OPTIONS)
    assert (one.adapter_id, one.references) == ("addoc1", ("Jon Ask",))
    assert one.prompts == {
        "none": closed_book("Who?"),
        "passages": with_passages("Who?", ["Jon Ask built it."]),
        "document": with_document("Who?", "Mill", "Jon Ask built it.\nIt is larch."),
    }
    assert [(asked["mode"], asked["document_ids"]) for asked in server.asked] == [("rag", ["doc1"])]


def test_a_document_of_several_adapters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    server = live_server(monkeypatch)
    monkeypatch.setattr(Adapters, "of", lambda self, document: [{"id": "a"}, {"id": "b"}])
    with (
        Client(transport=server.transport, namespace="n") as client,
        Adapters("http://server", transport=server.transport) as adapters,
        pytest.raises(SystemExit, match="squad-1 has 2 live adapters"),
    ):
        list(askings(client, adapters, OPTIONS))


def test_an_arm_is_told_apart_by_its_name() -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS) == 15
    names = [arm.name for arm in (Arm("none", 1.0), Arm("passages", 0.0), Arm("document", 0.25, reads=False))]
    assert names == ["none, 1", "passages, no adapter", "document, 0.25, adapter only answers"]


def test_leads_are_paired_with_text_alone() -> None:
    scored = {arm.name: [0.5, 0.5] for arm in ARMS}
    scored |= {"passages, no adapter": [0.2, 0.4], "passages, 1": [0.3, 0.9]}
    found = figures(scored, ["a", "b"], seed=0)
    assert found["passages, no adapter"] == {"f1": 0.3}
    assert found["none, 1"] == {"f1": 0.5}  # there is no closed book without an adapter
    assert (found["passages, 1"]["f1"], found["passages, 1"]["minus"]) == (0.6, 0.3)
    low, high = found["passages, 1"]["interval"]
    assert (low, high) == (0.1, 0.5)


def test_every_arm_answers_every_question_and_some_say_something() -> None:
    def held(said: dict[str, list[str]]) -> list[bool]:
        return [one["ok"] for one in checks(said, 2)]

    silent = {arm.name: ["", " "] for arm in ARMS}
    assert held(silent) == [True, False]
    assert held(silent | {"none, 1": ["", "larch"]}) == [True, True]
    assert held(silent | {"none, 1": ["larch"]}) == [False, True]
    assert held({"none, 1": ["larch", "larch"]}) == [False, True]
    assert [one["ok"] for one in checks({arm.name: [] for arm in ARMS}, 0)] == [True, False]


def test_questions_about_one_document_are_drawn_together() -> None:
    scored = {arm.name: [0.5] * 4 for arm in ARMS} | {"passages, 1": [0.5, 1.0, 0.5, 1.0]}
    apart, together = (figures(scored, documents, seed=0)["passages, 1"] for documents in ("abcd", "aabb"))
    assert (apart["minus"], apart["interval"]) == (0.25, [0.0, 0.5])
    assert (together["minus"], together["interval"]) == (0.25, [0.25, 0.25])
    assert figures(scored, "aaaa", seed=0)["passages, 1"]["interval"] is None


def test_an_adapter_answers_whether_or_not_it_read_the_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model of two layers has learnt the answer by heart, and does not know it without the adapter."""
    trainer, learnt = learnt_archive(tmp_path)
    lesson = LESSONS[0]
    monkeypatch.setattr(hybrid, "MAX_NEW_TOKENS", len(lesson.answer.split()))  # it does not learn to stop
    prompts = dict.fromkeys(("none", "passages", "document"), closed_book(lesson.question))
    asked = [Asking([lesson.answer], prompts, "ad1")]
    said = answer_all(trainer, asked, {"ad1": learnt})
    scored = scores(said, asked)
    assert list(scored) == [arm.name for arm in ARMS]
    assert [one["ok"] for one in checks(said, 1)] == [True, True]
    assert scored["passages, no adapter"] == scored["document, no adapter"]
    assert scored["none, 1"] == scored["document, 1"] == [1.0]
    assert scored["document, no adapter"][0] < scored["document, 1, adapter only answers"][0]
