"""Rows of one generation that queries have read, so that the next ones need not ask the database for them."""

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, TypeVar

ROWS = 16_384
"""Of a kind; 14 MB of the largest rows, candidates."""

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")


class RowCache:
    """Goes with its generation: whatever changes rows that are kept here makes a new one. Safe to use from several
    threads."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, dict[Any, Any]] = {}

    def of(
        self, kind: Hashable, keys: Collection[Key], read: Callable[[list[Key]], Mapping[Key, Row | None]]
    ) -> dict[Key, Row]:
        """By key, of those that there are; `read` is asked for those that nobody has read."""
        held = self._kinds.setdefault(kind, {})
        unread = [key for key in keys if key not in held]
        if unread:
            found = read(unread)
            if len(held) + len(unread) > ROWS:
                self._kinds[kind] = held = {key: held[key] for key in keys if key in held}  # others may read the old
            held.update({key: found.get(key) for key in unread})
        return {key: held[key] for key in keys if held[key] is not None}
