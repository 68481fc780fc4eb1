"""Vectors in groups (the windows of a document, the questions of an adapter), searched by inner product.

    main     many vectors: flat up to `FLAT_AT_MOST`, in inverted lists beyond (see `vector_lists`)
    delta    those that came since main was made, flat; made anew with every change, so it has to stay small
    dead     groups of main that are gone, or stand in delta with another version

A change makes a new delta and shares main, which may be gigabytes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loramem import vector_lists

FLAT_AT_MOST = 100_000
"""Vectors; a search in so many of 384 dimensions takes 10 to 20 ms on one core, and is exact."""
LEAST_DELTA = 4096
"""Rows of delta, or dead rows of main, below which main is never made anew."""
DELTA_SHARE = 0.02
"""Of main's rows; delta is searched whole, and copied by every change."""
DEAD_SHARE = 0.2
"""Of main's rows; dead ones only take memory, and time in the lists that are searched."""
BATCH = 65_536
"""Rows of main that are copied out of it at once."""

Vector = NDArray[np.float32]
Rows = NDArray[np.int64]


class Near(NamedTuple):
    """One vector that was found: its group's key, its id, and its inner product with the question."""

    key: str
    id: int
    score: float


@dataclass(frozen=True)
class Group:
    """Vectors that come and go together. `version` tells one making of them from the next; ids have shape (n,)."""

    version: str
    ids: Rows


@dataclass(frozen=True, eq=False)
class Block:
    """A FAISS index and whose its rows are: those of the first group come first."""

    index: Any  # searching it is thread-safe, changing it is not
    groups: Mapping[str, Group]

    @classmethod
    def flat(cls, vectors: Vector, groups: Mapping[str, Group]) -> "Block":
        """`vectors` are those of the groups in order, shape (n, dim)."""
        import faiss

        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return cls(index, groups)

    @property
    def is_flat(self) -> bool:
        return not vector_lists.is_in_lists(self.index)

    @cached_property
    def count(self) -> int:
        return int(self.index.ntotal)

    @cached_property
    def ids(self) -> Rows:
        return _joined(group.ids for group in self.groups.values())

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.groups)

    @cached_property
    def starts(self) -> Rows:
        """The first row of each group, shape (groups,)."""
        counts = np.array([len(group.ids) for group in self.groups.values()], dtype=np.int64)
        starts: Rows = np.cumsum(counts) - counts
        return starts

    @cached_property
    def _start_of(self) -> dict[str, int]:
        return dict(zip(self.keys, self.starts.tolist(), strict=True))

    def rows(self, keys: Iterable[str]) -> Rows:
        spans = ((self._start_of[key], len(self.groups[key].ids)) for key in keys)
        return _joined(np.arange(start, start + count) for start, count in spans)

    def vectors(self, rows: Rows) -> Vector:
        """Shape (rows, dim)."""
        vectors: Vector = self.index.reconstruct_batch(rows)
        return vectors

    def _of(self, key: str) -> Vector:
        """A group's, shape (n, dim); of a flat index not a copy."""
        if self.is_flat:
            start = self._start_of[key]
            return self._flat[start : start + len(self.groups[key].ids)]
        return self.vectors(self.rows([key]))

    @cached_property
    def _flat(self) -> Vector:
        """The index's own memory, shape (count, dim): to be read, and only while this block lasts."""
        import faiss

        size = self.count * self.index.d
        held = faiss.rev_swig_ptr(self.index.get_xb(), size) if size else np.zeros(0, dtype=np.float32)
        flat: Vector = held.reshape(self.count, self.index.d)
        flat.flags.writeable = False
        return flat

    def nearest(self, vector: Vector, limit: int, alive: NDArray[np.uint8] | None = None) -> list[Near]:
        """`alive` has one bit for each row, the lowest of a byte first; without it every row is."""
        import faiss

        if not self.count:
            return []
        selector = None if alive is None else faiss.IDSelectorBitmap(alive)  # type: ignore[call-arg, arg-type]
        flat = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        limit = min(limit, self.count)
        parameters = flat if self.is_flat else vector_lists.parameters(self.index, limit, selector)
        scores, rows = self.index.search(vector[None], limit, params=parameters)
        found = rows[0] >= 0  # FAISS fills up with -1 where it looked at fewer
        return self.named(rows[0][found], scores[0][found])

    def nearest_among(self, vector: Vector, limit: int, keys: Iterable[str]) -> Iterator[Near]:
        """Up to `limit` of each `BATCH` rows of these groups; every vector of theirs is compared."""
        import faiss

        rows = self.rows(keys)
        for some in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH)):
            scores, places = faiss.knn(
                vector[None], self.vectors(some), min(limit, len(some)), metric=faiss.METRIC_INNER_PRODUCT
            )
            yield from self.named(some[places[0]], scores[0])

    def mean_of_best(self, vector: Vector, count: int, key: str) -> float | None:
        """See `VectorSet.means_of_best`; None of an empty group."""
        scores = np.einsum("nd,d->n", self._of(key), vector)  # on one thread, as `@` is not above a thousand rows
        return float(np.sort(scores)[-count:].mean()) if len(scores) else None

    def named(self, rows: Rows, scores: Vector) -> list[Near]:
        groups = np.searchsorted(self.starts, rows, side="right") - 1  # of equal starts, all but the last are empty
        keys = [self.keys[group] for group in groups.tolist()]
        return list(map(Near, keys, self.ids[rows].tolist(), scores.tolist()))


@dataclass(frozen=True, eq=False)
class VectorSet:
    """Never changes, so any number of threads may search it while the next one is made."""

    main: Block
    delta: Block
    dead: frozenset[str]

    @classmethod
    def empty(cls, dim: int) -> "VectorSet":
        nothing = Block.flat(np.zeros((0, dim), dtype=np.float32), {})
        return cls(nothing, nothing, frozenset())

    @cached_property
    def groups(self) -> Mapping[str, Group]:
        """Those that are found."""
        return {**self._kept_of_main, **self.delta.groups}

    @property
    def _kept_of_main(self) -> dict[str, Group]:
        return {key: group for key, group in self.main.groups.items() if key not in self.dead}

    @cached_property
    def _dead_rows(self) -> Rows:
        return self.main.rows(self.dead)

    @cached_property
    def _alive(self) -> NDArray[np.uint8] | None:
        """A bit for each row of main, or None when no row is dead."""
        if not len(self._dead_rows):
            return None
        alive = np.ones(self.main.count, dtype=np.bool_)
        alive[self._dead_rows] = False
        return np.packbits(alive, bitorder="little")

    @property
    def dim(self) -> int:
        return int(self.main.index.d)

    def __len__(self) -> int:
        """Vectors that are found."""
        return self.main.count - len(self._dead_rows) + self.delta.count

    @property
    def is_due(self) -> bool:
        """Main has fallen behind so far that it pays to make it anew."""
        late = self.delta.count > max(LEAST_DELTA, DELTA_SHARE * self.main.count)
        return late or len(self._dead_rows) > max(LEAST_DELTA, DEAD_SHARE * self.main.count)

    @property
    def needs_lists(self) -> bool:
        """It is time for `in_lists`, which takes a while."""
        return len(self) > FLAT_AT_MOST and (self.main.is_flat or self.is_due)

    def nearest(self, vector: Vector, limit: int, keys: Collection[str] | None = None) -> list[Near]:
        """Up to `limit`, best first, of all groups or of those with these keys; then, and when flat, exact."""
        import faiss

        faiss.omp_set_num_threads(1)  # one question does not pay for more: on busy cores they wait for each other
        if limit < 1:
            return []
        vector = vector.astype(np.float32)
        found = self._nearest_of_all(vector, limit) if keys is None else self._nearest_among(vector, limit, set(keys))
        return sorted(found, key=lambda near: near.score, reverse=True)[:limit]

    def _nearest_of_all(self, vector: Vector, limit: int) -> Iterable[Near]:
        return chain(self.main.nearest(vector, limit, self._alive), self.delta.nearest(vector, limit))

    def _nearest_among(self, vector: Vector, limit: int, keys: set[str]) -> Iterable[Near]:
        newer = keys & self.delta.groups.keys()
        older = (keys & self.main.groups.keys()) - self.dead
        return chain(self.main.nearest_among(vector, limit, older), self.delta.nearest_among(vector, limit, newer))

    def means_of_best(self, vector: Vector, count: int, keys: Iterable[str]) -> dict[str, float]:
        """Of each of these groups that is found and holds any, the mean inner product of its `count` nearest; exact."""
        vector = vector.astype(np.float32)
        found = ((key, self._block_of(key)) for key in keys)
        means = {key: block.mean_of_best(vector, count, key) for key, block in found if block is not None}
        return {key: mean for key, mean in means.items() if mean is not None}

    def _block_of(self, key: str) -> Block | None:
        if key in self.delta.groups:
            return self.delta
        return self.main if key in self.main.groups and key not in self.dead else None

    def vectors(self, keys: Iterable[str]) -> Vector:
        """Of these groups in order, shape (n, dim)."""
        parts = [np.zeros((0, self.dim), dtype=np.float32)]
        for key in keys:
            block = self.delta if key in self.delta.groups else self.main
            parts.append(block.vectors(block.rows([key])))
        return np.concatenate(parts)

    def changed(self, gone: Collection[str], new: Mapping[str, Group], vectors: Vector) -> "VectorSet":
        """Without the groups `gone`, with `new`; `vectors` are theirs in order, shape (n, dim)."""
        if not gone and not new:
            return self
        kept = {key: group for key, group in self.delta.groups.items() if key not in gone}
        delta = Block.flat(_stacked(self.delta.vectors(self.delta.rows(kept)), vectors), {**kept, **new})
        changed = VectorSet(self.main, delta, self.dead | (self.main.groups.keys() & set(gone)))
        at_once = changed.main.is_flat or len(changed) <= FLAT_AT_MOST
        return changed.folded() if changed.is_due and at_once else changed

    def folded(self) -> "VectorSet":
        """All in a flat main; a copy of every vector."""
        nothing = Block.flat(np.zeros((0, self.dim), dtype=np.float32), {})
        kept = self._kept_of_main
        if not kept:
            return VectorSet(self.delta, nothing, frozenset())
        later = self.delta.vectors(self.delta.rows(self.delta.groups))
        vectors = _stacked(self.main.vectors(self.main.rows(kept)), later)
        return VectorSet(Block.flat(vectors, {**kept, **self.delta.groups}), nothing, frozenset())

    def in_lists(self) -> "VectorSet":
        """All in a main of inverted lists; for a million of 384 dimensions about a minute of one core."""
        kept = self._kept_of_main
        index = vector_lists.build(self.dim, len(self), lambda: self._batches(kept), old=self.main.index)
        nothing = Block.flat(np.zeros((0, self.dim), dtype=np.float32), {})
        return VectorSet(Block(index, {**kept, **self.delta.groups}), nothing, frozenset())

    def caught_up(self, newer: "VectorSet") -> "VectorSet":
        """This one with what was changed in `newer` since."""
        gone = {key for key, group in self.groups.items() if not _has(newer, key, group)}
        new = {key: group for key, group in newer.groups.items() if not _has(self, key, group)}
        return self.changed(gone, new, newer.vectors(new))

    def _batches(self, kept: Iterable[str]) -> Iterator[Vector]:
        for block, rows in ((self.main, self.main.rows(kept)), (self.delta, self.delta.rows(self.delta.groups))):
            for start in range(0, len(rows), BATCH):
                yield block.vectors(rows[start : start + BATCH])


def _has(vectors: VectorSet, key: str, group: Group) -> bool:
    return key in vectors.groups and vectors.groups[key].version == group.version


def _joined(parts: Iterable[Rows]) -> Rows:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _stacked(first: Vector, second: Vector) -> Vector:
    """A million vectors read at the start are not copied once more."""
    if not len(first):
        return second
    stacked: Vector = np.concatenate([first, second])
    return stacked
