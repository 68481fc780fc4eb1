"""The paper's fifteen questions one by one: what it found, what the results here say, and how to measure again.

    python -m benchmarks.report [--results benchmarks/results] [--out benchmarks/REPORT.md]

Reads every JSON of `--results` and writes `--out`, with plots as PNG and SVG in `plots/` beside it. The same results
give the same report, to the byte with the same matplotlib. What has no result is said to be not measured.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report_findings import Estimate, Finding, Json, Results
from benchmarks.report_questions import LARGE_MODEL, QUESTIONS, Question

HERE = Path(__file__).parent
TITLE = "# The paper's questions, and our answers"
PREFACE = f"""Written by `python -m benchmarks.report` from the JSON in `results/`; the questions and findings are those
of "Understanding LoRA as Knowledge Memory", in our words. A verdict compares the direction, not the size: the paper's
base models have 0.6 to 14 billion parameters, ours is named with each result. *Undecided*: the difference is within the
95 % interval. Figures without an interval are single measurements. The commands for a large model need a GPU with room
for {LARGE_MODEL}."""
FORMATS = ("png", "svg")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    results = read_results(options.results)
    answered = [(question, question.find(results) if question.find else None) for question in QUESTIONS]
    plots = options.out.parent / "plots"
    drawn = {question.number for question, finding in answered if draw(question, finding, plots)}
    options.out.write_text(report(answered, results, drawn), encoding="utf-8")
    print(f"{options.out}: {sum(finding is not None for _, finding in answered)} of {len(answered)} have results")
    return 0


def read_results(folder: Path) -> dict[str, Json]:
    """By file name, in its order. Raises `SystemExit` naming a file that is no JSON object."""
    results = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise SystemExit(f"benchmarks.report: {file.name} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise SystemExit(f"benchmarks.report: {file.name} holds no JSON object")
        results[file.name] = found
    return results


def report(answered: Sequence[tuple[Question, Finding | None]], results: Results, drawn: set[int]) -> str:
    """The whole text."""
    table = ["| | question | verdict | from |", "|---|---|---|---|"]
    for question, finding in answered:
        file = finding.file if finding else ""
        table.append(f"| Q{question.number} | {question.asked} | {_verdict(finding)} | {file} |")
    sections = [section(question, finding, results, question.number in drawn) for question, finding in answered]
    return "\n\n".join([TITLE, PREFACE, "\n".join(table), *sections]) + "\n"


def section(question: Question, finding: Finding | None, results: Results, drawn: bool) -> str:
    """One question. The command is the result's own where there is one."""
    parts = [f"## Q{question.number}. {question.asked}", f"The paper: {question.found}"]
    command = question.command
    if finding is None:
        parts.append("Ours: not measured.")
    else:
        source = results[finding.file.split(", ")[0]]
        command = source["command"] if finding.verdict != "not measured" else command
        figures = "; ".join(f"{name} {one}" for name, one in finding.figures.items())
        parts.append(f"Ours: {finding.measure}: {figures}. From `{finding.file}`{_circumstances(source)}.")
        parts.append(f"Verdict: **{finding.verdict}**.")
    if drawn:
        parts.append(f"![Q{question.number}](plots/{_plot_name(question)}.png)")
    parts.append(f"To repeat:\n\n```sh\n{command}\n```")
    parts.append(f"With an 8B model on a GPU:\n\n```sh\n{question.large_command}\n```")
    return "\n\n".join(parts)


def _verdict(finding: Finding | None) -> str:
    return finding.verdict if finding else "not measured"


def _circumstances(source: Mapping[str, Any]) -> str:
    model = source.get("model") or source.get("settings", {}).get("model")
    machine = source.get("machine", {})
    said = [f"model {model}" if model else "", machine.get("processor", ""), f"seed {source.get('seed', 0)}"]
    return "".join(f", {one}" for one in said if one)


def draw(question: Question, finding: Finding | None, folder: Path) -> bool:
    """Bars with their intervals, where there are two figures or more; an older plot of the question goes otherwise."""
    files = [folder / f"{_plot_name(question)}.{kind}" for kind in FORMATS]
    if finding is None or len(finding.figures) < 2:
        for file in files:
            file.unlink(missing_ok=True)
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    means = [one.mean for one in finding.figures.values()]
    errors = _errors(list(finding.figures.values()))
    with matplotlib.rc_context({"svg.hashsalt": _plot_name(question)}):  # else SVG ids are drawn at random
        figure, axes = pyplot.subplots(figsize=(7, 0.8 + 0.35 * len(means)))
        axes.barh(list(finding.figures), means, xerr=errors, capsize=3)
        axes.invert_yaxis()
        axes.set_xlabel(finding.measure)
        axes.set_title(f"Q{question.number}. {question.asked}")
        for file in files:
            figure.savefig(
                file, dpi=150, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None
            )
        pyplot.close(figure)
    return True


def _errors(figures: Sequence[Estimate]) -> list[list[float]] | None:
    """Below and above each mean; None where no figure has an interval."""
    if not any(one.interval for one in figures):
        return None
    ends = [(one.mean, one.interval or (one.mean, one.mean)) for one in figures]
    return [[mean - low for mean, (low, _) in ends], [high - mean for mean, (_, high) in ends]]


def _plot_name(question: Question) -> str:
    return f"q{question.number:02d}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "REPORT.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
