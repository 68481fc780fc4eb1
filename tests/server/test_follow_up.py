"""Which questions need what was asked before them, and how much of it."""

import pytest

from loramem.prompts import Message
from server.follow_up import TURNS, points_back, with_what_it_points_to

STANDING = "Who mended the lamp of the lighthouse?"
COLOURS = ("red", "green", "blue")[:TURNS]


def asked(*questions: str) -> list[Message]:
    """A conversation in which each was answered."""
    return [
        turn
        for question in questions
        for turn in ({"role": "user", "content": question}, {"role": "assistant", "content": "It was Ansel Brandt."})
    ]


@pytest.mark.parametrize(
    "question",
    [
        "How tall is it?", "Whose idea was this?", "ARE THEY OLD?", "It's how tall?", "Which ones burn?",
        "And the keeper?", "What about Sundays?", "  - so the stair is of oak?", "Who said that?", "Tell me more.",
        "What else?", "Why?", "Where was the", "", "And the stair, how old?", "how about 1874?",
    ],
)  # fmt: skip
def test_a_pronoun_a_beginning_an_end_or_no_name_at_all_points_back(question: str) -> None:
    assert points_back(question)


@pytest.mark.parametrize(
    "question",
    [
        STANDING, "Which comet did the Harlan probe photograph near Jupiter?", "Who said that the lamp burns?",
        "Where does Sofia lie?", "Is Andorra north of Orkney?", "Name more lighthouses of Korrin",
        "What time is it in Tokyo?", "Is it safe to mix bleach with vinegar?", "And who painted the Mona Lisa?",
        "Who is the prime minister of Japan this year?", "Was it sold in 1874?",
        "who wrote one hundred years of solitude",
    ],
)  # fmt: skip
def test_a_question_that_names_what_it_is_about_stands_alone(question: str) -> None:
    assert not points_back(question)


def test_a_follow_up_is_read_with_the_question_before_it() -> None:
    before = asked("When does the bakery open?", STANDING)
    assert with_what_it_points_to("How old was he?", before) == f"How old was he?\n{STANDING}"


def test_a_chain_of_follow_ups_is_read_up_to_the_question_that_stands_alone() -> None:
    before = asked("When does the bakery open?", STANDING, "And the stair?")
    assert with_what_it_points_to("How tall is it?", before) == f"How tall is it?\nAnd the stair?\n{STANDING}"


def test_no_more_turns_are_read_than_a_few() -> None:
    before = asked(STANDING, *(f"And is that {colour}?" for colour in COLOURS))
    whole = with_what_it_points_to("How tall is it?", before)
    assert whole is not None
    assert whole.splitlines()[1:] == [f"And is that {colour}?" for colour in reversed(COLOURS)]


def test_what_stands_alone_is_read_alone() -> None:
    assert with_what_it_points_to(STANDING, asked("When does the bakery open?")) is None


def test_where_nothing_was_asked_before_there_is_nothing_to_point_to() -> None:
    answers = [*asked(" "), {"role": "system", "content": "Speak like a captain."}]
    assert with_what_it_points_to("How tall is it?", []) is None
    assert with_what_it_points_to("How tall is it?", answers) is None
