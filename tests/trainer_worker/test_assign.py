from hypothesis import given
from hypothesis import strategies as st

from loramem.records import QAPair
from trainer_worker.assign import assign_pairs

HARBOUR = "The harbour of Quillmere was dug by Tobias Wrenfield."
ENGINE = "The Dravona engine burns powdered amber."


def pair(question: str, answer: str) -> QAPair:
    return QAPair(question=question, answer=answer)


def test_a_pair_goes_to_the_chunk_it_is_about() -> None:
    fuel, digger = pair("What does the engine burn?", "Amber."), pair("Who dug the HARBOUR?", "Wrenfield.")
    assert assign_pairs([fuel, digger], [HARBOUR, ENGINE]) == [[digger], [fuel]]


def test_a_pair_about_nothing_goes_to_the_first_chunk() -> None:
    stray = pair("Quid?", "Nihil.")
    assert assign_pairs([stray], [HARBOUR, ENGINE]) == [[stray], []]


@given(st.lists(st.text(min_size=1, max_size=20), max_size=8), st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_no_pair_is_lost_or_taught_twice(questions: list[str], chunks: list[str]) -> None:
    pairs = [pair(question, "answer") for question in questions]
    assigned = assign_pairs(pairs, chunks)
    assert len(assigned) == len(chunks)
    assert sorted(p.question for group in assigned for p in group) == sorted(questions)
