import argparse
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import squad
from benchmarks.paper_recipe import Trained
from benchmarks.passages import Passage, draw, unrelated
from benchmarks.squad import MODES, harm_of, mean_f1, papers, summary
from loramem.records import Mode

PASSAGES = [
    Passage("Mill", "Jon Ask built it.", [{"question": "Who built it?", "answer": "Jon Ask"}]),
    Passage("Roof", "It is copper.", [{"question": "Of what is it?", "answer": "copper"}]),
]


def test_a_draw_is_by_its_seed() -> None:
    many = [Passage(str(number), "", []) for number in range(50)]
    assert draw(many, 5, 0) == draw(many, 5, 0) != draw(many, 5, 1)


def test_unrelated_passages_share_no_title_with_what_was_learnt() -> None:
    many = [Passage(str(number % 5), str(number), []) for number in range(50)]
    found = unrelated(many, many[:2], 30, 0)
    assert {passage.title for passage in found} == {"2", "3", "4"}
    assert len({passage.context for passage in found}) == 30
    with pytest.raises(ValueError, match="larger than population"):
        unrelated(many, many[:2], 31, 0)


def test_harm_is_asked_of_fresh_passages_with_the_first_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def noted(url: str, key: str | None, *rest: object) -> dict[str, object]:
        given.extend(rest)
        return {"strengths": {}}

    monkeypatch.setattr(squad, "download", lambda url, key, documents: [f"archive of {one}" for one in documents])
    monkeypatch.setattr(squad, "harm", noted)
    every = [*PASSAGES, Passage("Mill", "It has a wheel.", []), Passage("Barn", "It is brick.", [])]
    options = argparse.Namespace(url="", api_key=None, harm=1, seed=7)
    assert harm_of(options, every, PASSAGES, ["doc1"]) == {"strengths": {}}
    assert given == [["archive of doc1"], [every[3]], 7]
    options.harm = 0
    assert harm_of(options, every, PASSAGES, ["doc1"]) is None


def test_the_papers_recipe_has_the_rows_and_the_seconds_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recipe:
        def __init__(self, seed: int) -> None: ...

        def answers(self, rows: Sequence[object], questions: list[str], seconds: float) -> tuple[list[str], Trained]:
            assert rows == [("Who built the mill?", "Jon Ask")]
            return questions, Trained(round(seconds), 60, 0.5)

    monkeypatch.setattr(squad, "PaperRecipe", Recipe)
    monkeypatch.setattr(squad, "follow", lambda client, job: None)
    preview = {"preview": [{"question": "Who built the mill?", "answer": "Jon Ask"}]}
    client: Any = SimpleNamespace(upload=lambda text, preview: {"job": {"id": "job1"}}, job=lambda job: preview)
    answers, trained = papers(client, PASSAGES[:1], [40.0, 50.0], 0)
    assert (answers, trained) == ([["Who built it?"]], [Trained(40, 60, 0.5)])
    assert papers(client, [], [40.0], 0) == ([], [])


def test_every_question_weighs_the_same() -> None:
    assert mean_f1(PASSAGES, [["Jon Ask"], ["larch"]]) == 0.5
    assert mean_f1(PASSAGES, [["Jon Ask"]]) == 1.0  # of the passages that have answers


def test_lora_is_held_against_rag_and_against_the_papers_recipe() -> None:
    right, wrong = [["Jon Ask"], ["copper"]], [["larch"], ["larch"]]
    answers: dict[Mode, list[list[str]]] = {
        "base": wrong,
        "rag": right,
        "lora": [["Jon Ask"], ["larch"]],
        "hybrid": right,
    }
    report = summary(PASSAGES, answers, [["Jon Ask"]], [1.0, 2.0], smoke=False)
    assert report["f1"] | {"hybrid": 1.0} == report["f1"]
    assert (report["f1"]["lora"], report["f1"]["paper"], report["f1"]["lora on the paper's"]) == (0.5, 1.0, 1.0)
    assert [(one["name"], one["ok"]) for one in report["checks"]] == [
        ("lora of rag", False),
        ("lora beyond base", True),
        ("lora of the paper's recipe", False),
    ]
    assert report["answers"][1]["lora"] == "larch"


def test_lora_is_held_against_base_where_rag_is_no_better() -> None:
    same: dict[Mode, list[list[str]]] = {mode: [["Jon Ask"], ["larch"]] for mode in MODES}
    report = summary(PASSAGES, same, [], [1.0, 2.0], smoke=False)
    assert [(one["name"], one["ok"]) for one in report["checks"]] == [
        ("lora of rag", True),
        ("lora beyond base", False),
    ]


@pytest.mark.parametrize(("said", "count", "ok"), [("larch", 8, True), (" .", 5, False)])
def test_a_smoke_run_promises_that_something_is_said(said: str, count: int, ok: bool) -> None:
    answers: dict[Mode, list[list[str]]] = {mode: [["Jon Ask"], [said]] for mode in MODES}
    answers["base"] = [["It"], ["is"]]
    (one,) = summary(PASSAGES, answers, [], [1.0, 2.0], smoke=True)["checks"]
    assert (one["value"], one["bound"], one["ok"]) == (count, "= 8", ok)
