"""Texts that ask and answer themselves."""

import time

import pytest

from loramem.prompts import MAX_ANSWER_TOKENS
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
        "**Q:** Is it red?\n**A:** Yes, it is.",
        "**Q**: Is it red?\n\n**A**: Yes,\nit is.",
        "**Q: Is it red?**\n*A: Yes, it is.*",
        "__Question:__ **Is it red?**\n__Answer:__ Yes, it is.",
        "__Q: Is it red?__\n_A: Yes, it is._",
        "### Q: Is it red?\n\nA: Yes, it is.",
        "- Q: Is it red?\n- A: Yes, it is.",
        "12. **Q:** Is it red?\n    + **A:** Yes, it is.",
        "> Q: Is it\n> red?\n>\n> A: Yes,\n> it is.",
        "> Q: Is it\n> red? A: Yes,\n> it is.",
        "Q: Is it red?\n> A: Yes,\n> it is.",
    ],
)
def test_marks_may_be_dressed_as_markdown_has_it(text: str) -> None:
    assert told(f"{text}\n{text}") == ([Told("Is it red?", "Yes, it is.")] * 2, "\n")


@pytest.mark.parametrize(
    "answer", ["SELECT *", "**kwargs", "It is **very** old", "Very *old* and *red*", "__init__", "*"]
)
def test_asterisks_that_are_not_around_the_whole_of_an_answer_are_kept(answer: str) -> None:
    assert told(f"Q: What is it?\n**A:** {answer}") == ([Told("What is it?", answer)], "")


@pytest.mark.parametrize("said", ["A*", "5 euros*", "*.*", "**bold** text", "__init__ is run", "*args and more"])
def test_what_a_plain_mark_stands_before_is_kept_as_it_is(said: str) -> None:
    assert told(f"Q: {said}\nA:{said}") == ([Told(said, said)], "")


@pytest.mark.parametrize("said", ["Yes, *very* red", "__init__", "Yes **indeed"])
def test_an_emphasis_that_begins_before_a_mark_ends_with_the_same_signs(said: str) -> None:
    assert told(f"**Q: {said}**\n**A: {said}**") == ([Told(said, said)], "")


def test_an_emphasised_mark_alone_is_no_answer() -> None:
    assert told("**Q:** Why?\n**A:**\n")[0] == []


@pytest.mark.parametrize("question", ["Q: How?\n", "> Q: How?\n\n"])
def test_a_line_that_begins_as_quoted_is_kept_where_the_mark_is_in_no_quotation(question: str) -> None:
    assert told(f"{question}A: Run this:\n>>> import x")[0] == [Told("How?", "Run this: >>> import x")]


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


@pytest.mark.parametrize("pair", ["Q: Why?\nA: {}\n\n", "Q: {}?\nA: No.\n\n"], ids=["answer", "question"])
def test_a_pair_that_is_too_long_to_be_taught_stays_prose(pair: str) -> None:
    long = pair.format("哈" * (MAX_ANSWER_TOKENS // 2 + 1))
    assert told(f"{long}Q: Is it red?\nA: Yes.\n") == ([Told("Is it red?", "Yes.")], f"{long}\n")
    short = pair.format("哈" * (MAX_ANSWER_TOKENS // 2 - 1))
    assert len(told(short)[0]) == 1


def test_an_answer_of_a_paragraph_is_taught_whole() -> None:
    answer = " ".join(["word"] * 250)
    assert told(f"Q: Why?\nA: {answer}\n")[0] == [Told("Why?", answer)]


def test_the_rest_keeps_its_white_space() -> None:
    text = "One.  \n\n  Q: Is it red? \t\n\n A : Yes,\n\tit is. \n\nTwo.\nq: Why?\nanswer: No.\t\n \n"
    assert told(text) == ([Told("Is it red?", "Yes, it is."), Told("Why?", "No.")], "One.  \n\n\n\nTwo.\n\n \n")


def test_marks_within_a_pair_are_words() -> None:
    text = "Q: A: what? A:\nB, Q: or A: C? Q: no A: yes"
    assert told(text) == ([Told("A: what? A: B, Q: or", "C? Q: no A: yes")], "")


@pytest.mark.parametrize("piece", [" ", "\n", "\t", " \r\n", "Q: ", "*", "_", "> ", "\n>", "- ", "#", "\n**Q:", "?"])
@pytest.mark.parametrize(
    "text", ["Q: x A: z{}y", "Q: x{}y", "Q: x{}y A: z", "Q{}: x A{}: z", "Q: x\n\n{}A:{}", "{}", "## {}x"]
)
def test_long_runs_take_no_time(text: str, piece: str) -> None:
    started = time.process_time()
    told(text.replace("{}", piece * (20_000 // len(piece))))
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "line",
    [
        "Q: x\n",
        "Q: x\nA:\n",
        "Q: x\n\n",
        "Q: x A: y\n",
        "\n" + " " * 50 + "A",
        "> **Q:** x\n> - **A:**\n",
    ],
)
def test_many_marks_take_no_time(line: str) -> None:
    started = time.process_time()
    told("Q: x" + line * 20_000)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("choices", ["A: Orm\nB: Brae\nC: Toll", "A: Orm\nB) Brae\nAnswer: B", "A: Orm\nAnswer: A"])
def test_several_answers_to_choose_from_are_none(choices: str) -> None:
    text = f"Question: Which town is the largest?\n{choices}"
    assert told(text) == ([], text)


@pytest.mark.parametrize("line", ["b) close the valve.", "C. S. Lewis wrote it.", "D: it comes from the sun."])
def test_lines_of_an_answer_may_look_like_choices(line: str) -> None:
    assert told(f"Q: How?\nA: Open it.\n{line}")[0] == [Told("How?", f"Open it. {line}")]
