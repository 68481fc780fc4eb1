"""Zip containers from strangers (docx, epub): limits from the directory before reading, and again while reading."""

import io
import zipfile
import zlib
from typing import Self

from loramem.formats import unreadable

MAX_MEMBERS = 10_000
MAX_TOTAL_BYTES = 256 << 20
MAX_RATIO = 100
RATIO_FROM_BYTES = 1 << 20
_PIECE = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, OSError)


class Archive:
    """A zip whose directory passed the limits. `read` counts what really comes out, over all members."""

    def __init__(self, content: bytes, name: str) -> None:
        self.name = name
        self._unzipped = 0
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
        except _FAULTS as error:
            raise unreadable(name, f"broken zip container ({error})") from None
        self._check_directory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._zip.close()

    @property
    def members(self) -> list[str]:
        return self._zip.namelist()

    def read(self, member: str) -> bytes:
        """The member's bytes; `UnreadableDocument` when it is missing, damaged, or the total grows over the limit."""
        pieces = []
        try:
            with self._zip.open(member) as stream:
                while piece := stream.read(_PIECE):
                    self._count(len(piece))
                    pieces.append(piece)
        except KeyError:
            raise unreadable(self.name, f"the container has no {member!r}") from None
        except _FAULTS as error:
            raise unreadable(self.name, f"{member!r} is damaged ({error})") from None
        return b"".join(pieces)

    def _count(self, size: int) -> None:
        self._unzipped += size
        if self._unzipped > MAX_TOTAL_BYTES:
            raise self._bomb(f"more than {MAX_TOTAL_BYTES >> 20} MiB come out of it")

    def _check_directory(self) -> None:
        members = self._zip.infolist()
        if len(members) > MAX_MEMBERS:
            raise self._bomb(f"{len(members)} members, {MAX_MEMBERS} are allowed")
        total = sum(member.file_size for member in members)
        if total > MAX_TOTAL_BYTES:
            raise self._bomb(f"{total} bytes unzipped, {MAX_TOTAL_BYTES} are allowed")
        for member in members:
            self._check_member(member)

    def _check_member(self, member: zipfile.ZipInfo) -> None:
        if member.flag_bits & 1:
            raise unreadable(self.name, f"{member.filename!r} is encrypted")
        if member.compress_type not in _METHODS:
            raise unreadable(self.name, f"{member.filename!r} uses a compression that its format does not know")
        if member.file_size > RATIO_FROM_BYTES and member.file_size > MAX_RATIO * member.compress_size:
            raise self._bomb(f"{member.filename!r} expands more than {MAX_RATIO} times")

    def _bomb(self, reason: str) -> Exception:
        limits = f"at most {MAX_MEMBERS} members, {MAX_TOTAL_BYTES >> 20} MiB unzipped, expansion {MAX_RATIO}"
        return unreadable(self.name, f"zip bomb: {reason}", limits)
