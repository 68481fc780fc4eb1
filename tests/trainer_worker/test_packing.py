import random
import time
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer_worker.packing import (
    LANE_TOKENS,
    Pack,
    Row,
    Step,
    fill,
    shared_prefix,
    steps_in_order,
    steps_of_an_epoch,
    to_batch,
)

OPENING = (1, 2, 3)
rows = st.lists(
    st.builds(
        lambda tail, answer: Row((*OPENING, *tail), tuple(answer)),
        st.lists(st.integers(4, 90), min_size=1, max_size=60),
        st.lists(st.integers(4, 90), min_size=1, max_size=120),
    ),
    min_size=1,
    max_size=40,
)
curricula = st.lists(st.lists(rows, min_size=1, max_size=2), min_size=1, max_size=3)
TOKENS = 2 * LANE_TOKENS


def packs_of(steps: list[Step], owner: int) -> list[Pack]:
    return [pack for step in steps for pack in step.packs[owner]]


def rows_of(packs: list[Pack]) -> Counter[Row]:
    return Counter(row for pack in packs for row in pack.rows)


@given(curricula)
def test_an_epoch_has_every_row_of_every_adapter(wanted: list[list[list[Row]]]) -> None:
    steps = steps_of_an_epoch(wanted, TOKENS, random.Random(0))
    for owner, groups in enumerate(wanted):
        assert not Counter(row for group in groups for row in group) - rows_of(packs_of(steps, owner))


@given(curricula)
def test_no_pack_overflows_and_a_step_has_lanes_of_one_length(wanted: list[list[list[Row]]]) -> None:
    for step in steps_of_an_epoch(wanted, TOKENS, random.Random(0)):
        assert step.lanes == max(1, TOKENS // step.length)
        assert all(len(packs) in (0, step.lanes) for packs in step.packs)
        assert all(pack.tokens <= pack.length == step.length for packs in step.packs for pack in packs)


@given(curricula)
def test_measuring_takes_every_row_once(wanted: list[list[list[Row]]]) -> None:
    steps = steps_in_order(wanted, TOKENS)
    for owner, groups in enumerate(wanted):
        assert rows_of(packs_of(steps, owner)) == Counter(row for group in groups for row in group)


@given(rows)
def test_rows_share_what_all_begin_with_and_keep_a_token_each(group: list[Row]) -> None:
    prefix = shared_prefix(group)
    assert all(row.prompt[: len(prefix)] == prefix for row in group)
    assert all(len(row.prompt) > len(prefix) for row in group)


@given(curricula)
def test_each_row_sees_itself_as_if_it_were_alone(wanted: list[list[list[Row]]]) -> None:
    for step in steps_in_order(wanted, TOKENS):
        batch = to_batch(step, 0, torch.float32)
        for owner, packs in enumerate(step.packs):
            for lane, pack in enumerate(packs, owner * step.lanes):
                sees = batch.attention[lane, 0] == 0
                at = start = len(pack.prefix)
                for row in pack.rows:
                    for offset in range(row.tokens - start):
                        seen = batch.input_ids[lane, sees[at + offset]]
                        assert tuple(seen.tolist()) == (row.prompt + row.answer)[: start + offset + 1]
                        assert batch.position_ids[lane, at + offset] == start + offset
                    at += row.tokens - start


def test_targets_are_the_answers_and_stand_where_they_are_predicted() -> None:
    one = Pack((1, 2), (Row((1, 2, 5), (6, 7)), Row((1, 2, 8, 9), (10,))), 16)
    other = Pack((1,), (Row((1, 3), (4,)),), 16)
    batch = to_batch(Step(((one,), (other,)), 1, 16), 0, torch.float32)
    assert batch.targets[:, 0].tolist() == [6, 7, 10, 4]
    assert batch.weights.tolist() == [[1.0]] * 4
    assert batch.input_ids.flatten()[batch.predicts].tolist() == [5, 6, 9, 3]
    assert batch.owners.tolist() == [0, 0, 0, 1]


def test_a_teachers_labels_stand_in_the_answers_place() -> None:
    labels = (((6, 0.75), (9, 0.25)), ((7, 0.5),))
    taught = Pack((), (Row((5,), (6, 7), labels), Row((8,), (10,))), 16)
    batch = to_batch(Step(((taught,),), 1, 16), 0, torch.float32)
    assert batch.targets.tolist() == [[6, 9], [7, 0], [10, 0]]
    assert batch.weights.tolist() == [[0.75, 0.25], [0.5, 0.0], [1.0, 0.0]]


def test_a_row_longer_than_a_lane_gets_one_of_twice_the_length() -> None:
    long, short = Row(tuple(range(LANE_TOKENS)), (1, 2, 3)), Row((1, 2), (3,))
    assert sorted(pack.length for pack in fill([long, short])) == [LANE_TOKENS, 2 * LANE_TOKENS]


def test_rows_after_long_passages_share_a_longer_lane() -> None:
    passages = tuple(range(100))
    packs = fill([Row((*passages, 200 + i), (i,) * 20) for i in range(30)])
    assert {pack.length for pack in packs} == {4 * LANE_TOKENS}
    assert [len(pack.rows) for pack in packs] == [20, 10]


def test_the_rows_of_a_book_are_packed_in_a_time_that_their_number_gives() -> None:
    seconds = []
    for count in (5_000, 40_000):
        group = [Row((1, 2, number % 50, *range(number % 40)), (number,)) for number in range(count)]
        taken = []
        for _ in range(3):
            started = time.process_time()
            packs = fill(group)
            taken.append(time.process_time() - started)
        seconds.append(min(taken))
    assert seconds[1] < 24 * seconds[0]  # of eight times as many; the square would be 64
    assert Counter(row for pack in packs for row in pack.rows) == Counter(group)
    assert sum(pack.tokens for pack in packs) > 0.9 * sum(pack.length for pack in packs)


def test_an_adapter_without_rows_of_a_length_waits() -> None:
    long, short = Row(tuple(range(LANE_TOKENS)), (1, 2, 3)), Row((1, 2), (3,))
    (step,) = [one for one in steps_in_order([[[short]], [[long]]], TOKENS) if one.length > LANE_TOKENS]
    assert [len(packs) for packs in step.packs] == [0, 1]
    assert set(to_batch(step, 0, torch.float32).owners.tolist()) == {1}


def test_no_rows_no_steps() -> None:
    assert steps_in_order([[]], TOKENS) == []
    assert steps_of_an_epoch([[], []], TOKENS, random.Random(0)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_of_the_mask_is_empty(dtype: torch.dtype) -> None:
    step = Step(((Pack((1,), (Row((1, 2), (3,)),), 16),), ()), 1, 16)
    assert bool((to_batch(step, 0, dtype).attention == 0).any(dim=-1).all())
