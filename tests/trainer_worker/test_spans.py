"""What a statement tells that can be asked for."""

import pytest

from trainer_worker.spans import spans


def told(statement: str) -> list[tuple[str, str]]:
    return [(span.kind, span.text) for span in spans(statement, "")]


@pytest.mark.parametrize(
    ("statement", "text", "kind"),
    [
        ("Work began on 3 May 1896 in the bay.", "3 May 1896", "date"),
        ("It was founded in 1713.", "1713", "date"),
        ("The wheel measures 12 metres across.", "12 metres", "quantity"),
        ("They cross in forty minutes.", "forty minutes", "quantity"),
        ("The town has 4,600 people.", "4,600", "quantity"),
        ("It was paid for by the Duchess of Corvane.", "Duchess of Corvane", "name"),
        ("The wheel is made of larch.", "larch", "thing"),
        ('They call it "old grinder" here.', "old grinder", "name"),
        ("It runs on .NET Core now.", ".NET Core", "name"),
    ],
)
def test_spans_are_found_with_their_kind(statement: str, text: str, kind: str) -> None:
    assert any(span.kind == kind and text in span.text for span in spans(statement, ""))


def test_a_name_is_not_cut_at_an_accent_that_is_a_character_of_its_own() -> None:
    assert [span.text for span in spans("It was built by Adébọ̀lá Ask.", "")] == ["Adébọ̀lá Ask"]


def test_the_subject_is_no_span() -> None:
    assert [span.text for span in spans("In May the Hadle Mill burned.", "Hadle Mill")] == ["May"]


def test_number_words_inside_other_words_are_none() -> None:
    assert spans("She was sixteenth of them.", "") == []


@pytest.mark.parametrize(
    ("statement", "dates"),
    [
        ("We met on 2031-05-06, 9:30–10:15.", ["2031-05-06", "9:30", "10:15"]),
        ("2031-05-06T09:30:00Z the pump has stopped", ["2031-05-06", "09:30:00"]),
        ("We met on 6 Sept. 2031 and on Oct 9, 2031.", ["6 Sept. 2031", "Oct 9, 2031"]),
        ("The mill opens in Nov 2031, on 9 Nov or so.", ["Nov 2031", "9 Nov"]),
        ("It shuts at 7:05pm, or 9:40 p.m. or 11:30 PM.", ["7:05pm", "9:40 p.m.", "11:30 PM"]),
        ("It opens from 8:10 to 9:20, or at 7:30 until 9:00.", ["8:10", "9:20", "7:30", "9:00"]),
        ("Sie ist um 9:00 offen, 8:15-9:30.", ["9:00", "8:15", "9:30"]),
        ("The lease ran from 06.05.1931 to 7/12/1944.", ["06.05.1931", "7/12/1944"]),
        ("The war of 1914-1918 and, in 1890, he left.", ["1914", "1918", "1890"]),
        ("Yesterday Jan and Mar Ask spoke.", []),
    ],
    ids=[
        "ISO",
        "a timestamp",
        "short months",
        "without a day or a year",
        "halves of a day",
        "one digit",
        "whole hours and ranges",
        "figures",
        "years",
        "persons",
    ],
)
def test_a_date_or_a_time_is_one_span(statement: str, dates: list[str]) -> None:
    found = told(statement)
    assert [text for kind, text in found if kind == "date"] == dates
    assert "quantity" not in dict(found)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("We mended CVE-2031-0815 there.", [("name", "CVE-2031-0815")]),
        ("We mended it in #1733 and pull/1734.", []),
        ("We run v2.14.7 today.", []),
        ("We are at 555-0199 or 603-555-7631.", []),
    ],
)
def test_a_number_that_is_part_of_a_name_is_no_date_and_counts_nothing(
    statement: str, expected: list[tuple[str, str]]
) -> None:
    assert told(statement) == expected


@pytest.mark.parametrize(
    ("statement", "quantity"),
    [
        ("It costs $1750 now.", "$1750"),
        ("It costs € 1750 now.", "1750"),
        ("It costs 1750.50 now.", "1750.50"),
        ("Release 2.7 was withdrawn.", "2.7"),
        ("We use TLS 1.3 there.", "1.3"),
        ("The ratio of 16:09 is old.", "16:09"),
        ("They won 12:10 then.", "12:10"),
        ("The map is 3:10 of it.", "3:10"),
        ("Wir haben 9:15 bis Mai.", "9:15"),
        ("It is 12 km long.", "12"),
        ("They last 30 days.", "30 days"),
        ("3.5 Million came.", "3.5"),
        ("It fell by 5 per cent.", "5 per cent"),
    ],
)
def test_a_quantity_is_a_number_with_its_unit_and_no_more(statement: str, quantity: str) -> None:
    assert told(statement)[0] == ("quantity", quantity)
    assert "date" not in dict(told(statement))


@pytest.mark.parametrize("mark", ["", "- ", "## ", "* [x] ", "12. ", "b) ", "3.2 ", "3.2. ", "**", '"'])
def test_the_first_word_is_no_name_whatever_mark_is_before_it(mark: str) -> None:
    assert told(f"{mark}The gate of Orm was closed") == [("name", "Orm")]


@pytest.mark.parametrize("statement", ["They wait for up to a day.", "It is paid for by the Duchess of Orm."])
def test_a_thing_says_something(statement: str) -> None:
    assert "thing" not in dict(told(statement))
