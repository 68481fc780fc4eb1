import pytest

from benchmarks.load_client import Reply
from benchmarks.load_figures import Slo, capacity_figures, checks, figures, percentiles, table
from benchmarks.load_plan import Planned
from benchmarks.load_run import Level, Load, Outcome


def outcome(ttft: float, e2e: float, *, mode: str = "lora", cache: str | None = None, late: float = 0.0) -> Outcome:
    """Due at 100; seconds."""
    reply = Reply(100 + late, [100 + ttft, 100 + (ttft + e2e) / 2], 100 + e2e, merge_cache=cache, completion_tokens=2)
    return Outcome(Planned(0.0, mode, 0, "?", 16), 100.0, reply)  # type: ignore[arg-type]


def failed(error: str) -> Outcome:
    return Outcome(Planned(0.0, "rag", 0, "?", 16), 100.0, Reply(100.0, [100.1], 100.2, error=error))


UNSENT = Outcome(Planned(0.0, "rag", 0, "?", 16), 100.0, None)


def test_percentiles_are_since_due_in_milliseconds() -> None:
    found = percentiles([value / 100 for value in range(101)])
    assert found == {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "max": 1000}
    assert percentiles([None, 0.5, None]) == dict.fromkeys(("p50", "p90", "p95", "p99", "max"), 500.0)
    assert percentiles([None]) is None
    every = figures(Load([outcome(0.5, 1.0, late=0.4)], 2, 2), Slo())["all"]
    assert (every["ttft_ms"]["p50"], every["e2e_ms"]["p50"], every["sent_late_ms"]["p50"]) == (500, 1000, 400)
    assert every["inter_token_ms"]["p50"] == 250


def test_rates_errors_and_cache_hits_by_mode_and_in_all() -> None:
    outcomes = [
        outcome(0.1, 0.2, cache="hit"),
        outcome(0.1, 0.2, cache="miss"),
        outcome(0.1, 0.2, cache="hit"),
        outcome(0.3, 0.4, mode="rag"),
        failed("409 memory-not-ready"),
        failed("409 memory-not-ready"),
        failed("ConnectError"),
        UNSENT,
    ]
    found = figures(Load(outcomes, seconds=2.0, took_s=4.0), Slo())
    every, rag = found["all"], found["modes"]["rag"]
    assert (every["questions"], every["answered"]) == (8, 4)
    assert every["errors"] == {"409 memory-not-ready": 2, "ConnectError": 1, "unsent": 1}
    assert (every["offered_per_s"], every["achieved_per_s"], every["tokens_per_s"]) == (4, 1, 2)
    assert every["merge_cache_hit_share"] == 0.6667
    assert rag["merge_cache_hit_share"] is None
    assert (rag["questions"], rag["answered"], rag["ttft_ms"]["max"]) == (5, 1, 300)  # not of what failed
    assert list(found["modes"]) == ["lora", "rag"]
    assert "2 x 409 memory-not-ready" in table(found)


@pytest.mark.parametrize(
    ("slo", "good"),
    [(Slo(ttft_ms=150), 2), (Slo(e2e_ms=1000), 2), (Slo(150, 1000), 1), (Slo(1e9, 1e9), 3)],
)
def test_goodput_is_what_came_in_time_of_all_that_was_due(slo: Slo, good: int) -> None:
    outcomes = [outcome(0.1, 0.9), outcome(0.1, 5.0), outcome(0.5, 0.9), failed("cut off"), UNSENT]
    assert figures(Load(outcomes, 2, 9), slo)["all"]["goodput"] == {"share": good / 5, "per_s": good / 2}


def test_there_is_no_goodput_without_a_limit() -> None:
    assert figures(Load([outcome(1, 1)], 2, 2), Slo())["all"]["goodput"] is None


def test_an_answer_without_a_token_has_no_ttft_and_is_not_in_time() -> None:
    silent = Outcome(Planned(0.0, "lora", 0, "?", 16), 100.0, Reply(100.0, [], 100.5))
    every = figures(Load([silent], 1, 1), Slo(ttft_ms=1e9))["all"]
    assert (every["answered"], every["ttft_ms"], every["e2e_ms"]["p50"]) == (1, None, 500)
    assert every["goodput"]["share"] == 0


def test_checks_hold_what_is_promised() -> None:
    even = figures(Load([outcome(0.1, 0.2)] * 99 + [outcome(0.2, 0.3)], 1, 1), Slo())
    assert [one["ok"] for one in checks(even, smoke=False)] == [True, True, True]
    uneven = figures(Load([outcome(0.1, 0.2)] * 9 + [outcome(0.9, 1.0)], 1, 1), Slo())
    assert [one["ok"] for one in checks(uneven, smoke=False)] == [True, True, False]
    tail = checks(uneven, smoke=False)[2]
    assert (tail["p50_ms"], tail["p99_ms"]) == (uneven["all"]["ttft_ms"]["p50"], uneven["all"]["ttft_ms"]["p99"])
    assert [one["name"] for one in checks(uneven, smoke=True)] == ["questions without an answer", "tokens a second"]
    lost = checks(figures(Load([outcome(0.1, 0.2), UNSENT, failed("cut off")], 1, 1), Slo()), smoke=True)
    assert lost[0] == {"name": "questions without an answer", "value": 2, "bound": "= 0", "ok": False}
    nothing = checks(figures(Load([UNSENT], 1, 1), Slo()), smoke=False)
    assert [one["ok"] for one in nothing] == [False, False]


def test_answers_that_say_nothing_fail() -> None:
    silent = Outcome(Planned(0.0, "lora", 0, "?", 16), 100.0, Reply(100.0, [], 100.5))
    unanswered, tokens = checks(figures(Load([silent], 1, 1), Slo()), smoke=True)
    assert unanswered["ok"]
    assert (tokens["value"], tokens["bound"], tokens["ok"]) == (0, "> 0", False)


def test_capacity_is_the_best_level() -> None:
    found = capacity_figures([Level(1, 2.0, 20, 0), Level(2, 3.9, 39, 1), Level(4, 3.8, 38, 0)])
    assert (found["per_s"], found["concurrency"]) == (3.9, 2)
    assert found["levels"][1] == {"concurrency": 2, "per_s": 3.9, "answered": 39, "failed": 1, "note": ""}
