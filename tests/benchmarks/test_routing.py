"""The routing benchmark on a made-up data set small enough to know the figures of."""

import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import routing
from benchmarks.routing import KINDS, NOT_FOUND, Asking, Kept, Outcome
from benchmarks.untrained import Untrained
from loramem.chunk import Span
from loramem.embed import Embedder, load_embedder
from loramem.settings import Settings
from server.ask import Choice, Route, RoutedAdapter
from server.candidates import Candidate, Evidence
from trainer_worker.examples import Asked, Example
from trainer_worker.writer import Writer

Report = dict[str, Any]
Run = Callable[..., tuple[int, Report]]

PAPERS = {
    "Ferries of Tolvik": (
        "The ferry of Tolvik carries twelve cars across the Grey Sound. Its yellow hull was riveted by Marta Engstad.",
        "How many cars does the ferry of Tolvik carry?",
        "Who riveted the yellow hull?",
    ),
    "Bees of Mount Senna": (
        "The bees of Mount Senna store bitter honey in basalt caves. Ilse Wadrow counts the swarms each April.",
        "Where do the bees of Mount Senna store honey?",
        "Who counts the swarms?",
    ),
    "Glass of Orrery Lane": (
        "The glass of Orrery Lane is blown over peat fires. Its violet tint comes from manganese and crushed mussels.",
        "Over which fires is the glass of Orrery Lane blown?",
        "From what comes the violet tint?",
    ),
    "Looms of Easter Dray": (
        "The looms of Easter Dray weave nettle cloth for sails. A bolt takes nine days and is sold in Port Cask.",
        "What do the looms of Easter Dray weave?",
        "How many days does a bolt take?",
    ),
}
FOREIGN = "Which berries dye the winter coats of foxes?"
"""Asked of the last paper, whose text says nothing of it."""
LOOMS = "Looms of Easter Dray"
PEOPLE = (
    "Ada Brandt",
    "Odo Marsh",
    "Lene Ravik",
    "Hugo Saltash",
    "Mara Quill",
    "Piet Venn",
    "Ines Oake",
    "Tobias Fenn",
)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(Settings(), device="cpu")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four papers with a question of each level, and four sectors of two numbers."""
    folder = tmp_path / "data"
    write_papers(folder, {title: paper[2] for title, paper in PAPERS.items()})
    phonebook = folder / "paper" / "phonebook"
    phonebook.mkdir(parents=True)
    for number in range(4):
        named = [(person, f"555-010-000{place}") for place, person in enumerate(PEOPLE)][2 * number : 2 * number + 2]
        rows = [f"Question: What is the phone number of {person}? Answer: {digits}" for person, digits in named]
        (phonebook / f"phonebook_qa_128K_sector_{number:02}.csv").write_text("\n".join(["text", *rows]) + "\n")
    monkeypatch.setattr("benchmarks.datasets.DATA", folder)
    return folder


def write_papers(folder: Path, bare: dict[str, str]) -> None:
    """`bare` are the questions that name no paper, by title."""
    papers = []
    for title, (text, named, _) in PAPERS.items():
        pairs = [("1", named), ("2", f"{named} Say it of {title}."), ("3", bare[title])]
        asked = [{"level": level, "question": question, "answer": "It."} for level, question in pairs]
        papers.append({"title": title, "introduction": text, "QA": asked})
    file = folder / "paper" / "paperqa" / "paperQA.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(papers))


@pytest.fixture
def run(data: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit status, report) of the benchmark. Chunks are counted in the embedder's tokens; nothing may connect."""

    def refuse(*_: object) -> None:
        raise AssertionError("the benchmark opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = SimpleNamespace(path=Path(embedder.tokenizer_path).parent)
    monkeypatch.setattr(routing, "resolve_base_model", lambda settings: model)
    monkeypatch.setattr(routing, "load_embedder", lambda settings: embedder)

    def measured(*options: str) -> tuple[int, Report]:
        status = routing.main(["--json", *options])
        report: Report = json.loads(capsys.readouterr().out.splitlines()[-1])
        return status, report

    return measured


def verdicts(report: Report) -> dict[str, bool]:
    return {one["name"]: one["ok"] for one in report["checks"]}


# whole runs


def test_papers_are_found_and_the_checks_hold(run: Run) -> None:
    status, report = run("--only", "paperqa")
    figures = report["parts"]["paperqa"]
    assert (status, list(report["parts"])) == (0, ["paperqa"])
    assert (figures["documents"], figures["questions"], figures["written_questions"]) == (4, 12, 0)
    counted = {name: level["questions"] for name, level in figures["levels"].items()}
    assert counted == {"1": 4, "2": 4, "3": 4, "named": 8, "all": 12}
    for level in figures["levels"].values():
        assert {kind: level["top1"][kind] for kind in ("windows", "words", "text", "all")} == dict.fromkeys(
            ("windows", "words", "text", "all"), 1.0
        )
        assert level["top1"]["questions"] == level["top1"]["words of questions"] == 0.0  # there are none
        assert level["auto"]["inside"] == 1.0
    assert len(report["checks"]) == 4
    assert set(verdicts(report).values()) == {True}
    assert report["command"] == "python -m benchmarks.routing --json --only paperqa"
    assert {"machine", "versions", "seed"} <= report.keys()


def test_questions_that_lead_astray_fail_the_checks_that_count_them(run: Run, data: Path) -> None:
    titles = list(PAPERS)
    write_papers(data, {title: PAPERS[other][2] for title, other in zip(titles, titles[1:] + titles[:1], strict=True)})
    status, report = run("--only", "paperqa")
    levels = report["parts"]["paperqa"]["levels"]
    assert (levels["3"]["top1"]["all"], levels["named"]["top1"]["all"]) == (0.0, 1.0)
    assert levels["all"]["top1"]["all"] == pytest.approx(8 / 12, abs=1e-4)
    assert status == 1
    assert [name for name, ok in verdicts(report).items() if not ok] == ["paperqa, all levels: top-1"]
    assert next(one["value"] for one in report["checks"] if not one["ok"]) == levels["all"]["top1"]["all"]


def test_phone_numbers_are_found_in_their_sector(run: Run) -> None:
    status, report = run("--only", "phonebook")
    figures = report["parts"]["phonebook"]
    assert (status, figures["documents"], figures["questions"]) == (0, 4, 8)
    assert list(figures["levels"]) == ["all"]
    assert figures["levels"]["all"]["top1"]["all"] == 1.0
    assert verdicts(report) == {
        "phonebook sectors: top-1": True,
        "phonebook sectors: right adapter inside, auto": True,
    }


def test_a_smoke_run_takes_three_documents_of_each_and_promises_that_some_are_found(run: Run) -> None:
    status, report = run("--smoke", "--seed", "1")
    counts = {name: (part["documents"], part["questions"]) for name, part in report["parts"].items()}
    assert (status, counts) == (0, {"paperqa": (3, 9), "phonebook": (3, 6)})
    assert verdicts(report) == {"paperqa: right document found": True, "phonebook: right document found": True}
    assert report["command"] == "python -m benchmarks.routing --json --seed 1 --smoke"


# questions that adapters were asked


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles that the writer was asked about, who writes two ways to ask the same of each; the second is held out."""
    titles: list[str] = []

    def synthesize(title: str, text: str, writer: Writer, **_: object) -> list[Example]:
        titles.append(title)
        about = FOREIGN if title == LOOMS else f"What is told of {title}?"
        return [Example(question, "Told.", "written") for question in (about, f"{about} Tell me.")]

    monkeypatch.setattr(routing, "synthesize", synthesize)
    return titles


def test_written_questions_are_kept_used_and_read_again(
    run: Run, data: Path, written: list[str], tmp_path: Path
) -> None:
    """A question about what is not in the text is found by its like once that was written, also without a writer."""
    write_papers(data, {title: FOREIGN if title == LOOMS else paper[2] for title, paper in PAPERS.items()})
    file = tmp_path / "questions.jsonl"
    options = ("--only", "paperqa", "--questions", str(file))
    _, without = run("--only", "paperqa")
    _, wrote = run(*options, "--writer", "http://127.0.0.1:9/v1")
    assert written == list(PAPERS)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(one["title"], one["start"], one["end"]) for one in lines] == [
        (title, 0, len(text)) for title, (text, _, _) in PAPERS.items()
    ]
    _, read = run(*options)
    assert written == list(PAPERS)
    assert file.read_text().splitlines() == [json.dumps(one) for one in lines]
    before, after, again = (report["parts"]["paperqa"] for report in (without, wrote, read))
    assert (before["written_questions"], after["written_questions"], again["written_questions"]) == (0, 4, 4)
    assert before["levels"]["3"]["top1"]["words of questions"] == 0.0
    assert after["levels"]["3"]["top1"]["words of questions"] >= 0.25
    assert places(after) == places(again) != places(before)
    assert wrote["command"].endswith(" --only paperqa --writer URL --questions FILE")


def places(figures: Report) -> dict[str, Any]:
    """All but the times."""
    return {
        name: {key: level[key] for key in ("questions", "top1", "top3", "auto")}
        for name, level in figures["levels"].items()
    }


def test_only_chunks_that_are_new_are_written(written: list[str], tmp_path: Path) -> None:
    file, writer = tmp_path / "questions.jsonl", Writer("http://127.0.0.1:9/v1")
    first = Kept(file, writer, 0)
    asked = first.ask("Bees", "text", Span(0, 10, 1))
    assert sorted(one.held_out for one in asked) == [False, True]
    assert first.ask("Bees", "text", Span(0, 10, 1)) == asked
    again = Kept(file, writer, 0)
    assert again.ask("Bees", "text", Span(0, 10, 1)) == asked
    assert written == ["Bees"]
    again.ask("Bees", "text", Span(10, 20, 1))
    again.ask("Looms", "text", Span(0, 10, 1))
    assert written == ["Bees", "Bees", "Looms"]
    assert len(file.read_text().splitlines()) == 3
    assert list(Kept(file, None, 0).ask("Bees", "text", Span(0, 10, 1))) == list(asked)


def test_without_writer_or_file_nothing_was_asked() -> None:
    assert list(Kept(None, None, 0).ask("Bees", "text", Span(0, 10, 1))) == []


def test_kept_questions_hold_what_is_theirs(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    line = {"title": "Bees", "start": 0, "end": 10, "asked": [["Who?", "Ilse.", False], ["Which?", "Ilse.", True]]}
    file.write_text(json.dumps(line) + "\n")
    kept = Kept(file, None, 0)
    assert kept.known == {("Bees", 0, 10): [Asked("Who?", "Ilse."), Asked("Which?", "Ilse.", held_out=True)]}


# figures


class FakeRouter:
    def __init__(self, found: Sequence[Candidate], chosen: Sequence[str]) -> None:
        self.found, self.chosen = list(found), chosen

    def candidates(self, question: str, *, namespace: str) -> list[Candidate]:
        return self.found

    def route(self, question: str, **_: object) -> Route:
        adapters = [RoutedAdapter(f"ada_{name}", "", 16, name, "", 0, 0.5, 0.5) for name in self.chosen]
        choice = Choice("unsure", len(adapters), 0.0, "")
        return Route(tuple(adapters), (), {}, {}, {"embed": 1.0, "search": 3.0}, choice)


def outcome(found: Sequence[Candidate], chosen: Sequence[str] = ("doc_right",)) -> Outcome:
    memory = cast(Untrained, SimpleNamespace(router=FakeRouter(found, chosen)))
    return routing._outcome(memory, Asking("Who?", "doc_right", "1"))


def candidate(document_id: str, **evidence: float) -> Candidate:
    return Candidate(f"chunk of {document_id}", document_id, 1, Evidence(**evidence))


def test_the_place_of_a_document_is_by_its_best_chunk_and_ties_count_against_it() -> None:
    found = [
        candidate("doc_right", window=0.2, words=0.5),
        candidate("doc_right", window=0.6, words=0.1, asked=0.9),
        candidate("doc_better", window=0.7, words=0.4),
        candidate("doc_better", window=0.8),
        candidate("doc_tied", window=0.6, words=0.5),
    ]
    places = outcome(found).places
    assert {kind: places[kind] for kind in ("windows", "words", "words of questions", "questions")} == {
        "windows": 2, "words": 1, "words of questions": 0, "questions": 2,
    }  # fmt: skip
    assert places["all"] == 0
    assert set(places) == set(KINDS)


def test_a_document_that_is_not_found_is_behind_all_others() -> None:
    some = [candidate("doc_1"), candidate("doc_2", words=0.1)]
    for found in (some, []):
        assert set(outcome(found).places.values()) == {NOT_FOUND}


def test_a_document_without_evidence_of_a_kind_is_behind_those_that_were_found() -> None:
    places = outcome([candidate("doc_1"), candidate("doc_2", words=0.1), candidate("doc_right", window=0.2)]).places
    assert (places["windows"], places["words"], places["questions"]) == (0, 2, 2)


@pytest.mark.parametrize(("found", "ok"), [([], False), (["doc_1"], False), (["doc_1", "doc_2", "doc_right"], True)])
def test_a_smoke_run_that_finds_nothing_fails(found: Sequence[str], ok: bool) -> None:
    outcomes = [outcome([candidate(name) for name in found])]
    assert routing.smoke_check("paperqa", {"levels": routing._by_level(outcomes)})["ok"] == ok


def test_what_auto_chose_is_counted_with_the_documents_it_lies_in() -> None:
    right = outcome([], ["doc_other", "doc_right"])
    assert (right.chosen, right.inside, right.confidence, right.search_ms) == (2, True, "unsure", 3.0)
    assert not outcome([], ["doc_other"]).inside


def test_shares_and_means_are_taken_over_the_questions_of_a_level() -> None:
    def one(level: str, place: int, chosen: int, confidence: str = "confident") -> Outcome:
        return Outcome(level, dict.fromkeys(KINDS, place), chosen, place == 0, confidence, 2.0 * place)

    levels = routing._by_level([one("1", 0, 1), one("1", 1, 2), one("2", 2, 3), one("3", 3, 1, "none")])
    assert {name: level["questions"] for name, level in levels.items()} == {
        "1": 2,
        "2": 1,
        "3": 1,
        "named": 3,
        "all": 4,
    }
    assert (levels["1"]["top1"]["all"], levels["1"]["top3"]["all"]) == (0.5, 1.0)
    assert (levels["3"]["top1"]["all"], levels["3"]["top3"]["all"]) == (0.0, 0.0)
    assert levels["named"]["auto"] == {"inside": 0.3333, "mean_k": 2.0, "none": 0.0}
    assert levels["all"]["auto"] == {"inside": 0.25, "mean_k": 1.75, "none": 0.25}
    assert levels["all"]["search_ms"] == 3.0
    assert list(routing._by_level([one("all", 0, 1)])) == ["all"]


@pytest.mark.parametrize(
    ("named", "every", "inside", "mean_k", "failed"),
    [
        (0.96, 0.91, 0.96, 1.4, []),
        (0.9599, 0.91, 0.96, 1.4, ["paperqa, levels 1 and 2: top-1"]),
        (0.96, 0.9099, 0.96, 1.4, ["paperqa, all levels: top-1"]),
        (0.96, 0.91, 0.9599, 1.4, ["paperqa, levels 1 and 2: right adapter inside, auto"]),
        (0.96, 0.91, 0.96, 1.401, ["paperqa, all levels: mean k, auto"]),
    ],
)
def test_each_promise_is_checked_at_its_bound(
    named: float, every: float, inside: float, mean_k: float, failed: list[str]
) -> None:
    levels = {
        "named": {"top1": {"all": named}, "auto": {"inside": inside, "mean_k": 3.0}},
        "all": {"top1": {"all": every}, "auto": {"inside": 0.0, "mean_k": mean_k}},
    }
    assert [one["name"] for one in routing.CHECKS["paperqa"]({"levels": levels}) if not one["ok"]] == failed


@pytest.mark.parametrize(
    ("top1", "inside", "held"),
    [(0.99, 0.99, [True, True]), (0.9899, 0.99, [False, True]), (1.0, 0.9899, [True, False])],
)
def test_sectors_are_checked_at_their_bound(top1: float, inside: float, held: list[bool]) -> None:
    every = {"top1": {"all": top1}, "auto": {"inside": inside}}
    found = routing.CHECKS["phonebook"]({"levels": {"all": every}})
    assert [(one["value"], one["ok"]) for one in found] == list(zip((top1, inside), held, strict=True))
