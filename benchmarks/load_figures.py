"""What a load measured: latencies from when each question was due, rates, errors by kind, and the share in time.

Percentiles are over answers alone; questions without one stand in `errors` and lower the goodput.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.circumstances import check
from benchmarks.intervals import percentile
from benchmarks.load_run import Level, Load, Outcome

Json = dict[str, Any]
PERCENTS = (50, 90, 95, 99)
TAIL_BOUND = 3.0
"""Of the 99th percentile of TTFT beside its median."""


@dataclass(frozen=True)
class Slo:
    """What counts as in time, both where both are set."""

    ttft_ms: float | None = None
    e2e_ms: float | None = None

    def __bool__(self) -> bool:
        return self.ttft_ms is not None or self.e2e_ms is not None

    def holds(self, outcome: Outcome) -> bool:
        """Never without an answer."""
        limits = ((outcome.ttft_s, self.ttft_ms), (outcome.e2e_s, self.e2e_ms))
        return all(value is not None and value * 1000 <= limit for value, limit in limits if limit is not None)


def figures(load: Load, slo: Slo) -> Json:
    """Of all questions and by mode asked for."""
    modes = sorted({one.planned.mode for one in load.outcomes})
    by_mode = {mode: [one for one in load.outcomes if one.planned.mode == mode] for mode in modes}
    return {
        "all": _figures(load.outcomes, load, slo),
        "modes": {mode: _figures(outcomes, load, slo) for mode, outcomes in by_mode.items()},
    }


def _figures(outcomes: Sequence[Outcome], load: Load, slo: Slo) -> Json:
    answered = [one for one in outcomes if not one.error]
    replies = [one.reply for one in answered if one.reply]
    caches = [one.merge_cache for one in replies if one.merge_cache]
    tokens = sum(one.completion_tokens for one in replies)
    return {
        "questions": len(outcomes),
        "answered": len(answered),
        "errors": errors(outcomes),
        "offered_per_s": round(len(outcomes) / load.seconds, 3),
        "achieved_per_s": round(len(answered) / load.took_s, 3),
        "tokens_per_s": round(tokens / load.took_s, 2),
        "ttft_ms": percentiles([one.ttft_s for one in outcomes]),
        "inter_token_ms": percentiles([gap for one in answered for gap in one.gaps_s]),
        "per_token_ms": percentiles([one.per_token_s for one in outcomes]),
        "e2e_ms": percentiles([one.e2e_s for one in outcomes]),
        "sent_late_ms": percentiles([one.late_s for one in outcomes]),
        "goodput": goodput(outcomes, load.seconds, slo) if slo else None,
        "merge_cache_hit_share": round(caches.count("hit") / len(caches), 4) if caches else None,
    }


def percentiles(seconds: Sequence[float | None]) -> dict[str, float] | None:
    """In milliseconds, with the greatest; of what there is, None for nothing."""
    ms = [one * 1000 for one in seconds if one is not None]
    if not ms:
        return None
    return {f"p{percent}": round(percentile(ms, percent), 2) for percent in PERCENTS} | {"max": round(max(ms), 2)}


def errors(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """By kind, the most frequent first; what was never sent is one of them."""
    return dict(Counter(one.error for one in outcomes if one.error).most_common())


def goodput(outcomes: Sequence[Outcome], seconds: float, slo: Slo) -> Json:
    """`share` of all questions that were due, and how many of them a second."""
    good = sum(slo.holds(one) for one in outcomes)
    return {"share": round(good / len(outcomes), 4), "per_s": round(good / seconds, 3)}


def capacity_figures(levels: Sequence[Level]) -> Json:
    best = max(levels, key=lambda level: level.per_s)
    by_level = [vars(level) | {"per_s": round(level.per_s, 3)} for level in levels]
    return {"per_s": round(best.per_s, 3), "concurrency": best.concurrency, "levels": by_level}


def checks(found: Json, *, smoke: bool) -> list[Json]:
    """A smoke run promises no speed. The tail is held to its median, which alone a slower median passes too: both stand
    beside it."""
    every: Mapping[str, Any] = found["all"]
    missing = every["questions"] - every["answered"]
    promised = [
        check("questions without an answer", missing, "= 0", missing == 0),
        check("tokens a second", every["tokens_per_s"], "> 0", every["tokens_per_s"] > 0),
    ]
    ttft = every["ttft_ms"]
    if ttft and not smoke:
        tail = round(ttft["p99"] / ttft["p50"], 3)
        of_tail = check("TTFT, p99 / p50", tail, f"<= {TAIL_BOUND:g}", tail <= TAIL_BOUND)
        promised.append(of_tail | {"p50_ms": ttft["p50"], "p99_ms": ttft["p99"]})
    return promised


def table(found: Json) -> str:
    """For people: a line for all questions and for each mode."""
    lines = [
        f"{'':<8}{'asked':>7}{'answered':>10}{'per s':>8}{'TTFT p50':>10}{'p99':>9}{'whole p50':>11}{'p99':>9}  ms"
    ]
    for name, one in {"all": found["all"], **found["modes"]}.items():
        ttft, e2e = one["ttft_ms"] or {}, one["e2e_ms"] or {}
        line = f"{name:<8}{one['questions']:>7}{one['answered']:>10}{one['achieved_per_s']:>8.2f}"
        line += (
            f"{ttft.get('p50', 0):>10.1f}{ttft.get('p99', 0):>9.1f}{e2e.get('p50', 0):>11.1f}{e2e.get('p99', 0):>9.1f}"
        )
        lines.append(line)
        lines += [f"  {count} x {kind}" for kind, count in one["errors"].items()]
    return "\n".join(lines)
