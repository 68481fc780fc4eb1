import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_worker.packing import PACK_TOKENS, Pack, Row, in_order, packs_of_an_epoch, shared_prefix, to_batch

OPENING = (1, 2, 3)
rows = st.lists(
    st.builds(
        lambda tail, answer: Row((*OPENING, *tail), tuple(answer)),
        st.lists(st.integers(4, 90), min_size=1, max_size=60),
        st.lists(st.integers(4, 90), min_size=1, max_size=80),
    ),
    min_size=1,
    max_size=40,
)


@given(rows)
def test_every_row_is_in_an_epoch_and_no_pack_overflows(group: list[Row]) -> None:
    packs = packs_of_an_epoch([group], random.Random(0))
    seen = Counter(row for pack in packs for row in pack.rows)
    assert not Counter(group) - seen
    assert all(pack.tokens <= pack.length == PACK_TOKENS for pack in packs)


@given(rows)
def test_measuring_takes_every_row_once(group: list[Row]) -> None:
    assert Counter(row for pack in in_order(group) for row in pack.rows) == Counter(group)


@given(rows)
def test_rows_share_what_all_begin_with_and_keep_a_token_each(group: list[Row]) -> None:
    prefix = shared_prefix(group)
    assert all(row.prompt[: len(prefix)] == prefix for row in group)
    assert all(len(row.prompt) > len(prefix) for row in group)


@given(rows)
def test_each_row_sees_itself_as_if_it_were_alone(group: list[Row]) -> None:
    for pack in in_order(group):
        batch = to_batch(pack, 0, torch.float32)
        sees = batch.attention[0, 0] == 0
        at = len(pack.prefix)
        for row in pack.rows:
            for offset in range(row.tokens - len(pack.prefix)):
                seen = batch.input_ids[0, sees[at + offset]]
                assert tuple(seen.tolist()) == (row.prompt + row.answer)[: len(pack.prefix) + offset + 1]
                assert batch.position_ids[0, at + offset] == len(pack.prefix) + offset
            at += row.tokens - len(pack.prefix)


def test_targets_are_the_answers_and_stand_where_they_are_predicted() -> None:
    pack = Pack((1, 2), (Row((1, 2, 5), (6, 7)), Row((1, 2, 8, 9), (10,))))
    batch = to_batch(pack, 0, torch.float32)
    assert batch.targets.tolist() == [6, 7, 10]
    assert batch.input_ids[0, batch.predicts].tolist() == [5, 6, 9]


def test_a_row_longer_than_a_pack_gets_one_of_the_next_multiple() -> None:
    long = Row(tuple(range(PACK_TOKENS)), (1, 2, 3))
    (pack,) = in_order([long])
    assert pack.length == 2 * PACK_TOKENS
    assert to_batch(pack, 0, torch.float32).input_ids.shape == (1, 2 * PACK_TOKENS)


def test_no_rows_no_packs() -> None:
    assert in_order([]) == []
    assert packs_of_an_epoch([[]], random.Random(0)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_of_the_mask_is_empty(dtype: torch.dtype) -> None:
    batch = to_batch(Pack((1,), (Row((1, 2), (3,)),)), 0, dtype)
    assert bool((batch.attention[0, 0] == 0).any(dim=-1).all())
