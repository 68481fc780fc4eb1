"""How many adapters scores call for, at each threshold and around it, and what is learnt from held-out questions."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.confidence import (
    DEFAULTS,
    ENOUGH,
    MARGINS,
    MOST,
    RELEVANT,
    STRONG_BY,
    UNANSWERED,
    Observed,
    Thresholds,
    calibrated,
    choose,
)

THRESHOLDS = Thresholds(margin=0.25, relevant=0.5, strong=0.75)
"""Exact in binary, so that "at" is at."""
BELOW_HALF = math.nextafter(0.5, 0)
SELDOM = RELEVANT[0] + (RELEVANT[1] - RELEVANT[0]) / 4
"""A score that nothing clamps, and that is no default."""


def chosen(scores: Sequence[float], untrained: float = 0.0) -> tuple[str, int]:
    choice = choose(scores, THRESHOLDS, untrained=untrained)
    return choice.confidence, choice.count


# choose


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0], ("confident", 1)),
        ([1.0, 0.5], ("confident", 1)),
        ([1.0, 0.75], ("unsure", 2)),
        ([1.0, math.nextafter(0.75, 0)], ("confident", 1)),
        ([1.0, 0.9, 0.75], ("unsure", 3)),
        ([1.0, 0.9, 0.7], ("unsure", 2)),
        ([1.0, 1.0, 1.0, 1.0, 1.0], ("unsure", MOST)),
    ],
)
def test_those_within_the_margin_are_chosen_three_at_most(scores: list[float], expected: tuple[str, int]) -> None:
    assert chosen(scores) == expected


@pytest.mark.parametrize(
    ("best", "expected"),
    [(0.75, "confident"), (math.nextafter(0.75, 0), "weak"), (0.5, "weak"), (BELOW_HALF, "none"), (0.0, "none")],
)
def test_the_best_score_decides_how_much_is_known(best: float, expected: str) -> None:
    assert chosen([best, best / 2]) == (expected, 1)


def test_a_weak_best_takes_those_beside_it_and_an_irrelevant_one_stays_alone() -> None:
    assert chosen([0.6, 0.6, 0.6, 0.6]) == ("weak", MOST)
    assert chosen([0.4, 0.4, 0.4]) == ("none", 1)


@pytest.mark.parametrize("scores", [[0.0], [0.0, 0.0], [-0.2], [-0.1, -0.2, -0.3]])
def test_scores_of_nothing_or_less_are_irrelevant_and_one_is_named(scores: list[float]) -> None:
    choice = choose(scores, THRESHOLDS)
    assert (choice.confidence, choice.count, choice.margin) == ("none", 1, 1.0 if len(scores) == 1 else 0.0)
    assert "below 0.50" in choice.reason


def test_nothing_stored_is_none_without_an_adapter() -> None:
    choice = choose([], THRESHOLDS)
    assert (choice.confidence, choice.count, choice.margin) == ("none", 0, 1.0)
    assert "nothing is stored" in choice.reason


@pytest.mark.parametrize(
    ("scores", "untrained", "expected"),
    [
        ([], 0.5, ("untrained", 0)),
        ([], BELOW_HALF, ("none", 0)),
        ([0.9], 0.9, ("confident", 1)),
        ([0.9], math.nextafter(0.9, 1), ("untrained", 1)),
        ([0.4, 0.35], 0.5, ("untrained", 2)),
        ([0.4], BELOW_HALF, ("none", 1)),
        ([0.8, 0.8, 0.8, 0.8], 0.9, ("untrained", MOST)),
    ],
)
def test_chunks_without_adapters_count_when_they_are_relevant_and_better(
    scores: list[float], untrained: float, expected: tuple[str, int]
) -> None:
    assert chosen(scores, untrained) == expected


@pytest.mark.parametrize(
    ("scores", "margin"),
    [
        ([0.8], 1.0),
        ([0.8, 0.6], 0.25),
        ([0.8, 0.8], 0.0),
        ([0.8, 0.0], 1.0),
        ([0.8, -0.4], 1.0),
        ([0.8, 0.6, 0.2], 0.25),
    ],
)
def test_the_lead_is_a_share_of_the_best_score(scores: list[float], margin: float) -> None:
    assert choose(scores, THRESHOLDS).margin == pytest.approx(margin)


@pytest.mark.parametrize("scores", [[1.0, 0.5], [1.0, 0.9], [0.6], [0.4], [0.1]])
def test_the_best_score_is_told_whatever_it_calls_for(scores: list[float]) -> None:
    assert choose(scores, THRESHOLDS).best == choose(scores, THRESHOLDS, untrained=0.9).best == scores[0]


def test_without_an_adapter_there_is_no_best_score() -> None:
    assert choose([], THRESHOLDS).best is choose([], THRESHOLDS, untrained=0.9).best is None


def test_reasons_hold_the_figures_that_decided() -> None:
    assert "below 0.75" in choose([0.6], THRESHOLDS).reason
    assert "0.60" in choose([0.6], THRESHOLDS).reason
    assert "40%" in choose([1.0, 0.6], THRESHOLDS).reason
    assert "2 are within 25%" in choose([1.0, 0.9], THRESHOLDS).reason


@given(
    st.lists(st.floats(-1, 1), max_size=6).map(lambda scores: sorted(scores, reverse=True)),
    st.floats(0, 1),
    st.sampled_from([DEFAULTS, THRESHOLDS]),
)
def test_any_scores_give_a_choice_that_can_be_taken(
    scores: list[float], untrained: float, thresholds: Thresholds
) -> None:
    choice = choose(scores, thresholds, untrained=untrained)
    assert 0 <= choice.count <= min(MOST, len(scores))
    assert 0 <= choice.margin <= 1
    if choice.confidence in ("confident", "unsure", "weak"):
        assert choice.count >= 1
        assert scores[0] >= max(thresholds.relevant, untrained * (untrained >= thresholds.relevant))


# calibrated


def observed(
    count: int, scores: Sequence[float], right: int | None = 0, elsewhere: float | None = None
) -> list[Observed]:
    return [Observed(tuple(scores), right, elsewhere)] * count


def test_too_few_questions_leave_the_defaults() -> None:
    clear = observed(ENOUGH, [1.0, 0.1], elsewhere=SELDOM)
    assert calibrated([]) == calibrated(clear[1:]) == DEFAULTS
    assert calibrated(clear) == Thresholds(MARGINS[0], SELDOM, SELDOM + STRONG_BY, ENOUGH)


def test_the_margin_grows_until_nearly_all_are_inside() -> None:
    """The right adapter of the second kind is a fifth behind the best."""
    second = [1.0, 0.801, 0.1]
    for behind, margin in ((1, MARGINS[0]), (2, 0.20)):
        learnt = calibrated(observed(100 - behind, [1.0, 0.5]) + observed(behind, second, right=1))
        assert learnt.margin == pytest.approx(margin)
    assert calibrated(observed(99, [1.0]) + observed(1, second, right=2)).margin == MARGINS[0]


@pytest.mark.parametrize("right", [None, 2, MOST])
def test_the_margin_is_the_greatest_when_too_many_are_never_inside(right: int | None) -> None:
    """Not found, too far behind, or one more than are ever chosen."""
    scores = [1.0, 1.0, 1.0, 1.0] if right == MOST else [1.0, 1.0, 0.5]
    assert calibrated(observed(98, [1.0]) + observed(2, scores, right=right)).margin == MARGINS[-1]


def test_margins_are_tried_from_small_to_great() -> None:
    assert list(MARGINS) == sorted(set(MARGINS))
    assert 0 < MARGINS[0] < MARGINS[-1] < 1


def test_relevant_is_what_questions_without_an_answer_seldom_reach() -> None:
    least, most = RELEVANT
    elsewhere = [least + (most - least) * number / 100 for number in range(100)]
    learnt = calibrated([Observed((1.0,), 0, score) for score in reversed(elsewhere)])
    known = sum(score < learnt.relevant for score in elsewhere)
    assert known / 100 == pytest.approx(UNANSWERED, abs=0.015)
    assert learnt.strong == pytest.approx(learnt.relevant + STRONG_BY)


@pytest.mark.parametrize(("elsewhere", "relevant"), [(0.05, RELEVANT[0]), (-0.1, RELEVANT[0]), (0.9, RELEVANT[1])])
def test_relevant_stays_within_its_bounds(elsewhere: float, relevant: float) -> None:
    learnt = calibrated(observed(50, [1.0], elsewhere=elsewhere))
    assert (learnt.relevant, learnt.strong) == (relevant, relevant + STRONG_BY)


def test_without_other_documents_relevance_is_the_defaults_and_the_margin_learnt() -> None:
    alone = calibrated(observed(50, [1.0]))
    assert alone == Thresholds(MARGINS[0], DEFAULTS.relevant, DEFAULTS.relevant + STRONG_BY, 50)
    few = calibrated(observed(50, [1.0]) + observed(ENOUGH - 1, [1.0], elsewhere=SELDOM))
    assert (few.relevant, few.questions) == (DEFAULTS.relevant, 50 + ENOUGH - 1)
    enough = calibrated(observed(50, [1.0]) + observed(ENOUGH, [1.0], elsewhere=SELDOM))
    assert enough.relevant == SELDOM


def test_what_is_learnt_is_used_as_it_is() -> None:
    """A namespace where the right adapter lies far behind takes more than one that is clear."""
    scores = [0.8, 0.66]
    clear = calibrated(observed(ENOUGH, [1.0, 0.2], elsewhere=SELDOM))
    crowded = calibrated(observed(ENOUGH, [1.0, 0.75], right=1, elsewhere=SELDOM))
    assert [choose(scores, one).confidence for one in (clear, crowded)] == ["confident", "unsure"]


# calibrated with another embedder, whose cosines may all be higher or lower


@pytest.mark.parametrize(("elsewhere", "relevant"), [(0.6, 0.6), (0.05, 0.05), (-0.1, 0.0)])
def test_with_another_embedder_what_was_observed_decides_alone(elsewhere: float, relevant: float) -> None:
    learnt = calibrated(observed(50, [0.9], elsewhere=elsewhere), embedded=False)
    assert (learnt.relevant, learnt.strong) == (relevant, relevant + STRONG_BY)


def test_with_another_embedder_questions_harder_than_those_held_out_are_found_too() -> None:
    """Some score high elsewhere: the level stays halfway between that of most there and that of nearly all at home."""
    some = observed(60, [0.9], elsewhere=0.5) + observed(40, [0.9], elsewhere=0.85)
    assert calibrated(some, embedded=False).relevant == pytest.approx(0.7)
    hard = observed(94, [0.9], elsewhere=0.5) + observed(6, [0.7], elsewhere=0.69)
    assert calibrated(hard, embedded=False).relevant == pytest.approx(0.6)


def test_with_another_embedder_documents_that_say_the_same_teach_no_level() -> None:
    alike = observed(50, [0.9], elsewhere=0.9)
    assert calibrated(alike, embedded=False).relevant == DEFAULTS.relevant


def test_with_another_embedder_that_finds_none_of_them_the_default_stays() -> None:
    learnt = calibrated(observed(50, [0.9], right=None, elsewhere=0.6), embedded=False)
    assert learnt.relevant == DEFAULTS.relevant
