import textwrap
import time

import pytest

from tests.trainer_worker.texts import MILL, ODD_TEXTS
from trainer_worker.blocks import plain
from trainer_worker.sentences import sentences
from trainer_worker.statements import (
    MAX_TOGETHER,
    MAX_WORDS,
    statements,
    words_of_many,
)
from trainer_worker.subject import name_of
from trainer_worker.words import WORD_BYTES, size_of


def texts(title: str, text: str) -> list[str]:
    return [statement.text for statement in statements(title, plain(text))]


def test_pronoun_that_opens_a_sentence_gives_way_to_the_title() -> None:
    assert "Hadle Mill was built by Jon Ask in 1820 from yellow brick." in texts("Hadle Mill", MILL)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Its roof is copper.", "The veiled marmot's roof is copper."),
        ("It sleeps.", "The veiled marmot sleeps."),
    ],
)
def test_subject_that_is_no_name_gets_an_article(sentence: str, expected: str) -> None:
    assert texts("The veiled marmot", f"The veiled marmot is small. {sentence}")[1] == expected


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("Hadle Mill is old. A boat sank in May. It was never found.", "A boat sank in May. It was never found."),
        ("Hadle Mill is old. It has doors. They are blue.", "Hadle Mill has doors. They are blue."),
        ("Hadle Mill had sails. Only two of them broke.", "Hadle Mill had sails. Only two of them broke."),
        ("Hadle Mill is old. Jon Ask saved it. He left.", "Jon Ask saved it. He left."),
        ("Hadle Mill was sold by Jon Ask. He left.", "Hadle Mill was sold by Jon Ask. He left."),
        ("Hadle Mill is old. It was sold. Its roof is flat. It leaks.", "Hadle Mill's roof is flat. It leaks."),
        ("Hadle Mill is old. Jon had a barn. He had a boat. It sank.", "Jon had a barn. He had a boat. It sank."),
        ("Hadle Mill is old. A boat sank in May.[3] It is gone.", "A boat sank in May.[3] It is gone."),
    ],
    ids=["a thing", "things", "some of them", "a person", "the only person", "a part of it", "several", "footnote"],
)
def test_a_sentence_that_points_back_is_one_with_what_is_before(text: str, last: str) -> None:
    found = texts("Hadle Mill", text)
    assert found[-1] == last
    assert found[0].startswith("Hadle Mill")
    assert " ".join(found).count(".") == text.count(".")


@pytest.mark.parametrize(
    "sentence",
    ["It was in May that the boat sank.", "This year it sinks.", "Many of those who came left.", "Itself it sank."],
)
def test_a_sentence_that_is_understood_alone_stands_alone(sentence: str) -> None:
    assert texts("Hadle Mill", f"A boat is old. {sentence}") == ["A boat is old.", sentence]


@pytest.mark.parametrize("block", ["## History", "## Why was it built?", "- The roof is copper."])
def test_headings_and_items_of_lists_are_one_with_nothing(block: str) -> None:
    assert texts("", f"{block}\n\nIt was built in 1820.")[-1] == "It was built in 1820."


@pytest.mark.parametrize(
    "text",
    [
        "- The old sluice. It will be closed in May.",
        "2. Ask for a token. It expires after a day.",
        "## The sluice. It is closed.",
    ],
)
def test_an_item_or_a_heading_is_one_with_what_points_back_at_it_within(text: str) -> None:
    assert texts("", f"{text}\n\nIt rains.") == [text, "It rains."]


def test_the_cells_of_a_row_are_one_with_nothing() -> None:
    assert texts("", "| Wheel | Of larch. It turns. |")[0] == "| Wheel | Of larch."


@pytest.mark.parametrize(
    ("before", "last"),
    [
        ("She died in June.", "Oriel Tamsk died in June."),
        ("Her father burned. She died in June.", "Oriel Tamsk's father burned. She died in June."),
        ("The Queen lost her crown. She died in June.", "The Queen lost her crown. She died in June."),
    ],
    ids=["the subject", "a relative", "another"],
)
def test_a_person_is_named_only_right_after_a_sentence_that_is_about_her(before: str, last: str) -> None:
    assert texts("Oriel Tamsk", f"Oriel Tamsk is old. She drew caves. {before}")[-1] == last


def test_a_piece_of_a_long_sentence_is_one_with_the_piece_before_if_it_says_nothing_alone() -> None:
    closes = "Where the water rises too fast for the old drums, a cork float closes the inlet gate by itself"
    added = " device was added in 1911 after the mill at Tarn Ferry had been smashed."
    assert texts("", f"{closes}; this{added}") == [f"{closes}. This{added}"]
    assert texts("", f"{closes}; a{added}") == [f"{closes}.", f"A{added}"]


def test_a_statement_has_no_more_than_its_words() -> None:
    long = f"The wheel has {'very ' * 22}many teeth."
    room = MAX_TOGETHER - len(long.split())
    fits = f"It turns{' and' * (room - 2)}."
    assert texts("", f"{long} {fits}") == [f"{long} {fits}"]
    assert texts("", f"{long} It {fits}") == [long, f"It {fits}"]


def test_the_source_is_what_the_document_has() -> None:
    text = "Hadle Mill is old. It has a wheel. It turns. Its teeth are of wood. They creak."
    *_, turns, teeth = statements("Hadle Mill", plain(text))
    assert (turns.text, turns.source) == ("Hadle Mill turns.", "It turns.")
    assert teeth.text == "Hadle Mill's teeth are of wood. They creak."
    assert teeth.source == "Its teeth are of wood. They creak."
    assert teeth.parts == ("Hadle Mill's teeth are of wood.", "They creak.")


def test_a_title_of_dots_is_none() -> None:
    assert texts(". .", "A boat is old. It sank.") == ["A boat is old. It sank."]


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("doc", "The document store was opened in May. It holds 12 shelves."),
        ("art", "The party met in Orm. It won 12 seats."),
        ("2", "In 1924 the mill burned down. It was rebuilt by Jon Ask."),
        ("1924", "In 1924 the mill burned down. It was rebuilt by Jon Ask."),
        ("a", "There is a mill in Orm. It was rebuilt by Jon Ask."),
        ("Art", "Art has a hall. A party met. It won 12 seats."),
        ("Kestrel", "Kestrels nest there. It hunts there."),
    ],
    ids=["begins a word", "in a word", "in a number", "a year", "a letter", "named before", "a plural"],
)
def test_a_title_within_another_word_or_without_one_of_its_own_stands_for_nothing(title: str, text: str) -> None:
    *_, before, last = text.split(". ")
    assert texts(title, text)[-1] == f"{before}. {last}"


@pytest.mark.parametrize("title", ["4chan", "2Pac", "K2", "EU", "3D Systems"])
def test_a_name_may_be_short_and_begin_with_a_digit(title: str) -> None:
    assert texts(title, f"{title} is old. It is known.") == [f"{title} is old.", f"{title} is known."]


def test_title_that_the_text_does_not_name_stands_for_nothing() -> None:
    assert "Orm. It was built by" in texts("upload-17", MILL)[0]


def test_long_sentences_are_cut_at_clauses() -> None:
    long = (
        "The mill at Hadle was closed for eleven years after the flood had carried its wheel away; "
        "the new wheel was carved from larch by two brothers who had never built one before."
    )
    parts = texts("", long)
    assert len(parts) == 2
    assert parts[1].startswith("The new wheel was carved")


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_no_statement_is_too_long_and_no_word_is_lost(text: str) -> None:
    found = texts("T", text)
    assert all(len(statement.split()) <= MAX_WORDS + 1 for statement in found)
    letters = {word for word in text.casefold().split() if word.isalnum() and 3 < len(word) < 100}
    assert letters <= set(" ".join(found).casefold().replace(".", " ").split())


@pytest.mark.parametrize("text", ["Q: " * 5000, "and, " * 50_000, "one; two, " * 30_000, ".NET " * 30_000])
def test_a_long_sentence_is_cut_in_a_time_that_its_length_gives(text: str) -> None:
    started = time.process_time()
    assert all(len(statement.split()) <= MAX_WORDS + 1 for statement in texts("T", text))
    assert time.process_time() - started < 5  # seconds; a minute when all cuts were looked at for each part


def test_a_text_without_any_sentence_gives_its_words_as_they_stand() -> None:
    column = "\n".join(str(number) for number in range(10, 90))
    found = texts("Table 3", column)
    assert " ".join(found).split() == column.split()
    assert all(len(statement.split()) <= MAX_WORDS for statement in found)


@pytest.mark.parametrize("text", ["\n" * 300, " " * 300, "-" * 100 + "\n" + "= " * 100])
def test_a_text_of_hardly_anything_is_no_error(text: str) -> None:
    found = texts("", text)
    assert " ".join(found).split() == text.split()
    assert all(len(statement.encode()) <= MAX_WORDS * WORD_BYTES for statement in found)


def test_no_letter_is_lost_where_a_capital_is_longer() -> None:
    """As that of the ligature in the word fish."""
    text = (
        "The pond by the mill has reeds in it that are very old now, and \N{LATIN SMALL LIGATURE FI}sh that swim "
        "all day long as if there were no mill at all for many miles in the whole of this wide green land of theirs, "
        "and the owner of the place sold it."
    )
    found = texts("", text)
    assert any(statement.startswith("FIsh that swim") for statement in found)
    assert found[-1].endswith("the owner of the place sold it.")


def test_wrapped_lines_are_one_sentence_and_list_lines_are_several() -> None:
    wrapped = "The mill at Hadle was closed for eleven years after a great flood had\ncarried its wheel away."
    assert len(sentences(wrapped)) == 1
    assert len(sentences(ODD_TEXTS["list"])) == 3


LONG_LINES = {
    "csv": """name,occupation,born in,lives in,speaks,age in years
Ada Brandt,keeper of the northern lighthouse,Orm,Velm,Danish,36
Jon Ask,builder of the watermill at Hadle,Tallow,Orm,Dutch,9""",
    "table": """| Name of the building | What it is used for today | Wood | Metres |
| Hadle Mill | Grinding buckwheat for the valley | Larch | 12 |
| Quillmere Light | Keeping ships away from the rocks | Oak | 31 |""",
    "list": """- The wheel of the mill measures twelve metres across the rim
- The roof of the mill has been of copper since a fire in 1911
- The owner of the mill grinds only buckwheat from the valley""",
}


@pytest.mark.parametrize("text", LONG_LINES.values(), ids=LONG_LINES.keys())
def test_each_line_is_a_statement_however_long_the_lines_are(text: str) -> None:
    assert texts("", text) == text.splitlines()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("Ada Brandt\n36\nJon Ask\n9", ["Ada Brandt 36", "Jon Ask 9"]),
        ("1.\nThe roof is copper.\n2.\nIt leaks.", ["1. The roof is copper.", "2. It leaks."]),
        ("The roof is copper.\n3.", ["The roof is copper. 3."]),
        ("The roof is copper.\n--\nIt leaks.", ["The roof is copper.", "It leaks."]),
        ("It is\n\n## 1. Use\n\n### 10.1. Of oats\n\nNone.", ["It is", "## 1. Use", "### 10.1. Of oats", "None."]),
        ("The roof leaks.\n\n**3. Repairs**", ["The roof leaks.", "**3. Repairs**"]),
    ],
    ids=["cells", "items", "a number at the end", "a rule", "numbered headings", "an emphasised heading"],
)
def test_no_letter_or_digit_is_lost_as_too_short_a_line(lines: str, expected: list[str]) -> None:
    assert sentences(lines) == expected


@pytest.mark.parametrize("text", [".NET 6 runs it", "- .NET 6 runs it", "The mill runs on .NET Core. It is old."])
def test_a_word_may_begin_with_a_dot(text: str) -> None:
    assert " ".join(sentences(text)) == text


def test_abbreviations_end_no_sentence() -> None:
    assert len(sentences("Dr. Ask came at 5 p.m. yesterday. He left.")) == 2


@pytest.mark.parametrize(
    "sentence",
    [
        "Heat to approx. 20 degrees.",
        "Use max. 5 kg of it.",
        "See vol. 3, pp. 12-15, ch. 4, sec. 2 there.",
        "The price incl. tax is 5 euros, excl. VAT it is 4.",
        "Tel. 12345 is open 5 hrs. a day.",
    ],
)
def test_abbreviations_of_manuals_end_no_sentence(sentence: str) -> None:
    assert sentences(f"{sentence} It is old.") == [sentence, "It is old."]


def test_sentences_may_begin_with_small_letters() -> None:
    text = [
        "Hi all.",
        "my dog is sick.",
        "vLLM has it.",
        "the mill is old.",
        "it was built in 1820.",
        "the roof is red.",
    ]
    assert sentences(" ".join(text)) == text


def test_words_that_tell_statements_apart_are_not_common() -> None:
    common = words_of_many(statements("Hadle Mill", plain(MILL)))
    assert "mill" in common
    assert "larch" not in common


def test_a_long_word_counts_as_several() -> None:
    assert size_of(["the", "mill"]) == 2
    assert size_of(["哈德尔磨坊建于一八二〇年，它的屋顶是铜的。"]) == 3


@pytest.mark.parametrize(
    ("title", "text", "name"),
    [
        ("sample", "The Saltglass Organ is an instrument. It has 444 pipes.", "Saltglass Organ"),
        ("The Saltglass Organ", "The Saltglass Organ is an instrument.", "The Saltglass Organ"),
        ("a", "The Saltglass Organ is a grand instrument. It has 444 pipes.", "Saltglass Organ"),
        ("Organ", "The Saltglass Organ is an instrument. It has 444 pipes.", "Organ"),
        ("notes", "Quillmere is a harbour. Ships like Quillmere.", "Quillmere"),
        ("notes", "Bread is baked here. Nobody knows why.", "notes"),
        ("notes", "In March the harbour freezes.", "notes"),
        ("notes", "It was built in 1874. It stands.", "notes"),
        ("notes", "", "notes"),
    ],
)
def test_a_text_is_about_its_title_or_the_name_it_opens_with(title: str, text: str, name: str) -> None:
    assert name_of(title, text) == name


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("4chan", "Christopher Poole founded 4chan in 2003."),
        ("1984", "George Orwell wrote 1984."),
        ("C++", "Bjarne Stroustrup wrote C++ in 1985."),
        ("EU", "Jean Monnet planned the EU."),
        ("서울", "Kim Lee was born in 서울."),
        ("Berlin", "Kai Wegner is Berlins Bürgermeister."),
        ("Kestrel", "Tall Trees shelter kestrels."),
        ("磨坊", "Hadle Mill was built by Ask（磨坊建于1820年）."),
        ("The art of the mill in the green land", "Jon Ask wrote The art of the mill in the green land."),
    ],
)
def test_no_other_name_stands_for_a_title_that_the_text_says(title: str, text: str) -> None:
    text += " It was much liked there."
    assert name_of(title, text) == title
    assert texts(title, text)[-1].endswith(" It was much liked there.")


@pytest.mark.parametrize(
    "text",
    [
        '{"keys":[' + ",".join(f'{{"id":{number},"name":"n{number}"}}' for number in range(99)) + "]}",
        "การเรียนรู้ภาษาไทยเป็นเรื่องที่น่าสนใจและท้าทายสำหรับผู้เรียนชาวต่างชาติ" + "".join(map(str, range(400))),
        "この機械は" + "、".join(f"部品{number}" for number in range(99)) + "。",
        "see " + "/".join(f"part{number}" for number in range(99)) + " there",
    ],
    ids=["data", "no blanks", "no full stops", "a long word among others"],
)
def test_what_has_no_blanks_is_cut_within_words(text: str) -> None:
    found = texts("", text)
    assert len(found) > 1
    assert all(len(statement.encode()) <= (MAX_WORDS + 1) * WORD_BYTES for statement in found)
    assert "".join(found).replace(" ", "") == text.replace(" ", "")


PROSE = (
    "The organ of the harbour is made of green glass that was blown in 1874. It has 444 pipes, and the longest of them "
    "is called Old Barnabas. The merchant Jon Ask paid for it, so that the town would hear the tide come in at night."
)


@pytest.mark.parametrize("width", [55, 72])
@pytest.mark.parametrize("indent", ["", "    ", "> "])
def test_prose_is_the_same_however_it_is_wrapped(width: int, indent: str) -> None:
    wrapped = "\n".join(f"{indent}{line}" for line in textwrap.wrap(PROSE, width))
    assert sentences(wrapped) == sentences(PROSE)


def test_a_year_or_a_name_may_begin_a_wrapped_line() -> None:
    wrapped = (
        "The organ is made of fine green glass that was blown in\n"
        "1874. It was all paid for by a merchant of the harbour,\n"
        "Jon Ask."
    )
    assert sentences(wrapped) == [
        "The organ is made of fine green glass that was blown in 1874.",
        "It was all paid for by a merchant of the harbour, Jon Ask.",
    ]


def test_an_item_goes_on_where_its_lines_are_wrapped() -> None:
    items = (
        "- The gate closes at nine in the evening on every weekday\n  of the year.\n"
        "- Members give up their shoes before they enter the hall.\n"
    )
    assert sentences(items) == [
        "- The gate closes at nine in the evening on every weekday of the year.",
        "- Members give up their shoes before they enter the hall.",
    ]


@pytest.mark.parametrize(
    "records",
    [
        "alice@example.com,keeper of the northern light,orm\nbob@example.com,builder of the southern light,ask",
        "2026-11-30T03:05:40 WARNING the engine requires Triton now\n2026-11-30T03:05:41 INFO the engine has started",
        "keeper = the one who lights the lamp of the north tower\nbuilder = the one who carries the stones to the top",
        "Quill, organ, Toll, the first hall of the old town here\nRook, kites, Orme, the second hall of the old town\n"
        "Wren, tides, Ask, the third hall of the old town on the hill",
    ],
)  # fmt: skip
def test_records_stay_one_a_line_though_they_are_long(records: str) -> None:
    lines = [line.strip() for line in records.splitlines()]
    assert [sentence.strip() for sentence in sentences(records)] == lines
