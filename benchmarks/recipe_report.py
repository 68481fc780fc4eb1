"""What `benchmarks.recipes` says about its arms: figures with intervals, a table and bars."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.circumstances import check
from benchmarks.intervals import Interval, cluster_interval
from benchmarks.recipe_arms import DEFAULT
from benchmarks.scores import interval, mean

Report = dict[str, Any]
HEADINGS = ("arm", "score", "95 %", "to default", "95 %", "ready s", "recall", "steps", "rank")
POINTS = "offset points"
LAYOUT = "{:<24}{:>8}{:>16}{:>12}{:>18}{:>9}{:>8}{:>7}{:>6}"


def summary(settings: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], seed: int) -> Report:
    """`arms` has the figures, `results` everything that a later run needs to go on."""
    default = results.get(DEFAULT.name, {}).get("scores")
    arms = {name: _figures(result, default, seed) for name, result in results.items()}
    failed = [name for name, result in results.items() if result["state"] == "failed"]
    failed += [DEFAULT.name] if results.get(DEFAULT.name, {}).get("state") == "refused" else []
    checks = [check(f"arms that failed{''.join(f' {name}' for name in failed)}", len(failed), "<= 0", not failed)]
    return {"settings": dict(settings), "arms": arms, "results": dict(results), "checks": checks}


def _figures(result: Mapping[str, Any], default: Sequence[float] | None, seed: int) -> Report:
    figures = {name: result[name] for name in ("group", "state", "same_as", "reason") if name in result}
    if result["state"] != "done":
        return figures
    scores, questions = result["scores"], result.get("questions")
    figures |= {"score": round(mean(scores), 4), "interval": _rounded(_interval(scores, questions, seed))}
    if default is not None:
        won = [ours - theirs for ours, theirs in zip(scores, default, strict=True)]
        figures |= {"difference": round(mean(won), 4), "difference_interval": _rounded(_interval(won, questions, seed))}
    return figures | {name: result[name] for name in ("ready_s", "recall", "steps")} | {"rank": mean(result["ranks"])}


def _interval(values: Sequence[float], questions: Sequence[int] | None, seed: int) -> Interval:
    """`questions`: of each document, one after another. Values are redrawn one by one where there is one document, or
    where they are not known, as in results of before they were written.
    """
    ends = list(accumulate(questions or ()))
    clusters = [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return cluster_interval(clusters, seed) or interval(values, seed)


def _rounded(ends: Interval) -> list[float]:
    return [round(end, 4) for end in ends]


def table(report: Report) -> str:
    """Arms by group, in the order of running."""
    settings = report["settings"]
    lines = [f"{settings['metric']} on {settings['questions']} questions about {settings['documents']} documents"]
    lines.append(LAYOUT.format(*HEADINGS))
    for group, arms in _by_group(report).items():
        lines += ["", group, *(_line(name, figures) for name, figures in arms.items())]
    return "\n".join(lines)


def _line(name: str, figures: Report) -> str:
    if figures["state"] != "done":
        return f"  {name:<22}{figures['state']}: {figures['reason']}"
    low, high = figures["interval"]
    cells = [f"  {name}", f"{figures['score']:.3f}", f"{low:.3f} to {high:.3f}"]
    if "difference" in figures:
        low, high = figures["difference_interval"]
        cells += [f"{figures['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}"]
    else:
        cells += ["", ""]
    cells += [f"{figures['ready_s']:.0f}", f"{figures['recall']:.2f}", f"{figures['steps']:.0f}"]
    same = f"  as {figures['same_as']}" if "same_as" in figures else ""
    return LAYOUT.format(*cells, f"{figures['rank']:.0f}") + same


def plot(pyplot: Any, report: Report, folder: Path) -> None:
    """`recipes-<data>.png` into `folder`, which is made: a bar for each arm that ran, coloured by group."""
    folder.mkdir(parents=True, exist_ok=True)
    figure, drawing = pyplot.subplots(figsize=(10, 5))
    place = 0
    for group, arms in _by_group(report).items():
        done = {name: figures for name, figures in arms.items() if figures["state"] == "done"}
        if not done:
            continue
        places = list(range(place, place + len(done)))
        scores = [figures["score"] for figures in done.values()]
        ends = [figures["interval"] for figures in done.values()]
        below = [max(0.0, score - low) for score, (low, _) in zip(scores, ends, strict=True)]
        above = [max(0.0, high - score) for score, (_, high) in zip(scores, ends, strict=True)]
        drawing.bar(places, scores, yerr=[below, above], capsize=3, label=group)
        for at, name in zip(places, done, strict=True):
            drawing.annotate(name, (at, 0), rotation=90, ha="center", va="bottom", xytext=(0, 4), textcoords=POINTS)
        place += len(done) + 1
    drawing.set_xticks([])
    drawing.set_ylabel(report["settings"]["metric"])
    drawing.legend()
    figure.savefig(folder / f"recipes-{report['settings']['data']}.png", dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _by_group(report: Report) -> dict[str, dict[str, Report]]:
    groups: dict[str, dict[str, Report]] = {}
    for name, figures in report["arms"].items():
        groups.setdefault(figures["group"], {})[name] = figures
    return groups
