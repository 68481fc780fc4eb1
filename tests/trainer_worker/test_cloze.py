"""Questions made from statements by rule."""

import pytest

from trainer_worker.blocks import plain
from trainer_worker.cloze import cloze_questions
from trainer_worker.statements import statements


def asked(text: str) -> list[str]:
    return [example.question for fact in statements("", plain(text)) for example in cloze_questions(fact)]


@pytest.mark.parametrize("text", ["- They are for Orm", "| 31 | 32 |", "It is on 3 May 1896."])
def test_nothing_is_asked_for_where_nothing_is_said_beside_it(text: str) -> None:
    assert asked(text) == []


def test_what_is_left_out_after_a_span_says_nothing() -> None:
    assert asked("It is about five metres high.") == ["It is about how many metres high?"]


def test_a_time_is_asked_for_as_one() -> None:
    assert asked("The gate closes at 9:30.") == ["The gate closes at what time?"]
