"""Sentences that go on over the end of a page, and the page numbers between their halves."""

import io

import pytest
from pypdfium2 import PdfDocument

from loramem.formats.pdf import _without_numbers, read
from tests.files import make_pdf


def text_of(*pages: list[str]) -> str:
    """What is read of a file of these pages, given as lines."""
    document = PdfDocument.new()
    for lines in pages:
        document.import_pages(PdfDocument(make_pdf([line.replace(")", r"\)") for line in lines])))
    stream = io.BytesIO()
    document.save(stream)
    return read(stream.getvalue(), "a.pdf").text


START, END = "Check the pressure before the valve is", "opened by the operator."


@pytest.mark.parametrize(
    "numbers",
    [
        ["12", "13"], ["xi", "xii"], ["XLIX", "L"], ["- 12 -", "- 13 -"], ["Page 12 of 30", "Page 13 of 30"],
        ["12 / 30", "13 / 30"], ["page 12", "page 13"], ["Seite 12 von 30", "Seite 13 von 30"], ["[12]", "[13]"],
    ],
)  # fmt: skip
def test_a_sentence_goes_on_over_a_page_number(numbers: list[str]) -> None:
    assert text_of([START, numbers[0]], [END, numbers[1]]) == f"{START} {END}"


def test_numbers_above_the_text_go_as_well() -> None:
    assert text_of(["12", START], ["13", END], ["One more.", "14"]) == f"{START} {END}\n\nOne more."


def test_a_long_line_does_not_take_the_number_below_it() -> None:
    long = "the lamp of Zorv burns for exactly nine days and"
    assert text_of(["The keeper says that", long, "1"], ["nine nights.", "2"]) == (
        f"The keeper says that\n{long} nine nights."
    )


@pytest.mark.parametrize("numbers", [["", ""], ["12", "13"], ["- 12 -", "- 13 -"]])
def test_a_word_is_joined_where_the_page_breaks_it(numbers: list[str]) -> None:
    assert text_of(["Opened by the oper-", numbers[0]], ["ator.", numbers[1]]) == "Opened by the operator."


def test_a_hyphen_after_a_figure_breaks_no_word() -> None:
    assert text_of(["It grew 10-"], ["fold."]) == "It grew 10- fold."


@pytest.mark.parametrize(
    ("end", "start"),
    [
        ("It is closed.", "then it is opened."),
        ("It is closed:", "then it is opened."),
        ('He said "closed"', "then it is opened."),
        ("Valves", "Then it is opened."),
        ("Valves", "3 are open."),
        ("a) the first valve", "b) the second valve"),
        ("i. the first valve", "ii. the second valve"),
    ],
)
def test_other_pages_are_paragraphs(end: str, start: str) -> None:
    assert text_of([end], [start]) == f"{end}\n\n{start}"


def test_a_page_without_text_does_not_end_the_sentence() -> None:
    assert text_of([START, "1"], ["2"], [], [END, "4"]) == f"{START} {END}"


@pytest.mark.parametrize(
    "pages",
    [
        [["Visitors in 1902:", "12"]],
        [["Visitors:", "12"], ["Visitors:", "40"], ["Visitors:", "7"]],
        [["Visitors:", "12"], ["Visitors:", "13"], ["None came."], ["None came."]],
        [["1902", "Ann came."], ["1903", "Bob came."], ["1904", "None came."]],
        [["Visitors: 12"], ["Visitors: 13"]],
        [["Lamp 12"], ["Lamp 13"]],
    ],
)
def test_other_figures_stay(pages: list[list[str]]) -> None:
    assert text_of(*pages) == "\n\n".join("\n".join(page) for page in pages)


@pytest.mark.parametrize("letter", ["\u0131", "\u0130", "\u0661", "\u00b2"])
def test_signs_that_are_near_to_numerals_are_words(letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pypdfium2.PdfTextPage.get_text_range", lambda _: f"Words.\r\n{letter}")
    assert text_of(["any"], ["any"]) == f"Words.\n{letter}\n\nWords.\n{letter}"


def test_the_first_page_need_not_have_a_number() -> None:
    assert text_of(["The Lamps of Zorv"], [START, "2"], [END, "3"]) == f"The Lamps of Zorv\n\n{START} {END}"


def test_a_lone_page_keeps_its_number() -> None:
    assert text_of([START, "12"]) == f"{START}\n12"


def test_pages_of_years_keep_them() -> None:
    pages = ["Plan A\n2019", "Plan B\n2020", "Plan C\n2021"]
    assert _without_numbers(pages) == pages
