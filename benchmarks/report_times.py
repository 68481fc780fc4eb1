"""Whether an answer from adapters takes less time than one from the whole text (Q15)."""

from benchmarks.q15_plan import BASE, ICL, METHODS, PRELOADED, RAG
from benchmarks.q15_server import ICL_CACHED
from benchmarks.report_verdicts import (
    Estimate,
    Finding,
    Json,
    Results,
    Verdict,
    all_of,
    greater,
    made_by,
    number,
    recalls,
)

AGAIN = "loramem base, again"
LONG = ("narrativeqa", "quality")
NO_CACHED_ICL = "no ICL with the prefix cache that a server has by default"


def latency(results: Results) -> Finding | None:
    """Q15: by the experiment itself, beside the pipeline that the paper describes, else by a run of `recall`."""
    return _timed(results) or _recalled(results)


def _timed(results: Results) -> Finding | None:
    """By all runs together: where they differ nothing is decided. The figures are those of the first by file name."""
    runs = {file: one for file, one in results.items() if made_by(one, "q15") and not one["settings"]["smoke"]}
    judged = {file: found for file, one in runs.items() if (found := _faster(one))}
    told = [*judged, *(file for file in runs if file not in judged)]
    if not told:
        return None
    file, *also = told
    figures, measure = _times(runs[file]), "ms an answer, mean"
    by_run = (_ratios(one, runs[one], judged.get(one)) for one in told)
    notes = (_read(runs[file]["icl"]), _prompts(runs[file]), *by_run)
    if not judged:
        return Finding(file, "not measured", measure, figures, NO_CACHED_ICL, notes, tuple(also))
    agreeing = sum(found == "agree" for found in judged.values())
    verdict: Verdict = all_of(list(judged.values())) if agreeing in (0, len(judged)) else "undecided"
    why = f"agree in {agreeing} of {len(judged)} runs" if len(judged) > 1 else ""
    return Finding(file, verdict, measure, figures, why, notes, tuple(also))


def _faster(report: Json) -> Verdict | None:
    """Whether merged adapters answer sooner than the whole text, read anew and cached; none without the latter."""
    times = _times(report)
    merged, icl, cached = (times.get(f"loramem {name}") for name in (PRELOADED, ICL, ICL_CACHED))
    return all_of([greater(icl, merged), greater(cached, merged)]) if merged and icl and cached else None


def _times(report: Json) -> dict[str, Estimate]:
    """The server's methods, its base model asked once more, then the reference's."""
    own = {f"loramem {name}": report["loramem"].get(name) for name in (*METHODS, ICL_CACHED)}
    again = {AGAIN: report.get("loramem_again", {}).get(BASE)}
    theirs = {f"reference {name}": report["reference"][name] for name in METHODS}
    rows = {name: row for name, row in (own | again | theirs).items() if row}
    return {name: Estimate(round(row["wall_ms"]["mean"], 1)) for name, row in rows.items()}


def _read(icl: Json) -> str:
    if icl["whole"]:
        return f"ICL read the whole document, {icl['document_tokens']:,} tokens."
    read, share = icl["read_tokens"], 100 * icl["read_share"]
    return (
        f"ICL read {share:.0f} % of the document: {read['least']:,} to {read['most']:,} of {icl['document_tokens']:,} "
        "tokens fitted into the window."
    )


def _ratios(file: str, report: Json, verdict: Verdict | None) -> str:
    """Where another method's answers are shorter, its time says less than it seems: both kinds are told."""
    kinds = report["ratios"]
    beside = {f"reference / loramem, {PRELOADED}": float(kinds["reference / loramem"][PRELOADED])}
    measured, alike = (
        ", ".join(f"{name} {number(value)}" for name, value in ratios.items())
        for ratios in (kinds["loramem"] | beside, kinds["loramem_at_equal_length"])
    )
    return (
        f"`{file}`, on {report['machine']['processor']}: {verdict or 'not measured'}. Ratios as measured: {measured}; "
        f"had all answers of loramem the same length: {alike}."
    )


def _prompts(report: Json) -> str:
    own, theirs = (report[pipeline][RAG]["prompt_tokens"] for pipeline in ("loramem", "reference"))
    return f"Tokens of RAG's prompt: {own:,.0f} in loramem, {theirs:,.0f} in the reference; they read different text."


def _recalled(results: Results) -> Finding | None:
    for file, report in recalls(results, LONG):
        methods = report["methods"]
        names = [
            name for name in ("icl", "rag", "single", "lora", "lora-top3") if "latency_ms_p50" in methods.get(name, {})
        ]
        figures = {
            name: Estimate(methods[name]["latency_ms_p50"], documents=methods[name].get("documents")) for name in names
        }
        if "icl" in figures and "lora-top3" in figures:
            return Finding(file, greater(figures["icl"], figures["lora-top3"]), "ms an answer, median", figures)
    return None
