"""Whether processes stay as they are: what they hold over time, and what counts as flat. And whether it answered.

The first half warms up. Flat is what the last quarter's median has beyond that of the quarter before: for memory at
most 16 MiB or 0.5 %, whichever is more, and for a small process no more than 5 % or 1 MiB; for files 8, for threads 4,
which jobs and requests in flight come and go with. Medians, so that neither a spike nor the last job before a sample
decides. Memory is what a process filled itself; pages of mapped adapters, which the system takes back when it needs
them, are in `rss_mib` and not judged. A server that refuses all is flat too, so that of each kind of question at least
half were answered, and 20.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import median
from typing import Any

import numpy as np

from benchmarks.circumstances import check
from benchmarks.soak_processes import Process, Sample, Watch

Json = dict[str, Any]
MIB = 1 << 20
MEMORY_SHARE = 0.005
MEMORY_MIB = 16.0
SMALL_SHARE = 0.05
SMALL_MIB = 1.0
FILES = 8.0
THREADS = 4.0
FEWEST = 8
"""Samples below which nothing is judged: two a quarter."""
FEWEST_ANSWERED = 20
"""Of each kind of question."""
ANSWERED_SHARE = 0.5
QUANTITIES: dict[str, Callable[[Sample], float]] = {
    "rss_mib": lambda one: one.rss_bytes / MIB,
    "memory_mib": lambda one: one.anonymous_bytes / MIB,
    "files": lambda one: one.files,
    "threads": lambda one: one.threads,
}
JUDGED = ("memory_mib", "files", "threads")


def process_figures(watch: Watch) -> Json:
    """By process that was there all the time; how many came and went."""
    steady = watch.steady()
    names = names_of(list(steady))
    return {
        "samples": len(watch.looks),
        "ended": [process.name for process in watch.ended()],
        "short_lived": len(watch.samples) - len(steady),
        "by_process": {names[process]: _series(samples) for process, samples in steady.items()},
    }


def names_of(processes: Sequence[Process]) -> dict[Process, str]:
    """With a number where several share a name."""
    counts, seen = Counter(process.name for process in processes), Counter[str]()
    names = {}
    for process in processes:
        seen[process.name] += 1
        names[process] = process.name if counts[process.name] == 1 else f"{process.name} {seen[process.name]}"
    return names


def _series(samples: Sequence[Sample]) -> dict[str, Json]:
    times = [one.at_s for one in samples]
    return {name: series(times, [read(one) for one in samples]) for name, read in QUANTITIES.items()}


def series(at_s: Sequence[float], values: Sequence[float]) -> Json:
    """`growth` is the last quarter's median beyond that of the quarter before, None for too few samples."""
    enough = len(values) >= FEWEST
    return {
        "first": round(values[0], 2),
        "last": round(values[-1], 2),
        "max": round(max(values), 2),
        "slope_per_hour": round(slope_per_hour(at_s, values), 3) if enough else None,
        "third_quarter": round(_third_quarter(values), 2) if enough else None,
        "growth": round(growth(values), 2) if enough else None,
    }


def slope_per_hour(at_s: Sequence[float], values: Sequence[float]) -> float:
    """By least squares, after the first half."""
    start = len(values) // 2
    return float(np.polyfit(np.array(at_s[start:]) / 3600, np.array(values[start:]), 1)[0])


def growth(values: Sequence[float]) -> float:
    return median(values[len(values) * 3 // 4 :]) - _third_quarter(values)


def _third_quarter(values: Sequence[float]) -> float:
    return median(values[len(values) // 2 : len(values) * 3 // 4])


def slack(quantity: str, before: float) -> float:
    """How much more than `before` is still flat."""
    memory = min(max(MEMORY_SHARE * before, MEMORY_MIB), max(SMALL_SHARE * before, SMALL_MIB))
    return {"memory_mib": memory, "files": FILES, "threads": THREADS}[quantity]


def process_checks(found: Json) -> list[Json]:
    checks = [check("processes that ended", len(found["ended"]), "= 0", not found["ended"])]
    for process, quantities in found["by_process"].items():
        for quantity in JUDGED:
            one: Mapping[str, Any] = quantities[quantity]
            bound = slack(quantity, one["third_quarter"])
            flat = one["growth"] <= bound
            checks.append(check(f"{process}: growth of {quantity}", one["growth"], f"<= {bound:.1f}", flat))
    return checks


def request_figures(result: Json) -> Json:
    """Of what the locustfile wrote: requests by name, questions by kind, failures, errors of the tasks themselves."""
    return {
        "requests": {f"{one['method']} {one['name']}": _request(one) for one in result["requests"]},
        "questions": {kind: _answers(result, f"/query [{kind}]") for kind in result["kinds"]},
        "failures": result["errors"],
        "exceptions": result["exceptions"],
        "still_training": sum(one["count"] for one in result["requests"] if one["name"].endswith(result["expected"])),
    }


def _request(one: Json) -> Json:
    return {key: value for key, value in one.items() if key not in ("method", "name")}


def _answers(result: Json, name: str) -> dict[str, int]:
    """Those that came too early were asked."""
    put = [one for one in result["requests"] if one["name"] in (name, name + result["expected"])]
    answered = sum(one["count"] - one["failures"] for one in put if one["name"] == name)
    return {"asked": sum(one["count"] for one in put), "answered": answered}


def request_checks(found: Json) -> list[Json]:
    asked = sum(one["count"] for one in found["requests"].values())
    failed = sum(one["failures"] for one in found["requests"].values())
    broken = sum(one["count"] for one in found["exceptions"])
    return [
        check("requests", asked, ">= 1", asked >= 1),
        check("failed requests", failed, "= 0", failed == 0),
        check("exceptions of tasks", broken, "= 0", broken == 0),
    ]


def question_checks(found: Json) -> list[Json]:
    """Of a run that is long enough to have put each kind of question often."""
    checks = []
    for kind, one in found["questions"].items():
        fewest = max(FEWEST_ANSWERED, ceil(ANSWERED_SHARE * one["asked"]))
        checks.append(check(f"answered [{kind}]", one["answered"], f">= {fewest}", one["answered"] >= fewest))
    return checks


def smoke_question_checks(found: Json) -> list[Json]:
    """Nothing may be live within seconds."""
    answered = sum(one["answered"] for one in found["questions"].values())
    return [check("answered questions", answered, ">= 1", answered >= 1)]
