"""Files as users send them, built in code: sound ones, damaged ones and hostile ones."""

import io
import zipfile
from collections.abc import Iterable, Mapping

import docx

CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
OPF = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></metadata>
<manifest>{manifest}</manifest><spine>{spine}</spine></package>"""
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
ENCRYPT = b"<< /Filter /Standard /V 1 /R 2 /P -4 /O (%b) /U (%b) >>" % (b"o" * 32, b"u" * 32)


def make_zip(members: Mapping[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_member(container: bytes, name: str, content: str | bytes) -> bytes:
    """The same zip, with one member more or with another content of it."""
    with zipfile.ZipFile(io.BytesIO(container)) as archive:
        members: dict[str, str | bytes] = {member: archive.read(member) for member in archive.namelist()}
    return make_zip(members | {name: content})


def make_docx(title: str = "") -> bytes:
    """A heading, a paragraph, a table of two rows with a merged header, a paragraph."""
    document = docx.Document()
    document.core_properties.title = title
    document.add_heading("Zorvian lamps", level=1)
    document.add_paragraph("The lamp of Zorv burns for nine days.")
    table = document.add_table(rows=2, cols=2)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "Lamps"
    table.cell(1, 0).text, table.cell(1, 1).text = "Zorv", "nine"
    document.add_paragraph("It was built in Köln.")
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def make_epub(pages: Mapping[str, str], title: str = "A Book", **members: str | bytes) -> bytes:
    """`pages` are paths within OEBPS, in reading order, and their XHTML; `members` are added to the zip by name."""
    items = [f'<item id="p{n}" href="{path}" media-type="application/xhtml+xml"/>' for n, path in enumerate(pages)]
    spine = [f'<itemref idref="p{n}"/>' for n in range(len(pages))]
    files: dict[str, str | bytes] = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER}
    files["OEBPS/book.opf"] = OPF.format(title=title, manifest="".join(reversed(items)), spine="".join(spine))
    files |= {f"OEBPS/{path.replace('%20', ' ')}": page for path, page in pages.items()}
    return make_zip(files | members)


def make_pdf(lines: Iterable[str], *, title: str = "", encrypt: bytes = b"") -> bytes:
    """One page, one line of Helvetica for each of `lines`."""
    shown = b"".join(b"(%b) Tj T*\n" % line.encode("latin-1") for line in lines)
    stream = b"BT /F1 10 Tf 12 TL 40 780 Td\n" + shown + b"ET"
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        page + b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (%b) >>" % title.encode("latin-1"),
        encrypt or b"null",
    ]
    body = b"%PDF-1.4\n"
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"<< /Size %d /Root 1 0 R /Info 6 0 R" % (len(objects) + 1)
    trailer += b" /Encrypt 7 0 R /ID [<00><00>] >>" if encrypt else b" >>"
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table
    return body + table + b"trailer\n" + trailer + b"\nstartxref\n%d\n%%%%EOF" % len(body)
