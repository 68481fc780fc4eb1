"""The paper's fifteen questions one by one: what it found, what the results here say, and how to measure again.

    python -m benchmarks.report [--results benchmarks/results] [--out benchmarks/REPORT.md]

Reads every JSON of `--results` and writes `--out`, with plots as PNG and SVG in `plots/` beside it. The same results
give the same report, to the byte with the same matplotlib. What has no result is said to be not measured.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report_questions import LARGE_MODEL, QUESTIONS, Question
from benchmarks.report_verdicts import Estimate, Finding, Json, Results

HERE = Path(__file__).parent
TITLE = "# The paper's questions, and our answers"
PREFACE = f"""Written by `python -m benchmarks.report` from the JSON in `results/`; the questions and findings are those
of "Understanding LoRA as Knowledge Memory", in our words. To put a result in, save the last line of a command's output
as `benchmarks/results/NAME.json` and run `python -m benchmarks.report`.

A verdict compares the direction, not the size: the paper's base models have 0.6 to 14 billion parameters, ours is named
with each result. Of several parts of what the paper found, each that is measured is judged: the least favourable one
counts, and where they differ all are named. *Undecided*: the 95 % interval of the difference holds 0, or the intervals
of figures that are not paired overlap; there are fewer than two documents; or runs differ. Figures without an interval
are single measurements.

Intervals are percentile bootstraps over whole documents. For few documents these are too narrow: of simulated ones with
normally distributed scores, 83 % held the true mean at 5 documents, 90 % at 9 and 92 % at 20. Figures and verdicts here
therefore have each end further from the mean, by t/1.96 · √(n/(n - 1)) for n documents, where t is the 97.5th
percentile of Student's distribution with n - 1 degrees of freedom (at 9 documents: 1.25 times as far); then 94 to 95 %
held it. The JSON has them as they were drawn, and so has the report where a result does not say how many documents it
is of.

*To repeat* has the commands of the files that the figures come from, *To answer it* the question's own where that is
another, mostly a larger one. Commands that ask a server start one on port 8000 and stop it; URL and NAME are yours to
fill in. `loramem` and `python` are those of `.venv/bin` (`source .venv/bin/activate` after `make test`, or
`deploy/setup.sh dev`); question sets are read from LORAMEM_BENCH_DATA. Commands for a large model need a GPU with room
for {LARGE_MODEL}."""
FORMATS = ("png", "svg")
Answered = Sequence[tuple[Question, Finding | None]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    results = read_results(options.results)
    answered = answers(results)
    for question, finding in answered:
        draw(question, finding, options.out.parent / "plots")
    options.out.write_text(report(answered, results), encoding="utf-8")
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


def answers(results: Results) -> Answered:
    return [(question, question.find(results) if question.find else None) for question in QUESTIONS]


def report(answered: Answered, results: Results) -> str:
    """The whole text."""
    table = ["| | question | verdict | from |", "|---|---|---|---|"]
    for question, finding in answered:
        files = ", ".join(finding.files) if finding else ""
        table.append(f"| Q{question.number} | {question.asked} | {_verdict(finding)} | {files} |")
    sections = [section(question, finding, results) for question, finding in answered]
    return "\n\n".join([TITLE, PREFACE, "\n".join(table), *sections]) + "\n"


def section(question: Question, finding: Finding | None, results: Results) -> str:
    """One question: what was found, what we found, and how to do so again."""
    parts = [f"## Q{question.number}. {question.asked}", f"The paper: {question.found}"]
    parts += _measured(finding, results) if finding else ["Ours: not measured."]
    if _is_drawn(finding):
        parts.append(f"![Q{question.number}](plots/{_plot_name(question)}.png)")
    parts += [f"{told}:\n\n```sh\n{lines}\n```" for told, lines in _commands(question, finding, results)]
    return "\n\n".join(parts)


def _commands(question: Question, finding: Finding | None, results: Results) -> Iterator[tuple[str, str]]:
    """What each is for, and its shell lines. Those of several files are named."""
    made = {file: results[file]["command"] for file in finding.files} if finding else {}
    if made:
        named = len(made) > 1
        blocks = [
            (f"# {file}{_circumstances(results[file])}\n" if named else "") + question.repeat(command)
            for file, command in made.items()
        ]
        yield "To repeat", "\n".join(blocks)
    if question.command not in made.values():
        yield "To answer it", question.repeat(question.command)
    yield "With an 8B model on a GPU", question.large_command


def _measured(finding: Finding, results: Results) -> list[str]:
    """Paragraphs: figures, what must be known to read them, verdict."""
    figures = "; ".join(f"{name} {one}" for name, one in finding.figures.items())
    source = _circumstances(results[finding.files[0]])
    said = [f"Ours: {finding.measure}: {figures}. From `{finding.file}`{source}."]
    notes = [*finding.notes, *(_failed(file, results[file]) for file in finding.files)]
    listed = "\n".join(f"- {note}" for note in notes if note)
    said += [listed] if listed else []
    return [*said, f"Verdict: **{finding.verdict}**{_why(finding)}."]


def _failed(file: str, source: Json) -> str:
    """The checks of a result that do not hold; empty where all do."""
    failed = [one for one in source.get("checks", ()) if not one["ok"]]
    told = "; ".join(f"`{one['name']}` is {one['value']}, not `{one['bound']}`" for one in failed)
    return f"Failed checks of `{file}`: {told}." if failed else ""


def _verdict(finding: Finding | None) -> str:
    return f"{finding.verdict}{_why(finding)}" if finding else "not measured"


def _why(finding: Finding) -> str:
    return f" ({finding.why})" if finding.why else ""


def _circumstances(source: Mapping[str, Any]) -> str:
    model = source.get("model") or source.get("settings", {}).get("model")
    machine = source.get("machine", {})
    said = [f"model {model}" if model else "", machine.get("processor", ""), f"seed {source.get('seed', 0)}"]
    return "".join(f", {one}" for one in said if one)


def _is_drawn(finding: Finding | None) -> bool:
    return finding is not None and len(finding.figures) > 1


def draw(question: Question, finding: Finding | None, folder: Path) -> None:
    """Bars with their intervals, where there are two figures or more; an older plot of the question goes otherwise."""
    files = [folder / f"{_plot_name(question)}.{kind}" for kind in FORMATS]
    if finding is None or not _is_drawn(finding):
        for file in files:
            file.unlink(missing_ok=True)
        return
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
