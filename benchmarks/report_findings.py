"""What results of `benchmarks.recall` and `benchmarks.recipes` say on the paper's questions (Q4 to Q6, Q9 to Q14)."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from benchmarks.report_times import LONG
from benchmarks.report_verdicts import (
    Estimate,
    Finding,
    Json,
    Results,
    above_zero,
    all_of,
    greater,
    made_by,
    number,
    recalls,
)

WHOLE_METRICS = ("judge", "accuracy", "rouge_l", "f1")
"""The first that a result has is compared."""
SHORT = ("paperqa", "squad", "fairytaleqa")
Pair = tuple[str, str]
MERGED: Pair = ("lora-top3", "lora")
MERGED_ORACLE: Pair = ("lora-top3:oracle3", "lora:oracle")
"""The same with the right document named: what differs is no matter of routing."""
OTHER_MERGES = {"linear": "lora-top3-linear", "concatenation": "lora-top3-cat", "DARE": "lora-top3-dare"}
FEWEST_MISROUTED = 10
"""Questions sent to a wrong document; fewer are too few to judge."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)


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
    """Q6: a larger base model answers better closed book, trained and asked alike on the same questions."""
    by_draw: dict[tuple[str, str], dict[float, tuple[str, str, Estimate]]] = {}
    for file, report in recalls(results):
        size, metric = model_size(str(report["settings"].get("model", ""))), metric_of([report], ["lora"])
        if size and metric:
            alike = {name: report["settings"].get(name) for name in ("draw", "training", "max_tokens")}
            held = by_draw.setdefault((metric, json.dumps(alike, sort_keys=True)), {})
            held[size] = (file, report["settings"]["model"], _estimate(report, "lora", metric))
    for (metric, _), held in by_draw.items():
        if len(held) > 1:
            ordered = [held[size] for size in sorted(held)]
            files, figures = ", ".join(file for file, _, _ in ordered), {name: one for _, name, one in ordered}
            return Finding(files, greater(ordered[-1][2], ordered[0][2]), f"lora, {metric}", figures)
    return None


def routing(results: Results) -> Finding | None:
    """Q9: routing loses against an oracle."""
    return _compared(results, ("lora:oracle", "lora"), ("joined",), SHORT)


def merging(results: Results) -> Finding | None:
    """Q10: three merged by TIES beat the routed one on the questions that were sent to a wrong document."""
    beside = (*OTHER_MERGES.values(), "joined")
    enough = {file: one for file, one in results.items() if _misrouted(one) >= FEWEST_MISROUTED}
    found = _compared(enough, MERGED, beside, SHORT) or _compared(results, MERGED, beside, SHORT)
    if found is None:
        return None
    report = results[found.file]
    found = replace(found, verdict="not measured", why=f"{100 * _routed_right(report):.0f} % routed right")
    merged, single = MERGED
    metric = found.measure.split()[0]
    difference = _where_misrouted(report, merged, metric)
    if difference and found.file in enough:
        others = {name: _where_misrouted(report, one, metric) for name, one in OTHER_MERGES.items()}
        by_others = {f"by {one}": _where_misrouted(report, merged, one) for one in WHOLE_METRICS if one != metric}
        all_told = {merged: difference, **by_others, **others}
        told = ", ".join(f"{name} {one}" for name, one in all_told.items() if one)
        astray = report["methods"][merged]["misrouted"]
        where = (
            f"On the {astray['questions']} questions whose first adapter is of a wrong document, less {single}: {told}"
        )
        notes = (f"{where}; {astray['documents']} documents.", *_other_order(difference, others), *found.notes)
        found = replace(found, verdict=above_zero(difference), why="where routing is wrong", notes=notes)
    return replace(found, notes=(*found.notes, *_of_merging(results, report)))


def _other_order(ties: Estimate, others: Mapping[str, Estimate | None]) -> Iterator[str]:
    """Where the other merges stand the other way round than in the paper; all of them less the routed adapter."""
    linear, concatenated = others["linear"], others["concatenation"]
    if linear and concatenated and concatenated.mean > ties.mean and linear.mean < 0:
        yield "By their means concatenation beats TIES there and linear loses to the one routed, against the paper."


def _misrouted(report: Json) -> int:
    """Questions whose first adapter is of a wrong document, where somebody has looked."""
    methods = report.get("methods", {})
    found: int = methods.get(MERGED[0], {}).get("misrouted", {}).get("questions", 0) if isinstance(methods, dict) else 0
    return found


def _where_misrouted(report: Json, method: str, metric: str) -> Estimate | None:
    """The method less the routed adapter on the questions that this one was wrong for; None where nobody has looked."""
    found = report["methods"].get(method, {}).get("misrouted", {})
    difference = found.get("minus", {}).get(MERGED[1], {}).get(metric)
    return _paired(difference, found["documents"]) if difference else None


def _routed_right(report: Json) -> float:
    """Share of questions, 0 to 1; 1 where nobody has looked."""
    share: float = report["methods"].get(MERGED[1], {}).get("router_first", {}).get("mean", 1.0)
    return share


def _of_merging(results: Results, report: Json) -> Iterator[str]:
    """What merging costs where nothing is routed wrong, and which of the paper's merges nobody has measured."""
    oracle, single = MERGED_ORACLE
    for file, one in recalls(results, SHORT):
        metrics = [metric for metric in WHOLE_METRICS if _has(one, oracle, metric) and _has(one, single, metric)]
        if metrics:
            told = ", ".join(f"{by} {_mean(one, oracle, by)} against {_mean(one, single, by)}" for by in metrics)
            yield f"Interference, with the right document named ({oracle} against {single}, `{file}`): {told}."
            break
    missing = [name for name, method in OTHER_MERGES.items() if not metric_of([report], [method])]
    if missing:
        yield f"Other merges of the paper, not measured: {', '.join(missing)}."


def count(results: Results) -> Finding | None:
    """Q11: one beats five."""
    found = _compared(results, ("lora", "lora-top5"), ("lora-top2", "lora-top3", "base"), SHORT)
    note = "Adapters as the router found them; the paper's are the right modules."
    return replace(found, notes=(*found.notes, note)) if found else None


def long_documents(results: Results) -> Finding | None:
    """Q12: one adapter for a document beats those of its chunks, closed book."""
    return _compared(results, ("single", "lora-top3"), ("base", "lora"), LONG)


def context(results: Results) -> Finding | None:
    """Q13: adapters with the text in the prompt beat adapters alone; of short documents if no long ones were asked."""
    whole, passages = "hybrid-icl-top3", "hybrid-top3"
    found = _compared(results, (whole, "lora-top3"), (passages, "icl", "rag"), LONG)
    if found is None:
        found = _compared(results, (whole, "lora-top3"), (passages, "icl", "rag"), SHORT)
        found = replace(found, why="short documents") if found else None
    if found and passages in found.figures and found.figures[passages].mean > found.figures[whole].mean:
        note = "By their means passages help more than the whole text, against the paper."
        found = replace(found, notes=(*found.notes, note))
    return found


def continuity(results: Results) -> Finding | None:
    """Q14: three merged beat the routed one on long documents."""
    return _compared(results, MERGED, ("hybrid-icl-top3", "hybrid-icl"), LONG)


def _compared(results: Results, pair: Pair, beside: Sequence[str], data_sets: Sequence[str]) -> Finding | None:
    for file, report in recalls(results, data_sets):
        metric = metric_of([report], pair)
        if metric:
            names = [name for name in (*pair, *beside) if metric_of([report], [name])]
            figures = {name: _estimate(report, name, metric) for name in names}
            difference = _difference(report, pair, metric)
            verdict = above_zero(difference) if difference else greater(figures[pair[0]], figures[pair[1]])
            measure = f"{metric} on {report['settings']['data_set']}"
            notes = (_over(report, pair, difference), *_cut(report, names))
            return Finding(file, verdict, measure, figures, notes=notes)
    return None


def _difference(report: Json, pair: Pair, metric: str) -> Estimate | None:
    """First of the pair less the second, question by question; None where nobody has taken it."""
    for (one, other), sign in ((pair, 1), (pair[::-1], -1)):
        found = report["methods"][one].get("minus", {}).get(other, {}).get(metric)
        if found:
            return _paired(found, report["methods"][one].get("documents"), sign)
    return None


def _paired(found: Json, documents: int | None, sign: int = 1) -> Estimate:
    ends = sorted(sign * end for end in found["interval"] or ())
    return Estimate(sign * found["mean"], (ends[0], ends[-1]) if ends else None, documents)


def _over(report: Json, pair: Pair, difference: Estimate | None) -> str:
    one, other = pair
    told = f"{one} less {other}, question by question: {difference}" if difference else f"{one} and {other}, unpaired"
    counts = [f"{report['methods'][one].get(name, 'unknown')} {name}" for name in ("documents", "questions")]
    return f"{told}; {', '.join(counts)}."


def _cut(report: Json, names: Sequence[str]) -> Iterator[str]:
    """Of methods whose text did not always fit into the window."""
    for name in names:
        share = report["methods"][name].get("text_cut", {}).get("mean", 0.0)
        if share:
            yield f"The text of {name} was cut to fit the window at {100 * share:.0f} % of its questions."


def metric_of(reports: Sequence[Json], methods: Sequence[str]) -> str | None:
    """The first of `WHOLE_METRICS` that all the methods have in all the reports."""
    pairs = [(report, method) for report in reports for method in methods]
    return next((metric for metric in WHOLE_METRICS if all(_has(*pair, metric) for pair in pairs)), None)


def _has(report: Json, method: str, metric: str) -> bool:
    return metric in report["methods"].get(method, {}).get("scores", {})


def model_size(name: str) -> float | None:
    """Parameters in millions, as the name says: `Qwen3-8B` has 8000."""
    found = _SIZE.search(name)
    return float(found[1]) * (1000 if found[2].lower() == "b" else 1) if found else None


def _mean(report: Json, method: str, metric: str) -> str:
    return number(_estimate(report, method, metric).mean)


def _estimate(report: Json, method: str, metric: str) -> Estimate:
    of_method = report["methods"][method]
    found = of_method["scores"][metric]
    interval = tuple(found["interval"]) if found["interval"] else None
    return Estimate(found["mean"], interval, of_method.get("documents"))


def _arms(results: Results, names: Sequence[str]) -> Iterator[tuple[str, Json, Mapping[str, Estimate]]]:
    """Of runs of `benchmarks.recipes` that finished all the arms named; PaperQA's, as the paper's, before others."""
    reports = [(file, one) for file, one in results.items() if made_by(one, "recipes") and not one["settings"]["smoke"]]
    for file, report in sorted(reports, key=lambda pair: pair[1]["settings"]["data"] != "paperqa"):
        arms = {name: report["arms"].get(name, {}) for name in names}
        if all("score" in arm for arm in arms.values()):
            documents = report["settings"].get("documents")
            yield (
                file,
                report,
                {name: Estimate(arm["score"], tuple(arm["interval"]), documents) for name, arm in arms.items()},
            )


def _metric_of(report: Json) -> str:
    return f"{report['settings']['metric']} on {report['settings']['data']}"
