"""What figures of `benchmarks.recall` are means over: documents, however often drawn, and how much of each was read."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.recall import main
from benchmarks.recall_ask import Learnt, was_cut
from benchmarks.recall_methods import METHODS
from benchmarks.recall_summary import summary
from loramem.client import Client
from tests.benchmarks.fake_server import MemoryServer
from tests.benchmarks.test_recall import DOCUMENTS, arguments, ask

Json = dict[str, Any]
WINDOW = 18
"""Characters that fit into the prompt: all of `The barn is brick.`, and not of the other two."""


class NarrowServer(MemoryServer):
    """Tells which part of each document went into a prompt, as a server does."""

    def _answered(self, body: Json) -> httpx.Response:
        reply = super()._answered(body)
        found = json.loads(reply.content)
        for one in found.get("context", ()):
            end = min(WINDOW, len(self.documents[one["document_id"]]["text"].strip()))
            one |= {"chunk": None, "start": 0, "end": end}
        return httpx.Response(reply.status_code, json=found)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps(one | {"text": f"{one['text']}  \n"}) for one in DOCUMENTS))
    return file


def test_a_document_drawn_under_several_seeds_makes_nothing_surer(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, thrice = (
        ask(MemoryServer(), capsys, arguments(data, "--methods", "rag,lora", "--documents", "3", "--seeds", *seeds))
        for seeds in ("0", "012")
    )
    for method in ("rag", "lora"):
        one, three = once["methods"][method], thrice["methods"][method]
        assert (one["documents"], three["documents"], three["questions"]) == (3, 3, 9)
        assert one["scores"] == three["scores"]
        assert one["minus"] == three["minus"]
        assert one["router_first"] == three["router_first"]
    assert once["methods"]["lora"]["minus"]["rag"]["em"]["interval"] == [-1.0, 0.0]


def test_a_set_with_fewer_documents_says_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(data, "--methods", "rag", "--documents", "40"), MemoryServer().transport) == 0
    said = capsys.readouterr()
    assert "own.jsonl has 3 of the 40 documents asked for: all are taken" in said.err
    report = json.loads(said.out.splitlines()[-1])
    assert "--documents 3 " in report["command"]
    assert report["settings"]["documents"] == 3
    main(arguments(data, "--methods", "rag", "--documents", "3"), MemoryServer().transport)
    assert "asked for" not in capsys.readouterr().err


def test_misrouted_questions_are_those_that_one_adapter_was_wrong_for() -> None:
    """Whatever another method's first source is; paired with what the one adapter said."""

    def line(method: str, number: int, score: float, first: bool | None) -> Json:
        place = {"seed": 0, "document": f"d{number % 2}", "question_number": number, "level": None, "routed": []}
        told = {"scores": {"f1": score}, "usage": {"completion_tokens": 1}, "timings_ms": {"total": 1.0}}
        return {"method": method, "first": first} | place | told

    lines = [line("lora", number, 0.5, number < 3) for number in range(5)]
    lines += [line("lora-top3", number, 0.1 * number, True) for number in range(5)]
    lines += [line("base", number, 0.0, None) for number in range(5)]
    found = summary(lines, ["lora", "lora-top3", "base"], {}, 0)
    astray = found["lora-top3"]["misrouted"]
    assert (astray["questions"], astray["documents"]) == (2, 2)
    assert astray["minus"]["lora"]["f1"]["mean"] == -0.15  # of 0.3 and 0.4, less 0.5
    assert found["base"]["misrouted"]["minus"]["lora"]["f1"]["mean"] == -0.5
    assert "misrouted" not in found["lora"]
    alone = summary([one for one in lines if one["method"] != "lora"], ["lora-top3", "base"], {}, 0)
    assert all("misrouted" not in one for one in alone.values())


def test_how_often_a_text_did_not_fit_is_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the text as the server has it, without blanks at its end."""
    given = ["--methods", "icl,hybrid-icl,rag,lora", "--check", "icl.text_cut<=0.7", "--out", str(tmp_path / "o.json")]
    report = ask(NarrowServer(), capsys, arguments(data, *given))
    assert report["checks"][-1] | {"name": "icl.text_cut<=0.7", "ok": True} == report["checks"][-1]
    for name in ("icl", "hybrid-icl"):
        assert report["methods"][name]["text_cut"]["mean"] == 0.6667
    assert all("text_cut" not in report["methods"][name] for name in ("rag", "lora"))
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    cut = {line["question"]: line["cut"] for line in lines if line.get("method") == "icl"}
    assert cut == {"Mill who?": True, "Roof what?": True, "Barn what?": False}


def test_what_no_reply_tells_is_not_counted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = ask(MemoryServer(), capsys, arguments(data, "--methods", "icl"))
    assert "text_cut" not in report["methods"]["icl"]
    corpus = Learnt(Client("http://nowhere"), {}, {"a": 9})
    assert was_cut(corpus, [{"document_id": "a", "end": 9}, {"document_id": "a", "end": 8}]) is True
    assert was_cut(corpus, [{"document_id": "stranger", "end": 8}]) is None
    assert was_cut(corpus, []) is None


def test_methods_that_read_whole_documents_are_known() -> None:
    assert {name for name, method in METHODS.items() if method.whole_text} == {
        "icl",
        "single-icl",
        "hybrid-icl",
        "hybrid-icl-top3",
    }
