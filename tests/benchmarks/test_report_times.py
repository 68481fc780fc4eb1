"""Of `benchmarks.report`, what runs of the latency experiment say together, and what is told of each."""

from typing import Any

import pytest

from benchmarks import q15_plan, report_times
from benchmarks.q15_server import ICL_CACHED
from tests.benchmarks.test_report_findings import found_in

Json = dict[str, Any]


def timed(icl: float, *, cached: float | None = 500.0) -> Json:
    """Of all methods 400 ms an answer, but for ICL."""
    row = {"wall_ms": {"mean": 400.0}, "prompt_tokens": 30.0}
    methods = dict.fromkeys(q15_plan.METHODS, row)
    own = methods | {q15_plan.ICL: row | {"wall_ms": {"mean": icl}}, q15_plan.RAG: row | {"prompt_tokens": 261.1}}
    if cached:
        own[ICL_CACHED] = row | {"wall_ms": {"mean": cached}}
    return {
        "command": "python -m benchmarks.q15 --json --questions 30",
        "settings": {"smoke": False},
        "icl": {
            "document_tokens": 11765,
            "read_tokens": {"least": 1898, "most": 1916},
            "read_share": 0.1622,
            "whole": False,
        },
        "loramem": own,
        "loramem_again": {q15_plan.BASE: row | {"wall_ms": {"mean": 390.0}}},
        "reference": methods | {q15_plan.RAG: row | {"prompt_tokens": 2221.9}},
        "machine": {"processor": "Some CPU"},
        "checks": [
            {"name": "held", "value": 1, "bound": "= 1", "ok": True},
            {"name": "multi_preloaded / rag", "value": 1.083, "bound": "< 1", "ok": False},
        ],
        "ratios": {
            "loramem": {"multi_preloaded / rag": 1.083},
            "loramem_at_equal_length": {"multi_preloaded / icl_cached": 0.758},
            "reference / loramem": {"base": 1.757, "multi_preloaded": 2.119},
        },
    }


@pytest.mark.parametrize(
    ("report", "verdict"),
    [
        (timed(icl=900.0), "agree"),
        (timed(icl=200.0), "disagree"),
        (timed(icl=900.0, cached=300.0), "disagree"),
        (timed(icl=900.0, cached=None), "not measured"),
    ],
)
def test_an_answer_from_adapters_has_to_come_sooner_than_both(report: Json, verdict: str) -> None:
    assert found_in(report_times.latency, report).verdict == verdict


def test_times_are_told_with_what_they_are_times_of() -> None:
    found = found_in(report_times.latency, timed(icl=900.0))
    assert found.figures["loramem icl_cached"].mean == 500
    assert found.figures[report_times.AGAIN].mean == 390
    read, prompts, ratios = found.notes
    assert read == "ICL read 16 % of the document: 1,898 to 1,916 of 11,765 tokens fitted into the window."
    assert ratios.endswith("multi_preloaded / icl_cached 0.758.")
    assert prompts.startswith("Tokens of RAG's prompt: 261 in loramem, 2,222 in the reference")
    whole = timed(icl=900.0)
    whole["icl"]["whole"] = True
    assert found_in(report_times.latency, whole).notes[0] == "ICL read the whole document, 11,765 tokens."


def test_runs_of_the_latency_experiment_have_to_agree() -> None:
    """Whatever their files are called, and each is told in the same words."""
    found = report_times.latency({"a.json": timed(icl=900.0), "b.json": timed(icl=300.0), "c.json": timed(icl=800.0)})
    assert found is not None
    assert (found.file, found.also, found.verdict) == ("a.json", ("b.json", "c.json"), "undecided")
    assert found.why == "agree in 2 of 3 runs"
    assert [note[:8] for note in found.notes[2:]] == ["`a.json`", "`b.json`", "`c.json`"]
    assert found.notes[3] == (
        "`b.json`, on Some CPU: disagree. Ratios as measured: multi_preloaded / rag 1.083, reference / loramem, "
        "multi_preloaded 2.119; had all answers of loramem the same length: multi_preloaded / icl_cached 0.758."
    )
    for icl, verdict, agreeing in ((900.0, "agree", 2), (300.0, "disagree", 0)):
        both = report_times.latency({"a.json": timed(icl), "b.json": timed(icl)})
        assert both is not None
        assert (both.verdict, both.why) == (verdict, f"agree in {agreeing} of 2 runs")
    uncached = report_times.latency({"a.json": timed(icl=900.0, cached=None), "b.json": timed(icl=900.0)})
    assert uncached is not None
    assert (uncached.file, uncached.also, uncached.verdict, uncached.why) == ("b.json", ("a.json",), "agree", "")
    assert uncached.notes[-1].startswith("`a.json`, on Some CPU: not measured. ")
