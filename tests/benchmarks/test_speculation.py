import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import speculation
from benchmarks.speculation import ACCEPTED, DRAFTED, GENERATED, STEPS, WAYS, Answered, Pair, Way, checks, figures, main
from tests.benchmarks.fake_server import MemoryServer

Json = dict[str, Any]
QUESTIONS = ["Mill who?", "Barn what?"]
DRAFTING, PLAIN = "http://drafting", "http://plain"


class TwoServers(MemoryServer):
    """One memory at two addresses; where it drafts, it counts. `differs`: what the plain one says instead.
    `plain_drafts`: tokens that it drafts for each answer, which it is not to.
    """

    def __init__(self, titles: Sequence[str] = ("Mill", "Roof", "Barn")) -> None:
        super().__init__()
        self.counts = dict.fromkeys((GENERATED, ACCEPTED, DRAFTED, *STEPS), 0)
        self.hosts: list[str] = []
        self.differs = ""
        self.plain_drafts = 0
        for title in titles:
            self.documents[title] = {"id": title, "title": title, "text": f"{title}.", "namespace": "n"}

    def reply(self, request: httpx.Request) -> httpx.Response:
        drafts = request.url.host == "drafting"
        if request.url.path == "/metrics":
            lines = [f'{name}{{model_name="tiny"}} {value}' for name, value in self.counts.items()]
            plain = [f"{DRAFTED} {self.plain_drafts * self.hosts.count('plain')}"] if self.plain_drafts else []
            return httpx.Response(200, text="\n".join([*(lines if drafts else plain), ""]))
        reply = super().reply(request)
        if request.url.path != "/query":
            return reply
        tokens = json.loads(request.content)["max_tokens"]
        if tokens > 1:
            self.hosts.append(request.url.host)
        if drafts:
            said = {GENERATED: tokens, ACCEPTED: tokens // 2, DRAFTED: tokens, STEPS[0]: 1, STEPS[1]: tokens // 2 - 1}
            for name, more in said.items():
                self.counts[name] += more
        body = json.loads(reply.content)
        body |= {"timings_ms": {"ttft": 100.0, "total": 200.0 if drafts else 400.0}}
        body["answer"] = body["answer"] if drafts or not self.differs else self.differs
        return httpx.Response(200, json=body)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.txt"
    file.write_text("\n".join(QUESTIONS))
    return file


def run(server: TwoServers, questions: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Json]:
    given = ["--json", "--url", DRAFTING, "--plain", PLAIN, "--namespace", "n"]
    status = main([*given, "--questions", str(questions), "--max-tokens", "10"], server.transport)
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_both_servers_are_asked_in_turn_and_compared(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = TwoServers()
    status, report = run(server, questions, capsys)
    assert status == 0
    assert server.hosts == ["drafting", "plain", "plain", "drafting"] * len(WAYS)
    assert list(report["ways"]) == list(WAYS)
    for way in report["ways"].values():
        assert (way["same_answers"], way["tokens_a_step"], way["accepted_of_drafted"]) == (2, 2.0, 0.5)
        assert (way["ttft_ms"], way["total_ms"]) == ([100.0, 100.0], [200.0, 400.0])
        assert (way["total_ratio"], way["after_first_token_ratio"]) == (0.5, 0.333)
    assert [(one["value"], one["ok"]) for one in report["checks"]] == [(1.0, True), (4, True), (0, True)]
    assert PLAIN not in json.dumps(report)
    assert str(questions.parent) not in json.dumps(report)


def test_an_answer_that_drafts_change_fails(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = TwoServers()
    server.differs = "something else"
    status, report = run(server, questions, capsys)
    assert status == 1
    assert [one["ok"] for one in report["checks"]] == [False, True, True]


def test_no_text_stands_in_a_prompt_before_it_is_timed(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = TwoServers()
    run(server, questions, capsys)
    beforehand = [one for one in server.asked if one["max_tokens"] == 1]
    assert {one["mode"] for one in beforehand} == {"lora"}
    merges = [one for one in beforehand if one.get("merge") == {"method": "ties"} and one["question"] == QUESTIONS[1]]
    assert len(merges) == 2  # by both servers; the first question is also asked to see that there are adapters
    timed = [(one["question"], one["mode"]) for one in server.asked if one["max_tokens"] > 1 and one["mode"] == "rag"]
    assert len(timed) == 2 * len(set(timed)) == 2 * len(QUESTIONS)


def test_a_plain_server_that_drafts_is_none(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = TwoServers()
    server.plain_drafts = 3
    status, report = run(server, questions, capsys)
    assert status == 1
    assert {way["drafted_by_plain"] for way in report["ways"].values()} == {3 * len(QUESTIONS)}
    drafted = report["checks"][-1]
    assert (drafted["value"], drafted["bound"], drafted["ok"]) == (3 * len(QUESTIONS) * len(WAYS), "= 0", False)


def test_answers_that_are_the_same_because_nothing_is_said_fail() -> None:
    counted = dict.fromkeys((GENERATED, ACCEPTED, DRAFTED, *STEPS), 0)
    silent, said = (Answered(text, len(text), 100, 100) for text in ("", "text"))
    found = {str(one.tokens): figures(Way([Pair(one, one)], counted)) for one in (silent, said)}
    assert [(one["name"], one["ok"]) for one in checks(found, 1, smoke=True)] == [
        ("share of answers that are the same", True),
        ("tokens of an answer", False),
    ]


def test_a_server_that_counts_no_drafts_has_no_shares() -> None:
    one = Answered("text", 1, 100, 100)
    found = figures(Way([Pair(one, one)], {GENERATED: 1, ACCEPTED: 0, DRAFTED: 0, STEPS[0]: 1, STEPS[1]: 0}))
    assert (found["tokens_a_step"], found["accepted_of_drafted"], found["after_first_token_ratio"]) == (1.0, None, None)
    assert checks({"a": found}, 1)[0]["ok"]
    assert not checks({"a": found}, 2)[0]["ok"]


def test_without_a_plain_server_it_says_what_is_needed(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--questions", str(questions)])
    assert "LORAMEM_SPECULATIVE_TOKENS=0" in capsys.readouterr().err


def test_a_smoke_run_compares_a_server_with_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TwoServers(())
    monkeypatch.setattr(speculation, "WAYS", {"one adapter": WAYS["one adapter"]})
    assert main(["--json", "--smoke", "--url", DRAFTING], server.transport) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["ways"]["one adapter"]["total_ratio"] == 1
    assert report["ways"]["one adapter"]["drafted_by_plain"] > 0  # it is one server
    assert not server.documents
