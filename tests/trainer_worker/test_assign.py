import pytest
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


@pytest.mark.parametrize(
    ("question", "harbour", "engine"),
    [
        ("哪种发动机烧琥珀？", "港口是由托比亚斯挖的。", "德拉沃纳发动机烧琥珀粉。"),
        ("この機械は何を燃やすか。", "港は昔に掘られた。", "ドラヴォナの機械は琥珀を燃やす。"),
        ("เครื่องยนต์เผาอะไร", "ท่าเรือถูกขุดเมื่อนานมาแล้ว", "เครื่องยนต์ดราโวนาเผาอำพัน"),
    ],
    ids=["Chinese", "Japanese", "Thai"],
)
def test_a_pair_without_blanks_goes_to_the_chunk_it_is_about(question: str, harbour: str, engine: str) -> None:
    fuel = pair(question, "?")
    assert assign_pairs([fuel], [harbour, engine]) == [[], [fuel]]


def test_a_pair_about_a_letter_goes_to_the_list_that_has_it() -> None:
    fire = pair("火?", "?")
    assert assign_pairs([fire], ["木: tree", "火: fire"]) == [[], [fire]]


def test_a_pair_about_nothing_goes_to_the_first_chunk() -> None:
    stray = pair("Quid?", "Nihil.")
    assert assign_pairs([stray], [HARBOUR, ENGINE]) == [[stray], []]


@given(st.lists(st.text(min_size=1, max_size=20), max_size=8), st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_no_pair_is_lost_or_taught_twice(questions: list[str], chunks: list[str]) -> None:
    pairs = [pair(question, "answer") for question in questions]
    assigned = assign_pairs(pairs, chunks)
    assert len(assigned) == len(chunks)
    assert sorted(p.question for group in assigned for p in group) == sorted(questions)
