import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import recipes
from benchmarks.adapters import Adapters
from benchmarks.passages import Passage
from benchmarks.recipe_arms import ARMS, DEFAULT, Arm, chosen, same_as
from benchmarks.recipe_report import plot, summary, table
from benchmarks.recipes import Plan, Server, main, resumed, run_arm
from loramem.client import Client, Refused
from loramem.records import TrainingOptions
from tests.benchmarks.fake_server import FakeServer

PASSAGES = [
    Passage(
        "Mill",
        "Jon Ask built it. It is larch.",
        [{"question": "Who?", "answer": "Jon Ask"}, {"question": "What?", "answer": "larch"}],
    ),
    Passage("Roof", "It is copper. Orm made it.", [{"question": "Of what?", "answer": "copper"}]),
]
PLAN = Plan("squad", PASSAGES, None, 0, False, "tiny")
ANSWERS = {item["question"]: item["answer"] for passage in PASSAGES for item in passage.questions}


def say(question: str, text: str, training: dict[str, Any]) -> str:
    """By default two of three right, with qa40 all."""
    return "orm" if question == "What?" and training.get("formats") != "qa40" else ANSWERS[question]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    server = FakeServer(say, refuses={"variant": "pissa"}, fails={"freeze_a": True})

    class Faked(Server):
        @contextmanager
        def client(self) -> Iterator[Client]:
            yield Client(namespace="n", transport=server.transport)

        def adapters(self) -> Adapters:
            return Adapters("http://server", transport=server.transport)

        def model(self) -> str:
            return "tiny"

    monkeypatch.setattr(recipes, "Server", Faked)
    monkeypatch.setattr(recipes, "draw", lambda every, count, seed: PASSAGES[:count])
    monkeypatch.setitem(recipes.DATA_SETS, "squad", recipes.DataSet(lambda _: PASSAGES, exact, "exact", 64, 2))
    return server


def exact(answer: str, expected: str) -> float:
    return float(answer == expected)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def test_every_arm_is_an_option_that_exists_and_its_name_says_which() -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    for arm in ARMS:
        TrainingOptions.model_validate(arm.training)
        for key, value in arm.training.items():
            assert arm.name in (key, f"{key}={value}", f"{key}={value:g}" if isinstance(value, float) else "")


def test_arms_are_chosen_by_name_or_group_beside_the_default() -> None:
    assert chosen(None) == list(ARMS)
    assert [arm.name for arm in chosen(["rank=8", "objective"])] == [
        "default",
        "distil=0",
        "distil=0.5",
        "distil=1",
        "rank=8",
    ]
    with pytest.raises(ValueError, match=r"no arm or group is called dora; there are .*rank=auto"):
        chosen(["dora", "rank"])


def test_options_that_are_the_defaults_are_the_default_arm() -> None:
    usual = TrainingOptions()
    assert same_as(Arm("a", "g", {"placement": usual.placement}), [DEFAULT]) == "default"
    assert same_as(Arm("a", "g", {"placement": "ffn"}), [DEFAULT]) is None
    assert same_as(Arm("a", "g", {"rank": 16}), [DEFAULT]) is None  # the server's rank is its own


def test_an_arm_learns_and_is_asked_closed_book_about_its_document(fake: FakeServer) -> None:
    arm = Arm("a", "g", {"rank": 8})
    plan = Plan("squad", PASSAGES, 30.0, 0, False, "tiny")
    result = run_arm(recipes.Server("", None), arm, plan)
    assert result["scores"] == [1.0, 0.0, 1.0]
    assert result["questions"] == [2, 1]
    assert (result["recall"], result["steps"], result["ranks"]) == (0.75, 80, [16, 16])
    assert fake.uploaded == [{"rank": 8, "mend": False, "max_seconds": 30.0}] * 2
    assert [(one["mode"], one["document_ids"], one["max_tokens"]) for one in fake.asked] == [
        ("lora", ["doc1"], 64),
        ("lora", ["doc1"], 64),
        ("lora", ["doc2"], 64),
    ]
    assert not fake.documents


def test_refused_and_failed_arms_say_why_and_the_others_go_on(
    fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", "--only", "variant,formats=qa40"]) == 1
    report = last_line(capsys)
    assert {name: arm["state"] for name, arm in report["arms"].items()} == {
        "default": "done",
        "formats=qa40": "done",
        "variant=lora": "done",
        "variant=pissa": "refused",
        "freeze_a": "failed",
    }
    assert report["arms"]["variant=pissa"]["reason"] == "no such thing here"
    assert report["arms"]["variant=lora"]["same_as"] == "default"
    assert len(fake.uploaded) == 2 + 2 + 1 + 1  # default, qa40, a refusal and a failure at the first document
    assert report["arms"]["formats=qa40"]["difference"] == pytest.approx(1 / 3, abs=1e-4)
    assert [one["ok"] for one in report["checks"]] == [False]
    assert not fake.documents


def test_without_the_default_there_is_nothing_to_compare_with() -> None:
    refused = {"group": "g", "state": "refused", "reason": "not here"}
    (of_another,), (of_default,) = (
        summary(PLAN.settings, {"default": result([0.5, 1.0]), "a": result([0.5, 1.0])} | {name: refused}, 0)["checks"]
        for name in ("a", "default")
    )
    assert (of_another["value"], of_another["ok"]) == (0, True)
    assert (of_default["name"], of_default["value"], of_default["ok"]) == ("arms that failed default", 1, False)


def test_a_refusal_that_is_not_about_the_options_ends_the_run(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_key(*_: object) -> dict[str, Any]:
        raise Refused(401, {"detail": "no key"})

    monkeypatch.setattr(recipes, "_measured", no_key)
    with pytest.raises(Refused, match="no key"):
        run_arm(recipes.Server("", None), DEFAULT, PLAN)


def test_a_run_goes_on_where_it_stopped(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    arguments = ["--json", "--only", "formats=qa40", "--out", str(file)]
    ask = recipes._ask
    monkeypatch.setattr(recipes, "_ask", lambda *given: ask(*given) if len(fake.uploaded) < 3 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(arguments)
    assert list(json.loads(file.read_text())["arms"]) == ["default"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "add --resume" in capsys.readouterr().err
    monkeypatch.setattr(recipes, "_ask", ask)
    assert main([*arguments, "--resume"]) == 0
    assert len(fake.uploaded) == 2 + 1 + 2
    assert json.loads(file.read_text()) == last_line(capsys)
    assert main([*arguments, "--resume"]) == 0
    assert len(fake.uploaded) == 5


def test_the_command_names_all_arms_that_the_report_holds(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    arguments = ["--json", "--seed", "2", "--max-seconds", "30", "--out", str(file)]
    assert main([*arguments, "--only", "formats=qa40,rank=8"]) == 0
    said = "python -m benchmarks.recipes --json --only {} --max-seconds 30 --seed 2"
    assert last_line(capsys)["command"] == said.format("formats=qa40,rank=8")
    assert main([*arguments, "--only", "rank=8,rank=16", "--resume"]) == 0
    assert last_line(capsys)["command"] == said.format("rank=8,rank=16,formats=qa40")


def test_results_of_other_settings_are_not_resumed(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert resumed(file, PLAN) == {}
    file.write_text(json.dumps({"settings": PLAN.settings, "results": {"default": {}}}))
    assert resumed(file, PLAN) == {"default": {}}
    with pytest.raises(SystemExit, match="other settings"):
        resumed(file, Plan("squad", PASSAGES, None, 1, False, "tiny"))
    with pytest.raises(SystemExit, match="other settings"):
        resumed(file, replace(PLAN, model="large"))


def test_a_smoke_run_takes_two_arms_and_one_document(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--smoke"]) == 0
    assert list(last_line(capsys)["arms"]) == ["default", "formats=original"]
    limits = {"mend": False, "max_seconds": 2.0}
    assert fake.uploaded == [limits, {"formats": "original"} | limits]


def result(scores: list[float], group: str = "g") -> dict[str, Any]:
    return {
        "group": group,
        "state": "done",
        "scores": scores,
        "ready_s": 10.0,
        "recall": 0.5,
        "steps": 80,
        "ranks": [8, 16],
    }


def test_differences_are_paired_question_by_question() -> None:
    scores = [0.0, 1.0] * 20
    better = [score + 0.1 for score in scores]
    figures = summary(PLAN.settings, {"default": result(scores), "a": result(better)}, 0)["arms"]["a"]
    assert figures["difference_interval"] == [0.1, 0.1]  # the same on every question, however these are drawn
    assert figures["interval"][1] - figures["interval"][0] > 0.2
    assert "difference" not in summary(PLAN.settings, {"a": result(better)}, 0)["arms"]["a"]


def test_questions_about_one_document_are_drawn_together() -> None:
    scores = [0.0, 1.0] * 20
    apart, together = (
        summary(PLAN.settings, {"a": result(scores) | {"questions": questions}}, 0)["arms"]["a"]["interval"]
        for questions in ([1] * 40, [2] * 20)
    )
    assert apart == summary(PLAN.settings, {"a": result(scores)}, 0)["arms"]["a"]["interval"]  # of an earlier run
    assert apart[1] - apart[0] > 0.2
    assert together == [0.5, 0.5]
    alone = summary(PLAN.settings, {"a": result(scores) | {"questions": [40]}}, 0)["arms"]["a"]["interval"]
    assert alone == apart


def test_the_table_has_the_arms_by_group() -> None:
    results = {
        "default": result([0.5, 0.5], "default"),
        "rank=8": result([1.0, 0.5], "rank"),
        "a": {"group": "variant", "state": "refused", "reason": "not here"},
    }
    lines = table(summary(PLAN.settings, results, 0)).splitlines()
    assert lines[0] == "token-F1 on 3 questions about 2 documents"
    assert lines[lines.index("rank") + 1].split()[:3] == ["rank=8", "0.750", "0.500"]
    assert "+0.250" in lines[lines.index("rank") + 1]
    assert lines[-1].split(maxsplit=1) == ["a", "refused: not here"]


def test_bars_stand_by_group_with_a_gap_between(tmp_path: Path) -> None:
    results = {
        "default": result([0.5, 0.5], "default"),
        "rank=8": result([1.0, 1.0], "rank"),
        "rank=16": result([0.0, 0.0], "rank"),
        "a": {"group": "variant", "state": "refused", "reason": "not here"},
    }
    paper = Paper()
    plot(paper, summary(PLAN.settings, results, 0), tmp_path / "new")
    assert paper.bars == [("default", [0], [0.5]), ("rank", [2, 3], [1.0, 0.0])]
    assert (tmp_path / "new" / "recipes-squad.png").exists()


class Paper:
    """As much of matplotlib's interface as is drawn with."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, list[int], list[float]]] = []

    def subplots(self, figsize: tuple[int, int]) -> tuple[Any, Any]:
        drawing = SimpleNamespace(
            bar=lambda x, height, yerr, capsize, label: self.bars.append((label, x, height)),
            annotate=lambda *_, **__: None,
            set_xticks=lambda ticks: None,
            set_ylabel=lambda label: None,
            legend=lambda: None,
        )
        return SimpleNamespace(savefig=lambda file, dpi, bbox_inches: file.write_text("")), drawing

    def close(self, figure: object) -> None: ...
