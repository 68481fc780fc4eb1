"""Folders that are made once."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from loramem import cache
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


def test_what_killed_processes_left_is_removed_and_not_taken_for_the_folder(tmp_path: Path) -> None:
    for name in (".folder.1", f".folder.{os.getpid()}", ".folder.two.1", ".other.1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("")
    assert made_once(tmp_path / "folder", _fill)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", ".folder.lock", ".folder.two.1", ".other.1"}
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"one", "two"}


def test_all_of_it_is_on_the_disk_before_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    synced: dict[bool, set[str]] = {False: set(), True: set()}

    def note(path: Path) -> None:
        assert path.exists()
        synced[folder.exists()].add(str(path.relative_to(tmp_path)))

    def fill(temporary: Path) -> None:
        (temporary / "inner").mkdir()
        for name in ("one", "inner/two"):
            (temporary / name).write_text(name)

    for name in ("sync_file", "sync_folder"):
        monkeypatch.setattr(cache, name, note)
    made_once(folder, fill)
    temporary = f".folder.{os.getpid()}"
    expected = {temporary, f"{temporary}/one", f"{temporary}/inner", f"{temporary}/inner/two"}
    assert synced == {False: expected, True: {"."}}
