"""Of `benchmarks.recall`: merges by their weights, sets of three documents, and questions that nothing answers."""

import json
from collections import Counter
from pathlib import Path

import httpx
import pytest

from benchmarks.datasets import BadData
from benchmarks.recall import main
from benchmarks.recall_methods import METHODS, chosen_methods
from benchmarks.recall_plan import Plan, draw_plan, smoke_plan, steps
from benchmarks.recall_summary import parse_bound
from server.api.schemas import QueryIn
from server.ask import MergeOptions, RoutedAdapter
from server.merge import recipe_of
from tests.benchmarks.fake_server import MemoryServer
from tests.benchmarks.test_recall import DOCUMENTS, arguments, ask


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    return file


def weights(method: str, count: int) -> tuple[str, list[float]]:
    """What the server merges by, and the weight of each adapter."""
    given = QueryIn.model_validate({"question": "Q", **METHODS[method].options})
    options = MergeOptions(**given.merge.model_dump(exclude_none=True))
    adapters = [RoutedAdapter(f"ad{n}", "0", 8, f"doc{n}", "", 0, 0.5, 1 / count) for n in range(count)]
    recipe = recipe_of(adapters, options, 64)
    return recipe.method, [round(source.weight, 6) for source in recipe.sources]


def test_merges_have_the_papers_weights_and_others() -> None:
    third = round(1 / 3, 6)
    assert weights("lora-top3", 3) == ("ties", [1.0] * 3)
    assert weights("lora-top3-ties-x0.33", 3) == ("ties", [third] * 3)
    assert weights("lora-top3-ties-x2", 3) == ("ties", [2.0] * 3)
    assert weights("lora-top3-linear", 3) == ("linear", [third] * 3)
    assert weights("lora-top3-linear-x1.5", 3) == ("linear", [0.5] * 3)
    assert weights("lora-top3-cat-x3", 3) == ("cat", [1.0] * 3)
    assert weights("lora-top3-product-ties", 3) == ("product_ties", [1.0] * 3)
    assert weights("lora-top3-product-linear", 3) == ("product_linear", [third] * 3)
    merging = [one for one in METHODS.values() if "top3" in one.name or one.name in ("lora-top2", "lora-top5")]
    assert {one.options["compose"] for one in merging} == {"merge"}
    assert {METHODS[name].options["compose"] for name in ("lora-select", "hybrid-select")} == {"select"}
    assert "compose" not in {*METHODS["lora-auto"].options, *METHODS["auto"].options}


def test_a_bound_may_name_a_method_with_a_number_in_it() -> None:
    bound = parse_bound("lora-top3-cat-x1.5:oracle3.f1 >= 0.9*lora-top3-ties-x0.33.f1")
    assert bound.named == [("lora-top3-cat-x1.5:oracle3", "f1"), ("lora-top3-ties-x0.33", "f1")]
    assert bound.factor == 0.9
    assert parse_bound("lora.f1<=0.25").factor == 0.25


@pytest.mark.parametrize("chunks", [1, 8])  # with 8 the first document routed to takes all places
def test_an_oracle_set_is_the_right_document_with_what_is_routed_first_beside_it(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str], chunks: int
) -> None:
    server.chunks = chunks
    report = ask(server, capsys, arguments(data, "--methods", "oracle,lora-top3-linear:oracle3", "--keep"))
    ids = {one["title"]: name for name, one in server.documents.items()}
    named = {one["question"].split()[0]: one["document_ids"] for one in server.answered if one["top_k"] == 3}
    assert named == {
        "Mill": [ids["Mill"], ids["Barn"], ids["Roof"]],
        "Roof": [ids["Roof"], ids["Mill"], ids["Barn"]],
        "Barn": [ids["Barn"], ids["Mill"], ids["Roof"]],
    }
    alone = [one["document_ids"] for one in server.answered if one["top_k"] == 1]
    assert sorted(alone) == sorted([one] for one in ids.values())
    looked = [one for one in server.asked if one not in server.answered]
    assert len({one["question"] for one in looked}) == 3
    assert len(looked) == 3 if chunks == 1 else len(looked) > 3  # once a question, whatever asks it
    select, merge = report["methods"]["lora-select:oracle3"], report["methods"]["lora-top3:oracle3"]
    assert select["router_inside"]["mean"] == select["scores"]["em"]["mean"] == (1 if chunks == 1 else 0.6667)
    assert merge["router_first"]["mean"] == merge["scores"]["em"]["mean"] == 0.6667
    assert list(select["minus"]) == ["lora:oracle"]
    assert "router_inside" not in report["methods"]["lora:oracle"]


def test_an_oracle_set_of_fewer_documents_is_those_there_are(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (2, 1):
        given = ["--methods", "lora-top3:oracle3", "--documents", str(count), "--keep"]
        ask(server, capsys, arguments(data, *given))
        assert {len(one["document_ids"]) for one in server.answered[-count:]} == {count}


def test_what_cannot_be_refused_or_named_is_said() -> None:
    with pytest.raises(ValueError, match="lora is not told to answer from 3 adapters; there is lora:oracle"):
        chosen_methods(["lora:oracle3"])
    with pytest.raises(ValueError, match="no method is called 'lora:oracle5'"):
        chosen_methods(["lora:oracle5"])
    with pytest.raises(ValueError, match="no method is called 'lora:'"):
        chosen_methods(["lora:"])
    assert [one.oracle for one in chosen_methods(["oracle"])] == [1, 3, 3]


REFUSALS = ["--methods", "auto,lora", "--documents", "2", "--unanswerable", "1"]


def test_questions_of_other_documents_are_to_be_refused(
    server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = ["auto.refused_unanswerable>=0.8", "auto.refused_answerable<=0.1"]
    given = [word for bound in bounds for word in ("--check", bound)]
    report = ask(server, capsys, arguments(data, *REFUSALS, *given))
    auto, lora = report["methods"]["auto"], report["methods"]["lora"]
    assert auto["refused_answerable"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    assert auto["refused_unanswerable"] == {"mean": 1.0, "interval": None}  # of one document
    assert (auto["questions"], lora["questions"], report["settings"]["unanswerable"]) == (2, 2, 1)
    assert (auto["scores"]["em"]["mean"], auto["router_first"]["mean"]) == (1, 1)
    assert "refused_answerable" not in lora
    assert Counter(one["mode"] for one in server.asked) == {"auto": 3, "lora": 2}
    assert "--unanswerable 1" in report["command"]


def test_a_run_with_unanswerable_questions_goes_on(
    server: MemoryServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(data, *REFUSALS, "--out", str(tmp_path / "out.json"))
    whole = ask(MemoryServer(), capsys, arguments(data, *REFUSALS))
    for server.dies_after in (2, 4):
        with pytest.raises(Exception, match="gone"):
            main([*given, *(["--resume"] if server.asked else [])], server.transport)
    server.dies_after = 10**6
    report = ask(server, capsys, [*given, "--resume"])
    assert len(server.asked) == 5
    figures, wanted = (one["methods"]["auto"] for one in (report, whole))
    for name in ("refused_answerable", "refused_unanswerable", "scores"):
        assert figures[name] == wanted[name]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    answers = [line for line in lines if line["kind"] == "answer"]
    (beyond,) = (line for line in answers if not line["answerable"])
    assert (beyond["refused"], beyond["scores"], beyond["mode"]) == (True, {}, "base")
    assert beyond["choice"]["confidence"] == "none"
    assert {line["refused"] for line in answers if line["method"] == "lora"} == {None}
    ask(server, capsys, [*given, "--resume"])
    assert len(server.asked) == 5


def test_a_judge_is_not_asked_about_them(server: MemoryServer, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged: list[str] = []

    def opinion(request: httpx.Request) -> httpx.Response:
        judged.append(json.loads(request.content)["messages"][1]["content"])
        return httpx.Response(200, json={"choices": [{"message": {"content": '{"score": 10}'}}]})

    given = arguments(data, *REFUSALS, "--judge-url", "http://judge/v1", "--judge-model", "m")
    assert main(given, server.transport, httpx.MockTransport(opinion)) == 0
    assert len(judged) == 2 * 2
    methods = json.loads(capsys.readouterr().out.splitlines()[-1])["methods"]
    assert methods["auto"]["scores"]["judge"]["mean"] == 10


def test_they_are_of_documents_that_share_no_title_with_a_draw(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    asked = [{"question": f"{number}?", "answer": "x"} for number in range(4)]
    texts = [{"title": title, "text": f"{title} {n}", "questions": asked} for title in "abc" for n in range(2)]
    file.write_text("\n".join(map(json.dumps, texts)))

    def plan(seed: int, unanswerable: int) -> Plan:
        return draw_plan(
            "jsonl",
            file,
            [seed],
            chosen_methods(["lora", "auto", "auto:oracle"]),
            documents=1,
            questions=None,
            max_tokens=None,
            max_seconds=None,
            unanswerable=unanswerable,
        )

    for seed in range(5):
        found = plan(seed, 5)
        (drawn,), others = found.draws[seed], found.unanswerable[seed]
        assert drawn.item.title not in {one.item.title for one in others}
        assert sum(len(one.item.questions) for one in others) == 5
        assert found.draws == plan(seed, 0).draws
        assert found == plan(seed, 5)
        every = steps(seed, [drawn], found.methods, others)
        assert Counter((step.method.name, step.answerable) for step in every) == {
            ("lora", True): 4,
            ("auto", True): 4,
            ("auto:oracle", True): 4,
            ("auto", False): 5,
        }
        assert len({step.key for step in every}) == len(every)
    assert plan(0, 5).settings["draw"] != plan(0, 4).settings["draw"]
    assert "unanswerable" not in plan(0, 0).settings  # what was begun before there were any goes on
    with pytest.raises(BadData, match="--unanswerable 17: 16 questions are of documents with other titles"):
        plan(0, 17)


def test_a_smoke_run_has_some_as_well() -> None:
    plan = smoke_plan(0, chosen_methods(["auto"]), 3)
    (other,) = plan.unanswerable[0]
    assert len(other.item.questions) == 3
    assert other.key not in {one.key for one in plan.draws[0]}
