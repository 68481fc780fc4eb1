"""Files that survive a crash: on disk whole, or not there at all."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full")
"""A full disk, as the system says it, whichever library or database passes it on, and SQLite."""


def replace_durably(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` in one step; after a crash the old file or the new one is there, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to be written in the block, which is put at `path` in one step at its end; if it fails, it is removed: a
    full disk needs the room."""
    temporary = path.with_name(path.name + ".tmp")
    with removed_on_failure(temporary):
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    sync_folder(path.parent)


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """A rename or a new file is durable once its folder is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
