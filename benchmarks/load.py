"""Latency and goodput of `POST /query` under a load whose arrivals do not wait for answers.

    python -m benchmarks.load --json [--smoke] [--url http://127.0.0.1:8000] [--namespace NAME] [--keep]
        [--documents 200] [--rate R | --capacity-share 0.5] [--concurrency N] [--seconds 120] [--trace FILE]
        [--modes lora:3,rag:1] [--top-k 3] [--compose merge] [--zipf 1.1] [--named] [--max-tokens 16]
        [--slo-ttft-ms MS] [--slo-e2e-ms MS] [--engine-url URL | --bare-engine HOME] [--out FILE] [--seed 0]

Short synthetic documents are learnt for a second each (what they taught does not matter here), and when no job is left,
questions about them are streamed: modes by weight, documents by Zipf popularity, routed over the whole namespace unless
`--named`. Arrivals are Poisson, or those of a trace scaled to the wanted rate. Latency counts from when a question was
due, so that a driver or a server that falls behind shows. `sent_late_ms` is the driver's own part of it.

The rate is a share of the capacity: the most answers a second that a closed loop gets, at 1, 2, 4, ... at once, or at
`--concurrency`, once all that ask have had an answer. Caches are warm from that. With `--rate` no capacity is measured,
unless `--concurrency` asks for it. Documents that are created are deleted at the end, unless `--keep`; with the same
`--seed` in the same `--namespace` they are found again.

`--engine-url` names a stock vLLM with the plugin and the same adapters (`docs/vllm-serve.md`), `--bare-engine` a data
folder from which one is started: after the load, the same questions go to gateway and engine in turn, and the paired
difference is the gateway's overhead. Start such an engine with `--generation-config vllm`, or its sampling may differ.
Whole answers that the gateway drafts are not judged; the pairs are asked again with a temperature, for which it
drafts nothing.

`--out` writes the result to a file, and plots beside it. `--smoke` takes a few seconds and promises no speed.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

from benchmarks.circumstances import check, circumstances, served_model
from benchmarks.datasets import BadData
from benchmarks.load_client import ALMOST_GREEDY, Asking, Sampling, ask_engine, ask_gateway, connect
from benchmarks.load_documents import NAMES, Synthetic, synthesize
from benchmarks.load_engine import GPU_MEMORY, NoEngine, bare_engine
from benchmarks.load_figures import Slo, capacity_figures, checks, figures, table
from benchmarks.load_overhead import (
    DOCUMENTS,
    Compared,
    NotComparable,
    measure_overhead,
    overhead_checks,
    overhead_figures,
)
from benchmarks.load_plan import (
    Arrivals,
    Planned,
    Trace,
    at_once,
    draw,
    find_trace,
    parse_mix,
    poisson,
    read_trace,
)
from benchmarks.load_plots import NoPlots, load_pyplot, plot
from benchmarks.load_prepare import await_idle, documents_at
from benchmarks.load_run import LEVELS, Level, Load, measure_capacity, open_loop
from benchmarks.load_sides import ENGINE, GATEWAY, Sides, Told, batches, settings_of, told_by
from benchmarks.option_types import above_zero, at_least_one, zero_or_more
from loramem.client import Client
from loramem.records import Compose

Json = dict[str, Any]
CLOSED_LOOP_QUESTIONS = 4096
CAPACITY_S = 10.0
"""At each level."""
SMOKE_LEVELS = (1, 2)
SMOKE_CAPACITY_S = 1.5
SMOKE_S = 5.0
SMOKE_RATE = 2.0
"""A second, whatever the capacity: a share of that of a slow machine may be no question."""
SMOKE_DOCUMENTS = 4
SMOKE_PAIRS = 4
SETTINGS = (
    "documents",
    "seconds",
    "modes",
    "top_k",
    "compose",
    "zipf",
    "named",
    "max_tokens",
    "slo_ttft_ms",
    "slo_e2e_ms",
    "smoke",
)
"""Of the options, those that the result repeats."""


@dataclass(frozen=True)
class Measured:
    """`levels` is empty where the rate was given. What the gateway `told` is of the closed and the open loop."""

    levels: Sequence[Level]
    rate: float
    load: Load
    told: Told


@dataclass(frozen=True)
class Overhead:
    """`figures`, or a `reason` for none; what the `engine` told."""

    figures: Json | None
    engine: Told
    reason: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options, trace = _options(arguments)
    model = served_model(options.url, options.api_key)
    texts = synthesize(options.documents, options.seed)
    with (
        Client(options.url, api_key=options.api_key, namespace=options.namespace) as client,
        documents_at(client, texts, keep=options.keep) as ids,
    ):
        await_idle(options.url, options.api_key)
        measured = asyncio.run(measure(options, trace, texts, ids))
        overhead = _overhead(options, texts, ids)
    report = report_of(options, measured, overhead) | {"model": model}
    report |= circumstances(_command(options), options.seed)
    if options.out:
        report |= _plots(measured.load, options.out)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if options.json else table(report["load"]))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


async def measure(
    options: argparse.Namespace, trace: Trace | None, texts: Sequence[Synthetic], ids: Sequence[str]
) -> Measured:
    """Capacity where it is wanted, then the open loop. Raises `SystemExit` where there is no rate, or no question."""
    asking = Asking(options.namespace, options.top_k, options.compose, ids if options.named else ())
    plan = partial(draw, texts=texts, mix=options.modes, exponent=options.zipf, seed=options.seed)
    async with connect(options.url, options.api_key) as http:

        async def ask(planned: Planned) -> Any:
            return await ask_gateway(http, asking.body(planned))

        levels: list[Level] = []
        before = await told_by(http)
        if options.rate is None or options.concurrency or options.smoke:
            questions = plan(at_once(CLOSED_LOOP_QUESTIONS, options.max_tokens))
            levels = await measure_capacity(ask, questions, options.levels, options.capacity_s)
        rate = options.rate or options.capacity_share * max(level.per_s for level in levels)
        questions = plan(_arrivals(options, trace, rate))
        load = await open_loop(ask, questions, options.seconds, options.most_in_flight)
        return Measured(levels, rate, load, (await told_by(http)).since(before))


def _arrivals(options: argparse.Namespace, trace: Trace | None, rate: float) -> Arrivals:
    if not rate:
        raise SystemExit("benchmarks.load: the closed loop got no answer, so there is no rate to ask at")
    if trace is None:
        arrivals = poisson(rate, options.seconds, options.max_tokens, options.seed)
    else:
        try:
            arrivals = trace.arrivals(rate, options.seconds, options.max_tokens)
        except ValueError as error:
            raise SystemExit(f"benchmarks.load: {error}") from error
    if not len(arrivals.at_s):
        raise SystemExit(f"benchmarks.load: at {rate:.3g} a second no question falls into {options.seconds:g} s")
    return arrivals


def _overhead(options: argparse.Namespace, texts: Sequence[Synthetic], ids: Sequence[str]) -> Overhead | None:
    """None where it was not asked for."""
    if not (options.engine_url or options.bare_engine):
        return None
    try:
        with _engine(options) as url:
            greedy, sampled = asyncio.run(_pairs(options, url, texts, ids))
    except (NoEngine, NotComparable) as error:
        print(error, file=sys.stderr)
        return Overhead(None, Told(), str(error).partition("\n")[0])
    return Overhead(overhead_figures(greedy, sampled), greedy.told[ENGINE])


@contextmanager
def _engine(options: argparse.Namespace) -> Iterator[str]:
    if options.engine_url:
        yield options.engine_url
        return
    with bare_engine(options.bare_engine, options.bare_engine_memory) as url:
        yield url


async def _pairs(
    options: argparse.Namespace, url: str, texts: Sequence[Synthetic], ids: Sequence[str]
) -> tuple[Compared, Compared]:
    """Asked greedily, then with a temperature. Raises `NotComparable`."""
    questions = [
        Planned(0.0, "lora", number, question, options.max_tokens)
        for number, text in enumerate(texts[:DOCUMENTS])
        for question in text.questions
    ]
    async with connect(options.url, options.api_key) as gateway, connect(url, None) as engine:

        async def tell() -> Sides:
            return {GATEWAY: await told_by(gateway), ENGINE: await told_by(engine)}

        async def compared(sampling: Sampling | None) -> Compared:
            asking = Asking(options.namespace, top_k=1, ids=ids, sampling=sampling)
            return await measure_overhead(
                lambda planned: ask_gateway(gateway, asking.body(planned)),
                partial(ask_engine, engine, sampling=sampling),
                questions,
                options.pairs,
                tell,
            )

        return await compared(None), await compared(ALMOST_GREEDY)


def report_of(options: argparse.Namespace, measured: Measured, overhead: Overhead | None) -> Json:
    found = figures(measured.load, Slo(options.slo_ttft_ms, options.slo_e2e_ms))
    promised = checks(found, smoke=options.smoke)
    if measured.levels:
        failed = sum(level.failed for level in measured.levels)
        promised.append(check("without an answer while capacity was measured", failed, "= 0", failed == 0))
    if overhead:
        done = overhead.figures is not None
        promised.append(check("overhead measured", float(done), "= 1", done))
        promised += overhead_checks(overhead.figures) if overhead.figures and not options.smoke else []
    batch = batches(options.bare_engine)
    sides = {GATEWAY: settings_of(measured.told, batch[GATEWAY]), ENGINE: None}
    if overhead:
        sides[ENGINE] = settings_of(overhead.engine, batch[ENGINE])
    return {
        "settings": {name: getattr(options, name) for name in SETTINGS} | {"trace": _name(options.trace)} | sides,
        "capacity": capacity_figures(measured.levels) if measured.levels else None,
        "rate_per_s": round(measured.rate, 4),
        "load": found,
        "overhead": overhead.figures if overhead else None,
        **({"overhead_reason": overhead.reason} if overhead and overhead.reason else {}),
        "checks": promised,
    }


def _plots(load: Load, out: Path) -> Json:
    try:
        return {"plots": plot(load_pyplot(), load, out)}
    except NoPlots as error:
        print(f"benchmarks.load: no plots: {error}", file=sys.stderr)
        return {"plots": None, "plots_reason": str(error)}


def _name(file: str | None) -> str | None:
    return Path(file).name if file else None


def _command(options: argparse.Namespace) -> str:
    """What repeats the run; files by their names, no address, no key."""
    rate = f"--capacity-share {options.capacity_share:g}" if options.rate is None else f"--rate {options.rate:g}"
    parts = ["python -m benchmarks.load --json", "--smoke" if options.smoke else "", f"--documents {options.documents}"]
    parts += [rate, f"--concurrency {options.concurrency}" if options.concurrency else ""]
    parts += [f"--seconds {options.seconds:g}", f"--trace {_name(options.trace)}" if options.trace else ""]
    parts += ["--modes " + ",".join(f"{mode}:{share:g}" for mode, share in options.modes.items())]
    parts += [f"--top-k {options.top_k} --compose {options.compose} --zipf {options.zipf:g}"]
    parts += ["--named" if options.named else "", f"--max-tokens {options.max_tokens}"]
    parts += [f"--slo-ttft-ms {options.slo_ttft_ms:g}" if options.slo_ttft_ms is not None else ""]
    parts += [f"--slo-e2e-ms {options.slo_e2e_ms:g}" if options.slo_e2e_ms is not None else ""]
    parts += ["--engine-url URL" if options.engine_url else "", "--bare-engine HOME" if options.bare_engine else ""]
    parts += [f"--pairs {options.pairs}" if options.engine_url or options.bare_engine else ""]
    return " ".join(filter(None, [*parts, f"--seed {options.seed}"]))


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Trace | None]:
    parser = _parser()
    options = parser.parse_args(arguments)
    options.namespace = options.namespace or f"load-{uuid4().hex[:8]}"
    options.levels = (options.concurrency,) if options.concurrency else LEVELS
    options.capacity_s = CAPACITY_S
    if options.smoke:
        options.documents, options.seconds, options.pairs = SMOKE_DOCUMENTS, SMOKE_S, SMOKE_PAIRS
        options.levels, options.capacity_s = SMOKE_LEVELS, SMOKE_CAPACITY_S
        options.rate = options.rate or SMOKE_RATE
    if options.documents > NAMES:
        parser.error(f"--documents {options.documents}: there are names for {NAMES}")
    if options.bare_engine and not (options.bare_engine / "adapters").is_dir():
        parser.error(f"--bare-engine {options.bare_engine}: no data folder of loramem, it holds no adapters")
    try:
        return options, read_trace(find_trace(options.trace)) if options.trace else None
    except (BadData, OSError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.load", description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000")
    add("--api-key", default=os.environ.get("LORAMEM_API_KEY"))
    add("--namespace", help="where the documents are, or will be; default: a fresh one")
    add("--keep", action="store_true", help="leave the documents that this run creates")
    add("--documents", type=at_least_one, default=200)
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--rate", type=above_zero, metavar="R", help="questions a second")
    rate.add_argument(
        "--capacity-share", type=above_zero, default=0.5, metavar="SHARE", help="the rate beside capacity"
    )
    add("--concurrency", type=at_least_one, metavar="N", help="capacity is measured with so many at once alone")
    add("--seconds", type=above_zero, default=120.0, help="of the open loop")
    add("--trace", metavar="FILE", help="arrivals of a csv, under LORAMEM_BENCH_DATA in `traces` or a path")
    add("--modes", type=parse_mix, default={"lora": 1.0}, metavar="MODE:WEIGHT,...", help="default: lora:1")
    add("--top-k", type=int, choices=range(1, 9), default=3, help="adapters of lora and hybrid")
    add("--compose", choices=get_args(Compose), default="merge", help="`merge` is by TIES, as in the paper")
    add(
        "--zipf",
        type=zero_or_more,
        default=1.1,
        metavar="EXPONENT",
        help="of the documents' popularity; 0: uniform",
    )
    add("--named", action="store_true", help="name the question's document instead of routing over all")
    add("--max-tokens", type=at_least_one, default=16, help="of an answer; with a trace, at most")
    add("--most-in-flight", type=at_least_one, default=1000, help="questions that come beyond it are not sent")
    add(
        "--slo-ttft-ms",
        type=above_zero,
        metavar="MS",
        help="goodput: the first token since the question was due",
    )
    add("--slo-e2e-ms", type=above_zero, metavar="MS", help="goodput: the last one")
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--engine-url", metavar="URL", help="of a stock vLLM with the same adapters, for the overhead")
    engine.add_argument("--bare-engine", type=Path, metavar="HOME", help="start one with the adapters of a data folder")
    add(
        "--bare-engine-memory",
        type=above_zero,
        default=GPU_MEMORY,
        metavar="SHARE",
        help="of the GPU that it takes",
    )
    add("--pairs", type=at_least_one, default=60, help="questions that gateway and engine are both asked, twice over")
    add("--seed", type=int, default=0, help="of documents, arrivals and questions")
    add("--out", type=Path, metavar="FILE", help="the result as JSON, and plots beside it")
    add("--smoke", action="store_true", help="four documents, a few seconds; checks that all was answered")
    add("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
