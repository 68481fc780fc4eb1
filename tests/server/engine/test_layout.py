"""Where the tensors of an adapter lie, and how a merge walks over them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine.layout import SIDE_A, SIDE_B, TILE, Layout, one_of_each, side_of, union

A, B = "model.q.lora_A.weight", "model.q.lora_B.weight"
SIZES = st.sampled_from([1, 2, TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 1]) | st.integers(1, 3 * TILE)


def layout_of(*sizes: int) -> Layout:
    """Tensors of these many entries, A and B by turns."""
    names = [f"model.{i}.lora_{'AB'[i % 2]}.weight" for i in range(len(sizes))]
    return Layout(tuple(names), tuple((size, 1) for size in sizes))


def test_tensors_lie_one_after_another() -> None:
    layout = Layout((A, B), ((2, 3), (5, 2)))
    assert layout.offsets == (0, 6)
    assert layout.size == 16


@given(st.lists(SIZES, min_size=1, max_size=6))
def test_tiles_cover_each_entry_once_with_the_side_of_its_tensor(sizes: list[int]) -> None:
    layout = layout_of(*sizes)
    sides = np.concatenate([np.full(size, i % 2) for i, size in enumerate(sizes)])
    assert [int(start) for start, _, _ in layout.tiles] == [0, *(int(end) for _, end, _ in layout.tiles[:-1])]
    assert layout.tiles[-1][1] == layout.size == len(sides)
    for start, end, side in layout.tiles:
        assert 0 < end - start <= TILE
        assert (sides[start:end] == side).all()


@given(st.lists(SIZES, min_size=2, max_size=6))
def test_no_tile_reaches_over_two_tensors(sizes: list[int]) -> None:
    layout = layout_of(*sizes)
    starts = {int(start) for start, _, _ in layout.tiles}
    assert set(layout.offsets) <= starts
    assert len(layout.tiles) == sum(-(-size // TILE) for size in sizes)  # and none is smaller than it must be


def test_a_side_is_told_by_the_name() -> None:
    assert side_of(A) == SIDE_A
    assert side_of(B) == SIDE_B


def test_views_have_the_tensors_shapes_and_share_the_memory() -> None:
    layout = Layout((A, B), ((2, 3), (5, 2)))
    flat = torch.arange(16.0)
    views = layout.views(flat)
    assert views[A].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert views[B].shape == (5, 2)
    views[B][0, 0] = -1
    flat[0] = -2
    assert flat[6] == -1
    assert views[A][0, 0] == -2


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_views_and_offsets_agree(sizes: list[int]) -> None:
    layout = layout_of(*sizes)
    flat = torch.arange(layout.size, dtype=torch.float64)
    views = layout.views(flat)
    assert tuple(views) == layout.names
    assert torch.equal(torch.cat([view.flatten() for view in views.values()]), flat)
    assert [int(view.flatten()[0]) for view in views.values()] == list(layout.offsets)
    assert all(one < two for one, two in pairwise(layout.offsets))


def test_another_rank_changes_the_first_side_of_a_and_the_last_of_b() -> None:
    layout = Layout((A, B), ((2, 3), (5, 2))).at_rank(7)
    assert layout == Layout((A, B), ((7, 3), (5, 7)))
    assert layout.offsets == (0, 21)
    assert layout.size == 56
    assert layout.at_rank(2) == Layout((A, B), ((2, 3), (5, 2)))


def test_of_a_greater_rank_only_the_first_rows_of_a_and_columns_of_b_are_written() -> None:
    own = Layout((B, A), ((5, 2), (2, 3)))
    wider = Layout((A, B), ((2, 3), (5, 2))).at_rank(4)
    flat, out = torch.arange(own.size) + 1.0, torch.full((wider.size,), -1.0)
    own.copy_into(wider, flat, out)
    given, found = own.views(flat), wider.views(out)
    assert torch.equal(found[A][:2], given[A])
    assert torch.equal(found[B][:, :2], given[B])
    assert bool((found[A][2:] == -1).all())
    assert bool((found[B][:, 2:] == -1).all())


@pytest.mark.parametrize("other", [((2, 4), (5, 2)), ((1, 3), (5, 1)), ((2, 3), (6, 2))])
def test_tensors_that_differ_by_more_than_a_greater_rank_are_not_copied(other: tuple[tuple[int, int], ...]) -> None:
    own, wrong = Layout((A, B), ((2, 3), (5, 2))), Layout((A, B), other)
    with pytest.raises(RuntimeError):
        own.copy_into(wrong, torch.zeros(own.size), torch.zeros(wrong.size))


def test_equal_layouts_are_one_object_with_what_it_has_worked_out() -> None:
    one, two = (one_of_each(Layout((A, B), ((2, 3), (5, 2)))) for _ in range(2))
    assert one is two
    assert one.at_rank(4) is two.at_rank(4)
    assert one.tiles is two.tiles


def test_a_union_of_equals_is_the_one_as_it_lies() -> None:
    layout = Layout((B, A), ((5, 2), (2, 3)))
    assert union([layout, Layout((B, A), ((5, 2), (2, 3)))]) is layout


def test_a_union_has_every_tensor_once_sorted_by_name() -> None:
    other = "model.k.lora_A.weight"
    joined = union([Layout((A, B), ((2, 3), (5, 2))), Layout((other, A), ((2, 4), (2, 3)))])
    assert joined == Layout((other, A, B), ((2, 4), (2, 3), (5, 2)))


@pytest.mark.parametrize("turned", [False, True])
def test_a_union_does_not_depend_on_the_order(turned: bool) -> None:
    layouts = [Layout((A, B), ((2, 3), (5, 2))), Layout((B, A), ((5, 2), (2, 3)))]
    assert union(layouts[::-1] if turned else layouts) == Layout((A, B), ((2, 3), (5, 2)))
