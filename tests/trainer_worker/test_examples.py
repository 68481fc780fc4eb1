"""By which of its questions an adapter is known to the router."""

from itertools import pairwise

from trainer_worker.examples import MOST_ASKED, Asked, Example, asked_of


def some(kind: str, count: int) -> list[Example]:
    return [Example(f"{kind} {place}?", f"{kind} {place}.", kind) for place in range(count)]


def known(examples: list[Example]) -> list[str]:
    return [asked.question for asked in asked_of(examples, [])]


def test_users_questions_are_all_kept_and_come_first() -> None:
    many, few = some("user", 3 * MOST_ASKED), some("user", 10)
    assert known([*some("written", 20), *many]) == [one.question for one in many]
    assert known([*some("written", 20), *few])[:10] == [one.question for one in few]


def test_what_headings_ask_is_kept_as_users_questions_are() -> None:
    many = some("heading", 2 * MOST_ASKED)
    assert known([*some("written", 20), *many]) == [one.question for one in many]


def test_written_ones_fill_the_room_and_come_from_all_of_the_text() -> None:
    taken = [int(question.split()[1].rstrip("?")) for question in known([*some("written", 300), *some("user", 4)])[4:]]
    assert len(taken) == MOST_ASKED - 4
    assert taken == sorted(taken)
    assert {after - before for before, after in pairwise(taken)} == {5}
    assert (taken[0], taken[-1]) == (0, 295)


def test_fewer_than_there_is_room_for_are_all_kept() -> None:
    assert known(some("written", 20)) == [f"written {place}?" for place in range(20)]


def test_those_held_out_have_room_of_their_own() -> None:
    asked = asked_of(some("written", 100), some("written", 100)[::-1])
    assert [one.held_out for one in asked] == [False] * MOST_ASKED + [True] * MOST_ASKED
    assert asked[0] == Asked("written 0?", "written 0.")
