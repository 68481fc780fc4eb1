"""Texts that ask and answer themselves."""

import pytest

from trainer_worker.told import Told, told

PHONES = """Question: What is the number of Ann Lee? Answer: 603-556-7631
Question: What is the number of Bo Ray? Answer: 705-882-9365
"""
HELP = """Before you write to us, look here.

Q: How do I reset
   my key?
A: Hold the button for ten seconds.
The lamp turns green.

Q: Is there a limit? A: No.
Thank you for reading.

The office opens at nine.
"""


def test_each_answer_stays_with_its_own_question() -> None:
    pairs, rest = told(PHONES)
    assert pairs == [
        Told("What is the number of Ann Lee?", "603-556-7631"),
        Told("What is the number of Bo Ray?", "705-882-9365"),
    ]
    assert not rest.strip()


def test_an_answer_goes_on_to_a_blank_line_and_the_rest_is_left() -> None:
    pairs, rest = told(HELP)
    assert pairs == [
        Told("How do I reset my key?", "Hold the button for ten seconds. The lamp turns green."),
        Told("Is there a limit?", "No. Thank you for reading."),
    ]
    assert " ".join(rest.split()) == "Before you write to us, look here. The office opens at nine."


def test_a_question_without_an_answer_does_not_take_the_next_ones() -> None:
    pairs, rest = told("Q: Is it red?\nQ: Is it blue?\n\nA: Yes, it is blue.\n")
    assert pairs == [Told("Is it blue?", "Yes, it is blue.")]
    assert rest.strip() == "Q: Is it red?"


@pytest.mark.parametrize(
    "text",
    [
        "The question: who pays? Nobody had an answer.",
        "Question: who pays?\n\nNobody knew.",
        "He asked: Q: what? and she said A: that.",
        "Answer: 12\nQuestion: none",
        "Question: who pays?\n\nNobody knew, and years went by.\n\nA: that was all he said.",
    ],
)
def test_prose_about_questions_is_left_as_it_is(text: str) -> None:
    assert told(text) == ([], text)
