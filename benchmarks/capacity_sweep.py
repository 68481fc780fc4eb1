"""Rank against load: what an adapter holds, what it costs, and whether several small ones hold more than a large one.

The questions of the paper's Figures 1 to 3 and 6, asked of PhoneBook.
"""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.phonebook import Stored, cut, read_phonebook, store
from trainer_worker.loop import Hyperparameters
from trainer_worker.train import Trainer

HELD_FROM = 0.9
"""A load counts as held by a rank from this share of exact matches on."""
LABELS = {"load": "load, thousand tokens"}
Figures = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """`loads` in thousand tokens, each slice cut to `rows` where that is set.

    The greatest load is given to one adapter of each of `split_ranks` and to `parts` adapters of that rank divided by
    `parts`: as many parameters in all.
    """

    ranks: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    loads: tuple[int, ...] = (1, 2, 4, 8)
    split_ranks: tuple[int, ...] = (16, 32, 64)
    parts: int = 8
    rows: int | None = None

    def __post_init__(self) -> None:
        if not set(self.split_ranks) <= set(self.ranks) or any(rank % self.parts for rank in self.split_ranks):
            raise ValueError(f"split ranks {self.split_ranks} must be among {self.ranks} and multiples of {self.parts}")


def sweep(trainer: Trainer, data: Path, hyperparameters: Hyperparameters, plan: Plan) -> Figures:
    """`grid`, one entry for each rank and load; `efficiency` by rank; `split`, one for each split rank; `epochs`."""
    slices = {load: read_phonebook(data, load)[: plan.rows] for load in plan.loads}
    grid = [
        {"load": load} | store(trainer, hyperparameters, rows, rank).figures
        for load, rows in slices.items()
        for rank in plan.ranks
    ]
    greatest = slices[plan.loads[-1]]
    small = {
        rank: [store(trainer, hyperparameters, part, rank // plan.parts) for part in cut(greatest, plan.parts)]
        for rank in plan.split_ranks
    }
    large = {entry["rank"]: entry for entry in grid if entry["load"] == plan.loads[-1]}
    split = [beside(large[rank], stored) for rank, stored in small.items()]
    return {"grid": grid, "efficiency": efficiency(grid), "split": split, "epochs": hyperparameters.epochs}


def beside(large: Figures, small: Sequence[Stored]) -> Figures:
    """One adapter and several that share its parameters, each of them asked for its own rows only."""
    return {
        "parameters": large["parameters"],
        "large": {name: large[name] for name in ("rank", "exact_match", "seconds")},
        "small": {
            "adapters": len(small),
            "rank": small[0].cost.rank,
            "parameters": sum(stored.cost.parameters for stored in small),
            "exact_match": round(share_of(small), 4),
            "seconds": round(sum(stored.cost.seconds for stored in small), 1),
        },
    }


def share_of(several: Sequence[Stored]) -> float:
    """Exact matches of all rows together, 0 to 1."""
    return sum(stored.right for stored in several) / sum(stored.rows for stored in several)


def efficiency(grid: Iterable[Figures]) -> dict[str, float]:
    """By rank: rows of the greatest load that is held (`HELD_FROM`) per million parameters, 0 when none is (Eq. 1)."""
    found: dict[str, float] = {}
    for entry in grid:
        held = entry["rows"] if entry["exact_match"] >= HELD_FROM else 0
        rank = str(entry["rank"])
        found[rank] = max(found.get(rank, 0.0), round(1e6 * held / entry["parameters"], 2))
    return found


def load_pyplot() -> Any:
    """Matplotlib's drawing module, without a screen. Ends the program where it is not installed."""
    try:
        importlib.import_module("matplotlib").use("Agg")
    except ModuleNotFoundError:
        raise SystemExit("benchmarks.capacity: --plot needs matplotlib, which is not installed") from None
    return importlib.import_module("matplotlib.pyplot")


def plot(pyplot: Any, figures: Figures, folder: Path) -> None:
    """Four PNG files into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = figures["grid"]
    _lines(pyplot, grid, ("rank", "load", "exact_match"), folder / "rank.png")
    _lines(pyplot, grid, ("load", "rank", "exact_match"), folder / "load.png")
    _lines(pyplot, grid, ("rank", "load", "facts_per_million_parameters"), folder / "efficiency.png")
    sides = [
        {"parameters": entry["parameters"], "adapters": side, "exact_match": entry[side]["exact_match"]}
        for entry in figures["split"]
        for side in ("large", "small")
    ]
    _lines(pyplot, sides, ("parameters", "adapters", "exact_match"), folder / "split.png")


def _lines(pyplot: Any, entries: Sequence[Figures], axes: tuple[str, str, str], file: Path) -> None:
    """`axes`: what runs along, what each line stands for, what runs up."""
    along, each, up = axes
    figure, drawing = pyplot.subplots()
    for value in dict.fromkeys(entry[each] for entry in entries):
        points = [(entry[along], entry[up]) for entry in entries if entry[each] == value]
        drawing.plot(*zip(*points, strict=True), marker="o", label=f"{each} {value}")
    drawing.set_xscale("log", base=2)
    ticks = sorted({entry[along] for entry in entries})
    drawing.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    drawing.set(xlabel=LABELS.get(along, along), ylabel=up.replace("_", " "))
    drawing.legend()
    figure.savefig(file, dpi=150, bbox_inches="tight")
    pyplot.close(figure)
