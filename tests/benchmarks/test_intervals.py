import random

import pytest

from benchmarks.intervals import cluster_interval, percentile
from benchmarks.scores import interval


def test_single_values_have_the_plain_interval() -> None:
    rng = random.Random(0)
    values = [rng.random() for _ in range(200)]
    assert cluster_interval([[value] for value in values], 3) == pytest.approx(interval(values, 3))


def test_repeating_a_document_s_questions_makes_nothing_surer() -> None:
    rng = random.Random(0)
    values = [rng.random() for _ in range(50)]
    once, often = (cluster_interval([[value] * times for value in values], 0) for times in (1, 20))
    assert once is not None
    assert often == pytest.approx(once)


def test_a_document_weighs_by_its_questions() -> None:
    ends = cluster_interval([[0.0] * 90, [1.0] * 10], 0)
    assert ends == (0.0, 1.0)  # either may be drawn twice
    many = cluster_interval([[0.0] * 9, [1.0]] * 200, 0)
    assert many is not None
    assert many[0] < 0.1 < many[1]


def test_one_document_says_nothing_about_others() -> None:
    assert cluster_interval([[0.0, 1.0], []], 0) is None


def test_percentiles_stand_between_neighbours() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([], 95) == 0
