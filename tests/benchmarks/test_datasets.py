import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.datasets import DATA_SETS, Asked, BadData, Item, read_items

QA = [{"question": "Who built it?", "answer": "Jon Ask"}]
LEVAL = {"input": "Jon Ask built it.", "instructions": ["Who?\n (A) Orm \n (B) Jon Ask "], "outputs": ["(B) Jon Ask"]}
NYU = {
    "title": "Mill",
    "article": "Jon Ask built it.",
    "questions": [{"question": "Who?", "options": ["Orm", "Jon Ask"], "gold_label": 2, "difficult": 1}],
}
NARRATIVE = {
    "document": {"text": "Jon Ask built it.", "summary": {"title": "Mill", "text": "A mill."}},
    "question": {"text": "Who?"},
    "answers": [{"text": "Jon"}, {"text": "Jon Ask"}],
}
FAIRYTALE = {
    "story": "Mill",
    "sections": [{"section": "1", "text": "Jon Ask built it."}, {"section": "2", "text": "It is larch."}],
    "questions": [{"question": "Who?", "answer1": "Jon", "answer2": "", "answer4": "Jon Ask", "local-or-sum": "local"}],
}
ASKED = [
    {"id": "1", "question": "Who built it?", "answers": [{"text": "Jon Ask", "answer_start": 0}]},
    {"id": "2", "question": "Who sold it?", "answers": [], "is_impossible": True},
]
SQUAD = {
    "version": "1.1",
    "data": [{"title": "Hadle_Mill", "paragraphs": [{"context": "Jon Ask built it.", "qas": ASKED}]}],
}
PAPER = {"title": "Mill", "introduction": "Jon Ask built it.", "QA": [{"level": 3, **QA[0]}]}


def write(folder: Path, name: str, *records: Any) -> Path:
    """JSONL, compressed where the name says so, or one JSON value."""
    file = folder / name
    text = "\n".join(map(json.dumps, records))
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return file


@pytest.mark.parametrize(
    ("name", "file", "records", "item"),
    [
        (
            "squad",
            "s.json",
            [[{"title": "Mill", "context": "Jon Ask built it.", "questions": QA}]],
            Item("Mill", "Jon Ask built it.", (Asked("Who built it?", ("Jon Ask",)),)),
        ),
        (
            "squad",
            "official.json",
            [SQUAD],
            Item("Hadle Mill", "Jon Ask built it.", (Asked("Who built it?", ("Jon Ask",)),)),
        ),
        (
            "quality",
            "q.jsonl",
            [LEVAL],
            Item("Jon Ask built it.", "Jon Ask built it.", (Asked("Who?", ("Jon Ask",), None, ("Orm", "Jon Ask"), 1),)),
        ),
        (
            "quality",
            "q.jsonl",
            [NYU],
            Item("Mill", "Jon Ask built it.", (Asked("Who?", ("Jon Ask",), "hard", ("Orm", "Jon Ask"), 1),)),
        ),
        (
            "narrativeqa",
            "n.jsonl",
            [NARRATIVE, NARRATIVE | {"question": {"text": "What?"}}],
            Item(
                "Mill",
                "Jon Ask built it.",
                (Asked("Who?", ("Jon", "Jon Ask")), Asked("What?", ("Jon", "Jon Ask"))),
            ),
        ),
        (
            "narrativeqa",
            "n.json",
            [{"title": "Mill", "text": "Larch.", "questions": [{"question": "Who?", "answers": ["Jon", "Ask"]}]}],
            Item("Mill", "Larch.", (Asked("Who?", ("Jon", "Ask")),)),
        ),
        (
            "fairytaleqa",
            "f.jsonl.gz",
            [FAIRYTALE],
            Item("Mill", "Jon Ask built it.\n\nIt is larch.", (Asked("Who?", ("Jon", "Jon Ask"), "local"),)),
        ),
        (
            "paperqa",
            "p.json",
            [[PAPER]],
            Item("Mill", "Jon Ask built it.", (Asked("Who built it?", ("Jon Ask",), "3"),)),
        ),
        (
            "paperqa",
            "p.json",
            [[PAPER | {"QA": repr(PAPER["QA"])}]],
            Item("Mill", "Jon Ask built it.", (Asked("Who built it?", ("Jon Ask",), "3"),)),
        ),
        (
            "jsonl",
            "own.jsonl",
            [{"document": "Jon Ask built it.", "questions": QA}],
            Item("Jon Ask built it.", "Jon Ask built it.", (Asked("Who built it?", ("Jon Ask",)),)),
        ),
    ],
)
def test_each_public_form_gives_documents_with_questions(
    tmp_path: Path, name: str, file: str, records: list[Any], item: Item
) -> None:
    path = write(tmp_path, file, *records)
    assert read_items(name, path) == ([item], path)


def test_a_phone_book_is_a_document_for_each_sector(tmp_path: Path) -> None:
    for sector in ("00", "01"):
        row = f"Question: What is the phone number of Jon {sector}? Answer: 603-{sector}"
        (tmp_path / f"phonebook_qa_128K_sector_{sector}.csv").write_text(f"text\n{row}\n")
    first, second = read_items("phonebook", tmp_path)[0]
    assert second.questions == (Asked("What is the phone number of Jon 01?", ("603-01",)),)
    assert first.text == "Question: What is the phone number of Jon 00? Answer: 603-00"
    (tmp_path / "phonebook_qa_128K_sector_01.csv").write_text("text\nJon: 12\n")
    with pytest.raises(BadData, match=r"sector_01\.csv:2: not a row of a phone book"):
        read_items("phonebook", tmp_path)


def test_counterfact_asks_for_statements_of_the_slice_alone(tmp_path: Path) -> None:
    (tmp_path / "slice.csv").write_text("text\nOrm speaks Basque\nThe mill is in Peru\n")
    pairs = [{"question": "Orm speaks", "answer": "Basque"}, {"question": "Orm lives in", "answer": "Oslo"}]
    (tmp_path / "counterfact_eval_qa.json").write_text(json.dumps(pairs))
    (item,) = read_items("counterfact", tmp_path / "slice.csv")[0]
    assert item.text == "Orm speaks Basque\nThe mill is in Peru"
    assert item.questions == (Asked("Complete the sentence: Orm speaks", ("Basque",)),)
    (tmp_path / "slice.csv").write_text("statement\nOrm speaks Basque\n")
    with pytest.raises(BadData, match=r"slice\.csv:1: no column `text`"):
        read_items("counterfact", tmp_path / "slice.csv")


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        ("jsonl", "a.jsonl", '{"text": "x", "questions": []}\n{"text": ', r"a\.jsonl:2: not JSON"),
        ("jsonl", "a.jsonl", "\n[1]", r"a\.jsonl:2: must be a JSON object"),
        ("jsonl", "a.jsonl", '{"questions": []}', r"a\.jsonl:1: `document` must be text, not None"),
        ("jsonl", "a.jsonl", '{"text": "x", "questions": [{"question": "Q"}]}', r"a\.jsonl:1: `answer` must be text"),
        ("jsonl", "a.jsonl", '{"text": "x", "questions": [{"question": "Q", "answers": []}]}', "is empty"),
        ("jsonl", "a.jsonl", '{"text": "x", "questions": []}', "no document with a question"),
        ("squad", "a.json", '[{"title": "T", "context": "x", "questions": 1}]', r"a\.json: entry 1: `questions` must"),
        ("squad", "a.json", '{"data": [{"title": "T"}]}', r"a\.json: entry 1: `data` must be as in SQuAD: KeyError"),
        ("squad", "a.json", "{,", r"a\.json: not JSON"),
        ("paperqa", "a.json", '[{"introduction": "x", "QA": "[1"}]', r"entry 1: `QA` must be a list, as JSON or"),
        ("quality", "a.jsonl", json.dumps(LEVAL | {"outputs": []}), "1 instructions, but 0 outputs"),
        ("quality", "a.jsonl", json.dumps(LEVAL | {"outputs": ["(C) No"]}), r"one of \(A\), \(B\), not be"),
        ("quality", "a.jsonl", json.dumps(LEVAL | {"instructions": ["Who? (B) x (A) y"]}), "no options"),
        ("quality", "a.jsonl", json.dumps(NYU).replace(": 2", ": 3"), "`gold_label` must be a number from 1 to 2"),
        ("fairytaleqa", "a.jsonl", json.dumps(FAIRYTALE).replace('"Jon"', '""').replace('"Jon Ask"', '""'), "without"),
    ],
)
def test_bad_files_say_where_and_what(tmp_path: Path, name: str, file: str, text: str, said: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(BadData, match=said):
        read_items(name, tmp_path / file)


def test_your_own_set_needs_a_file_and_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="name its file with --data"):
        read_items("jsonl", None)
    for name in DATA_SETS:
        with pytest.raises(FileNotFoundError):
            read_items(name, tmp_path / "none.jsonl")


def test_options_are_put_by_letter() -> None:
    asked = Asked("Who?", ("Jon",), None, ("Orm", "Jon"), 1)
    assert asked.prompt == "Who?\n(A) Orm\n(B) Jon\nAnswer with the letter of the right option."
    assert Asked("Who?", ("Jon",)).prompt == "Who?"
