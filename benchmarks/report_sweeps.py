"""What runs of `benchmarks.capacity` say on rank, load, parameters and parts (Q1, Q2, Q3 and Q8)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from benchmarks.report_verdicts import Estimate, Finding, Json, Results, Verdict, all_of, greater

LEARNT_FROM = 0.1
"""Share of rows to the digit that the best adapter must know, else next to nothing was learnt."""
SETTLED_BELOW = 0.1
"""Nats per answer token of its last step, else training had not converged; rows known by heart are below 0.001."""
_SHARE = "share of the load's bits that is stored"
_EXACT = "exact match, with an oracle"
Line = dict[float, float]


def rank(results: Results) -> Finding | None:
    """Q1: at each load that some rank has learnt, each higher rank stores more, unless both have all of it."""
    for file, sweep in _sweeps(results):
        lines = _lines(sweep["grid"], "load", "rank")
        if not any(map(_steps, lines.values())):
            continue
        learnt, full = _learnt_loads(sweep["grid"]), _known_by_heart(sweep["grid"])
        compared = [
            greater(Estimate(line[high]), Estimate(line[low]))
            for load, line in lines.items()
            if load in learnt
            for low, high in _steps(line)
            if not {(load, low), (load, high)} <= full
        ]
        right = ", ".join(f"{entry['right']} of {entry['rows']}" for entry in sweep["grid"])
        measure = f"bits stored after {sweep['epochs']:g} epochs (rows right to the digit: {right})"
        return _if_learnt(file, sweep, compared, measure, _named(lines, "{0:g}K tokens, rank {1:g}"))
    return None


def load(results: Results) -> Finding | None:
    """Q2: at each rank that does not hold all of the greatest load, the share that is held falls as the load grows."""
    for file, sweep in _sweeps(results):
        lines = _lines(sweep["grid"], "rank", "load", of_load=True)
        if any(map(_ends, lines.values())):
            learnt, full = _learnt_loads(sweep["grid"]), _known_by_heart(sweep["grid"])
            compared = [
                greater(Estimate(line[least]), Estimate(line[greatest]))
                for rank, line in lines.items()
                for least, greatest in _ends(line)
                if greatest in learnt and (greatest, rank) not in full
            ]
            return _if_learnt(file, sweep, compared, _SHARE, _named(lines, "rank {0:g}, {1:g}K tokens"))
    return None


def _if_learnt(
    file: str, sweep: Json, compared: Sequence[Verdict], measure: str, figures: Mapping[str, Estimate]
) -> Finding:
    """Without anything to compare, what there is tells how fast adapters learn, not how much they hold."""
    if compared:
        return Finding(file, all_of(compared), measure, figures)
    if len(_known_by_heart(sweep["grid"])) == len(sweep["grid"]):
        return Finding(file, "not measured", measure, figures, why="every rank holds every load")
    losses = "; ".join(f"{entry['first_loss']:.2f} to {entry['loss']:.2f}" for entry in sweep["grid"])
    note = (
        f"Loss in nats per answer token, first step to last, in the same order: {losses}. Training ended before any "
        f"rank had learnt a load that not all hold: what differs is how fast ranks learn, not how much they hold."
    )
    return Finding(file, "not measured", measure, figures, why="training had not converged", notes=(note,))


def _learnt_loads(grid: Sequence[Json]) -> set[float]:
    """Those that at least one adapter has learnt: only then did the others have the time for it."""
    known = [entry for entry in grid if entry["exact_match"] >= LEARNT_FROM and entry["loss"] < SETTLED_BELOW]
    return {entry["load"] for entry in known}


def _known_by_heart(grid: Sequence[Json]) -> set[tuple[float, float]]:
    """Load and rank of those that gave back every row: there is no more to hold."""
    return {(entry["load"], entry["rank"]) for entry in grid if entry["exact_match"] >= 1}


def _most(grid: Sequence[Json]) -> tuple[float, float]:
    """The greatest load at the highest rank."""
    return max((entry["load"] for entry in grid), default=0.0), max((entry["rank"] for entry in grid), default=0.0)


def efficiency(results: Results) -> Finding | None:
    """Q3: the highest rank, given more than it can hold, holds less per parameter than another."""
    for file, sweep in _sweeps(results):
        facts = {float(rank): value for rank, value in sweep["efficiency"].items() if value}
        found = facts or _bits_per_parameter(sweep["grid"])
        if len(found) > 1:
            best = max(found, key=lambda rank: found[rank])
            figures = {f"rank {rank:g}": Estimate(value) for rank, value in sorted(found.items())}
            if not facts:
                return Finding(file, "not measured", "bits stored per 1000 parameters", figures, "no rank held a load")
            measure = "facts held per million parameters"
            if _most(sweep["grid"]) in _known_by_heart(sweep["grid"]):  # and may hold more than anybody has given it
                return Finding(file, "not measured", measure, figures, "the highest rank holds every load")
            verdict: Verdict = "agree" if best < max(found) else "disagree"
            return Finding(file, verdict, measure, figures)
    return None


def partition(results: Results) -> Finding | None:
    """Q8: several small adapters hold more than a large one of as many parameters, with an oracle, at each size."""
    for file, sweep in _sweeps(results):
        sides = [(entry["small"]["exact_match"], entry["large"]["exact_match"]) for entry in sweep["split"]]
        if sides:
            figures: dict[str, Estimate] = {}
            for small, large in sides:
                number = f" ({len(figures) // 2 + 1})" if len(sides) > 1 else ""
                figures |= {f"several small{number}": Estimate(small), f"one large{number}": Estimate(large)}
            open_ended = [greater(Estimate(small), Estimate(large)) for small, large in sides if min(small, large) < 1]
            if not open_ended:
                return Finding(file, "not measured", _EXACT, figures, why="both hold everything")
            if sweep["grid"] and _most(sweep["grid"])[0] not in _learnt_loads(sweep["grid"]):
                return Finding(file, "not measured", _EXACT, figures, why="training had not converged")
            return Finding(file, all_of(open_ended), _EXACT, figures)
    for file, report in results.items():
        sectors = report.get("parts", {}).get("sectors") if isinstance(report.get("parts"), dict) else None
        if sectors:
            figures = {f"{len(sectors['sectors'])} adapters": Estimate(sectors["exact_match"])}
            why = "no large adapter beside them"
            return Finding(file, "not measured", _EXACT, figures, why)
    return None


def _sweeps(results: Results) -> Iterator[tuple[str, Json]]:
    for file, report in results.items():
        parts = report.get("parts")
        if isinstance(parts, dict) and "sweep" in parts:
            yield file, parts["sweep"]


def _lines(grid: Sequence[Json], each: str, along: str, *, of_load: bool = False) -> dict[float, Line]:
    """Stored bits (as a share of the load with `of_load`) by `along`, a line for each value of `each`."""
    lines: dict[float, Line] = {}
    for entry in grid:
        value = entry["stored_bits"] / (entry["load_bits"] if of_load else 1)
        lines.setdefault(entry[each], {})[entry[along]] = value
    return {value: dict(sorted(line.items())) for value, line in sorted(lines.items())}


def _steps(line: Line) -> list[tuple[float, float]]:
    return list(pairwise(line))


def _ends(line: Line) -> list[tuple[float, float]]:
    """(the least, the greatest)"""
    places = list(line)
    return [(places[0], places[-1])] if len(places) > 1 else []


def _named(lines: Mapping[float, Line], name: str) -> dict[str, Estimate]:
    return {name.format(each, along): Estimate(value) for each, line in lines.items() for along, value in line.items()}


def _bits_per_parameter(grid: Sequence[Json]) -> Line:
    """At the greatest load."""
    greatest = max((entry["load"] for entry in grid), default=0)
    entries = [entry for entry in grid if entry["load"] == greatest]
    return {entry["rank"]: round(1000 * entry["stored_bits"] / entry["parameters"], 3) for entry in entries}
