"""Files to text: what is read, what its title is, and why the others are refused."""

import codecs
import time

import pytest

from loramem.errors import BodyTooLarge, InvalidValue, LoramemError, UnreadableDocument, UnsupportedMediaType
from loramem.formats import archive
from loramem.formats.html import extract
from loramem.lines import attach_headings, tidy, unwrap
from loramem.parse import DOCX, EPUB, Parsed, identify, parse
from tests.files import CONTAINER, ENCRYPT, PNG, make_docx, make_epub, make_pdf, make_zip, with_member

PAGE = "<html xmlns='http://www.w3.org/1999/xhtml'><head><title>Page</title></head><body>{}</body></html>"
ENTITIES = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "boom">]><a>&b;</a>'


def read(content: bytes, filename: str, content_type: str | None = None, max_chars: int = 100_000) -> Parsed:
    media_type = identify(content, filename=filename, content_type=content_type)
    return parse(content, media_type=media_type, filename=filename, max_chars=max_chars)


def refused(error: type[LoramemError], content: bytes, filename: str, content_type: str | None = None) -> str:
    """The message; the type must be exactly `error`."""
    with pytest.raises(error) as caught:
        read(content, filename, content_type)
    assert type(caught.value) is error
    assert {"key", "value", "allowed"} <= caught.value.extra.keys()
    return caught.value.detail


class TestType:
    @pytest.mark.parametrize(
        ("filename", "content_type", "expected"),
        [
            ("a.txt", None, "text/plain"),
            ("a.TXT", "text/plain; charset=utf-8", "text/plain"),
            ("a.md", "text/plain", "text/markdown"),
            ("a.md", "application/octet-stream", "text/markdown"),
            ("notes", "text/markdown", "text/markdown"),
            ("", "text/x-markdown", "text/markdown"),
            ("a.xhtml", "application/xhtml+xml", "text/html"),
        ],
    )
    def test_name_and_declaration_that_agree_give_the_type(
        self, filename: str, content_type: str | None, expected: str
    ) -> None:
        assert identify(b"words", filename=filename, content_type=content_type) == expected

    @pytest.mark.parametrize(
        ("content", "filename", "content_type"),
        [
            (PNG, "a.txt", None),
            (PNG, "a.txt", "text/plain"),
            (PNG, "a.png", "image/png"),
            (make_zip({"a": "b"}), "a.pdf", None),
            (make_zip({"a": "b"}), "a.md", None),
            (b"<html><p>a</p></html>", "a.html", "application/pdf"),
            (b"<!DOCTYPE html><p>a</p>", "a.txt", None),
            (b"<html><p>a</p></html>", "a.pdf", "application/pdf"),
            (make_pdf(["a"]), "a.docx", None),
            (make_pdf(["a"]), "a.html", None),
            (b"a,b", "a.csv", "text/plain"),
            (b"a,b", "a", "text/csv"),
            (b"words", "a", None),
            (b"words", "", "application/octet-stream"),
            (b"\xd0\xcf\x11\xe0rest", "a.docx", None),
        ],
    )
    def test_witnesses_that_disagree_or_are_unknown_are_unsupported(
        self, content: bytes, filename: str, content_type: str | None
    ) -> None:
        assert "txt, md, html, pdf, docx, epub" in refused(UnsupportedMediaType, content, filename, content_type)

    @pytest.mark.parametrize("filename", ["a.docx", "a.epub"])
    def test_a_container_of_another_kind_is_unsupported(self, filename: str) -> None:
        refused(UnsupportedMediaType, make_zip({"xl/workbook.xml": "<a/>"}), filename)

    def test_office_files_of_other_kinds_are_unsupported(self) -> None:
        macros = '<Types><Override ContentType="application/vnd.ms-word.document.macroEnabled.main+xml"/></Types>'
        detail = refused(UnsupportedMediaType, with_member(make_docx(), "[Content_Types].xml", macros), "a.docx")
        assert "macros" in detail

    def test_a_docx_named_epub_is_unsupported_and_the_reverse(self) -> None:
        refused(UnsupportedMediaType, make_docx(), "a.epub")
        refused(UnsupportedMediaType, make_epub({"a.xhtml": PAGE}), "a.docx")

    def test_a_message_shows_the_name_without_folders_and_control_characters(self) -> None:
        assert refused(UnsupportedMediaType, PNG, "../etc/\npass\x00wd.txt").startswith("'passwd.txt'")


class TestText:
    def test_lines_are_tidied_and_the_file_name_is_the_title(self) -> None:
        assert read(b"one  \r\ntwo\r\n\r\n\r\n\r\nthree\n", "my.notes.txt") == Parsed(
            "one\ntwo\n\nthree", "my.notes", "text/plain"
        )

    @pytest.mark.parametrize(
        "content",
        [
            codecs.BOM_UTF8 + "Köln 😀".encode(),
            codecs.BOM_UTF16_LE + "Köln 😀".encode("utf-16-le"),
            codecs.BOM_UTF16_BE + "Köln 😀".encode("utf-16-be"),
        ],
    )
    def test_byte_order_marks_are_understood_and_dropped(self, content: bytes) -> None:
        assert read(content, "a.txt").text == "Köln 😀"

    @pytest.mark.parametrize(
        ("content", "offset"), [("Köln".encode("latin-1"), 1), (codecs.BOM_UTF8 + b"ab\xff", 5), (b"ok\xc3", 2)]
    )
    def test_other_encodings_are_refused_with_the_offset(self, content: bytes, offset: int) -> None:
        assert f"offset {offset} is not valid UTF-8" in refused(UnreadableDocument, content, "a.txt")

    @pytest.mark.parametrize("content", [b"", b" \n\t\n", codecs.BOM_UTF8, "\u00a0\u2003".encode()])
    def test_no_text_is_refused(self, content: bytes) -> None:
        refused(InvalidValue, content, "a.txt")

    def test_nul_is_refused(self) -> None:
        assert "U+0000 at offset 1" in refused(InvalidValue, b"a\0b", "a.txt")

    def test_length_is_counted_in_characters(self) -> None:
        assert read("ä".encode() * 10, "a.txt", max_chars=10).text == "ä" * 10
        with pytest.raises(BodyTooLarge, match="11 characters, 10 are allowed"):
            read(b"a" * 11, "a.txt", max_chars=10)

    @pytest.mark.parametrize(
        ("text", "title"),
        [
            ("intro\n\n## The *Lamp* ##\n# Later", "The *Lamp*"),
            ("The Lamp\n========\ntext", "The Lamp"),
            ("```\n# a comment\n```\n# Real", "Real"),
            ("```\n# never closed", "a"),
            ("#hashtag, no heading", "a"),
            ("\r\n# Windows\r\ntext", "Windows"),
            ("- item two\n---\n# Real", "Real"),
            ("2. item\n===\n# Real", "Real"),
            ("> quoted\n---\n# Real", "Real"),
            ("| cell |\n---\n# Real", "Real"),
            ("---\n---\n# Real", "Real"),
            ("*The Lamp*\n---\n# Later", "*The Lamp*"),
            ("It is old.\n---\n# Real", "Real"),
            ("---\nName: Ann\n---\nName: Bob\n---\n# Real", "Real"),
            ("---\ndate: 2024-05-01\n---\nThe Lamp\n---\n# Later", "The Lamp"),
        ],
    )
    def test_the_first_heading_is_the_title_of_markdown(self, text: str, title: str) -> None:
        assert read(text.encode(), "a.md").title == title

    @pytest.mark.parametrize(
        ("front", "title"),
        [
            ("date: 2024-05-01", "Real"),
            ("layout: post\nTitle: 'The Lamp: a life'", "The Lamp: a life"),
            ('title: The "Lamp"', 'The "Lamp"'),
            ("title: ''", "Real"),
            ("title: >\n  The Lamp", "Real"),
            ("date: 2024-05-01\n\n# draft: true\n# tags: a\ntitle: The Lamp\n# weight: 1", "The Lamp"),
        ],
    )
    @pytest.mark.parametrize("end", ["---", "..."])
    @pytest.mark.parametrize("line_end", ["\n", "\r\n"])
    def test_front_matter_gives_the_title_or_none(self, front: str, title: str, end: str, line_end: str) -> None:
        text = f"---\n{front}\n{end}\n\n# Real\ntext".replace("\n", line_end)
        assert read(text.encode(), "a.md").title == title

    @pytest.mark.parametrize("first", ["", "From: Tom\n"])
    @pytest.mark.parametrize("text", ["text", "\ntext", "\nTitle: of a chapter"])
    def test_a_rule_at_the_beginning_is_no_front_matter(self, first: str, text: str) -> None:
        page = f"---\n{first}\n# Real\n{text}\n\n---\n\n# Later"
        assert read(page.encode(), "a.md").title == "Real"

    def test_the_name_of_a_file_is_composed(self) -> None:
        assert read(b"words", "Bjo\u0308rn.txt").title == "Björn"

    @pytest.mark.parametrize("line", ["a: b\n", "--- x\n", f"---{' ' * 90}x\n", "- a\n", "title:\n"])
    def test_no_front_matter_takes_long(self, line: str) -> None:
        started = time.process_time()
        read(f"---\na: b\n{line * 20_000}".encode(), "a.md", max_chars=3_000_000)
        assert time.process_time() - started < 1

    @pytest.mark.parametrize("text", [" " * 300_000 + "x", "# a" + " #" * 150_000 + "x", "\n" * 300_000, "=" * 300_000])
    def test_no_text_takes_long(self, text: str) -> None:
        started = time.process_time()
        attach_headings(unwrap(tidy(text)))
        identify(text.encode(), filename="a.md", content_type=None)
        parse(b"x" + text.encode(), media_type="text/markdown", filename="a.md", max_chars=1_000_000)
        assert time.process_time() - started < 1


class TestHtml:
    def test_blocks_become_lines_and_the_rest_of_the_page_goes(self) -> None:
        page = b"""<!doctype html><html><head><title> The &amp;
            Lamp </title><style>p{}</style></head><body><nav>menu</nav><h1>Zorv</h1><p>One <b>bold</b>,
            two<br>next</p>tail<!-- note --><ul><li>a</li><li>b</li></ul><table><tr><th>N</th><th>V</th></tr>
            <tr><td><p>x</p></td><td>1</td></tr></table><script>alert(1)</script>after</body></html>"""
        assert read(page, "a.html") == Parsed(
            "Zorv\n\nOne bold, two\nnext\n\ntail\n\na\nb\n\nN | V\nx | 1\n\nafter", "The & Lamp", "text/html"
        )

    @pytest.mark.parametrize(
        "question",
        [
            "<h2><button>How tall is it?</button></h2>",
            "<h3>\n <span><button><b>How tall</b> is it?<svg></svg></button></span>\n</h3>",
            "<dl><dt><button>How tall is it?</button><button>+</button></dt></dl>",
            "<details><summary><button>How tall is it?</button></summary></details>",
        ],
    )
    def test_a_heading_may_be_a_button(self, question: str) -> None:
        assert read(f"{question}<div>5.2 m.</div>".encode(), "a.html").text.split("\n\n") == [
            "How tall is it?",
            "5.2 m.",
        ]

    def test_other_buttons_go(self) -> None:
        page = b"<h2>Height <button>Edit</button></h2><p><button>Copy</button>It is 5.2 m.</p>"
        assert read(page, "a.html").text == "Height\n\nIt is 5.2 m."
        page = b"<h2>Height <span><b><button>Link</button></b></span></h2><p>It is 5.2 m.</p>"
        assert read(page, "a.html").text == "Height\n\nIt is 5.2 m."

    def test_preformatted_text_keeps_its_indentation(self) -> None:
        assert read(b"<p>a</p><pre>def f():\n    return  1</pre>", "a.html").text == "a\n\ndef f():\n    return  1"

    def test_the_page_may_name_its_encoding(self) -> None:
        page = '<meta charset="ISO-8859-1"><p>Köln “x”</p>'.encode("windows-1252")
        assert read(page, "a.html").text == "Köln “x”"

    def test_an_encoding_that_is_none_for_text_is_not_followed(self) -> None:
        refused(UnreadableDocument, b'<meta charset="utf-7"><p>\xff</p>', "a.html")

    @pytest.mark.parametrize(
        ("named", "text", "encoding"),
        [
            ("gb2312", "朱镕基", "gbk"), ("Shift_JIS", "①髙", "cp932"), ("euc-kr", "똠방각하", "cp949"),
            ("latin1", "Köln “x”", "cp1252"), ("windows-874", "ไทย", "cp874"), ("iso-8859-8-i", "שלום", "iso-8859-8"),
            ("macintosh", "Köln", "mac_roman"), ("ISO-8859-2", "Łódź", "iso-8859-2"),
        ],
    )  # fmt: skip
    def test_encodings_are_what_browsers_mean_by_their_names(self, named: str, text: str, encoding: str) -> None:
        page = f'<meta charset="{named}"><p>{text}</p>'.encode(encoding)
        assert read(page, "a.html").text == text

    @pytest.mark.parametrize(
        "empty", ["<title/>", "<script type='text/javascript' src=\"k.js\"/>", "<STYLE />", "<iframe src='a>b'/>"]
    )
    def test_an_empty_element_of_xml_does_not_swallow_the_page(self, empty: str) -> None:
        xmlns = 'xmlns="http://www.w3.org/1999/xhtml"'
        for start in (f"<?xml version='1.0'?><html {xmlns}>", f"<!DOCTYPE html><html {xmlns}>"):
            page = f"{start}<head>{empty}</head><body><p>One.</p><object data='x'/><p>Two.</p></body></html>"
            assert read(page.encode(), "a.html").text == "One.\n\nTwo."

    @pytest.mark.parametrize("piece", ["<title ", '<title "', "<title '<", "<title/"])
    def test_no_xml_takes_long(self, piece: str) -> None:
        started = time.process_time()
        extract(f"<?xml?>{piece * 100_000}")
        assert time.process_time() - started < 2

    def test_what_nobody_sees_goes(self) -> None:
        page = "<p>inter&shy;na&shy;tional co&#8203;oper\ufeffation, n\u200cim sin&#x2061;x</p>".encode()
        assert read(page, "a.html").text == "international cooperation, n\u200cim sinx"

    def test_depth_is_no_problem_for_the_reader(self) -> None:
        assert read(b"<div>" * 3000 + b"deep", "a.html").text == "deep"

    def test_a_page_of_scripts_has_no_text(self) -> None:
        refused(InvalidValue, b"<html><body><script>run()</script></body></html>", "a.html")


class TestPdf:
    def test_wrapped_lines_are_joined_and_the_title_is_read(self) -> None:
        lines = ["Heading", "The lamp of Zorv burns for exactly nine days and", "nights. Then it rests.", "Name: 12"]
        parsed = read(make_pdf(lines, title="Lamps"), "a.pdf", "application/pdf")
        assert parsed.title == "Lamps"
        assert parsed.text == (
            "Heading\nThe lamp of Zorv burns for exactly nine days and nights. Then it rests.\nName: 12"
        )

    def test_a_word_is_joined_where_a_hyphen_broke_it(self) -> None:
        assert read(make_pdf(["This is an exam-", "ple."]), "a.pdf").text == "This is an example."

    @pytest.mark.parametrize("glyph", ["\x02", "\ufffe"])
    def test_lines_are_not_glued_where_one_ends_in_a_glyph_without_unicode(
        self, glyph: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pypdfium2.PdfTextPage.get_text_range", lambda _: f"BA{glyph}\r\nAB")
        assert read(make_pdf(["any"]), "a.pdf").text == "BA\nAB"

    def test_without_a_title_the_file_name_is_taken(self) -> None:
        assert read(make_pdf(["a"]), "report 7.pdf").title == "report 7"

    @pytest.mark.parametrize("content", [b"%PDF-1.7 garbage", make_pdf(["a"])[:300] + b"\xff" * 300])
    def test_a_damaged_file_is_unreadable(self, content: bytes) -> None:
        assert "damaged" in refused(UnreadableDocument, content, "a.pdf")

    def test_an_encrypted_file_is_unreadable(self) -> None:
        assert "encrypted" in refused(UnreadableDocument, make_pdf(["a"], encrypt=ENCRYPT), "a.pdf")

    def test_a_page_without_text_is_refused(self) -> None:
        assert "no text" in refused(InvalidValue, make_pdf([]), "scan.pdf")


class TestDocx:
    def test_paragraphs_and_tables_come_in_order(self) -> None:
        assert read(make_docx(title="Lamps"), "a.docx", DOCX) == Parsed(
            "Zorvian lamps\n\nThe lamp of Zorv burns for nine days.\n\nLamps\nZorv | nine\n\nIt was built in Köln.",
            "Lamps",
            DOCX,
        )

    def test_a_zip_type_for_a_zip_is_no_contradiction(self) -> None:
        assert read(make_docx(), "a.docx", "application/zip").title == "a"

    def test_entities_are_unreadable(self) -> None:
        content = with_member(make_docx(), "word/document.xml", ENTITIES)
        assert "entities" in refused(UnreadableDocument, content, "a.docx")

    @pytest.mark.parametrize("content", [make_docx()[:1000], b"PK\x03\x04" + b"x" * 500])
    def test_a_broken_container_is_unreadable(self, content: bytes) -> None:
        assert "broken zip" in refused(UnreadableDocument, content, "a.docx")

    @pytest.mark.parametrize("part", ["", "<w:document", "<html/>"])
    def test_a_broken_document_part_is_unreadable(self, part: str) -> None:
        refused(UnreadableDocument, with_member(make_docx(), "word/document.xml", part), "a.docx")


class TestEpub:
    def test_pages_come_in_the_order_of_the_spine(self) -> None:
        pages = {"z%20one.xhtml": PAGE.format("<h1>First</h1>"), "a/two.xhtml": PAGE.format("<p>Second.</p>")}
        assert read(make_epub(pages), "a.epub", EPUB) == Parsed("First\n\nSecond.", "A Book", EPUB)

    def test_no_page_is_swallowed_by_an_element_that_is_empty(self) -> None:
        head = '<html xmlns="http://www.w3.org/1999/xhtml"><head>{}</head><body><p>{}</p></body></html>'
        heads = ("<title>a</title>", "<title/>", '<script src="k.js"/>', "<style/>")
        pages = {f"{number}.xhtml": head.format(empty, number) for number, empty in enumerate(heads)}
        assert read(make_epub(pages), "a.epub").text == "0\n\n1\n\n2\n\n3"

    def test_a_page_that_is_missing_is_named(self) -> None:
        opf_only = make_epub({"here.xhtml": PAGE.format("x")})
        content = opf_only.replace(b"OEBPS/here.xhtml", b"OEBPS/away.xhtml")
        assert "'OEBPS/here.xhtml'" in refused(UnreadableDocument, content, "a.epub")

    def test_entities_are_unreadable_in_the_package_and_in_pages(self) -> None:
        pages = {"a.xhtml": PAGE.format("x")}
        package = with_member(make_epub(pages), "OEBPS/book.opf", ENTITIES)
        assert "entities" in refused(UnreadableDocument, package, "a.epub")
        assert "entities" in refused(UnreadableDocument, make_epub({"a.xhtml": ENTITIES}), "a.epub")

    def test_encrypted_pages_are_unreadable_but_encrypted_fonts_are_not(self) -> None:
        encryption = (
            '<encryption><e:EncryptedData xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:CipherData>'
            '<e:CipherReference URI="OEBPS/{}"/></e:CipherData></e:EncryptedData></encryption>'
        )
        book = make_epub({"a.xhtml": PAGE.format("words")})
        assert read(with_member(book, "META-INF/encryption.xml", encryption.format("f.otf")), "a.epub").text == "words"
        locked = with_member(book, "META-INF/encryption.xml", encryption.format("a.xhtml"))
        assert "DRM" in refused(UnreadableDocument, locked, "a.epub")

    def test_a_container_that_names_no_package_is_unreadable(self) -> None:
        content = make_zip({"META-INF/container.xml": CONTAINER.replace("full-path", "other")})
        refused(UnreadableDocument, content, "a.epub")


class TestZipLimits:
    def test_expansion_ratio(self) -> None:
        content = with_member(make_docx(), "word/media/x.bin", bytes(2 << 20))
        assert "zip bomb" in refused(UnreadableDocument, content, "a.docx")

    def test_number_of_members(self) -> None:
        content = make_zip({str(number): b"" for number in range(archive.MAX_MEMBERS + 1)})
        assert "10001 members" in refused(UnreadableDocument, content, "a.docx")

    def test_total_size_by_the_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1000)
        assert "bytes unzipped" in refused(UnreadableDocument, make_docx(), "a.docx")

    def test_total_size_while_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = archive.Archive(make_zip({"a": b"x" * 600, "b": b"x" * 600}), "a.docx")
        monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1000)
        assert len(opened.read("a")) == 600
        with pytest.raises(UnreadableDocument, match="zip bomb"):
            opened.read("b")

    def test_a_directory_that_lies_about_a_size(self) -> None:
        content = bytearray(make_zip({"a": b"x" * 5000}))
        entry = content.rindex(b"PK\x01\x02")
        content[entry + 24 : entry + 28] = (100).to_bytes(4, "little")
        with pytest.raises(UnreadableDocument, match="damaged"):
            archive.Archive(bytes(content), "a.docx").read("a")

    def test_encrypted_members_and_other_compressions(self) -> None:
        with pytest.raises(UnreadableDocument, match="compression"):
            archive.Archive(make_zip({"a": b"x"}, method=14), "a.docx")
        locked = bytearray(make_zip({"a": b"x"}))
        locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
        with pytest.raises(UnreadableDocument, match="encrypted"):
            archive.Archive(bytes(locked), "a.docx")
