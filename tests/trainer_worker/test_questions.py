"""Which of a writer's questions are right, where a text has no blanks between its words and no capitals."""

import pytest

from trainer_worker.blocks import plain
from trainer_worker.questions import Draft, Judge, kind_asked, questions, says_what
from trainer_worker.statements import statements

BUILT, ROOF = FACTS = statements("", plain("哈德尔磨坊建于1820年。它的屋顶是铜的。"))


@pytest.mark.parametrize("sampled", [False, True])
def test_a_question_without_blanks_is_usable(sampled: bool) -> None:
    [found] = questions([Draft(ROOF, " What")], ["屋顶是用什么做的"], Judge(FACTS), sampled=sampled)
    assert (found.question, found.answer) == ("What屋顶是用什么做的?", ROOF.text)


@pytest.mark.parametrize(
    ("question", "usable"),
    [("屋顶是用什么做的?", True), ("屋顶?", False), (f"{'屋顶' * 100}?", False), ("磨坊建于哪一年?", False)],
    ids=["as it should be", "too short", "too long", "of another statement"],
)
def test_a_question_is_about_its_statement_and_neither_too_short_nor_too_long(question: str, usable: bool) -> None:
    assert Judge(FACTS).is_about(question, ROOF) is usable


def test_a_question_in_writing_with_vowel_signs_is_about_its_statement() -> None:
    mill, river = facts = statements("", plain("हाडल की चक्की 1820 में बनी थी.\n\nओर्म नदी पर चार पुल हैं."))
    judge = Judge(facts)
    assert judge.is_about("नदी पर कितने पुल हैं?", river)
    assert not judge.is_about("नदी पर कितने पुल हैं?", mill)


def test_words_without_capitals_are_common_words_and_numbers_are_not() -> None:
    assert says_what("屋顶是用什么做的?", ROOF)
    assert not says_what("1820?", BUILT)


def test_a_time_is_asked_for_as_dates_are() -> None:
    assert kind_asked("At what time does the gate close?") == kind_asked("When does it close?") == ("date",)
