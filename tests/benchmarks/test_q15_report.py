from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.q15_plan import BASE, ICL, METHODS, PER_QUESTION, PRELOADED, RAG, SINGLE, Asked, Measured
from benchmarks.q15_plot import draw
from benchmarks.q15_report import answered, checks, cut, lines, ratios, summary, wall_ms_at
from benchmarks.q15_server import ICL_CACHED

Json = dict[str, Any]
Methods = dict[str, Measured]
LORAMEM = {BASE: 100.0, ICL: 900, RAG: 220, SINGLE: 180, PRELOADED: 200, PER_QUESTION: 300, ICL_CACHED: 150}
REFERENCE = {BASE: 150.0, ICL: 1500, RAG: 900, SINGLE: 200, PRELOADED: 1000, PER_QUESTION: 2000}


def asked(stages: Mapping[str, float], prompt: int = 30, output: int = 11) -> Asked:
    wall = sum(stages.values())
    return Asked(stages_ms=dict(stages), wall_ms=wall, prompt_tokens=prompt, output_tokens=output)


def measured(ms: float, *, prompt: int = 30, output: int = 11) -> Measured:
    """Half of it is decoding."""
    one = asked({"prefill": ms / 2, "decode": ms / 2}, prompt, output)
    return Measured(setup_s={"server_start": 40.0}, asked=(one, one))


def pipelines(own: Mapping[str, float] = LORAMEM, theirs: Mapping[str, float] = REFERENCE) -> tuple[Methods, Methods]:
    return {method: measured(ms) for method, ms in own.items()}, {one: measured(ms) for one, ms in theirs.items()}


def verdicts(own: Mapping[str, float], theirs: Mapping[str, float] = REFERENCE, on_gpu: bool = False) -> Json:
    given = pipelines(own, theirs)
    return {one["name"]: one["ok"] for one in checks(ratios(*given, tokens=32), *given, on_gpu=on_gpu)}


def test_stages_and_totals_of_given_times() -> None:
    found = summary(
        Measured(
            setup_s={"server_start": 40.0, "upload_and_index": 2.0},
            asked=tuple(asked({"merge": merge, "decode": 100.0}) for merge in (10.0, 20.0, 60.0)),
        )
    )
    assert found["per_question_ms"] == {
        "merge": {"mean": 30, "p50": 20, "p95": 56},
        "decode": {"mean": 100, "p50": 100, "p95": 100},
    }
    assert found["wall_ms"] == {"mean": 130, "p50": 120, "p95": 156}
    assert (found["questions_s"], found["total_s"]) == (0.39, 42.39)
    assert (found["prompt_tokens"], found["output_tokens"]) == (30, 11)
    assert found["setup_s"] == {"server_start": 40, "upload_and_index": 2}


def test_ratios_are_of_mean_times() -> None:
    found = ratios(*pipelines(), tokens=11)
    assert found["loramem"] == {
        f"{PRELOADED} / {BASE}": 2,
        f"{PRELOADED} / {RAG}": 0.909,
        f"{PRELOADED} / {ICL}": 0.222,
        f"{PRELOADED} / {ICL_CACHED}": 1.333,
        f"{PER_QUESTION} / {PRELOADED}": 1.5,
        f"{SINGLE} / {BASE}": 1.8,
    }
    assert found["loramem_at_equal_length"] == found["loramem"]  # they were of 11 tokens
    assert f"{PRELOADED} / {ICL_CACHED}" not in found["reference"]
    assert found["reference"][f"{PER_QUESTION} / {PRELOADED}"] == 2
    assert found["reference / loramem"] == {
        BASE: 1.5,
        ICL: 1.667,
        RAG: 4.091,
        SINGLE: 1.111,
        PRELOADED: 5,
        PER_QUESTION: 6.667,
    }


def test_equal_length_changes_the_decoding_alone() -> None:
    given = Measured(
        setup_s={},
        asked=(
            asked({"prefill": 50, "decode": 40}, output=5),
            asked({"prefill": 30, "decode": 0}, output=1),
        ),
    )
    assert wall_ms_at(given, 11) == 40 + 10 * 10
    one_token = Measured(setup_s={}, asked=(asked({"prefill": 50, "decode": 0}, output=1),))
    assert wall_ms_at(one_token, 11) == 50


@pytest.mark.parametrize(
    ("times", "fails"),
    [
        ({}, ""),
        ({RAG: 200}, f"loramem, {PRELOADED} / {RAG}"),
        ({ICL: 599}, f"loramem, {PRELOADED} / {ICL}"),
        ({BASE: 90}, f"loramem, {PRELOADED} / {BASE}"),
    ],
)
def test_bounds_on_a_cpu(times: Mapping[str, float], fails: str) -> None:
    found = verdicts({**LORAMEM, **times})
    assert len(found) == 6
    assert [name for name, ok in found.items() if not ok] == ([fails] if fails else [])


def test_the_reference_takes_five_times_as_long() -> None:
    found = verdicts(LORAMEM, {**REFERENCE, PRELOADED: 999})
    assert [name for name, ok in found.items() if not ok] == [f"reference / loramem, {PRELOADED}"]


@pytest.mark.parametrize(("base", "ok"), [(175.0, True), (170, False)])
def test_the_bound_on_a_gpu(base: float, ok: bool) -> None:
    found = verdicts({**LORAMEM, BASE: base}, on_gpu=True)
    assert found.pop(f"loramem, {PRELOADED} / {BASE}") is ok
    assert len(found) == 2
    assert all(found.values())


def test_answers_and_prompts_of_other_lengths_are_found() -> None:
    own, theirs = pipelines()
    theirs[SINGLE] = measured(200, prompt=31)
    theirs[RAG] = measured(200, prompt=99, output=12)
    found = checks(ratios(own, theirs, tokens=32), own, theirs, on_gpu=True)
    assert {one["name"]: one["value"] for one in found[1:]} == {
        "prompts of another length in the reference": 2,
        "outputs of another length in the reference": 2,
    }
    assert not any(one["ok"] for one in found[1:])


def test_a_smoke_run_promises_answers_alone() -> None:
    own, theirs = pipelines()
    found = answered({"loramem": own, "reference": theirs}, 2)
    assert [(one["value"], one["bound"], one["ok"]) for one in found] == [(14, "= 14", True), (12, "= 12", True)]
    own[RAG] = measured(5, output=0)
    assert [one["ok"] for one in answered({"loramem": own, "reference": theirs}, 2)] == [False, True]


def test_the_cut_is_said() -> None:
    assert cut([1900, 1880], 11_000) == {
        "document_tokens": 11_000,
        "read_tokens": {"least": 1880, "most": 1900},
        "read_share": 0.1718,
        "whole": False,
    }
    assert cut([500, 500], 500)["whole"]


def test_bars_and_lines_of_a_report(tmp_path: Path) -> None:
    own, theirs = pipelines()
    report = {
        "settings": {"model": "tiny", "device": "cpu"},
        "loramem": {method: summary(one) for method, one in own.items()},
        "reference": {method: summary(one) for method, one in theirs.items()},
    }
    said = lines(report)
    assert len(said) == len(METHODS) * 2 + 1
    assert said[0].split() == ["loramem", "base", "100.0", "ms", "prefill", "50,", "decode", "50"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw(report, tmp_path / name / "q15.json")
    assert (tmp_path / "a" / "q15.png").read_bytes().startswith(b"\x89PNG")
    drawn = [(tmp_path / name / "q15.svg").read_text() for name in ("a", "b")]
    assert drawn[0] == drawn[1]
    for word in ("prefill", "decode", "server_start"):
        assert word in drawn[0]
