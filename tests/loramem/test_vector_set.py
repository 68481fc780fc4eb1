"""One set of vectors: main, delta and the dead; inverted lists; what a change shares and when main is made anew."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from loramem import vector_lists, vector_set
from loramem.vector_set import Block, Group, VectorSet

DIM = 16
RANDOM = np.random.default_rng(1)

Vectors = NDArray[np.float32]


def clustered(count: int) -> Vectors:
    """Around twenty centres, as texts are around their subjects."""
    centres = np.random.default_rng(2).standard_normal((20, DIM))
    drawn = centres[RANDOM.integers(0, 20, count)] + 0.3 * RANDOM.standard_normal((count, DIM))
    unit: Vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


def groups(names: Sequence[str], size: int, version: str = "1", first: int = 0) -> dict[str, Group]:
    ids = [np.arange(first + i * size, first + (i + 1) * size, dtype=np.int64) for i in range(len(names))]
    return {name: Group(version, some) for name, some in zip(names, ids, strict=True)}


def names(count: int, prefix: str = "doc") -> list[str]:
    return [f"{prefix}_{number:03}" for number in range(count)]


def made(count: int, size: int = 10) -> tuple[VectorSet, Vectors]:
    """`count` groups of `size`; ids are the rows of the vectors."""
    stored = clustered(count * size)
    return VectorSet.empty(DIM).changed((), groups(names(count), size), stored), stored


def best(stored: Vectors, question: Vectors, limit: int, among: Sequence[int] | None = None) -> list[int]:
    rows = np.arange(len(stored)) if among is None else np.array(among)
    order = rows[np.argsort(-(stored[rows] @ question), kind="stable")]
    return [int(row) for row in order[:limit]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_set, "LEAST_DELTA", 100)
    monkeypatch.setattr(vector_set, "FLAT_AT_MOST", 2000)


def test_a_change_shares_main_and_copies_delta_alone() -> None:
    before, stored = made(50)
    assert (before.main.count, before.delta.count) == (500, 0)
    new = clustered(10)
    added = before.changed((), groups(["new"], 10, first=1000), new)
    after = added.changed({"doc_003"}, {}, np.zeros((0, DIM), dtype=np.float32))
    assert after.main is added.main is before.main
    assert after.delta.count == 10
    assert len(before) == 500
    assert len(added) == 510
    assert len(after) == 500
    assert after.nearest(new[3], 1)[0].id == 1003
    assert before.nearest(new[3], 1)[0].id < 500
    assert before.nearest(stored[35], 1)[0].id == 35
    assert 35 not in {near.id for near in after.nearest(stored[35], 500)}
    assert {near.key for near in after.nearest(stored[35], 500)} == {*names(50), "new"} - {"doc_003"}


def test_a_group_made_again_replaces_the_old_one_in_main_and_in_delta() -> None:
    vectors, _ = made(50)
    for version in ("2", "3"):
        new = clustered(10)
        vectors = vectors.changed({"doc_003"}, groups(["doc_003"], 10, version), new)
        near = vectors.nearest(new[4], 1)[0]
        assert (near.key, near.id) == ("doc_003", 4)
        assert near.score == pytest.approx(1.0, abs=1e-5)
        assert len(vectors.nearest(new[4], 1000)) == len(vectors) == 500
        assert vectors.groups["doc_003"].version == version
        assert vectors.delta.count == 10


def test_main_is_made_anew_when_delta_or_the_dead_have_grown() -> None:
    vectors, stored = made(50)
    grown = vectors.changed((), groups(names(10, "new"), 10, first=500), clustered(100))
    assert grown.main is vectors.main
    grown = grown.changed((), groups(["last"], 1, first=600), clustered(1))
    assert (grown.main.count, grown.delta.count) == (601, 0)
    nothing = np.zeros((0, DIM), dtype=np.float32)
    died = vectors.changed(set(names(10)), {}, nothing)
    assert died.main is vectors.main
    died = died.changed({"doc_010"}, {}, nothing)
    assert (died.main.count, died.dead) == (390, frozenset())
    assert [near.id for near in died.nearest(stored[0], 5)] == best(stored, stored[0], 5, range(110, 500))


def test_groups_without_vectors_are_nowhere_in_the_way() -> None:
    sizes = [0, 3, 0, 0, 2, 1, 0]
    ids = np.split(np.arange(6), np.cumsum(sizes)[:-1])
    parts = {name: Group("1", some) for name, some in zip(names(7), ids, strict=True)}
    stored = clustered(6)
    in_delta = VectorSet.empty(DIM).changed((), parts, stored)
    for vectors in (in_delta, in_delta.folded()):
        keys = [vectors.nearest(vector, 1)[0].key for vector in stored]
        assert keys == ["doc_001"] * 3 + ["doc_004"] * 2 + ["doc_005"]
        assert vectors.nearest(stored[0], 9, {"doc_000", "doc_006"}) == []
        assert set(vectors.groups) == set(names(7))


@pytest.mark.parametrize("in_lists", [False, True])
def test_chosen_groups_are_searched_exactly_in_main_and_delta(in_lists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_set, "BATCH", 7)  # several batches
    monkeypatch.setattr(vector_lists, "PROBED", 10**6)  # one list: a search of all would miss most
    vectors, stored = made(300)
    vectors = vectors.in_lists() if in_lists else vectors
    more = clustered(20)
    vectors = vectors.changed({"doc_005"}, groups(["new", "doc_005"], 10, "2", first=3000), more)
    every = np.concatenate([stored, more])
    chosen = [*range(70, 80), *range(3000, 3020)]
    for question in clustered(20):
        found = vectors.nearest(question, 12, ["doc_007", "new", "doc_005", "doc_005", "unknown"])
        expected = every[best(every, question, 12, chosen)] @ question
        assert [near.score for near in found] == pytest.approx(expected.tolist(), abs=2e-3 if in_lists else 1e-5)
        assert {near.id for near in found} <= set(chosen)


@pytest.mark.parametrize("in_lists", [False, True])
def test_the_mean_of_each_groups_best_is_exact_in_main_and_delta(in_lists: bool) -> None:
    vectors, stored = made(300)
    vectors = vectors.in_lists() if in_lists else vectors
    more = clustered(11)
    new = groups(["doc_005"], 10, "2", first=3000) | {
        "few": Group("1", np.array([4000])),
        "none": Group("1", stored[:0, 0].astype(np.int64)),
    }
    vectors = vectors.changed({"doc_005", "doc_006"}, new, more)
    held = {"doc_007": stored[70:80], "doc_005": more[:10], "few": more[10:]}
    for question in clustered(5):
        found = vectors.means_of_best(question, 3, [*held, "doc_006", "none", "unknown"])
        wanted = {key: float(np.sort(group @ question)[-3:].mean()) for key, group in held.items()}
        assert found == pytest.approx(wanted, abs=2e-3 if in_lists else 1e-5)


def test_lists_find_nearly_all_with_scores_to_half_precision() -> None:
    flat, stored = made(300)
    lists = flat.in_lists()
    assert flat.main.is_flat
    assert not lists.main.is_flat
    assert vector_lists.lists_of(lists.main.index).nlist == 64
    hits, asked = 0, clustered(50)
    for question in asked:
        found = lists.nearest(question, 10)
        hits += len({near.id for near in found} & set(best(stored, question, 10)))
        exact = [float(stored[near.id] @ question) for near in found]
        assert [near.score for near in found] == pytest.approx(exact, abs=2e-3)
        assert all(near.key == f"doc_{near.id // 10:03}" for near in found)
    assert hits / (10 * len(asked)) >= 0.95


def test_the_dead_are_passed_over_in_lists() -> None:
    flat, stored = made(300)
    lists = flat.in_lists().changed({"doc_000"}, {}, np.zeros((0, DIM), dtype=np.float32))
    assert not lists.main.is_flat
    for question in stored[:10]:
        assert min(near.id for near in lists.nearest(question, 50)) >= 10


def test_lists_are_made_beyond_what_flat_is_for_and_made_anew_when_due() -> None:
    vectors, _ = made(200)
    assert not vectors.needs_lists
    vectors = vectors.changed((), groups(names(20, "new"), 10, first=2000), clustered(200))
    assert vectors.needs_lists
    lists = vectors.in_lists()
    assert not lists.needs_lists
    grown = lists.changed((), groups(names(20, "more"), 10, first=3000), clustered(200))
    assert grown.main is lists.main
    assert grown.needs_lists
    again = grown.in_lists()
    assert (again.main.count, again.delta.count) == (2400, 0)
    assert not again.needs_lists


def test_centroids_are_kept_while_they_are_as_many_as_wanted() -> None:
    lists = made(300)[0].in_lists()
    grown = lists.changed((), groups(["new"], 10, first=9000), clustered(10)).in_lists()
    old, new = (vector_lists.lists_of(one.main.index).quantizer.reconstruct_n(0, 64) for one in (lists, grown))
    assert np.array_equal(old, new)
    assert vector_lists.is_in_lists(grown.main.index)
    many = grown.changed((), groups(names(900, "new"), 10, first=10_000), clustered(9000)).in_lists()
    assert vector_lists.lists_of(many.main.index).nlist == 128


def test_lists_of_the_version_before_are_searched_until_they_are_made_anew() -> None:
    import faiss

    flat, stored = made(300)
    half, product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(DIM), DIM, 64, half, product, False)
    index.train(stored)
    index.add(stored)
    index.make_direct_map()
    old = VectorSet(Block(index, flat.main.groups), flat.delta, frozenset())
    assert not old.needs_lists
    kept = old.changed({"doc_007"}, {}, np.zeros((0, DIM), dtype=np.float32))
    for vectors in (kept, kept.in_lists()):
        assert vectors.nearest(stored[123], 1)[0].id == 123
        assert vectors.nearest(stored[75], 1)[0].id != 75
        assert np.allclose(vectors.vectors(["doc_012"]), stored[120:130], atol=1e-3)
    assert isinstance(kept.main.index, faiss.IndexIVF)
    assert isinstance(kept.in_lists().main.index, faiss.IndexRefine)


def test_what_the_codes_lose_is_found_by_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """All lists are read, so that only the codes could lose any."""
    monkeypatch.setattr(vector_lists, "PROBED", 1)
    flat, stored = made(400)
    lists = flat.in_lists()
    for question in clustered(20):
        found = [near.id for near in lists.nearest(question, 10)]
        assert len(set(found) & set(best(stored, question, 10))) >= 9  # half precision orders near ties otherwise


def test_more_may_be_wanted_than_are_compared_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_lists, "SHORTLIST", 100)
    monkeypatch.setattr(vector_lists, "PROBED", 1)
    flat, stored = made(300)
    question = clustered(1)[0]
    found = flat.in_lists().nearest(question, 2500)
    scores = [near.score for near in found]
    assert len({near.id for near in found}) == 2500
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx((stored[[near.id for near in found]] @ question).tolist(), abs=2e-3)


def test_lists_that_shrink_below_what_flat_is_for_are_flat_again() -> None:
    flat, stored = made(300)
    lists = flat.in_lists()
    few = lists.changed(set(names(250)), {}, np.zeros((0, DIM), dtype=np.float32))
    assert few.main.is_flat
    assert [near.id for near in few.nearest(stored[2600], 5)] == best(stored, stored[2600], 5, range(2500, 3000))


def test_what_changed_while_lists_were_made_is_in_them_afterwards() -> None:
    before, stored = made(300)
    lists = before.in_lists()
    newer = clustered(30)
    after = before.changed({"doc_001", "doc_002"}, groups(["doc_002", "new"], 15, "2", first=5000), newer)
    caught_up = lists.caught_up(after)
    assert not caught_up.main.is_flat
    assert {key: group.version for key, group in caught_up.groups.items()} == {
        key: group.version for key, group in after.groups.items()
    }
    assert caught_up.nearest(newer[20], 1)[0].id == 5020
    every = {near.id for near in caught_up.nearest(stored[15], 9999, caught_up.groups)}
    assert every == {*range(10), *range(30, 3000), *range(5000, 5030)}
    assert before.in_lists().caught_up(before).delta.count == 0
