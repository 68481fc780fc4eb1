"""What the times of the paper's latency experiment come to: stages, totals, ratios, and whether the promises hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.circumstances import check
from benchmarks.intervals import percentile
from benchmarks.q15_plan import BASE, ICL, METHODS, PER_QUESTION, PRELOADED, RAG, SINGLE, Measured
from benchmarks.q15_server import ICL_CACHED
from benchmarks.scores import mean

Figures = dict[str, Any]

PAIRS = (
    (PRELOADED, BASE),
    (PRELOADED, RAG),
    (PRELOADED, ICL),
    (PRELOADED, ICL_CACHED),
    (PER_QUESTION, PRELOADED),
    (SINGLE, BASE),
)
ALIKE = (BASE, ICL, SINGLE, PRELOADED, PER_QUESTION)
"""Methods that have the same prompts in loramem and in the reference; only their RAG reads other text."""
CPU_BASE_BOUND, GPU_BASE_BOUND = 2.2, 1.15
ICL_BOUND = 1 / 3
REFERENCE_BOUND = 5.0


def summary(measured: Measured) -> Figures:
    """Setup by stage in seconds, a question by stage in milliseconds; `total_s` is of setup and all questions."""
    asked, setup_s = measured.asked, sum(measured.setup_s.values())
    stages = dict.fromkeys(stage for one in asked for stage in one.stages_ms)
    by_stage = {stage: [one.stages_ms.get(stage, 0.0) for one in asked] for stage in stages}
    return {
        "setup_s": {stage: round(seconds, 3) for stage, seconds in measured.setup_s.items()},
        "per_question_ms": {stage: _spread(values) for stage, values in by_stage.items()},
        "wall_ms": _spread([one.wall_ms for one in asked]),
        "questions_s": round(sum(one.wall_ms for one in asked) / 1000, 3),
        "total_s": round(setup_s + sum(one.wall_ms for one in asked) / 1000, 3),
        "prompt_tokens": round(mean([one.prompt_tokens for one in asked]), 1),
        "output_tokens": round(mean([one.output_tokens for one in asked]), 1),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(mean(values), 3),
        "p50": round(percentile(values, 50), 3),
        "p95": round(percentile(values, 95), 3),
    }


def wall_ms(measured: Measured) -> float:
    """Mean of a question."""
    return mean([one.wall_ms for one in measured.asked])


def wall_ms_at(measured: Measured, tokens: int) -> float:
    """The same if every answer of the server had so many tokens, each decoded as fast as the method's own were.

    An answer's first token comes with the prefill.
    """
    decoded = sum(one.output_tokens - 1 for one in measured.asked)
    a_token = sum(one.stages_ms["decode"] for one in measured.asked) / max(1, decoded)
    rest = mean([one.wall_ms - one.stages_ms["decode"] for one in measured.asked])
    return rest + a_token * (tokens - 1)


def ratios(loramem: Mapping[str, Measured], reference: Mapping[str, Measured], tokens: int) -> Figures:
    """Of the mean times of a question. `loramem_at_equal_length`: if all answers had `tokens` tokens."""
    own = {method: wall_ms(one) for method, one in loramem.items()}
    theirs = {method: wall_ms(one) for method, one in reference.items()}
    at_length = {method: wall_ms_at(one, tokens) for method, one in loramem.items()}
    return {
        "loramem": _quotients(own),
        "loramem_at_equal_length": _quotients(at_length),
        "reference": _quotients(theirs),
        "reference / loramem": {one: round(theirs[one] / own[one], 3) for one in METHODS},
    }


def _quotients(times: Mapping[str, float]) -> dict[str, float]:
    known = [(one, other) for one, other in PAIRS if one in times and other in times]
    return {f"{one} / {other}": round(times[one] / times[other], 3) for one, other in known}


def checks(
    found: Figures, loramem: Mapping[str, Measured], reference: Mapping[str, Measured], on_gpu: bool
) -> list[Figures]:
    """Bounds on speed were set for a CPU; on a GPU, merging may cost little beside the base model."""
    own, beside = found["loramem"], found["reference / loramem"][PRELOADED]
    same = [_differing("prompt", loramem, reference, ALIKE), _differing("output", loramem, reference, METHODS)]
    if on_gpu:
        return [_at_most(own, BASE, GPU_BASE_BOUND), *same]
    name, value = f"loramem, {PRELOADED} / {RAG}", own[f"{PRELOADED} / {RAG}"]
    return [
        check(name, value, "< 1", value < 1),
        _at_most(own, ICL, ICL_BOUND),
        _at_most(own, BASE, CPU_BASE_BOUND),
        check(f"reference / loramem, {PRELOADED}", beside, f">= {REFERENCE_BOUND:g}", beside >= REFERENCE_BOUND),
        *same,
    ]


def _at_most(own: Mapping[str, float], other: str, bound: float) -> Figures:
    value = own[f"{PRELOADED} / {other}"]
    return check(f"loramem, {PRELOADED} / {other}", value, f"<= {bound:.3g}", value <= bound)


def _differing(
    which: str, loramem: Mapping[str, Measured], reference: Mapping[str, Measured], methods: Sequence[str]
) -> Figures:
    """Questions whose prompts or answers are not as long in both."""
    key = f"{which}_tokens"
    count = sum(
        getattr(one, key) != getattr(other, key)
        for method in methods
        for one, other in zip(loramem[method].asked, reference[method].asked, strict=True)
    )
    return check(f"{which}s of another length in the reference", count, "= 0", count == 0)


def answered(pipelines: Mapping[str, Mapping[str, Measured]], questions: int) -> list[Figures]:
    """Of a smoke run, whose times say nothing."""
    counts = {
        name: sum(one.output_tokens > 0 for measured in methods.values() for one in measured.asked)
        for name, methods in pipelines.items()
    }
    wanted = {name: len(methods) * questions for name, methods in pipelines.items()}
    return [
        check(f"{name}: questions answered", count, f"= {wanted[name]}", count == wanted[name])
        for name, count in counts.items()
    ]


def cut(read_tokens: Sequence[int], document_tokens: int) -> Figures:
    """How much of the document ICL has read, in tokens of the base model; what it reads depends on the question."""
    return {
        "document_tokens": document_tokens,
        "read_tokens": {"least": min(read_tokens), "most": max(read_tokens)},
        "read_share": round(mean(read_tokens) / document_tokens, 4),
        "whole": min(read_tokens) >= document_tokens,
    }


def lines(report: Figures) -> Sequence[str]:
    """For a reader: a line for each method."""
    said = []
    for pipeline in ("loramem", "reference"):
        for method, one in report[pipeline].items():
            stages = ", ".join(
                f"{stage} {spread['mean']:.0f}"
                for stage, spread in one["per_question_ms"].items()
                if spread["mean"] >= 1
            )
            said.append(f"{pipeline:<10}{method:<20}{one['wall_ms']['mean']:>10.1f} ms  {stages}")
    return said
