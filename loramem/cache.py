"""Folders that are made once for all processes: half-made ones are never seen, not after a power cut either."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loramem.durable import sync_file, sync_folder


def made_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """Have `make` fill `folder` unless it is there; whether it was made by this call.

    Processes that want the same folder wait for the one that makes it. What `make` raises is raised here, and nothing
    is left for others to find.
    """
    if folder.is_dir():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return False
        _remove_left_overs(folder)
        temporary = folder.parent / f".{folder.name}.{os.getpid()}"
        try:
            temporary.mkdir()
            make(temporary)
            _sync_tree(temporary)
            temporary.rename(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return True


def _remove_left_overs(folder: Path) -> None:
    """Of makers that were killed: only one that holds the lock makes anything, so whatever is there is nobody's."""
    start = f".{folder.name}."
    for entry in folder.parent.iterdir():
        if entry.name.startswith(start) and entry.name.removeprefix(start).isdigit():
            shutil.rmtree(entry, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
