"""Files that survive a crash: on disk whole, or not there at all."""

import os
from pathlib import Path


def replace_durably(path: Path, data: bytes | memoryview) -> None:
    """Put `data` at `path` in one step; after a crash the old file or the new one is there, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


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
