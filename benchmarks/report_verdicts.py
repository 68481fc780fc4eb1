"""What a finding is made of: figures, how two of them compare, and which results are of which benchmark.

A verdict is `agree` or `disagree`; `undecided` where the 95 % interval of the paired difference holds 0, where without
one the two intervals overlap, where a mean is over fewer than two documents, which say nothing about others, and where
runs differ; `not measured` where figures are there, but not what the paper compares. Other figures without an interval
are compared as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.intervals import widening

Json = dict[str, Any]
Results = Mapping[str, Json]
"""By file name."""
Verdict = Literal["agree", "disagree", "undecided", "not measured"]
FEWEST_DOCUMENTS = 2


@dataclass(frozen=True)
class Estimate:
    """`documents`: how many it is a mean over; none where it is not over documents, or nobody has said."""

    mean: float
    interval: tuple[float, float] | None = None
    documents: int | None = None

    def __str__(self) -> str:
        return number(self.mean) + (f" ({' to '.join(map(number, self.interval))})" if self.interval else "")

    @property
    def of_too_few(self) -> bool:
        return self.documents is not None and self.documents < FEWEST_DOCUMENTS


def over_documents(mean: float, interval: Sequence[float] | None, documents: int | None) -> Estimate:
    """With the interval of a result as wide as so few documents need, where it says how many they are."""
    if not interval:
        return Estimate(mean, None, documents)
    factor = widening(documents) if documents and documents >= FEWEST_DOCUMENTS else 1.0
    low, high = interval
    return Estimate(mean, (mean - factor * (mean - low), mean + factor * (high - mean)), documents)


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


@dataclass(frozen=True)
class Finding:
    """`figures` by name, in the order in which they are told and drawn; `measure` says what they are.

    `file` holds the figures, or several do, parted by commas; `also` are runs that the verdict is of besides. `why`
    stands beside the verdict, in a few words; `notes` are what a reader must know to read it rightly.
    """

    file: str
    verdict: Verdict
    measure: str
    figures: Mapping[str, Estimate] = field(default_factory=dict)
    why: str = ""
    notes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.file.split(", "), *self.also)


Find = Callable[[Results], Finding | None]


def greater(one: Estimate, other: Estimate) -> Verdict:
    """Whether `one` is greater than `other`."""
    if one.of_too_few or other.of_too_few:
        return "undecided"
    if one.interval and other.interval:
        (low, high), (other_low, other_high) = one.interval, other.interval
        if low <= other_high and other_low <= high:
            return "undecided"
    return "agree" if one.mean > other.mean else "disagree"


def above_zero(difference: Estimate) -> Verdict:
    """Whether a paired difference is."""
    if difference.of_too_few or difference.interval is None:
        return "undecided"
    low, high = difference.interval
    return "agree" if low > 0 else "disagree" if high < 0 else "undecided"


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The least favourable."""
    return next((one for one in ("disagree", "undecided") if one in verdicts), "agree")


def made_by(report: Json, name: str) -> bool:
    return str(report.get("command", "")).startswith(f"python -m benchmarks.{name} ") and "settings" in report


def recalls(results: Results, data_sets: Sequence[str] | None = None) -> Iterator[tuple[str, Json]]:
    """Whole runs of `benchmarks.recall`, in the order of `data_sets`; within one most questions first, then by file
    names."""
    runs = [(file, one) for file, one in results.items() if made_by(one, "recall") and not one["settings"]["smoke"]]
    found = sorted(runs, key=lambda run: -run[1]["settings"].get("questions", 0))
    wanted = list(dict.fromkeys(one["settings"]["data_set"] for _, one in found)) if data_sets is None else data_sets
    return ((file, one) for name in wanted for file, one in found if one["settings"]["data_set"] == name)
