"""Folders that are made once."""

import multiprocessing
import time
from pathlib import Path

import pytest

from loramem.cache import made_once


def _fill(folder: Path) -> None:
    (folder / "one").write_text("1")
    time.sleep(0.2)
    (folder / "two").write_text("2")


def _make(folder: Path, made: "multiprocessing.Queue[bool]") -> None:
    made.put(made_once(folder, _fill))
    assert sorted(file.name for file in folder.iterdir()) == ["one", "two"]


def test_of_several_processes_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    made: multiprocessing.Queue[bool] = context.Queue()
    processes = [context.Process(target=_make, args=(tmp_path / "new" / "folder", made)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(made.get(timeout=5) for _ in processes) == [False, False, False, True]


def test_what_failed_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_once(tmp_path / "folder", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert made_once(tmp_path / "folder", _fill)
    assert not made_once(tmp_path / "folder", fail)


def test_what_a_killed_process_left_is_not_taken_for_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".folder.1").mkdir()
    assert made_once(tmp_path / "folder", _fill)
