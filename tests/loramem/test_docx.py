"""Word documents whose words stand in wrappers: tracked changes, content controls, fields, tables within tables."""

import io
import time

import docx
import pytest
from docx.oxml import parse_xml

from loramem.errors import UnreadableDocument
from loramem.formats import Extract
from loramem.formats.docx import read
from tests.files import make_docx, with_member

NAMESPACES = (
    'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
)
CONTENTS = '<w:sdtPr><w:docPartObj><w:docPartGallery w:val="{}"/></w:docPartObj></w:sdtPr>'


def text_of(*blocks: str) -> str:
    """What is read of a document of these blocks, given as XML."""
    document = docx.Document()
    for block in blocks:
        document.element.body.append(parse_xml(block.replace(">", f" {NAMESPACES}>", 1)))
    stream = io.BytesIO()
    document.save(stream)
    return read(stream.getvalue(), "a.docx").text


def words(text: str, tag: str = "t") -> str:
    return f'<w:r><w:{tag} xml:space="preserve">{text}</w:{tag}></w:r>'


def paragraph(*parts: str) -> str:
    """Of text, which becomes a run, and of XML."""
    return f"<w:p>{''.join(part if part.startswith('<') else words(part) for part in parts)}</w:p>"


def placed(text: str, place: str) -> str:
    """A run that is raised (`superscript`) or lowered (`subscript`)."""
    return words(text).replace("<w:r>", f'<w:r><w:rPr><w:vertAlign w:val="{place}"/></w:rPr>', 1)


def control(content: str, properties: str = "<w:sdtPr/>") -> str:
    return f"<w:sdt>{properties}<w:sdtContent>{content}</w:sdtContent></w:sdt>"


def cell(*blocks: str, merged: str = "") -> str:
    return f"<w:tc><w:tcPr>{merged}</w:tcPr>{''.join(blocks)}</w:tc>"


def table(*rows: str) -> str:
    return f"<w:tbl><w:tblPr/><w:tblGrid/>{''.join(rows)}</w:tbl>"


def row(*cells: str) -> str:
    return f"<w:tr>{''.join(one if one.startswith('<') else cell(paragraph(one)) for one in cells)}</w:tr>"


def nested(start: str, inner: str, end: str, depth: int) -> bytes:
    """A file whose body is `inner` within that many elements."""
    body = f"<w:document {NAMESPACES}><w:body>{start * depth}{inner}{end * depth}</w:body></w:document>"
    return with_member(make_docx(), "word/document.xml", body)


def test_tracked_changes_are_read_as_accepted() -> None:
    changed = paragraph(
        "The tower is ",
        f'<w:ins w:id="1">{words("40 metres ")}<w:del w:id="2">{words("or so ", "delText")}</w:del></w:ins>',
        f'<w:del w:id="3">{words("30 metres ", "delText")}{words("low")}</w:del>',
        f'<w:moveTo w:id="4">{words("high.")}</w:moveTo><w:moveFrom w:id="5">{words("tall.")}</w:moveFrom>',
    )
    assert text_of(changed) == "The tower is 40 metres high."


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["2 × 10", ("6", "superscript"), " cells"], "2 × 10^6 cells"),
        (["10", ("\u2212", "superscript"), ("1", "superscript"), ("2 ", "superscript"), "m"], "10^\u221212 m"),
        (["built in 1902", ("3", "superscript"), "."], "built in 1902^3."),
        (["5 m", ("2", "superscript"), ("/", "baseline"), "s"], "5 m^2/s"),
        (["the 21", ("st", "superscript"), " of May"], "the 21st of May"),
        (["CO", ("2", "subscript"), ", SO", ("4", "subscript"), ("2-", "superscript")], "CO2, SO4^2-"),
        (["5", ("1", "superscript"), "/", ("2", "subscript"), " inches"], "5 1/2 inches"),
        (["of ", ("14", "superscript"), "C"], "of 14C"),
    ],
)
def test_a_raised_number_does_not_run_into_another(parts: list[str | tuple[str, str]], expected: str) -> None:
    assert text_of(paragraph(*(part if isinstance(part, str) else placed(*part) for part in parts))) == expected


def test_a_reference_to_a_note_leaves_nothing() -> None:
    note = '<w:r><w:rPr><w:vertAlign w:val="superscript"/></w:rPr><w:footnoteReference w:id="3"/></w:r>'
    assert text_of(paragraph("Built in 1902", note, ".")) == "Built in 1902."


def test_raised_numbers_in_cells_are_read_alike() -> None:
    assert text_of(table(row(cell(paragraph("10", placed("6", "superscript"))), "cells"))) == "10^6 | cells"


def test_a_run_of_many_lines_takes_no_longer_than_many_runs() -> None:
    lines = "<w:t>a</w:t><w:br/>" * 30_000
    started = time.process_time()
    text_of(paragraph(f"<w:r>{lines}</w:r>"))
    assert time.process_time() - started < 5


def test_controls_are_read_in_lines_and_around_blocks() -> None:
    inline = paragraph("Built in ", control(words("1420") + control(words(" by "))), "monks", ".")
    around = control(paragraph("Within.") + control(table(row("a", "b")) + paragraph("Deeper.")))
    assert text_of(inline, around, paragraph("After.")) == (
        "Built in 1420 by monks.\n\nWithin.\n\na | b\n\nDeeper.\n\nAfter."
    )


@pytest.mark.parametrize("tag", ["bdo", "customXml", "dir", "fldSimple", "hyperlink", "ins", "moveTo", "smartTag"])
def test_what_stands_around_words_does_not_hide_them(tag: str) -> None:
    assert text_of(paragraph("one ", f"<w:{tag}><w:{tag}>{words('two')}</w:{tag}></w:{tag}>", " three")) == (
        "one two three"
    )


def test_marks_in_a_wrapped_run_stand_for_characters() -> None:
    marks = "<w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t><w:cr/><w:t>d</w:t><w:noBreakHyphen/><w:t>e</w:t>"
    tabs = '<w:pPr><w:tabs><w:tab w:val="left" w:pos="720"/></w:tabs></w:pPr>'
    assert (
        text_of(paragraph(tabs, f'<w:ins w:id="1"><w:r>{marks}<w:br w:type="page"/></w:r></w:ins>')) == "a\tb\nc\nd-e"
    )


def test_of_alternatives_the_choice_is_read() -> None:
    choice, fallback = words("new"), words("old")
    chosen = f"<mc:AlternateContent><mc:Choice>{choice}</mc:Choice><mc:Fallback>{fallback}</mc:Fallback>"
    assert text_of(paragraph(f"{chosen}</mc:AlternateContent>")) == "new"


def test_words_below_their_reading_are_read_once() -> None:
    ruby = f"<w:ruby><w:rt>{words('とう')}</w:rt><w:rubyBase>{words('塔')}</w:rubyBase></w:ruby>"
    assert text_of(paragraph(f"<w:r>{ruby}</w:r>", "は高い。")) == "塔は高い。"


def test_the_table_of_contents_is_left_out_and_other_building_blocks_are_not() -> None:
    contents = control(paragraph("Towers 3"), CONTENTS.format("Table of Contents"))
    cover = control(paragraph("A Book of Towers"), CONTENTS.format("Cover Pages"))
    assert text_of(cover, contents, paragraph("Towers")) == "A Book of Towers\n\nTowers"


def test_controls_are_read_around_rows_and_cells_and_within_cells() -> None:
    second = control(
        row(control(cell(paragraph("c"))), cell(control(paragraph("d"))), cell(paragraph(control(words("e")))))
    )
    assert text_of(table(row("a", "b", ""), second)) == "a | b | \nc | d | e"


def test_tables_in_cells_follow_the_row_they_stand_in() -> None:
    innermost = table(row("5"))
    inner = table(row("1", "2"), row("3", cell(paragraph("4"), innermost)))
    outer = table(row("a", cell(paragraph("b"), inner, paragraph("c"), table(row("6")))), row("d", "e"))
    assert text_of(outer) == "a | b c\n1 | 2\n3 | 4\n5\n6\nd | e"


def test_a_row_that_only_holds_tables_has_no_line_of_its_own() -> None:
    assert text_of(table(row(cell(table(row("1", "2")), paragraph()), ""), row("", ""))) == "1 | 2\n | "


def test_a_cell_that_is_merged_downwards_is_repeated_in_each_row() -> None:
    first = cell(paragraph("Zorv"), table(row("1")), merged='<w:gridSpan w:val="2"/><w:vMerge w:val="restart"/>')
    below = cell(paragraph(), merged='<w:gridSpan w:val="2"/><w:vMerge/>')
    rows = [row(below, str(number)) for number in range(2000)]
    assert text_of(table(row(first, "nine"), *rows)).split("\n") == [
        *("Zorv | nine", "1"), *(f"Zorv | {number}" for number in range(2000))
    ]  # fmt: skip


def test_a_merged_cell_with_none_above_it_has_its_own_text() -> None:
    assert text_of(table(row(cell(paragraph("Zorv"), merged="<w:vMerge/>"), "nine"))) == "Zorv | nine"


@pytest.mark.parametrize("tag", ["w:sdt", "w:ins", "mc:Choice"])
def test_words_are_found_as_deep_as_the_parser_goes(tag: str) -> None:
    assert read(nested(f"<{tag}>", paragraph("deep"), f"</{tag}>", 250), "a.docx") == Extract("deep", None)


def test_tables_are_read_as_deep_as_the_parser_goes() -> None:
    content = nested("<w:tbl><w:tr><w:tc>", paragraph("deep"), "</w:tc></w:tr></w:tbl>", 80)
    assert read(content, "a.docx").text == "deep"


@pytest.mark.parametrize("depth", [300, 10_000])
@pytest.mark.parametrize(
    ("start", "end"), [("<w:sdt>", "</w:sdt>"), ("<w:tbl><w:tr><w:tc>", "</w:tc></w:tr></w:tbl>"), ("<w:p>", "</w:p>")]
)
def test_elements_too_deep_for_the_parser_are_unreadable(start: str, end: str, depth: int) -> None:
    with pytest.raises(UnreadableDocument, match="not a complete Word document"):
        read(nested(start, paragraph("deep"), end, depth), "a.docx")
