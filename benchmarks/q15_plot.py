"""Stacked bars of the paper's latency experiment: a question's stages above, what is done once below."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.q15_plan import METHODS

Figures = Mapping[str, Any]

PIPELINES = ("loramem", "reference")
LABELS = {
    "base": "base",
    "icl": "ICL",
    "rag": "RAG",
    "single": "single\nLoRA",
    "multi_preloaded": "multi-LoRA\npreloaded",
    "multi_per_question": "multi-LoRA\nper question",
}
GAP = 1
"""Empty places between the two groups."""
COLOURS = "tab20"
FORMATS = ("png", "svg")


def draw(report: Figures, out: Path) -> None:
    """`out` with the suffixes .png and .svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": out.stem}):  # else SVG ids are drawn at random
        figure, (above, below) = pyplot.subplots(2, 1, figsize=(12, 9), height_ratios=(3, 2))
        questions = {pipeline: _questions(report[pipeline]) for pipeline in PIPELINES}
        setups = {pipeline: {one: report[pipeline][one]["setup_s"] for one in METHODS} for pipeline in PIPELINES}
        _bars(above, questions, "a question, mean milliseconds")
        _bars(below, setups, "once, seconds")
        above.set_title(f"{report['settings']['model']}, {report['settings']['device']}: left loramem, right reference")
        figure.tight_layout()
        for kind in FORMATS:
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(out.with_suffix(f".{kind}"), dpi=150, metadata=metadata)
        pyplot.close(figure)


def _questions(methods: Figures) -> dict[str, dict[str, float]]:
    """Mean by stage."""
    return {
        method: {stage: spread["mean"] for stage, spread in methods[method]["per_question_ms"].items()}
        for method in METHODS
    }


def _bars(axes: Any, groups: Mapping[str, Mapping[str, Mapping[str, float]]], label: str) -> None:
    """The two groups side by side, each bar with its sum on top."""
    import matplotlib

    bars = [groups[pipeline][method] for pipeline in PIPELINES for method in METHODS]
    places = [place + (GAP if place >= len(METHODS) else 0) for place in range(len(bars))]
    stages = dict.fromkeys(stage for bar in bars for stage, value in bar.items() if value > 0)
    colours = matplotlib.colormaps[COLOURS]
    bottoms = [0.0] * len(bars)
    for number, stage in enumerate(stages):
        heights = [max(0.0, bar.get(stage, 0.0)) for bar in bars]
        axes.bar(places, heights, bottom=bottoms, label=stage, color=colours(number % colours.N))
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, top in zip(places, bottoms, strict=True):
        axes.annotate(f"{top:.3g}" if top < 1000 else f"{top:,.0f}", (place, top), ha="center", va="bottom")
    axes.set_xticks(places, [LABELS[method] for _ in PIPELINES for method in METHODS], fontsize=8)
    axes.set_ylabel(label)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
