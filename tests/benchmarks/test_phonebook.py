from pathlib import Path

import pytest

from benchmarks.phonebook import Stored, cut, exact_matches, parse_row, read_phonebook
from benchmarks.teach import Cost
from trainer_worker.examples import Example

ROWS = [Example(f"What is the phone number of {name}?", f"555-000{name}", "user") for name in "12345"]


def test_a_row_is_a_question_and_a_number() -> None:
    row = parse_row("Question: What is the phone number of Jon Ask? Answer: 555-010-2233")
    assert row == Example("What is the phone number of Jon Ask?", "555-010-2233", "user")


@pytest.mark.parametrize("text", ["", "Jon Ask 555-010-2233", "Question: Who? Answer: ", "Question: Who? Answer: 5 5"])
def test_another_row_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a row"):
        parse_row(text)


def test_a_slice_is_found_by_its_load(tmp_path: Path) -> None:
    folder = tmp_path / "paper" / "phonebook"
    folder.mkdir(parents=True)
    lines = ["text", *(f"Question: {row.question} Answer: {row.answer}" for row in ROWS)]
    (folder / "phonebook_qa_3K.csv").write_text("\n".join(lines) + "\n")
    assert read_phonebook(tmp_path, 3) == ROWS
    with pytest.raises(FileNotFoundError):
        read_phonebook(tmp_path, 4)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_are_consecutive_and_of_one_length(parts: int) -> None:
    found = cut(ROWS, parts)
    assert [row for part in found for row in part] == ROWS
    assert len(found) == parts
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize("parts", [0, 6])
def test_no_part_is_empty(parts: int) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        cut(ROWS, parts)


def test_only_the_number_alone_is_a_match() -> None:
    answers = ["555-0001", " 555-0002\n", "It is 555-0003", "555-0005", ""]
    assert exact_matches(ROWS, answers) == 2


def test_figures_count_facts_by_parameters() -> None:
    stored = Stored(rows=48, right=36, cost=Cost(16, 3_000_000, 75, 118.04, 4.0, 0.00123))
    assert stored.share == 0.75
    assert stored.figures["facts_per_million_parameters"] == 12.0
    assert (stored.figures["exact_match"], stored.figures["seconds"], stored.figures["loss"]) == (0.75, 118.04, 0.0012)
