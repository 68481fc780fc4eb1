"""Rows are read once, whoever asks for them."""

from collections.abc import Mapping

import pytest

from loramem import row_cache
from loramem.row_cache import RowCache

ROWS = {1: "one", 2: "two", 3: "three", 4: "four"}


class Table:
    """Knows which of its rows were asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def read(self, keys: list[int]) -> Mapping[int, str]:
        self.asked.append(keys)
        return {key: ROWS[key] for key in keys if key in ROWS}


def test_only_what_nobody_has_read_is_asked_for() -> None:
    cache, table = RowCache(), Table()
    assert cache.of("numbers", [1, 2], table.read) == {1: "one", 2: "two"}
    assert cache.of("numbers", [3, 2], table.read) == {3: "three", 2: "two"}
    assert cache.of("numbers", [2, 1], table.read) == {2: "two", 1: "one"}
    assert table.asked == [[1, 2], [3]]


def test_that_there_is_none_is_known_too() -> None:
    cache, table = RowCache(), Table()
    assert cache.of("numbers", [9, 1], table.read) == cache.of("numbers", [9, 1], table.read) == {1: "one"}
    assert table.asked == [[9, 1]]


def test_keys_of_one_kind_are_not_those_of_another() -> None:
    cache, table = RowCache(), Table()
    cache.of("numbers", [1], table.read)
    assert cache.of("others", [1], lambda keys: dict.fromkeys(keys, "else")) == {1: "else"}


def test_it_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cache, "ROWS", 2)
    cache, table = RowCache(), Table()
    for keys in ([1, 2], [2, 3], [2, 3], [1]):
        assert cache.of("numbers", keys, table.read) == {key: ROWS[key] for key in keys}
    assert table.asked == [[1, 2], [3], [1]]
    assert len(cache._kinds["numbers"]) == 1


def test_what_is_read_beside_a_full_cache_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else fills it between two looks at it."""
    monkeypatch.setattr(row_cache, "ROWS", 2)
    cache, table = RowCache(), Table()
    cache.of("numbers", [1], table.read)

    def read(keys: list[int]) -> Mapping[int, str]:
        cache.of("numbers", [3, 4], table.read)
        return table.read(keys)

    assert cache.of("numbers", [1, 2], read) == {1: "one", 2: "two"}
