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
    Verdict,
    above_zero,
    all_of,
    greater,
    made_by,
    number,
    over_documents,
    recalls,
)

WHOLE_METRICS = ("judge", "accuracy", "rouge_l", "f1")
"""The first that a result has is compared."""
SHORT = ("paperqa", "squad", "fairytaleqa")
Pair = tuple[str, str]
Claim = Mapping[str, Sequence[Pair]]
"""By part of what the paper found, the pairs of which the first scores more. A result needs the very first pair; the
others are judged where they are measured."""
MERGED: Pair = ("lora-top3", "lora")
MERGED_ORACLE: Pair = ("lora-top3:oracle3", "lora:oracle")
"""The same with the right document named: what differs is no matter of routing."""
OTHER_MERGES = {"linear": "lora-top3-linear", "concatenation": "lora-top3-cat", "DARE": "lora-top3-dare"}
MERGING: Claim = {
    "TIES over the one routed": [MERGED],
    "over concatenation": [("lora-top3", OTHER_MERGES["concatenation"])],
    "over DARE": [("lora-top3", OTHER_MERGES["DARE"])],
}
COUNT: Claim = {
    "one over five": [("lora", "lora-top5")],
    "less with each one more": [("lora", "lora-top2"), ("lora-top2", "lora-top3"), ("lora-top3", "lora-top5")],
}
CONTEXT: Claim = {
    "text helps": [
        ("hybrid-icl-top3", "lora-top3"),
        ("hybrid-top3", "lora-top3"),
        ("hybrid-icl", "lora"),
        ("hybrid", "lora"),
        ("single-icl", "single"),
        ("single-rag", "single"),
    ],
    "the whole text more than passages": [
        ("hybrid-icl-top3", "hybrid-top3"),
        ("hybrid-icl", "hybrid"),
        ("single-icl", "single-rag"),
    ],
}
CONTINUITY: Claim = {
    "closed book": [MERGED],
    "with text": [("hybrid-icl-top3", "hybrid-icl"), ("hybrid-top3", "hybrid")],
}
FEWEST_MISROUTED = 10
"""Questions sent to a wrong document; fewer are too few to judge."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)


def formats(results: Results) -> Finding | None:
    """Q4: questions, summaries and rewritings each beat the text alone, and questions the others."""
    names = ("formats=original", "formats=qa40", "formats=summary8", "formats=rewrite4")
    for file, report, found in _arms(results, names):
        original, questions, *others = found.values()
        more = [*(greater(one, original) for one in (questions, *others)), *(greater(questions, one) for one in others)]
        return Finding(file, all_of(more), _metric_of(report), found)
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
    return _compared(results, {"": [("lora:oracle", "lora")]}, ("joined",), SHORT)


def merging(results: Results) -> Finding | None:
    """Q10: three merged by TIES beat the one routed, and two other merges, over all questions of a run that has enough
    misrouted ones."""
    beside = (OTHER_MERGES["linear"], "joined")
    enough = {file: one for file, one in results.items() if _misrouted(one) >= FEWEST_MISROUTED}
    found = _compared(enough, MERGING, beside, SHORT) or _compared(results, MERGING, beside, SHORT)
    if found is None:
        return None
    report = results[found.file]
    if found.file in enough:
        found = _told_where_misrouted(found, report)
    else:
        found = replace(found, verdict="not measured", why=f"{100 * _routed_right(report):.0f} % routed right")
    return replace(found, notes=(*found.notes, *_of_merging(results, report)))


def _told_where_misrouted(found: Finding, report: Json) -> Finding:
    """By the way: what merging does for the questions whose first adapter is of a wrong document, alone."""
    merged, single = MERGED
    metric = found.measure.split()[0]
    measured = {by: _where_misrouted(report, merged, by) for by in (metric, *WHOLE_METRICS)}
    differences = {by: one for by, one in measured.items() if one}
    if metric not in differences:
        return found
    others = {name: _where_misrouted(report, one, metric) for name, one in OTHER_MERGES.items()}
    by_others = {f"by {by}": one for by, one in differences.items() if by != metric}
    all_told = {merged: differences[metric], **by_others, **others}
    told = ", ".join(f"{name} {one}" for name, one in all_told.items() if one)
    astray = report["methods"][merged]["misrouted"]
    where = f"On the {astray['questions']} questions whose first adapter is of a wrong document, less {single}: {told}"
    open_by = " and ".join(by for by, one in differences.items() if above_zero(one) == "undecided")
    unsure = f" The interval of {merged} there holds 0 by {open_by}." if open_by else ""
    note = f"{where}; {astray['documents']} documents.{unsure}"
    why = [found.why, f"where routing is wrong: {above_zero(differences[metric])}"]
    notes = (*found.notes, note, *_other_order(differences[metric], others))
    return replace(found, why="; ".join(filter(None, why)), notes=notes)


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
    """Q11: one beats five, and scores fall with each one more."""
    found = _compared(results, COUNT, ("base",), SHORT)
    note = "Adapters as the router found them; the paper's are the right modules."
    return replace(found, notes=(*found.notes, note)) if found else None


def long_documents(results: Results) -> Finding | None:
    """Q12: one adapter for a document beats those of its chunks, closed book."""
    return _compared(results, {"": [("single", "lora-top3"), ("single", "lora")]}, ("base",), LONG)


def context(results: Results) -> Finding | None:
    """Q13: adapters with text in the prompt beat adapters alone, with the whole text by more than with passages; of
    short documents if no long ones were asked."""
    found = _compared(results, CONTEXT, ("icl", "rag"), LONG)
    if found is None:
        found = _compared(results, CONTEXT, ("icl", "rag"), SHORT)
        found = replace(found, why="; ".join(filter(None, ("short documents", found.why)))) if found else None
    whole, passages = CONTEXT["the whole text more than passages"][0]
    if found and passages in found.figures and found.figures[passages].mean > found.figures[whole].mean:
        note = "By their means passages help more than the whole text, against the paper."
        found = replace(found, notes=(*found.notes, note))
    return found


def continuity(results: Results) -> Finding | None:
    """Q14: three merged beat the routed one on long documents, without text in the prompt and with it."""
    return _compared(results, CONTINUITY, (), LONG)


def _compared(results: Results, claim: Claim, beside: Sequence[str], data_sets: Sequence[str]) -> Finding | None:
    needed = next(iter(claim.values()))[0]
    for file, report in recalls(results, data_sets):
        metric = metric_of([report], needed)
        if metric:
            return _judged(file, report, claim, beside, metric)
    return None


def _judged(file: str, report: Json, claim: Claim, beside: Sequence[str], metric: str) -> Finding:
    """The least favourable part decides; where parts differ, all are named."""
    measured = {
        part: [pair for pair in pairs if all(_has(report, name, metric) for name in pair)]
        for part, pairs in claim.items()
    }
    parts = {part: all_of([_higher(report, pair, metric) for pair in some]) for part, some in measured.items() if some}
    pairs = [pair for some in measured.values() for pair in some]
    names = dict.fromkeys([*(name for pair in pairs for name in pair), *beside])
    figures = {name: _estimate(report, name, metric) for name in names if _has(report, name, metric)}
    why = ", ".join(f"{part}: {verdict}" for part, verdict in parts.items()) if len(set(parts.values())) > 1 else ""
    notes = (*(_over(report, pair, _difference(report, pair, metric)) for pair in pairs), *_cut(report, list(figures)))
    measure = f"{metric} on {report['settings']['data_set']}"
    return Finding(file, all_of(list(parts.values())), measure, figures, why, notes)


def _higher(report: Json, pair: Pair, metric: str) -> Verdict:
    """Whether the first of the pair scores more: by their paired difference, where somebody has taken it."""
    difference = _difference(report, pair, metric)
    if difference:
        return above_zero(difference)
    one, other = (_estimate(report, name, metric) for name in pair)
    return greater(one, other)


def _difference(report: Json, pair: Pair, metric: str) -> Estimate | None:
    """First of the pair less the second, question by question; None where nobody has taken it."""
    for (one, other), sign in ((pair, 1), (pair[::-1], -1)):
        found = report["methods"][one].get("minus", {}).get(other, {}).get(metric)
        if found:
            return _paired(found, report["methods"][one].get("documents"), sign)
    return None


def _paired(found: Json, documents: int | None, sign: int = 1) -> Estimate:
    ends = sorted(sign * end for end in found["interval"] or ())
    return over_documents(sign * found["mean"], ends, documents)


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
    return over_documents(found["mean"], found["interval"], of_method.get("documents"))


def _arms(results: Results, names: Sequence[str]) -> Iterator[tuple[str, Json, Mapping[str, Estimate]]]:
    """Of runs of `benchmarks.recipes` that finished all the arms named; PaperQA's, as the paper's, before others."""
    reports = [(file, one) for file, one in results.items() if made_by(one, "recipes") and not one["settings"]["smoke"]]
    for file, report in sorted(reports, key=lambda pair: pair[1]["settings"]["data"] != "paperqa"):
        arms = {name: report["arms"].get(name, {}) for name in names}
        if all("score" in arm for arm in arms.values()):
            documents = report["settings"].get("documents")
            found = {name: over_documents(arm["score"], arm["interval"], documents) for name, arm in arms.items()}
            yield file, report, found


def _metric_of(report: Json) -> str:
    return f"{report['settings']['metric']} on {report['settings']['data']}"
