"""Figures of a run from its answers: means with intervals over documents, paired differences, routing, cost."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.circumstances import check
from benchmarks.intervals import cluster_interval, percentile
from benchmarks.recall_journal import Line
from benchmarks.recall_methods import REFERENCES
from benchmarks.scores import mean

Figures = dict[str, Any]
ROUTING = {"router_first": "first", "router_inside": "inside"}
REFUSING = {"refused_answerable": "refused"}
CUT = {"text_cut": "cut"}
"""Figure, and which part of an answer it is the share of."""
ROUTED = "lora"
"""The method that answers from the first adapter alone."""
UNANSWERABLE = "refused_unanswerable"
"""The same share of the answers to questions that nothing uploaded answers; no other figure counts these."""
NAME_WIDTH = 32
COST = ("answer_tokens", "mean_k", "latency_ms_p50", "latency_ms_p95")
_FIGURE = r"([\w:-]+(?:\.\d[\w:-]*)?)\.(\w+)"
"""Of a method, whose name may hold a number as 1.5."""
_BOUND = re.compile(rf"\s*{_FIGURE}\s*(>=|<=)\s*(?:([\d.]+)\s*\*\s*)?(?:([\d.]+)|{_FIGURE})\s*")


@dataclass(frozen=True)
class Bound:
    """`METHOD.METRIC >= FACTOR * METHOD.METRIC`, or `<=`, or against a number: then `other` is none."""

    text: str
    method: str
    metric: str
    at_least: bool
    factor: float
    other: tuple[str, str] | None

    @property
    def named(self) -> list[tuple[str, str]]:
        return [(self.method, self.metric), *([self.other] if self.other else [])]


def parse_bound(text: str) -> Bound:
    """Raises `ValueError` with an example for another form."""
    found = _BOUND.fullmatch(text)
    if found is None or (found[4] and found[5]):
        raise ValueError(f"a check is like lora.f1>=0.6*rag.f1 or lora.f1>=0.3, not {text!r}")
    other = (found[6], found[7]) if found[6] else None
    return Bound(text, found[1], found[2], found[3] == ">=", float(found[4] or found[5] or 1), other)


def summary(answers: Sequence[Line], methods: Sequence[str], refused: Mapping[str, str], seed: int) -> Figures:
    """By method, in the order given. Answers hold `scores` by metric, 0 to 1 (`judge`: 0 to 10)."""
    by_method = _by_method([line for line in answers if _answerable(line)], methods)
    unanswerable = _by_method([line for line in answers if not _answerable(line)], methods)
    misrouted = {_question(line) for line in by_method.get(ROUTED, ()) if line.get("first") is False}
    figures: Figures = {}
    for name, lines in by_method.items():
        if name in refused:
            figures[name] = {"state": "refused", "reason": refused[name]}
        elif lines:
            references = {one: by_method[one] for one in REFERENCES if by_method.get(one) and one != name}
            asked = {one: others for one, others in references.items() if one not in refused}
            minus = {one: _differences(lines, others, seed) for one, others in asked.items()}
            beyond = _shares({UNANSWERABLE: "refused"}, unanswerable[name], seed)
            astray = _misrouted(
                [line for line in lines if _question(line) in misrouted], references.get(ROUTED, ()), seed
            )
            figures[name] = {"state": "done"} | _figures(lines, seed) | beyond | {"minus": minus} | astray
    return figures


def _misrouted(lines: Sequence[Line], routed: Sequence[Line], seed: int) -> Figures:
    """Of the questions whose first adapter is of a wrong document, beside that adapter's answers."""
    if not lines or not routed:
        return {}
    questions = {(_document(line), line["question_number"]) for line in lines}  # under several seeds one
    documents = {document for document, _ in questions}
    minus = {ROUTED: _differences(lines, routed, seed)}
    return {"misrouted": {"questions": len(questions), "documents": len(documents), "minus": minus}}


def _by_method(answers: Sequence[Line], methods: Sequence[str]) -> dict[str, list[Line]]:
    return {name: [line for line in answers if line["method"] == name] for name in methods}


def _answerable(line: Line) -> bool:
    """Journals of before the others were asked do not say so."""
    return bool(line.get("answerable", True))


def _figures(lines: Sequence[Line], seed: int) -> Figures:
    total = [line["timings_ms"]["total"] for line in lines]
    figures: Figures = {
        "questions": len(lines),
        "documents": len({_document(line) for line in lines}),
        "scores": {metric: _estimate(lines, _scored(metric), seed) for metric in _metrics(lines)},
        "answer_tokens": round(mean([line["usage"]["completion_tokens"] for line in lines]), 2),
        "mean_k": round(mean([len(line["routed"]) for line in lines]), 2),
        "latency_ms_p50": round(percentile(total, 50), 1),
        "latency_ms_p95": round(percentile(total, 95), 1),
    }
    figures |= _shares(ROUTING | REFUSING | CUT, lines, seed)
    figures |= _parts("levels", lines, lambda line: line["level"]) | _parts("seeds", lines, lambda line: line["seed"])
    return figures


def _shares(places: Mapping[str, str], lines: Sequence[Line], seed: int) -> Figures:
    """Of the answers for which there is such a thing, where there are any."""
    held = {name: [line for line in lines if line.get(place) is not None] for name, place in places.items()}
    return {name: _estimate(some, _number(places[name]), seed) for name, some in held.items() if some}


def _parts(name: str, lines: Sequence[Line], part: Callable[[Line], Any]) -> Figures:
    """Means alone, of each part by itself, where there are several."""
    parts: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        parts[str(part(line))].append(line)
    return {name: {value: _means(parts[value]) for value in sorted(parts)}} if len(parts) > 1 else {}


def _means(lines: Sequence[Line]) -> Figures:
    means = {metric: round(mean([_scored(metric)(line) for line in lines]), 4) for metric in _metrics(lines)}
    for name, place in (ROUTING | REFUSING).items():
        held = [float(line[place]) for line in lines if line.get(place) is not None]
        means |= {name: round(mean(held), 4)} if held else {}
    return {"questions": len(lines)} | means


def _differences(lines: Sequence[Line], others: Sequence[Line], seed: int) -> Figures:
    """Paired: over the questions that both have answered."""
    beside = {_question(line): line for line in others}
    pairs = [(line, beside[_question(line)]) for line in lines if _question(line) in beside]
    found: Figures = {}
    for metric in _metrics(lines):
        clusters: dict[str, list[float]] = defaultdict(list)
        for line, other in pairs:
            if metric in other["scores"]:
                clusters[_document(line)].append(line["scores"][metric] - other["scores"][metric])
        found |= {metric: _mean_of(clusters.values(), seed)} if clusters else {}
    return found


def _estimate(lines: Iterable[Line], value: Callable[[Line], float], seed: int) -> Figures:
    clusters: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        clusters[_document(line)].append(value(line))
    return _mean_of(clusters.values(), seed)


def _mean_of(clusters: Iterable[Sequence[float]], seed: int) -> Figures:
    clusters = list(clusters)
    ends = cluster_interval(clusters, seed)
    values = [value for cluster in clusters for value in cluster]
    return {"mean": round(mean(values), 4), "interval": [round(end, 4) for end in ends] if ends else None}


def _metrics(lines: Sequence[Line]) -> list[str]:
    """Those that every answer has: a judge that stopped half way leaves none."""
    first, *rest = [line["scores"] for line in lines]
    return [metric for metric in first if all(metric in scores for scores in rest)]


def _scored(metric: str) -> Callable[[Line], float]:
    return lambda line: float(line["scores"][metric])


def _number(name: str) -> Callable[[Line], float]:
    return lambda line: float(line[name])


def _document(line: Line) -> str:
    """The same text under several seeds is one: it says nothing more about other texts."""
    return str(line["document"])


def _question(line: Line) -> tuple[int, str, int]:
    return line["seed"], line["document"], line["question_number"]


def checks(bounds: Sequence[Bound], figures: Figures) -> list[dict[str, Any]]:
    """A method that has no such figure, because the server refused it, fails its check."""
    return [_checked(bound, figures) for bound in bounds]


def _checked(bound: Bound, figures: Figures) -> dict[str, Any]:
    value = value_of(figures, bound.method, bound.metric)
    other = value_of(figures, *bound.other) if bound.other else 1.0
    if value is None or other is None:
        return {"name": bound.text, "value": None, "bound": "a figure for each method", "ok": False}
    limit = bound.factor * other
    holds = value >= limit if bound.at_least else value <= limit
    return check(bound.text, value, f"{'>=' if bound.at_least else '<='} {limit:.4f}", holds)


def value_of(figures: Figures, method: str, metric: str) -> float | None:
    """A score's mean, a share, or a figure of cost."""
    of_method = figures.get(method, {})
    estimate = of_method.get("scores", {}).get(metric, of_method.get(metric))
    value = estimate["mean"] if isinstance(estimate, dict) else estimate
    return float(value) if isinstance(value, int | float) else None


def table(figures: Figures) -> str:
    """A line a method, a column a score with its interval."""
    done = [one for one in figures.values() if one["state"] == "done"]
    metrics = list(dict.fromkeys(metric for one in done for metric in one["scores"]))
    head = f"{'method':<{NAME_WIDTH}}" + "".join(f"{metric:>24}" for metric in metrics)
    head += f"{'routed first':>14}{'tokens':>8}{'p50 ms':>9}"
    return "\n".join([head, *(_row(name, one, metrics) for name, one in figures.items())])


def _row(name: str, one: Figures, metrics: Sequence[str]) -> str:
    if one["state"] != "done":
        return f"{name:<{NAME_WIDTH}}{one['state']}: {one['reason']}"
    scores = "".join(f"{_shown(one['scores'].get(metric)):>24}" for metric in metrics)
    first = one.get("router_first")
    routed = f"{first['mean']:>14.3f}" if first else f"{'':>14}"
    return f"{name:<{NAME_WIDTH}}{scores}{routed}{one['answer_tokens']:>8.1f}{one['latency_ms_p50']:>9.0f}"


def _shown(estimate: Figures | None) -> str:
    if estimate is None:
        return ""
    ends = estimate["interval"]
    return f"{estimate['mean']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
