"""The servers of the paper's latency experiment: how they are set, started, one after another, and asked."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks import q15_server
from benchmarks.q15_plan import Device, Document
from benchmarks.q15_server import Learnt, Questioner, Served
from benchmarks.smoke import environment_of, server_at
from loramem.base_model import BaseModel, resolve_base_model
from loramem.chunk import chunk_text
from loramem.settings import Settings, load_settings

POOLS = ("source_pool_bytes", "device_pool_bytes")
MOST_POOL = 2
"""Room in the pools for so many times the adapters' files."""
SMALLEST_POOL = 1
"""In bytes; a pool keeps its newest adapter all the same."""


@dataclass(frozen=True)
class Bench:
    """Where the run keeps its things, and the settings that servers and reference share."""

    folder: Path
    overrides: Mapping[str, str | int]
    device: Device

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        """A GPU that is not wanted is not seen."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        set_here = {f"LORAMEM_{name.upper()}": str(value) for name, value in self.overrides.items()}
        return {**environment_of(self.home), **set_here, **hidden}

    @cached_property
    def settings(self) -> Settings:
        return load_settings(home=self.home, **self.overrides)

    @cached_property
    def base(self) -> BaseModel:
        return resolve_base_model(self.settings)


def served(bench: Bench, document: Document, options: argparse.Namespace) -> tuple[Learnt, Served, Served]:
    """What was learnt, and the answers of the server that keeps adapters in memory and of the one that does not.

    In a smoke run one server does all, as starting one takes most of it. Raises `SystemExit` when the adapters do not
    fit the document's chunks.
    """
    with server_at(None, bench.home, bench.environment) as url:
        training = {"formats": options.formats, "max_seconds": options.max_seconds}
        learnt = q15_server.learn(url, document, training)
        if len(learnt.adapters) != (count := len(chunks_of(document.text, bench))):
            raise SystemExit(f"benchmarks.q15: {len(learnt.adapters)} adapters of {count} chunks")
        if options.smoke:
            methods = dict.fromkeys((*q15_server.FIRST, *q15_server.SECOND))
            both = ask_at(url, learnt, document, options, tuple(methods), start_s=0.0)
            return learnt, both, both
    room = pools(bench.settings, learnt.adapter_bytes)
    first = ask(bench, learnt, document, options, q15_server.FIRST, room)
    second = ask(bench, learnt, document, options, q15_server.SECOND, dict.fromkeys(POOLS, SMALLEST_POOL))
    return learnt, first, second


def chunks_of(text: str, bench: Bench) -> list[str]:
    """As the server cuts them."""
    spans = chunk_text(
        text,
        str(bench.base.path / "tokenizer.json"),
        max_tokens=bench.settings.chunk_tokens,
        overlap_tokens=bench.settings.chunk_overlap_tokens,
    )
    return [text[span.start : span.end] for span in spans]


def pools(settings: Settings, adapter_bytes: int) -> dict[str, int]:
    """Bytes by setting: as set, or more where the document's adapters need it."""
    return {name: max(getattr(settings, name), MOST_POOL * adapter_bytes) for name in POOLS}


def ask(
    bench: Bench,
    learnt: Learnt,
    document: Document,
    options: argparse.Namespace,
    methods: Sequence[str],
    pool_bytes: Mapping[str, int],
) -> Served:
    """Start a server and ask it. Raises `NoServer`."""
    environment = bench.environment | {f"LORAMEM_{name.upper()}": str(size) for name, size in pool_bytes.items()}
    started = time.perf_counter()
    with server_at(None, bench.home, environment) as url:
        return ask_at(url, learnt, document, options, methods, time.perf_counter() - started)


def ask_at(
    url: str,
    learnt: Learnt,
    document: Document,
    options: argparse.Namespace,
    methods: Sequence[str],
    start_s: float,
) -> Served:
    """Raises `NotAnswered`."""
    with Questioner(url, learnt.documents, options.max_tokens) as questioner:
        return q15_server.measure(questioner, methods, document, start_s, learnt.index_s, options.seed)
