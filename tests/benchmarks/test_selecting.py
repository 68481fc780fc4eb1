import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import selecting
from benchmarks.selecting import (
    MERGING,
    ONE,
    SELECTING,
    Answered,
    Pass,
    answered,
    figures,
    main,
    ratio,
    rivals_begun,
)
from tests.benchmarks.fake_server import MemoryServer

Json = dict[str, Any]
QUESTIONS = ["Mill who?", "Barn what?", "Mill when?", "Barn where?"]


class LiveServer(MemoryServer):
    """Its adapters are live already. With `barrier`, answers only to so many questions that wait together.

    Selecting, one rival begins for a question that asks who.
    """

    barrier: threading.Barrier | None = None

    def __init__(self, titles: Sequence[str] = ("Mill", "Roof", "Barn")) -> None:
        super().__init__()
        for title in titles:
            self.documents[title] = {"id": title, "title": title, "text": f"{title}.", "namespace": "n"}

    def _answered(self, body: Json) -> httpx.Response:
        if self.barrier is not None and body["max_tokens"] > 1:
            self.barrier.wait(timeout=30)
        reply = super()._answered(body)
        if body.get("compose") != "select":
            return reply
        found, begun = json.loads(reply.content), 2 if body["question"].endswith("who?") else 1
        for rank, one in enumerate(found["routed"]):
            one["logprob"] = -0.1 if rank < begun else None
        return httpx.Response(200, json=found)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.txt"
    file.write_text("\n".join([*QUESTIONS, "", " "]))
    return file


def arguments(questions: Path, *more: str) -> list[str]:
    given = ["--json", "--namespace", "n", "--questions", str(questions), "--concurrency", "2", "--max-tokens", "9"]
    return [*given, *more]


def reported(capsys: pytest.CaptureFixture[str]) -> Json:
    report: Json = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def test_the_same_questions_are_asked_each_way_in_turn(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = LiveServer()
    server.barrier = threading.Barrier(2)
    main(arguments(questions), server.transport)  # times of a fake are no times
    report = reported(capsys)
    ways = [(one["top_k"], one.get("compose")) for one in server.answered[::4]]
    one, select, merge = (1, None), (3, "select"), (3, "merge")
    assert ways == [one, select, merge, select, merge, one, merge, one, select]
    numbers = []
    for start in range(0, 9 * 4, 4):
        asked = [one["question"].split(" ", 1) for one in server.answered[start : start + 4]]
        assert sorted(question for _, question in asked) == sorted(QUESTIONS)
        numbers += list({number for number, _ in asked})
    assert len(set(numbers)) == len(numbers) == 9  # no prompt is asked twice
    assert {one["max_tokens"] for one in server.answered} == {9}
    assert [one["ok"] for one in report["checks"]] == [report["ratios"][f"{SELECTING} / {ONE}"] <= 1.5]
    found = {name: (way["adapters"], way["dropped_tokens"], way["new_merges"]) for name, way in report["ways"].items()}
    assert found == {ONE: (1, 0, [0] * 3), SELECTING: (3, 8, [0] * 3), MERGING: (3, 0, [4] * 3)}
    rivals = {name: (way["rivals_begun"], way["with_rivals"]) for name, way in report["ways"].items()}
    assert rivals == {ONE: (0, 0), SELECTING: (0.25, 0.25), MERGING: (0, 0)}
    assert report["settings"] == {
        "concurrency": 2,
        "rounds": 3,
        "max_tokens": 9,
        "smoke": False,
        "model": "tiny",
        "questions": 4,
    }
    assert "--questions questions.txt" in report["command"]
    assert str(questions.parent) not in json.dumps(report)
    assert len(server.documents) == 3


def passes(seconds: float, ms: Sequence[float], dropped: int = 0) -> Pass:
    return Pass(seconds, [Answered(one, 1, 10, dropped, False) for one in ms])


def test_ratios_are_medians_of_rounds() -> None:
    rounds = [
        {ONE: passes(1, [100, 200]), SELECTING: passes(1.2, [150, 250], 8), MERGING: passes(2, [1, 1])},
        {ONE: passes(1, [100, 200]), SELECTING: passes(9.0, [150, 250], 8), MERGING: passes(2, [1, 1])},
        {ONE: passes(2, [100, 200]), SELECTING: passes(2.8, [150, 250], 4), MERGING: passes(2, [1, 1])},
    ]
    found = figures(rounds)
    assert found["ratios"] == {f"{SELECTING} / {ONE}": 1.4, f"{MERGING} / {ONE}": 2}
    assert found["ratios_by_round"][f"{SELECTING} / {ONE}"] == [1.2, 9, 1.4]
    assert found["ways"][ONE] == {
        "questions_per_s": 2,
        "latency_ms_mean": 150,
        "latency_ms_p95": 200,
        "completion_tokens": 10,
        "dropped_tokens": 0,
        "adapters": 1,
        "rivals_begun": 0,
        "with_rivals": 0,
        "new_merges": [0, 0, 0],
    }
    assert found["ways"][SELECTING]["dropped_tokens"] == 6.67
    assert ratio(found)["ok"]
    assert not ratio(figures([rounds[1]]))["ok"]


@pytest.mark.parametrize(
    ("logprobs", "begun"),
    [((-0.1, None, None), 0), ((-0.1, None, -2.0), 1), ((-0.1, -0.2, -0.3), 2), ((None, None, None), 0), ((), 0)],
)
def test_rivals_that_began_have_said_something(logprobs: Sequence[float | None], begun: int) -> None:
    assert rivals_begun([{"logprob": one} for one in logprobs]) == begun


@pytest.mark.parametrize("titles", [(), ("Mill", "Roof")])
def test_fewer_than_three_adapters_are_said(questions: Path, titles: Sequence[str]) -> None:
    server = LiveServer(titles)
    with pytest.raises(SystemExit, match=rf"has {len(titles)} live adapters, and 3 are needed"):
        main(arguments(questions), server.transport)
    assert not server.answered


def test_a_namespace_that_holds_nothing_is_said(questions: Path) -> None:
    class Empty(LiveServer):
        def _answered(self, body: Json) -> httpx.Response:
            return httpx.Response(409, json={"detail": "holds nothing that can answer"})

    with pytest.raises(SystemExit, match="cannot be asked: holds nothing that can answer"):
        main(arguments(questions), Empty().transport)


def test_a_smoke_run_brings_its_own_documents_and_takes_them_away(capsys: pytest.CaptureFixture[str]) -> None:
    server = MemoryServer()
    assert main(["--json", "--smoke", "--namespace", "mine"], server.transport) == 0
    report = reported(capsys)
    assert report["checks"] == [{"name": "questions answered", "value": 18, "bound": "= 18", "ok": True}]
    assert len(server.uploaded) == 3
    assert all(one["max_seconds"] < 20 for one in server.uploaded)
    assert not server.documents
    (namespace,) = Counter(one["namespace"] for one in server.asked)
    assert namespace.startswith("selecting-")


def test_an_answer_without_a_token_is_none() -> None:
    silent = Pass(1, [Answered(100, 3, 0, 8, False), Answered(100, 3, 1, 8, False)])
    found = answered([{ONE: passes(1, [100, 100]), SELECTING: silent, MERGING: passes(1, [100, 100])}], 2)
    assert (found["value"], found["bound"], found["ok"]) == (5, "= 6", False)


def test_a_smoke_run_that_breaks_off_leaves_nothing() -> None:
    server = MemoryServer()
    server.dies_after = 5
    with pytest.raises(Exception, match="gone"):
        main(["--smoke"], server.transport)
    assert not server.documents


def test_questions_are_drawn_as_for_recall(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    texts = [
        {"title": title, "text": title, "questions": [{"question": f"{title} {n}?", "answer": "x"} for n in range(9)]}
        for title in "abcd"
    ]
    file.write_text("\n".join(map(json.dumps, texts)))
    given = ["--dataset", "jsonl", "--data", str(file), "--documents", "2", "--questions-per-document", "8"]
    _, drawn = selecting._options(given)
    assert len(drawn) == len(set(drawn)) == 16
    assert len({question[0] for question in drawn}) == 2
    assert drawn == selecting._options(given)[1] != selecting._options([*given, "--seed", "1"])[1]
    assert selecting._command(selecting._options(given)[0]) == (
        "python -m benchmarks.selecting --json --dataset jsonl --documents 2 --questions-per-document 8 --seed 0 "
        "--data own.jsonl --concurrency 16 --rounds 3 --max-tokens 32"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--concurrency", "5"], "4 questions cannot be asked 5 at once"),
        (["--concurrency", "101"], "must be 100 or less"),
        (["--rounds", "0"], "must be 1 or more"),
        (["--questions", "/nowhere/questions.txt"], "No such file"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_asked(
    questions: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    server = LiveServer()
    with pytest.raises(SystemExit) as ended:
        main(arguments(questions, *given), server.transport)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not server.asked
