import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.recall import main
from benchmarks.recall_journal import Journal, NotThisRun
from benchmarks.recall_methods import GROUPS, METHODS, chosen_methods
from benchmarks.recall_plan import smoke_plan, steps
from server.api.schemas import QueryIn
from tests.benchmarks.fake_server import MemoryServer

Json = dict[str, Any]
DOCUMENTS: list[Json] = [
    {"title": "Mill", "text": "Jon Ask built the mill.", "questions": [{"question": "Mill who?", "answer": "Jon Ask"}]},
    {"title": "Roof", "text": "The roof is copper.", "questions": [{"question": "Roof what?", "answer": "copper"}]},
    {"title": "Barn", "text": "The barn is brick.", "questions": [{"question": "Barn what?", "answer": "brick"}]},
]


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    return file


def arguments(data: Path, *more: str) -> list[str]:
    return ["--json", "--dataset", "jsonl", "--data", str(data), *more]


def ask(server: MemoryServer, capsys: pytest.CaptureFixture[str], given: list[str], status: int = 0) -> Json:
    assert main(given, server.transport) == status
    report: Json = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def test_methods_are_compared_on_the_same_questions(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ask(server, capsys, arguments(data, "--methods", "base,rag,lora,lora-top3,lora:oracle"))
    methods = report["methods"]
    assert {name: one["scores"]["em"]["mean"] for name, one in methods.items()} == {
        "base": 0.0,
        "rag": 1.0,
        "lora": 0.6667,
        "lora-top3": 0.6667,
        "lora:oracle": 1.0,
    }
    assert (methods["lora"]["router_first"]["mean"], methods["lora"]["router_inside"]["mean"]) == (0.6667, 0.6667)
    assert (methods["lora-top3"]["router_first"]["mean"], methods["lora-top3"]["router_inside"]["mean"]) == (0.6667, 1)
    assert methods["rag"]["router_first"]["mean"] == 1  # of the text in the prompt
    assert "router_first" not in methods["lora:oracle"] | methods["base"]
    assert (methods["lora-top3"]["mean_k"], methods["rag"]["mean_k"], methods["lora"]["answer_tokens"]) == (3, 0, 4)
    assert methods["lora"]["minus"]["rag"]["em"]["mean"] == -0.3333
    assert methods["lora"]["minus"]["rag"]["em"]["interval"] == [-1.0, 0.0]
    assert list(methods["rag"]["minus"]) == ["lora", "lora-top3", "lora:oracle"]
    assert not server.documents
    assert (report["settings"]["file"], report["settings"]["model"]) == ("own.jsonl", "tiny")
    assert str(data.parent) not in json.dumps(report)


def test_every_question_is_asked_by_every_method_once_in_mixed_order(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(server, capsys, arguments(data, "--methods", "base,rag,icl,lora"))
    asked = [(one["question"], one["mode"]) for one in server.asked]
    assert len(asked) == len(set(asked)) == 3 * 4
    for start in (0, 4, 8):
        assert len({question for question, _ in asked[start : start + 4]}) == 1
    plan = smoke_plan(0, chosen_methods(["base", "rag", "lora"]))
    drawn = steps(0, plan.draws[0], plan.methods)
    assert drawn == steps(0, plan.draws[0], plan.methods) != steps(1, plan.draws[0], plan.methods)
    assert len({tuple(step.method.name for step in drawn[start : start + 3]) for start in range(0, 30, 3)}) > 1


def test_what_the_server_is_asked_is_what_it_takes() -> None:
    for method in METHODS.values():
        QueryIn.model_validate({"question": "Q", "mode": method.mode, **method.options})
    assert [method.name for method in chosen_methods(["lora", "table2", "lora"])][:2] == ["lora", "base"]
    assert chosen_methods(["hybrid-icl:oracle"])[0].oracle
    with pytest.raises(ValueError, match=r"no method is called 'dora'; there are base, .*table2"):
        chosen_methods(["dora"])
    for group in GROUPS:
        assert chosen_methods([group])
    with pytest.raises(ValueError, match="does not look for its document"):
        chosen_methods(["base:oracle"])


def test_single_adapters_are_in_namespaces_of_their_own(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ask(server, capsys, arguments(data, "--methods", "single,joined,lora", "--namespace", "n", "--keep"))
    held = Counter(one["namespace"] for one in server.documents.values())
    assert held == {"n": 3, "n-document": 3, "n-joined": 1}
    per = {one["namespace"]: one.get("training", {}).get("per") for one in server.documents.values()}
    assert per == {"n": None, "n-document": "document", "n-joined": "document"}
    assert report["methods"]["single"]["scores"]["em"]["mean"] == 1.0
    assert "router_first" not in report["methods"]["joined"]
    (joined,) = (one for one in server.documents.values() if one["namespace"] == "n-joined")
    assert all(document["text"] in joined["text"] for document in DOCUMENTS)


def test_a_method_that_the_server_refuses_leaves_the_others(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(data, "--methods", "rag,lora-top3-cat", "--check", "lora-top3-cat.em>=0.1")
    report = ask(server, capsys, given, status=1)
    assert report["methods"]["lora-top3-cat"] == {"state": "refused", "reason": "cat needs more rank"}
    assert report["methods"]["rag"]["questions"] == 3
    answered = {"name": "methods that were answered", "value": 1, "bound": "= 2", "ok": False}
    assert report["checks"][0] == answered
    assert [one["ok"] for one in report["checks"][1:]] == [False]


def test_a_refused_method_is_not_learnt_for_again(
    server: MemoryServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(data, "--methods", "rag,lora-top3-cat", "--out", str(tmp_path / "out.json"))
    first = ask(server, capsys, given, status=1)
    assert ask(server, capsys, [*given, "--resume"], status=1)["methods"] == first["methods"]
    assert len(server.uploaded) == 3


def test_a_run_that_breaks_off_goes_on_with_what_is_missing(
    server: MemoryServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    given = arguments(data, "--methods", "base,lora", "--out", str(out))
    whole = ask(MemoryServer(), capsys, arguments(data, "--methods", "base,lora"))
    server.dies_after = 4
    with pytest.raises(Exception, match="gone"):
        main(given, server.transport)
    assert len(server.documents) == 3  # kept, to go on with
    journal = tmp_path / "out.jsonl"
    journal.write_text(journal.read_text() + '{"kind": "answer", "cut sho')
    with pytest.raises(SystemExit):
        main(given, server.transport)
    assert "add --resume" in capsys.readouterr().err

    server.dies_after = 10**6
    report = ask(server, capsys, [*given, "--resume"])
    assert len(server.asked) == 3 * 2
    assert len(server.uploaded) == 3
    assert not server.documents  # what the first part had put there is this run's own
    scores = {name: one["scores"] for name, one in report["methods"].items()}
    assert scores == {name: one["scores"] for name, one in whole["methods"].items()}
    assert json.loads(out.read_text()) == report
    ask(server, capsys, [*given, "--resume"])
    assert (len(server.asked), len(server.uploaded)) == (6, 3)
    with pytest.raises(NotThisRun, match="max_tokens: 128 there, 9 now"):
        main([*given, "--resume", "--max-tokens", "9"], server.transport)


def test_without_a_file_nothing_is_left_behind_when_it_breaks_off(server: MemoryServer, data: Path) -> None:
    server.dies_after = 1
    with pytest.raises(Exception, match="gone"):
        main(arguments(data, "--methods", "rag"), server.transport)
    assert not server.documents


def test_documents_that_are_there_are_neither_learnt_again_nor_deleted(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(data, "--methods", "lora", "--namespace", "mine")
    ask(server, capsys, [*given, "--keep"])
    report = ask(server, capsys, given)
    assert len(server.uploaded) == len(server.documents) == 3
    assert [one["waited_for"] for one in report["learnt"]] == [0]


def test_each_seed_is_a_draw_in_a_namespace_of_its_own(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--documents", "2", "--methods", "rag", "--namespace", "n", "--keep", "--seeds", "0", "1", "2"]
    report = ask(server, capsys, arguments(data, *given))
    assert Counter(one["namespace"] for one in server.documents.values()) == {"n-0": 2, "n-1": 2, "n-2": 2}
    assert report["methods"]["rag"]["questions"] == 6
    assert report["methods"]["rag"]["seeds"]["1"] == {
        "questions": 2,
        "em": 1.0,
        "f1": 1.0,
        "rouge_l": 1.0,
        "router_first": 1.0,
        "router_inside": 1.0,
    }
    drawn = [{one["title"] for one in server.documents.values() if one["namespace"] == f"n-{seed}"} for seed in "012"]
    assert not drawn[0] == drawn[1] == drawn[2]


def test_checks_are_those_that_were_asked_for(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = ["lora.em>=0.6*rag.em", "lora.em >= 0.7 * rag.em", "base.f1<=0.1", "lora.router_first>=lora.router_inside"]
    given = [word for bound in bounds for word in ("--check", bound)]
    report = ask(server, capsys, arguments(data, "--methods", "base,rag,lora", *given), status=1)
    answered, *checked = report["checks"]
    assert (answered["value"], answered["bound"], answered["ok"]) == (3, "= 3", True)
    assert [(one["name"], one["ok"]) for one in checked] == list(zip(bounds, [1, 0, 1, 1], strict=True))
    assert checked[0] | {"value": 0.6667, "bound": ">= 0.6000"} == checked[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--methods", "dora"], "no method is called 'dora'"),
        (["--check", "lora.f1>1"], "a check is like"),
        (["--check", "lora.f1>=2*3"], "a check is like"),
        (["--methods", "rag", "--check", "lora.f1>=1"], "'lora', which is not asked; there are rag"),
        (["--methods", "rag", "--check", "rag.accuracy>=1"], "rag has em, f1, rouge_l"),
        (["--resume"], "--resume needs --out"),
        (["--unanswerable", "1"], "none is chosen: add auto"),
        (["--unanswerable", "0"], "must be 1 or more"),
        (["--unanswerable", "1", "--methods", "auto"], "0 questions are of documents with other titles"),
        (["--methods", "auto", "--check", "auto.refused_unanswerable>=1"], "router_inside, refused_answerable"),
        (["--methods", "lora:oracle3"], "there is lora:oracle"),
        (["--out", "x.jsonl"], "with the suffix .jsonl"),
        (["--judge-url", "http://judge/v1"], "go together"),
        (["--documents", "0"], "must be 1 or more"),
        (["--data", "/nowhere/own.jsonl"], "No such file"),
        (["--dataset", "squad"], "own.jsonl"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_uploaded(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(data, *given), server.transport)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not server.uploaded


def test_without_a_server_the_run_says_so(data: Path) -> None:
    nobody = httpx.MockTransport(lambda request: httpx.Response(502))
    with pytest.raises(SystemExit, match=r"no loramem server at http://127\.0\.0\.1:8000"):
        main(arguments(data), nobody)


def test_a_judge_sees_each_answer_once(
    server: MemoryServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged: list[Json] = []

    def opinion(request: httpx.Request) -> httpx.Response:
        said = json.loads(json.loads(request.content)["messages"][1]["content"])
        judged.append(said)
        score = 10 if said["answer"] in said["references"] else 2
        return httpx.Response(200, json={"choices": [{"message": {"content": f'{{"score": {score}}}'}}]})

    judge = ["--judge-url", "http://judge/v1", "--judge-model", "m", "--out", str(tmp_path / "out.json")]
    given = arguments(data, "--methods", "base,rag", *judge)
    assert main(given, server.transport, httpx.MockTransport(opinion)) == 0
    assert main([*given, "--resume"], server.transport, httpx.MockTransport(opinion)) == 0
    methods = json.loads(capsys.readouterr().out.splitlines()[-1])["methods"]
    assert {name: one["scores"]["judge"]["mean"] for name, one in methods.items()} == {"base": 2.0, "rag": 10.0}
    assert len(judged) == 6


def _asked(document: Json) -> list[Json]:
    questions: list[Json] = document["questions"]
    return questions


def test_levels_are_told_apart(server: MemoryServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.jsonl"
    levels = [one | {"questions": [{"level": n} | asked for asked in _asked(one)]} for n, one in enumerate(DOCUMENTS)]
    file.write_text("\n".join(map(json.dumps, levels)))
    report = ask(server, capsys, arguments(file, "--methods", "lora"))
    found = report["methods"]["lora"]["levels"]
    assert {level: (one["em"], one["router_first"]) for level, one in found.items()} == {
        "0": (1.0, 1.0),
        "1": (0.0, 0.0),
        "2": (1.0, 1.0),
    }


def test_a_smoke_run_brings_its_own_documents(server: MemoryServer, capsys: pytest.CaptureFixture[str]) -> None:
    report = ask(server, capsys, ["--json", "--smoke"])
    assert list(report["methods"]) == ["base", "rag", "lora"]
    assert len(server.asked) == 2 * 5 * 3
    assert all(one["max_seconds"] < 20 for one in server.uploaded)
    for item in smoke_plan(0, []).draws[0]:
        assert len(item.item.questions) == 5
        assert all(asked.answers[0] in item.item.text for asked in item.item.questions)
    assert report["command"] == "python -m benchmarks.recall --json --smoke --methods base,rag,lora --seeds 0"


def test_the_table_has_a_line_for_each_method(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(data, "--methods", "rag,lora-top3-cat")[1:], server.transport)
    head, rag, cat = capsys.readouterr().out.splitlines()
    assert head.split() == ["method", "em", "f1", "rouge_l", "routed", "first", "tokens", "p50", "ms"]
    assert rag.split()[:4] == ["rag", "1.000", "[1.000,", "1.000]"]
    assert cat.split(maxsplit=1) == ["lora-top3-cat", "refused: cat needs more rank"]


def test_a_damaged_journal_is_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    Journal(file, {"namespace": None}, "fresh").close()
    again = Journal(file, {"namespace": None}, "other")
    again.close()
    assert again.settings["namespace"] == "fresh"
    file.write_text(file.read_text() + "{,\n")
    with pytest.raises(NotThisRun, match=r"a\.jsonl:2: not JSON"):
        Journal(file, {"namespace": None}, "other")
