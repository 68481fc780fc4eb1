"""What is to be held, and what an adapter holds."""

import math

import pytest

from tests.trainer_worker.test_train import ignore
from tests.trainer_worker.tiny import LESSONS, save_tiny_model
from trainer_worker.capacity import (
    HELD_BITS,
    RANKS,
    bits,
    capacity_bits,
    fullness,
    least_rank,
    next_rank,
    statements_of,
)
from trainer_worker.examine import examine
from trainer_worker.examples import Example
from trainer_worker.loop import Hyperparameters
from trainer_worker.train import Trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    return Trainer(
        str(folder), seed=0, hyperparameters=Hyperparameters(learning_rate=1e-2, epochs=1, min_steps=60, anchors=0.0)
    )


def test_every_answer_counts_once_and_only_with_the_book_closed(trainer: Trainer) -> None:
    rows = statements_of(trainer, LESSONS)
    assert len(rows) == len({example.answer for example in LESSONS if not example.context}) == 3


def test_a_paragraph_that_a_heading_asks_for_is_counted_in_its_sentences(trainer: Trainer) -> None:
    asked = Example("What is it?", " ".join(example.answer for example in LESSONS), "heading")
    assert statements_of(trainer, [asked, *LESSONS]) == statements_of(trainer, LESSONS)
    assert len(statements_of(trainer, [asked])) == 1


def test_bits_are_nats_over_the_logarithm_of_two(trainer: Trainer) -> None:
    rows = statements_of(trainer, LESSONS[:1])
    tokens = len(rows[0].answer)
    assert bits(trainer, rows) == pytest.approx(trainer.mean_loss(LESSONS[:1]) * tokens / math.log(2), rel=1e-4)
    assert bits(trainer, []) == 0


def test_what_is_learnt_is_stored(trainer: Trainer) -> None:
    adapter = trainer.train(LESSONS, [], rank=8, max_seconds=3600, on_step=ignore)
    held = examine(trainer, adapter, [], learnt=LESSONS).fullness
    assert held is not None
    assert held.load_bits == pytest.approx(bits(trainer, statements_of(trainer, LESSONS)), abs=0.1)
    assert 0.8 * held.load_bits < held.stored_bits <= held.load_bits
    assert held.full == pytest.approx(held.load_bits / capacity_bits(8), abs=1e-3)


def test_capacity_grows_with_the_rank_and_goes_through_what_was_measured() -> None:
    assert [round(capacity_bits(rank)) for rank in HELD_BITS] == list(HELD_BITS.values())
    found = [capacity_bits(rank) for rank in (1, 2, 4, 8, 16, 32, 64)]
    assert found == sorted(found)
    assert found[-1] < 2 * found[-3]


def test_the_least_rank_leaves_room() -> None:
    assert least_rank(0) == RANKS[0]
    assert least_rank(0.5 * capacity_bits(16)) == 16
    assert least_rank(0.5 * capacity_bits(16) + 1) == 32
    assert least_rank(1e9) == RANKS[-1]


def test_more_than_it_can_hold_is_more_than_full() -> None:
    assert fullness(2 * capacity_bits(8), 100, 8).full == 2.0


def test_ranks_go_up_to_what_is_served() -> None:
    assert [next_rank(rank, 32) for rank in RANKS] == [16, 32, None, None]
