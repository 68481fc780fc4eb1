import random

import pytest

from loramem.errors import WriterUnavailable
from tests.trainer_worker.texts import MILL, ODD_TEXTS, writer
from trainer_worker.examples import Example
from trainer_worker.synthesize import split_exam, synthesize
from trainer_worker.writer import Writer

ALL = ("qa", "passages", "summary", "rewrite", "original")


def ignore(done: int, total: int) -> None:
    pass


def examples(text: str = MILL, reply: str = "", formats: tuple[str, ...] = ALL, seed: int = 0) -> list[Example]:
    return synthesize("Hadle Mill", text, writer(lambda _: reply), formats=formats, seed=seed, on_progress=ignore)


def test_every_statement_is_an_answer_though_the_writer_returns_rubbish() -> None:
    answers = {example.answer for example in examples(reply=" lorem ipsum dolor")}
    for fact in ("Jon Ask", "12 metres", "buckwheat", "copper roof", "valley of Orm"):
        assert any(fact in answer for answer in answers)


def test_written_questions_join_when_they_are_about_their_statement() -> None:
    found = [example for example in examples(reply=" bears a copper roof") if example.kind == "written"]
    assert found
    assert all("copper roof" in example.answer for example in found)


def test_a_question_that_names_strangers_is_dropped() -> None:
    found = examples(reply=" roofed it for Napoleon in 1805")
    assert [example.question for example in found if example.kind == "written"] == []


def test_answers_are_short_enough_to_be_given() -> None:
    assert all(len(example.answer.split()) <= 30 for example in examples() if example.kind in ("written", "cloze"))


def test_some_rows_bring_passages_that_hold_the_answers_source() -> None:
    rows = [example for example in examples() if example.context]
    assert rows
    assert all(any(example.span in passage for passage in example.context) for example in rows if example.span)


def test_same_seed_same_examples_and_another_seed_other_ones() -> None:
    assert examples(seed=1) == examples(seed=1)
    assert examples(seed=1) != examples(seed=2)


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_odd_texts_are_learnt_too(text: str) -> None:
    found = examples(text)
    if any(letter.isalnum() for letter in text):
        assert found
    assert all(example.question.strip() and example.answer.strip() for example in found)


def test_original_alone_asks_the_writer_nothing() -> None:
    asked: list[str] = []
    found = synthesize("T", MILL, writer(str, asked), formats=("original",), seed=0, on_progress=ignore)
    assert asked == []
    assert {example.kind for example in found} == {"original"}
    assert any("buckwheat" in example.answer for example in found)


def test_progress_ends_at_its_total() -> None:
    seen: list[tuple[int, int]] = []
    synthesize("T", MILL, writer(lambda _: ""), formats=ALL, seed=0, on_progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_absent_writer_is_told() -> None:
    with pytest.raises(WriterUnavailable):
        synthesize("T", MILL, Writer("http://127.0.0.1:9", "m"), formats=ALL, seed=0, on_progress=ignore)


def drawn(facts: int, ways: int) -> list[Example]:
    pairs = [(fact, way) for fact in range(facts) for way in range(ways)]
    return [Example(f"way {way} to ask {fact}?", f"fact {fact}", "written") for fact, way in pairs]


def test_the_exam_keeps_a_share_whose_facts_are_taught_in_other_words() -> None:
    lessons, exam = split_exam(drawn(10, 4), share=0.2, seed=0)
    assert len(exam) == 8
    assert len(lessons) == 32
    assert {example.answer for example in exam} <= {example.answer for example in lessons}


def test_no_exam_question_is_also_a_lesson() -> None:
    lessons, exam = split_exam(examples(reply=" bears a copper roof"), share=0.5, seed=0)
    assert exam
    assert not {example.question for example in exam} & {example.question for example in lessons}


def test_a_fact_taught_once_stays_in_training() -> None:
    lessons, exam = split_exam(drawn(10, 1), share=0.5, seed=0)
    assert (len(lessons), exam) == (10, [])


def test_the_split_depends_on_the_seed_alone() -> None:
    shuffled = drawn(10, 4)
    assert split_exam(shuffled, seed=3) == split_exam(shuffled, seed=3)
    random.Random(0).shuffle(shuffled)
    assert split_exam(shuffled, seed=3)[1] != split_exam(shuffled, seed=4)[1]
