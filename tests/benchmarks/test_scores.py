import random

import pytest

from benchmarks.scores import interval, mean, rouge_l, token_f1


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        ("The mill was built by Jon Ask.", "Jon Ask", 2 * 2 / (6 + 2)),
        ("JON ASK!", "the Jon Ask", 1.0),
        ("copper copper", "copper", 2 / 3),
        ("larch", "copper", 0.0),
        ("", "copper", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_words_count_without_case_articles_and_punctuation(answer: str, expected: str, f1: float) -> None:
    assert token_f1(answer, expected) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("police kill the gunman", "police killed the gunman", 2 * 3 / 8),  # Lin 2004, section 3.1: S2 and S1
        ("the gunman kill police", "police killed the gunman", 2 * 2 / 8),  # S3: order counts
        ("Self-Play, in 2 steps.", "self play in 2 steps", 1.0),
        ("a c", "a b c", 4 / 5),
        ("", "copper", 0.0),
        ("...", "...", 0.0),
    ],
)
def test_rouge_l_is_the_longest_common_subsequence(answer: str, expected: str, score: float) -> None:
    assert rouge_l(answer, expected) == pytest.approx(score)
    assert rouge_l(expected, answer) == pytest.approx(score)


def test_an_interval_narrows_with_the_number_of_values_as_the_normal_one_does() -> None:
    rng = random.Random(0)
    values = [rng.gauss(0.5, 0.2) for _ in range(400)]
    low, high = interval(values, 0)
    assert low < mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * 0.2 / 400**0.5, rel=0.1)
    assert interval(values, 0) == (low, high)


def test_without_values_there_is_a_mean_of_zero_and_no_interval() -> None:
    assert mean([]) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        interval([], 0)
