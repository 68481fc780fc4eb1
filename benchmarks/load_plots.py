"""Pictures of a load: latency over time, and how it is distributed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load_run import Load, Outcome

KINDS: dict[str, Callable[[Outcome], float | None]] = {
    "to the first token": lambda one: one.ttft_s,
    "to the end": lambda one: one.e2e_s,
}


class NoPlots(Exception):
    """Matplotlib is not installed."""


def load_pyplot() -> Any:
    """Matplotlib's drawing module, without a screen. Raises `NoPlots`."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise NoPlots("matplotlib is not installed: pip install 'loramem[dev]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(pyplot: Any, load: Load, out: Path) -> list[str]:
    """`<out>-time` and `<out>-cdf` beside the result, as PNG and SVG; returns the files' names."""
    figures = {"time": (_over_time, "upper left"), "cdf": (_distribution, "lower right")}
    names = []
    for name, (draw, corner) in figures.items():
        figure, axes = pyplot.subplots(figsize=(8, 4.5))
        for label, seconds in KINDS.items():
            draw(axes, label, [one for one in load.outcomes if seconds(one) is not None], seconds)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc=corner)  # finding the best place takes long among many points
        for suffix in ("png", "svg"):
            file = out.with_name(f"{out.stem}-{name}.{suffix}")
            figure.savefig(file, dpi=150, bbox_inches="tight")
            names.append(file.name)
        pyplot.close(figure)
    return names


def _over_time(axes: Any, label: str, answered: Sequence[Outcome], seconds: Callable[[Outcome], float | None]) -> None:
    axes.scatter([one.planned.at_s for one in answered], _ms(answered, seconds), s=8, alpha=0.6, label=label)
    axes.set(xlabel="seconds from the start, as scheduled", ylabel="latency since scheduled, ms")


def _distribution(
    axes: Any, label: str, answered: Sequence[Outcome], seconds: Callable[[Outcome], float | None]
) -> None:
    if answered:
        axes.ecdf(_ms(answered, seconds), label=label)
    axes.set(xlabel="latency since scheduled, ms", ylabel="share of answers")


def _ms(answered: Sequence[Outcome], seconds: Callable[[Outcome], float | None]) -> Any:
    return np.array([seconds(one) for one in answered], dtype=np.float64) * 1000
