"""What the results that exist say on the paper's questions: each function finds its figures, or None where none are.

A verdict is `agree` or `disagree`; `undecided` where the 95 % interval of the paired difference holds 0 or, without
one, the two intervals overlap; `not measured` where figures are there, but not what the paper compares. Figures without
an interval are compared as they are.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from benchmarks import q15_plan

Json = dict[str, Any]
Results = Mapping[str, Json]
"""By file name."""
Verdict = Literal["agree", "disagree", "undecided", "not measured"]
WHOLE_METRICS = ("judge", "accuracy", "rouge_l", "f1")
"""The first that a result has is compared."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Estimate:
    mean: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return _number(self.mean) + (f" ({' to '.join(map(_number, self.interval))})" if self.interval else "")


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


@dataclass(frozen=True)
class Finding:
    """`figures` by name, in the order in which they are told and drawn; `measure` says what they are."""

    file: str
    verdict: Verdict
    measure: str
    figures: Mapping[str, Estimate] = field(default_factory=dict)


def greater(one: Estimate, other: Estimate) -> Verdict:
    """Whether `one` is greater than `other`."""
    if one.interval and other.interval:
        (low, high), (other_low, other_high) = one.interval, other.interval
        if low <= other_high and other_low <= high:
            return "undecided"
    return "agree" if one.mean > other.mean else "disagree"


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The least favourable."""
    return next((one for one in ("disagree", "undecided") if one in verdicts), "agree")


def rank(results: Results) -> Finding | None:
    """Q1: at each load, each higher rank stores more."""
    for file, sweep in _sweeps(results):
        lines = _lines(sweep["grid"], "load", "rank")
        compared = [greater(Estimate(high), Estimate(low)) for line in lines.values() for low, high in _steps(line)]
        if compared:
            right = ", ".join(f"{entry['right']} of {entry['rows']}" for entry in sweep["grid"])
            measure = f"bits stored (rows right to the digit: {right})"
            return Finding(file, all_of(compared), measure, _named(lines, "{0:g}K tokens, rank {1:g}"))
    return None


def load(results: Results) -> Finding | None:
    """Q2: at each rank, the share that is held falls as the load grows."""
    for file, sweep in _sweeps(results):
        lines = _lines(sweep["grid"], "rank", "load", of_load=True)
        compared = [greater(Estimate(low), Estimate(high)) for line in lines.values() for low, high in _ends(line)]
        if compared:
            return Finding(file, all_of(compared), _SHARE, _named(lines, "rank {0:g}, {1:g}K tokens"))
    return None


def efficiency(results: Results) -> Finding | None:
    """Q3: the highest rank holds less per parameter than another."""
    for file, sweep in _sweeps(results):
        facts = {float(rank): value for rank, value in sweep["efficiency"].items() if value}
        found = facts or _bits_per_parameter(sweep["grid"])
        if len(found) > 1:
            best = max(found, key=lambda rank: found[rank])
            figures = {f"rank {rank:g}": Estimate(value) for rank, value in sorted(found.items())}
            if not facts:
                return Finding(file, "not measured", "no rank held a load; bits stored per 1000 parameters", figures)
            verdict: Verdict = "agree" if best < max(found) else "disagree"
            return Finding(file, verdict, "facts held per million parameters", figures)
    return None


def formats(results: Results) -> Finding | None:
    """Q4: questions, summaries and rewritings each beat the text alone."""
    names = ("formats=original", "formats=qa40", "formats=summary8", "formats=rewrite4")
    for file, report, found in _arms(results, names):
        original, *others = found.values()
        return Finding(file, all_of([greater(one, original) for one in others]), _metric_of(report), found)
    return None


def mixtures(results: Results) -> Finding | None:
    """Q5: the best mixture beats questions alone."""
    names = ("formats=qa40", "formats=summary8+qa40", "formats=qa40+original", "formats=rewrite4+qa40", "formats=all")
    for file, report, found in _arms(results, names):
        alone, *mixed = found.values()
        best = max(mixed, key=lambda one: one.mean)
        return Finding(file, greater(best, alone), _metric_of(report), found)
    return None


def scale(results: Results) -> Finding | None:
    """Q6: a larger base model answers better closed book, on the same questions."""
    by_draw: dict[str, dict[float, tuple[str, str, Estimate]]] = {}
    for file, report in _recalls(results):
        size, metric = model_size(str(report["settings"].get("model", ""))), metric_of([report], ["lora"])
        if size and metric:
            held = by_draw.setdefault(f"{report['settings']['draw']} {metric}", {})
            held[size] = (file, report["settings"]["model"], _estimate(report, "lora", metric))
    for draw, held in by_draw.items():
        if len(held) > 1:
            ordered = [held[size] for size in sorted(held)]
            files, figures = ", ".join(file for file, _, _ in ordered), {name: one for _, name, one in ordered}
            return Finding(files, greater(ordered[-1][2], ordered[0][2]), f"lora, {draw.split()[1]}", figures)
    return None


def partition(results: Results) -> Finding | None:
    """Q8: several small adapters hold more than a large one of as many parameters, with an oracle."""
    for file, sweep in _sweeps(results):
        sides = [(entry["small"]["exact_match"], entry["large"]["exact_match"]) for entry in sweep["split"]]
        if sides:
            best = max(sides, key=lambda pair: abs(pair[0] - pair[1]))
            figures = {"several small": Estimate(best[0]), "one large": Estimate(best[1])}
            return Finding(file, greater(*figures.values()), "exact match, with an oracle", figures)
    for file, report in results.items():
        sectors = report.get("parts", {}).get("sectors") if isinstance(report.get("parts"), dict) else None
        if sectors:
            figures = {f"{len(sectors['sectors'])} adapters": Estimate(sectors["exact_match"])}
            return Finding(file, "not measured", "exact match, with an oracle; no large adapter beside it", figures)
    return None


def routing(results: Results) -> Finding | None:
    """Q9: routing loses against an oracle."""
    return _compared(results, ("lora:oracle", "lora"), ("joined",), ("paperqa", "squad", "fairytaleqa"))


def merging(results: Results) -> Finding | None:
    """Q10: three merged by TIES beat the routed one."""
    more = ("lora-top3-linear", "lora-top3-cat", "lora-top3-dare", "joined")
    return _compared(results, ("lora-top3", "lora"), more, ("paperqa", "squad", "fairytaleqa"))


def count(results: Results) -> Finding | None:
    """Q11: one beats five."""
    return _compared(results, ("lora", "lora-top5"), ("lora-top2", "lora-top3"), ("paperqa", "squad", "fairytaleqa"))


def long_documents(results: Results) -> Finding | None:
    """Q12: one adapter for a document beats those of its chunks, closed book."""
    return _compared(results, ("single", "lora-top3"), ("base", "lora"), _LONG)


def context(results: Results) -> Finding | None:
    """Q13: adapters with the text in the prompt beat adapters alone."""
    return _compared(results, ("hybrid-icl-top3", "lora-top3"), ("hybrid-top3", "icl", "rag"), _LONG)


def continuity(results: Results) -> Finding | None:
    """Q14: three merged beat the routed one on long documents."""
    return _compared(results, ("lora-top3", "lora"), ("hybrid-icl-top3", "hybrid-icl"), _LONG)


def latency(results: Results) -> Finding | None:
    """Q15: an answer from adapters takes less time than one from the whole text."""
    return _timed(results) or _recalled(results)


def _timed(results: Results) -> Finding | None:
    """By the experiment itself, beside the pipeline that the paper describes."""
    for file, report in results.items():
        if _made_by(report, "q15") and not report["settings"]["smoke"]:
            figures = {
                f"{pipeline} {method}": Estimate(round(report[pipeline][method]["wall_ms"]["mean"], 1))
                for pipeline in ("loramem", "reference")
                for method in q15_plan.METHODS
            }
            icl, merged = (figures[f"loramem {method}"] for method in (q15_plan.ICL, q15_plan.PRELOADED))
            return Finding(file, greater(icl, merged), "ms an answer, mean", figures)
    return None


def _recalled(results: Results) -> Finding | None:
    for file, report in _recalls(results, _LONG):
        methods = report["methods"]
        names = [
            name for name in ("icl", "rag", "single", "lora", "lora-top3") if "latency_ms_p50" in methods.get(name, {})
        ]
        figures = {name: Estimate(methods[name]["latency_ms_p50"]) for name in names}
        if "icl" in figures and "lora-top3" in figures:
            return Finding(file, greater(figures["icl"], figures["lora-top3"]), "ms an answer, median", figures)
    return None


_SHARE = "share of the load's bits that is stored"
_LONG = ("narrativeqa", "quality")


def _compared(
    results: Results, pair: tuple[str, str], beside: Sequence[str], data_sets: Sequence[str]
) -> Finding | None:
    for file, report in _recalls(results, data_sets):
        metric = metric_of([report], pair)
        if metric:
            names = [name for name in (*pair, *beside) if metric_of([report], [name])]
            figures = {name: _estimate(report, name, metric) for name in names}
            measure = f"{metric} on {report['settings']['data_set']}"
            return Finding(
                file, _paired(report, pair, metric) or greater(*list(figures.values())[:2]), measure, figures
            )
    return None


def _paired(report: Json, pair: tuple[str, str], metric: str) -> Verdict | None:
    """Whether the first of the pair is greater, by the differences question by question; None without these."""
    for (one, other), sign in ((pair, 1), (pair[::-1], -1)):
        found = report["methods"][one].get("minus", {}).get(other, {}).get(metric)
        if found and found["interval"]:
            low, high = sorted(sign * end for end in found["interval"])
            return "agree" if low > 0 else "disagree" if high < 0 else "undecided"
    return None


def metric_of(reports: Sequence[Json], methods: Sequence[str]) -> str | None:
    """The first of `WHOLE_METRICS` that all the methods have in all the reports."""
    scored = [report["methods"].get(method, {}).get("scores", {}) for report in reports for method in methods]
    return next((metric for metric in WHOLE_METRICS if all(metric in scores for scores in scored)), None)


def model_size(name: str) -> float | None:
    """Parameters in millions, as the name says: `Qwen3-8B` has 8000."""
    found = _SIZE.search(name)
    return float(found[1]) * (1000 if found[2].lower() == "b" else 1) if found else None


def _estimate(report: Json, method: str, metric: str) -> Estimate:
    found = report["methods"][method]["scores"][metric]
    return Estimate(found["mean"], tuple(found["interval"]) if found["interval"] else None)


def _recalls(results: Results, data_sets: Sequence[str] | None = None) -> Iterator[tuple[str, Json]]:
    """Of whole runs, in the order of `data_sets`, then of file names."""
    found = [(file, one) for file, one in results.items() if _made_by(one, "recall") and not one["settings"]["smoke"]]
    wanted = list(dict.fromkeys(one["settings"]["data_set"] for _, one in found)) if data_sets is None else data_sets
    return ((file, one) for name in wanted for file, one in found if one["settings"]["data_set"] == name)


def _arms(results: Results, names: Sequence[str]) -> Iterator[tuple[str, Json, dict[str, Estimate]]]:
    """Of runs of `benchmarks.recipes` that finished all the arms named; PaperQA's, as the paper's, before others."""
    reports = [
        (file, one) for file, one in results.items() if _made_by(one, "recipes") and not one["settings"]["smoke"]
    ]
    for file, report in sorted(reports, key=lambda pair: pair[1]["settings"]["data"] != "paperqa"):
        arms = {name: report["arms"].get(name, {}) for name in names}
        if all("score" in arm for arm in arms.values()):
            yield file, report, {name: Estimate(arm["score"], tuple(arm["interval"])) for name, arm in arms.items()}


def _metric_of(report: Json) -> str:
    return f"{report['settings']['metric']} on {report['settings']['data']}"


def _made_by(report: Json, name: str) -> bool:
    return str(report.get("command", "")).startswith(f"python -m benchmarks.{name} ") and "settings" in report


def _sweeps(results: Results) -> Iterator[tuple[str, Json]]:
    for file, report in results.items():
        parts = report.get("parts")
        if isinstance(parts, dict) and "sweep" in parts:
            yield file, parts["sweep"]


Line = dict[float, float]


def _lines(grid: Sequence[Json], each: str, along: str, *, of_load: bool = False) -> dict[float, Line]:
    """Stored bits (as a share of the load with `of_load`) by `along`, a line for each value of `each`."""
    lines: dict[float, Line] = {}
    for entry in grid:
        value = entry["stored_bits"] / (entry["load_bits"] if of_load else 1)
        lines.setdefault(entry[each], {})[entry[along]] = value
    return {value: dict(sorted(line.items())) for value, line in sorted(lines.items())}


def _steps(line: Line) -> list[tuple[float, float]]:
    values = list(line.values())
    return list(pairwise(values))


def _ends(line: Line) -> list[tuple[float, float]]:
    """(at the least load, at the greatest)"""
    values = list(line.values())
    return [(values[0], values[-1])] if len(values) > 1 else []


def _named(lines: Mapping[float, Line], name: str) -> dict[str, Estimate]:
    return {name.format(each, along): Estimate(value) for each, line in lines.items() for along, value in line.items()}


def _bits_per_parameter(grid: Sequence[Json]) -> Line:
    """At the greatest load."""
    greatest = max((entry["load"] for entry in grid), default=0)
    entries = [entry for entry in grid if entry["load"] == greatest]
    return {entry["rank"]: round(1000 * entry["stored_bits"] / entry["parameters"], 3) for entry in entries}


Find = Callable[[Results], Finding | None]
