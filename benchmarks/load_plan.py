"""When which question is asked: arrivals, modes and documents, all drawn before the first request is sent.

Arrivals are a Poisson process, or those of a recorded trace (csv with the columns `TIMESTAMP` and `GeneratedTokens`,
as Azure publishes them; `ContextTokens` is not used, questions are as long as they are).
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets import BadData
from benchmarks.load_documents import Synthetic
from benchmarks.passages import DATA
from loramem.records import AskedMode

MODES: tuple[AskedMode, ...] = get_args(AskedMode)
Mix = Mapping[AskedMode, float]
"""Shares by mode, which add up to 1."""
_ARRIVALS, _CHOICES = 0, 1
"""Streams of a seed, so that another mix does not move the arrivals."""


@dataclass(frozen=True)
class Planned:
    """`at_s`: seconds from the start of the load; `document`: its number."""

    at_s: float
    mode: AskedMode
    document: int
    question: str
    max_tokens: int


@dataclass(frozen=True)
class Arrivals:
    """`at_s` (n,) ascending from the start; `max_tokens` (n,) of each answer."""

    at_s: NDArray[np.float64]
    max_tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """`at_s` (n,) ascending, seconds since its first request; `generated` (n,) tokens of each answer."""

    at_s: NDArray[np.float64]
    generated: NDArray[np.int64]

    def arrivals(self, rate: float, seconds: float, max_tokens: int) -> Arrivals:
        """The first `rate * seconds` requests, all gaps scaled by the one factor that makes their mean rate `rate`.

        Raises `ValueError` when the trace is too short.
        """
        count = round(rate * seconds)
        if count >= len(self.at_s):
            raise ValueError(f"the trace has {len(self.at_s)} requests, {count + 1} are needed: take fewer seconds")
        span = self.at_s[count]
        if count and not span:
            raise ValueError(f"the first {count + 1} requests of the trace have the same time")
        scaled = self.at_s[:count] * (count / rate / span) if count else self.at_s[:0]
        return Arrivals(scaled, np.clip(self.generated[:count], 1, max_tokens))


def poisson(rate: float, seconds: float, max_tokens: int, seed: int) -> Arrivals:
    """A Poisson process over `seconds`: their number first, then their times, which are uniform given the number."""
    drawn = np.random.default_rng([seed, _ARRIVALS])
    at_s = np.sort(drawn.uniform(0, seconds, drawn.poisson(rate * seconds)))
    return Arrivals(at_s, np.full(len(at_s), max_tokens))


def at_once(count: int, max_tokens: int) -> Arrivals:
    """No times: for a closed loop, which asks when it can."""
    return Arrivals(np.zeros(count), np.full(count, max_tokens))


def find_trace(name: str) -> Path:
    """Under the benchmark data, else a path. Raises `OSError` when it is neither."""
    stored = DATA / "traces" / name
    file = stored if stored.is_file() else Path(name)
    if not file.is_file():
        raise FileNotFoundError(f"no trace {name!r}, neither under LORAMEM_BENCH_DATA in `traces` nor as a path")
    return file


def read_trace(file: Path) -> Trace:
    """Raises `BadData` that names the line."""
    times, generated = list[datetime](), list[int]()
    with file.open(newline="", encoding="utf-8-sig") as opened:
        for number, row in enumerate(csv.DictReader(opened), 2):
            try:
                times.append(datetime.fromisoformat(row["TIMESTAMP"]))
                generated.append(int(row["GeneratedTokens"]))
            except (KeyError, TypeError, ValueError) as error:
                raise BadData(f"{file.name}, line {number}: no TIMESTAMP or GeneratedTokens: {error}") from error
    if not times:
        raise BadData(f"{file.name}: no request")
    at_s = np.array([(time - times[0]).total_seconds() for time in times])
    if (np.diff(at_s) < 0).any():
        raise BadData(f"{file.name}: requests are not in the order of their times")
    return Trace(at_s, np.array(generated))


def parse_mix(text: str) -> Mix:
    """`lora:3,rag:1`; a mode without a number counts once. Raises `ArgumentTypeError`."""
    weights: dict[AskedMode, float] = {}
    for part in text.split(","):
        name, colon, weight = part.partition(":")
        mode = next((one for one in MODES if one == name), None)
        if mode is None or mode in weights:
            raise argparse.ArgumentTypeError(f"{part!r}: each of {', '.join(MODES)} at most once, as MODE:WEIGHT")
        weights[mode] = _weight(weight) if colon else 1.0
    total = sum(weights.values())
    return {mode: weight / total for mode, weight in weights.items()}


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise argparse.ArgumentTypeError(f"weight {text!r}: must be a number above 0")
    return weight


def zipf(count: int, exponent: float) -> NDArray[np.float64]:
    """(count,) shares of the documents, the first the most popular: rank to the power of -exponent; 0 is uniform."""
    shares: NDArray[np.float64] = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return shares / float(shares.sum())


def draw(arrivals: Arrivals, texts: Sequence[Synthetic], mix: Mix, exponent: float, seed: int) -> list[Planned]:
    """A mode, a document and one of its questions for each arrival, independently."""
    drawn, count = np.random.default_rng([seed, _CHOICES]), len(arrivals.at_s)
    modes = drawn.choice(list(mix), size=count, p=list(mix.values()))
    documents = drawn.choice(len(texts), size=count, p=zipf(len(texts), exponent))
    points = drawn.random(count)
    plan = []
    for at_s, limit, mode, document, point in zip(
        arrivals.at_s, arrivals.max_tokens, modes, documents, points, strict=True
    ):
        questions = texts[document].questions
        question = questions[int(point * len(questions))]
        plan.append(Planned(float(at_s), str(mode), int(document), question, int(limit)))  # type: ignore[arg-type]
    return plan
