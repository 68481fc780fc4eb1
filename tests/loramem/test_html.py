"""Pages whose sense hangs on their markup: raised numbers, captions, and the encoding that they name."""

import codecs
import time

import pytest

from loramem.errors import UnreadableDocument
from loramem.formats.encodings import CODECS
from loramem.formats.html import extract, read
from loramem.lines import tidy
from loramem.parse import parse
from tests.files import make_epub


def text_of(body: str) -> str:
    return tidy(extract(body).text)


class TestRaised:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ("2 × 10<sup>6</sup> cells, built in 1902<sup>3</sup>.", "2 × 10^6 cells, built in 1902^3."),
            ("10<sup>-6</sup>, 10<sup>\u22126</sup>, 10<sup> <b>12</b></sup>", "10^-6, 10^\u22126, 10^12"),
            ("(1 + x)<sup>2</sup> and 2<sup>n</sup>", "(1 + x)^2 and 2^n"),
            ("5 m<sup>2</sup>, s<sup>-1</sup>, [3]<sup>2</sup>", "5 m^2, s^-1, [3]^2"),
            ("built in 1902.<sup>3</sup> In 1903,<sup>4</sup> it", "built in 1902.^3 In 1903,^4 it"),
            ("10<sup>10<sup>6</sup></sup>, 2<sup><sup>3</sup></sup>", "10^10^6, 2^3"),
            ("seen<sup>1</sup><sup>2</sup>, seen<sup>1,2</sup>", "seen^1^2, seen^1,2"),
            ("the 21<sup>st</sup>, 4<sup>th</sup>, Lamp<sup>TM</sup>", "the 21st, 4th, LampTM"),
            ("CO<sub>2</sub> and SO<sub>4</sub><sup>2-</sup>, Na<sup>+</sup>", "CO2 and SO4^2-, Na+"),
            ("of <sup>14</sup>C, (<sup>3</sup>He)", "of 14C, (3He)"),
            ("5<sup>1</sup>/<sub>2</sub> inches, 5<sup>1</sup>\u2044<sub>2</sub>", "5 1/2 inches, 5 1\u20442"),
            ("10<sup>6</sup>/3 of them, <sup>1</sup>/<sub>2</sub>", "10^6/3 of them, 1/2"),
            ("<table><tr><td>10<sup>6</sup></td><td>m<sup>2</sup></td></tr></table>", "10^6 | m^2"),
            ("a\x04<b>6</b>", "a6"),
        ],
    )
    def test_a_raised_number_does_not_run_into_another(self, body: str, expected: str) -> None:
        assert text_of(body) == expected

    @pytest.mark.parametrize(
        "reference",
        [
            '<sup><a href="#fn3">3</a></sup>',
            '<sup>[<a href="notes.html#fn3">3</a>, <a href="#fn4">4</a>]</sup>',
            '<sup class="x"><a href="#n"><span>[</span>3<span>]</span></a></sup>',
            '<a href="#fn3"><sup>3</sup></a>',
            '<a href="#fn3"> <sup>3</sup><!-- note --> </a>',
            '<sup class="footnote-ref">3</sup>',
            '<sup role="doc-noteref">3</sup>',
            '<sup class="nice footnote">3</sup>',
            '<a role="doc-noteref" href="#fn3">3</a>',
            '<a class="footnote-reference brackets" href="#fn3">[3]</a>',
            '<a epub:type="noteref" href="notes.xhtml#fn3">*</a>',
        ],
    )
    def test_a_reference_to_a_note_goes(self, reference: str) -> None:
        assert text_of(f"<p>Built in 1902{reference}.</p>") == "Built in 1902."

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ('<a href="/cells#many">10<sup>6</sup> cells</a>', "10^6 cells"),
            ('10<sup><a href="/wiki/Million">6</a></sup>', "10^6"),
            ('<a class="noteref" href="#n1">the king of Zorv</a>', "the king of Zorv"),
            ('<a href="#fn3">1902</a>', "1902"),
            ('<div class="footnote">3. So says Ann.</div>', "3. So says Ann."),
            ('<sup>see <a href="#fn3">3</a></sup>', "see 3"),
        ],
    )
    def test_what_is_no_reference_stays(self, body: str, expected: str) -> None:
        assert text_of(body) == expected

    def test_books_are_read_alike(self) -> None:
        page = (
            '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><body><p>'
            'Built in 1902<a epub:type="noteref" href="n.xhtml#n3">3</a> of 10<sup>6</sup> stones.</p></body></html>'
        )
        content = make_epub({"a.xhtml": page})
        parsed = parse(content, media_type="application/epub+zip", filename="a.epub", max_chars=1000)
        assert parsed.text == "Built in 1902 of 10^6 stones."

    @pytest.mark.parametrize("piece", ["<sup>", "1<sup>", "<sup></sup>", "<li></li> ", "<a href='#'><sup>", "<sub>1"])
    def test_no_page_takes_long(self, piece: str) -> None:
        started = time.process_time()
        extract(f"1{piece * 50_000}2")
        assert time.process_time() - started < 5


class TestLines:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (
                "<table><caption>Fees of 1902</caption><tr><th>Name<th>Price<tr><td>Ann<td>3</table>",
                "Fees of 1902\nName | Price\nAnn | 3",
            ),
            (
                "<details><summary>How high is it?</summary>It is 5 m high.</details>",
                "How high is it?\nIt is 5 m high.",
            ),
            ("<fieldset><legend>Address</legend>Mill Lane 5</fieldset>", "Address\nMill Lane 5"),
            ("<dl><dt>Zorv<dd>a lamp</dl>after", "Zorv\na lamp\n\nafter"),
            ("<ul><li>a</li>\n <li>b</li> <li>c</ul>", "a\nb\nc"),
            ("<ul><li>a</li>between<li>b</li></ul>", "a\nbetween\nb"),
            ("<ul><li>a<br></li><li>b</li></ul>", "a\nb"),
            ("<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>", "a\n\nb\n\nc"),
            ("<ul><li><p>a</p></li><li><p>b</p></li></ul>", "a\n\nb"),
            ("<table><tr><td><ul><li>a</li></ul></td><td>b</td></tr></table>", "a | b"),
            ("<p>a<br>b</p><p>c</p>", "a\nb\n\nc"),
            ("a<br><br>b", "a\n\nb"),
        ],
    )
    def test_what_begins_a_line_ends_it(self, body: str, expected: str) -> None:
        assert text_of(body) == expected


class TestEncoding:
    @pytest.mark.parametrize(
        ("named", "text", "codec"),
        [
            ("ISO-2022-JP", "塔は高い。ｱ", "iso2022_jp_ext"), ("csISO2022JP", "塔は高い。", "iso2022_jp"),
            ("x-euc-jp", "塔は高い。", "euc_jp"), ("hz-gb-2312", "灯", "hz"), ("iso-2022-kr", "등", "iso2022_kr"),
            ("big5-hkscs", "燈①", "big5hkscs"), ("big5", "燈", "big5"), ("koi8_r", "лампа", "koi8_r"),
            ("koi8-u", "їжак", "koi8_u"), ("cp866", "лампа", "cp866"), ("x-cp1251", "лампа", "cp1251"),
            ("x-mac-cyrillic", "лампа", "mac_cyrillic"), ("iso_8859-7:1987", "λυχνία", "iso8859_7"),
            ("ansi_x3.4-1968", "Köln", "cp1252"), ("unicode", "Köln 塔", "utf-8"), ("utf-16", "Köln 塔", "utf-8"),
        ],
    )  # fmt: skip
    def test_names_of_the_standard_are_known(self, named: str, text: str, codec: str) -> None:
        page = f'<meta charset="{named}"><p>{text}</p>'.encode(codec)
        assert read(page, "a.html").text.strip() == text

    def test_python_has_each_of_them(self) -> None:
        assert {codecs.lookup(codec)._is_text_encoding for codec in CODECS.values()} == {True}

    @pytest.mark.parametrize(
        ("named", "body"),
        [
            ("utf-7", b"K+APY-ln"),
            ("unicode-1-1-utf-7", b"K+APY-ln"),
            ("iso-2022-jp-2", "塔".encode("iso2022_jp_2")),
            ("iso-2022-cn", b"\x1b$)A\x0e5F\x0f"),
            ("klingon", b"K\xf6ln"),
            ("iso-8859-12", b"K\xf6ln"),
            ("unicode_escape", b"K\xf6ln"),
        ],
    )
    def test_a_name_that_nobody_knows_is_refused(self, named: str, body: bytes) -> None:
        with pytest.raises(UnreadableDocument) as caught:
            read(f'<meta charset="{named}"><p>'.encode() + body, "a.html")
        assert repr(named) in caught.value.detail
        assert "WHATWG" in str(caught.value.extra["allowed"])

    @pytest.mark.parametrize("named", ["utf", "ansi", "utf8mb4"])
    @pytest.mark.parametrize("text", ["Köln 塔", "Cologne"])
    def test_it_does_no_harm_where_the_page_is_utf8_all_the_same(self, named: str, text: str) -> None:
        assert read(f'<meta charset="{named}"><p>{text}</p>'.encode(), "a.html").text.strip() == text

    def test_a_byte_order_mark_is_believed_before_a_name(self) -> None:
        page = codecs.BOM_UTF8 + '<meta charset="utf-7"><p>Köln</p>'.encode()
        assert read(page, "a.html").text.strip() == "Köln"

    def test_a_page_that_is_not_what_it_says_is_refused(self) -> None:
        with pytest.raises(UnreadableDocument, match="ISO-2022-JP"):
            read('<meta charset="iso-2022-jp"><p>塔</p>'.encode(), "a.html")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('Open<sup><a href="#terms">from 1 May 2026</a></sup> here.', "Openfrom 1 May 2026 here."),
        ('<p>See</p><a href="#fig2"><sup>Figure 2: the weir</sup></a>', "See\n\nFigure 2: the weir"),
        ('<p>It is so.</p><sup class="footnote">Others say 1820.</sup>', "It is so.\n\nOthers say 1820."),
        ('It is so.<sup><a href="#n">[note 1]</a></sup>', "It is so."),
        ('It is so.<sup class="footnote-ref"><a href="#n">1, 2</a></sup>', "It is so."),
        ("It rains.<sup>1</sup> The town is old.", "It rains. The town is old."),
    ],
)
def test_a_note_is_a_mark_and_no_words(body: str, expected: str) -> None:
    assert text_of(body) == expected
