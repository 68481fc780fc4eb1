"""Files that are replaced in one step, and what a full disk leaves of that."""

from pathlib import Path

import pytest

from loramem.durable import replace_durably, replacing
from tests.disk import fill_the_disk


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One that is there already."""
    path = tmp_path / "manifest.json"
    path.write_text("old")
    return path


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_new_file_takes_the_place_of_the_old_one(file: Path) -> None:
    replace_durably(file, b"new")
    assert content(file.parent) == {"manifest.json": "new"}


def test_the_old_file_stays_until_the_block_ends(file: Path) -> None:
    with replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert content(file.parent) == {"manifest.json": "new"}


@pytest.mark.parametrize("step", ["loramem.durable.os.fsync", "loramem.durable.os.replace"])
def test_a_full_disk_keeps_the_old_file_and_gets_its_room_back(
    file: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(step, fill_the_disk)
        with pytest.raises(OSError, match="No space left"):
            replace_durably(file, b"new")
    assert content(file.parent) == {"manifest.json": "old"}


@pytest.mark.parametrize("written", [False, True], ids=["before it is made", "half written"])
def test_a_block_that_fails_leaves_no_temporary_file(file: Path, written: bool) -> None:
    def fail(temporary: Path) -> None:
        if written:
            temporary.write_text("hal")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), replacing(file) as temporary:
        fail(temporary)
    assert content(file.parent) == {"manifest.json": "old"}
