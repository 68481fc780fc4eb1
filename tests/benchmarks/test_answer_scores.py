import random

import pytest

from benchmarks.answer_scores import all_worded, best, chosen, exact_match, scores, some_worded, worded
from benchmarks.datasets import Asked
from benchmarks.scores import rouge_l, token_f1

OPTIONS = ("He was tired", "He was tired of the war", "A long letter from his brother", "Nobody knows")


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("B", 1),
        ("(b) whatever", 1),
        ("C. A long letter", 2),
        ("**D)**", 3),
        ("The answer is (C).", 2),
        ("I think the answer is D", 3),
        ("Either (A) or (B)", None),
        ("(B), as (A) is wrong", 1),
        ("A long letter from his brother.", 2),  # not the letter A
        ("He was tired.", 0),
        ("Because he was tired of the war!", 1),  # holds the first as well
        ("he was tired of the war, and nobody knows", None),
        ("A long letter from", 2),
        ("he was", None),
        ("He was tired", 0),
        ("E", None),
        ("", None),
    ],
)
def test_an_option_is_named_by_letter_or_text(answer: str, option: int | None) -> None:
    assert chosen(answer, OPTIONS) == option


def test_the_best_reference_counts() -> None:
    asked = Asked("Who?", ("a long way", "Jon Ask", "the smith"))
    assert scores("Jon Ask.", asked) == {"em": 1.0, "f1": 1.0, "rouge_l": 1.0}
    assert scores("Jon Ask the smith", asked)["f1"] == pytest.approx(4 / 5)
    assert scores("larch", asked) == {"em": 0.0, "f1": 0.0, "rouge_l": 0.0}
    choice = Asked("Who?", ("Nobody knows",), None, OPTIONS, 3)
    assert scores("D", choice) == {"accuracy": 1.0}
    assert scores("", choice) == {"accuracy": 0.0}


def test_no_score_falls_with_one_reference_more() -> None:
    rng = random.Random(0)

    def text() -> str:
        return " ".join(rng.choices("abcdefg", k=rng.randint(1, 6)))

    for _ in range(200):
        answer, references = text(), [text() for _ in range(3)]
        for metric in (exact_match, token_f1, rouge_l):
            assert best(metric, answer, references) >= best(metric, answer, references[:2])
            assert 0 <= best(metric, answer, references) <= 1
        assert rouge_l(answer, references[0]) == pytest.approx(rouge_l(references[0], answer))
        assert exact_match(answer, answer) == rouge_l(answer, answer) == 1


def test_exact_match_is_squads() -> None:
    assert exact_match("The Mill-House!", "millhouse") == 1
    assert exact_match("mill house", "millhouse") == 0


def test_a_word_is_a_letter_or_a_digit() -> None:
    assert worded(["larch", "7", "… é", "", " ", "...", "()"]) == 3


def test_of_no_answers_none_has_a_word() -> None:
    assert [all_worded(count, asked)["ok"] for count, asked in ((2, 2), (1, 2), (0, 0))] == [True, False, False]
    assert [some_worded(said)["ok"] for said in (["", "larch"], ["", "."], [])] == [True, False, False]
