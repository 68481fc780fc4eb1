import pytest

from trainer_worker.blocks import plain
from trainer_worker.clauses import Harm, cuts
from trainer_worker.statements import MAX_TOGETHER, MAX_WHOLE, MAX_WORDS, statements


def harm_of(sentence: str) -> Harm:
    """Of the cut that `|` marks."""
    before, _, after = sentence.partition("|")
    return next(cut.harm for cut in cuts(before + after) if cut.at == len(before))


@pytest.mark.parametrize(
    "sentence",
    [
        "The mill was closed for eleven years; |the new wheel was carved from larch.",
        "The mill was closed for eleven years, |and the wheel was sold.",
        "The mill was closed, |but nobody has sold it.",
        "The mill was closed, |while its owner kept the wheel.",
        "The mill was closed by Jon Ask, |who sold the wheel.",
        "After the flood had come, the mill was closed, |and the wheel was sold.",
        "The mill (it is of brick) was closed, |and Jon Ask sold the wheel.",
    ],
)
def test_a_clause_of_its_own_may_be_cut_off(sentence: str) -> None:
    assert harm_of(sentence) is Harm.SOUND


@pytest.mark.parametrize(
    "sentence",
    [
        "The mill was closed, |and sold by Jon Ask.",
        "The mill was closed |and sold by Jon Ask.",
        "The mill was closed, |in the year of the flood.",
        "The mill has a wheel of larch, |and a roof of copper.",
        "The mill with a roof of copper, |which came from Orm, was closed.",
        "He said that the mill was closed, |and the wheel was sold.",
        "Critics claim the mill was closed, |and the owners sold the wheel.",
        "You must not do this: the guard is removed from the belt; |oil is poured into the box.",
        "The mill is known for three things: |its wheel is of larch.",
    ],
)
def test_what_is_no_sentence_is_a_fragment(sentence: str) -> None:
    assert harm_of(sentence) is Harm.FRAGMENT


@pytest.mark.parametrize(
    "sentence",
    [
        "Unless the landlord has agreed, |the tenant may not keep dogs.",
        "When the flood comes, the mill is closed, |and the wheel is stopped.",
        "If the alarm sounds, every guest must leave the hall; |the lifts must not be used.",
        "Were the ice to melt, the mill would be closed, |and the town would be lost.",
        "Although it is generally accepted, |the law is new.",
        "You get a full refund, |if you return the wheel.",
        "You get a full refund |but only if you return the wheel.",
        "The mill was closed between the flood |and the fire.",
        "The mill (of brick, |and of larch) was closed.",
        'The owner said "It is closed, |and it was sold" there.',
        "It is a myth that the pipes are of gold, |that they were cast from bells.",
        "The valves work by opening |and closing a port.",
        "The mill is not only the oldest, |but it was the tallest.",
    ],
)
def test_what_may_say_something_else_is_false(sentence: str) -> None:
    assert harm_of(sentence) is Harm.FALSE


def texts(text: str) -> list[str]:
    return [statement.text for statement in statements("", plain(text))]


CONDITION = (
    "Unless the landlord has agreed in writing at least thirty days before the beginning of the lease, "
    "the tenant may not keep dogs, cats or any other animals in the apartment."
)
LIST = "The park has a lake with boats of all kinds, a garden of roses from Japan, "


def test_a_condition_stays_with_what_it_is_a_condition_of() -> None:
    assert MAX_WORDS < len(CONDITION.split()) <= MAX_WHOLE
    assert texts(CONDITION) == [CONDITION]


@pytest.mark.parametrize(("parks", "parts"), [(2, 1), (3, 2)])
def test_a_sentence_is_whole_up_to_its_words_rather_than_in_fragments(parks: int, parts: int) -> None:
    sentence = LIST * parks + "and a hill of sand."
    assert (MAX_WORDS < len(sentence.split()) <= MAX_TOGETHER) == (parts == 1)
    assert len(texts(sentence)) == parts


def test_beyond_that_it_is_cut_all_the_same() -> None:
    sentence = "If " + "the water rises in the lock and falls in the mill or in the pond, " * 6 + "the gate closes."
    assert len(sentence.split()) > MAX_WHOLE
    found = texts(sentence)
    assert len(found) > 1
    assert all(len(one.split()) <= MAX_WHOLE for one in found)
