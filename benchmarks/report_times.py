"""Whether an answer from adapters takes less time than one from the whole text (Q15)."""

from benchmarks.q15_plan import BASE, ICL, METHODS, PRELOADED, RAG
from benchmarks.q15_server import ICL_CACHED
from benchmarks.report_verdicts import Estimate, Finding, Json, Results, all_of, greater, made_by, number, recalls

AGAIN = "loramem base, again"
LONG = ("narrativeqa", "quality")
NO_CACHED_ICL = "no ICL with the prefix cache that a server has by default"


def latency(results: Results) -> Finding | None:
    """Q15: by the experiment itself, beside the pipeline that the paper describes, else by a run of `recall`."""
    return _timed(results) or _recalled(results)


def _timed(results: Results) -> Finding | None:
    """By the first run in the order of file names; of others their ratios are told."""
    runs = [(f, one) for f, one in results.items() if made_by(one, "q15") and not one["settings"]["smoke"]]
    if not runs:
        return None
    (file, report), *others = runs
    figures = _times(report)
    merged, icl = figures[f"loramem {PRELOADED}"], figures[f"loramem {ICL}"]
    cached = figures.get(f"loramem {ICL_CACHED}")
    notes = (_read(report["icl"]), _at_equal_length(report), _prompts(report), *(_beside(*one) for one in others))
    measure = "ms an answer, mean"
    if cached is None:
        return Finding(file, "not measured", measure, figures, NO_CACHED_ICL, notes)
    verdict = all_of([greater(icl, merged), greater(cached, merged)])
    return Finding(file, verdict, measure, figures, notes=notes)


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


def _at_equal_length(report: Json) -> str:
    """Where another method's answers are shorter, its time says less than it seems."""
    ratios = report["ratios"]["loramem_at_equal_length"]
    named = ", ".join(f"{name} {number(value)}" for name, value in ratios.items())
    return f"As ratios, had all answers of loramem the same length: {named}."


def _beside(file: str, report: Json) -> str:
    ratios = report["ratios"]["loramem"] | {f"reference / loramem, {PRELOADED}": _slower(report)}
    named = ", ".join(f"{name} {number(value)}" for name, value in ratios.items())
    missed = ", ".join(f"`{one['name']}` is to be `{one['bound']}`" for one in report["checks"] if not one["ok"])
    told = "; ".join(filter(None, [named, missed]))
    return f"Another run, `{file}`, on {report['machine']['processor']}, by `{report['command']}`: {told}."


def _slower(report: Json) -> float:
    return float(report["ratios"]["reference / loramem"][PRELOADED])


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
