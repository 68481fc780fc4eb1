"""EPUB: the XHTML files of the book, in the order of its spine."""

import posixpath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from loramem.formats import Extract, unreadable, unsupported
from loramem.formats.archive import Archive
from loramem.formats.html import extract
from loramem.formats.plain import decode

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_PAGE_TYPES = ("application/xhtml+xml", "text/html")


def read(content: bytes, name: str) -> Extract:
    """Refuses books whose pages are encrypted; the table of contents is not part of the text."""
    with Archive(content, name) as archive:
        if _CONTAINER not in archive.members:
            raise unsupported(name, "it is a zip file, but not an EPUB")
        root = _xml(archive, _CONTAINER).find("{*}rootfiles/{*}rootfile")
        if root is None or not root.get("full-path"):
            raise unreadable(name, f"{_CONTAINER!r} names no package file")
        package_path = root.get("full-path", "")
        package = _xml(archive, package_path)
        pages = _spine(package, posixpath.dirname(package_path))
        _refuse_encrypted(archive, pages)
        text = "\n\n".join(_page(archive, page) for page in pages)
    return Extract(text, package.findtext("{*}metadata/{http://purl.org/dc/elements/1.1/}title"))


def _spine(package: "Element", folder: str) -> list[str]:
    """Paths of the pages within the zip, in reading order."""
    manifest = {item.get("id"): item for item in package.iterfind("{*}manifest/{*}item")}
    read_in_order = (manifest.get(itemref.get("idref")) for itemref in package.iterfind("{*}spine/{*}itemref"))
    return [
        posixpath.normpath(posixpath.join(folder, unquote(item.get("href", "").partition("#")[0])))
        for item in read_in_order
        if item is not None
        and item.get("media-type") in _PAGE_TYPES
        and "nav" not in item.get("properties", "").split()
    ]


def _refuse_encrypted(archive: Archive, pages: list[str]) -> None:
    if _ENCRYPTION not in archive.members:
        return
    references = _xml(archive, _ENCRYPTION).iterfind(".//{http://www.w3.org/2001/04/xmlenc#}CipherReference")
    if not {unquote(reference.get("URI", "")) for reference in references}.isdisjoint(pages):
        raise unreadable(archive.name, "the book is encrypted (DRM)", "an EPUB without DRM")


def _page(archive: Archive, path: str) -> str:
    page = decode(archive.read(path), archive.name)
    if "<!entity" in page.lower():
        raise unreadable(archive.name, f"{path!r} declares XML entities")
    return extract(page if page.lstrip().startswith("<?xml") else f"<?xml?>{page}").text


def _xml(archive: Archive, path: str) -> "Element":
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root: Element = fromstring(archive.read(path))
    except DefusedXmlException:
        raise unreadable(archive.name, f"{path!r} declares XML entities") from None
    except ParseError as error:
        raise unreadable(archive.name, f"{path!r} is not well-formed XML ({error})") from None
    return root
