"""Merging adapters: how long it takes, beside PEFT and beside a plain copy of the same bytes.

    python -m benchmarks.merge --json [--smoke] [--device cpu|cuda] [--seed 0]

All in one run on the same tensors: random LoRA adapters of rank 16 on every linear layer, bfloat16 as they are
published, trimmed beforehand where the method trims, as they are when a query comes. PEFT's `add_weighted_adapter` gets
the same adapters in one model whose base weights take no memory; it trims each time, which is what it offers. The copy
moves the bytes of all sources with the faster of NumPy and Torch. Ours and the copies take turns; medians are compared.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.circumstances import check, circumstances
from loramem.records import Recipe, Source
from loramem.trim import keep_mask
from server.engine.combine import layout_of_merge, merge_into
from server.engine.fused import Flat, warm_up
from server.engine.layout import Layout
from server.engine.published import Part, as_tensor

RANK = 16
DENSITY = 0.5
KS = (2, 3, 4, 6, 8)
PAUSE_S = 0.02
"""Before each call: Torch's threads go on spinning for a while and would take a core from who comes next."""
Projections = dict[str, tuple[int, int]]
"""Name to (in, out)."""


@dataclass(frozen=True)
class Shape:
    """The linear layers of a model; `peft_runs` as PEFT takes seconds."""

    name: str
    layers: int
    projections: Projections
    least_speedup: float
    runs: int
    peft_runs: int


def _llama(hidden: int, key: int, inner: int) -> Projections:
    attention = {
        "q_proj": (hidden, hidden),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (hidden, hidden),
    }
    return attention | {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}


EMBEDDED = Shape("smollm2-135m", 30, _llama(576, 192, 1536), 100, 60, 5)
LLAMA_8B = Shape("llama-3.1-8b", 32, _llama(4096, 1024, 14336), 50, 12, 2)
SMOKE = replace(EMBEDDED, runs=3, peft_runs=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    shapes = [SMOKE] if options.smoke else [EMBEDDED, LLAMA_8B]
    if options.device == "cuda":
        from benchmarks.merge_cuda import measure_on_gpu

        results = [measure_on_gpu(shape.layers, shape.projections, shape.name) for shape in shapes]
    else:
        warm_up()
        results = [measure(shape) for shape in shapes]
    promised = [one for result in results for one in result.pop("promised")]
    exact = [one for result in results for one in result.pop("exact")]
    report = {"results": results, "checks": exact if options.smoke else [*promised, *exact]}
    suffix = (" --smoke" if options.smoke else "") + (f" --device {options.device}" if options.device != "cpu" else "")
    report |= circumstances("python -m benchmarks.merge --json" + suffix, options.seed)
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def measure(shape: Shape) -> dict[str, Any]:
    layout = layout_of(shape.layers, shape.projections, RANK)
    adapters = [torch.randn(layout.size).to(torch.bfloat16) for _ in range(max(KS))]
    trimmed = [trim_all(layout, adapter) for adapter in adapters]
    by_k = {k: _beside_a_copy(layout, trimmed[:k], shape.runs) for k in KS}
    peft_s, difference = _peft(shape, layout, adapters[:3], trimmed[:3])
    ours_s, copy_s = by_k[3]["merge_ms"] / 1000, by_k[3]["copy_ms"] / 1000
    straight = _straightness([(k, by_k[k]["merge_ms"]) for k in KS])
    return {
        "shape": shape.name,
        "parameters": layout.size,
        "rank": RANK,
        "peft_ms": round(1000 * peft_s, 1),
        "speedup": round(peft_s / ours_s, 1),
        "by_k": by_k,
        "promised": [
            check(
                f"{shape.name}: PEFT / ours, k=3",
                peft_s / ours_s,
                f">= {shape.least_speedup:g}",
                peft_s / ours_s >= shape.least_speedup,
            ),
            check(f"{shape.name}: ours / copy, k=3", ours_s / copy_s, "<= 2.5", ours_s / copy_s <= 2.5),
            check(f"{shape.name}: R2 of a straight line over k", straight, ">= 0.95", straight >= 0.95),
        ],
        "exact": [
            check(f"{shape.name}: greatest difference from PEFT, float32", difference, "<= 1e-6", difference <= 1e-6),
        ],
    }


def layout_of(layers: int, projections: Projections, rank: int) -> Layout:
    named = sorted(_tensors(layers, projections, rank))
    return Layout(tuple(name for name, _ in named), tuple(shape for _, shape in named))


def _tensors(layers: int, projections: Projections, rank: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(layers):
        for projection, (inputs, outputs) in projections.items():
            module = f"base_model.model.layers.{layer}.{projection}"
            yield f"{module}.lora_A.weight", (rank, inputs)
            yield f"{module}.lora_B.weight", (outputs, rank)


def trim_all(layout: Layout, flat: Tensor) -> Tensor:
    kept = np.concatenate([keep_mask(tensor, DENSITY) for tensor in layout.views(flat).values()])
    return flat * torch.from_numpy(kept)


def recipe_of(sources: int) -> Recipe:
    named = [Source(adapter_id=f"ada_{i}", sha256="0" * 64, weight=1.0) for i in range(sources)]
    return Recipe.of("ties", named, DENSITY)


def _beside_a_copy(layout: Layout, trimmed: Sequence[Tensor], runs: int) -> dict[str, float]:
    """Medians of merging into a slot's type and of copying the sources, taking turns; milliseconds."""
    recipe, sources = recipe_of(len(trimmed)), [tensor.view(torch.uint16).numpy() for tensor in trimmed]
    merged, _ = layout_of_merge(recipe, [layout] * len(sources), [RANK] * len(sources))
    parts = [Part(source, layout, RANK, 2.0, 1.0) for source in sources]
    out = np.zeros(layout.size, dtype=np.uint16)
    copies = [np.zeros_like(source) for source in sources]
    timed = _in_turns(
        runs,
        lambda: merge_into(recipe, parts, merged, out),
        lambda: _copy(copies, sources),
        lambda: [as_tensor(copy).copy_(source) for copy, source in zip(copies, trimmed, strict=True)],
    )
    return {"merge_ms": round(1000 * timed[0], 3), "copy_ms": round(1000 * min(timed[1:]), 3)}


def _copy(copies: Sequence[Flat], sources: Sequence[Flat]) -> None:
    for copy, source in zip(copies, sources, strict=True):
        np.copyto(copy, source)


def _in_turns(runs: int, *calls: Callable[[], object]) -> list[float]:
    """Median seconds of each, after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(runs + 1):
        for call, kept in zip(calls, seconds, strict=True):
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            call()
            kept.append(time.perf_counter() - started)
    return [statistics.median(kept[1:]) for kept in seconds]


def _straightness(points: Sequence[tuple[float, float]]) -> float:
    """The share of the variance that a straight line explains."""
    x, y = np.array(points).T
    residue = y - np.polyval(np.polyfit(x, y, 1), x)
    return float(1 - residue.var() / y.var())


def _peft(shape: Shape, layout: Layout, adapters: Sequence[Tensor], trimmed: Sequence[Tensor]) -> tuple[float, float]:
    """Median seconds of PEFT's merge of bfloat16 adapters, and our greatest difference from its float32 result."""
    model = peft_model(shape.layers, shape.projections, len(adapters))
    _give(model, layout, adapters)
    names, weights, number = [f"a{i}" for i in range(len(adapters))], [1.0] * len(adapters), count()

    def merge() -> str:
        name = f"merged{next(number)}"
        model.base_model.add_weighted_adapter(names, weights, name, "ties", density=DENSITY)
        return name

    seconds = _in_turns(shape.peft_runs, lambda: model.base_model.delete_adapter(merge()))[0]
    _give(model, layout, [adapter.float() for adapter in adapters])
    theirs = _adapter(model, layout, merge())
    recipe = recipe_of(len(adapters))
    out = np.zeros(layout.size, dtype=np.float32)
    merge_into(recipe, [Part(t.float().numpy(), layout, RANK, 2.0, 1.0) for t in trimmed], layout, out)
    return seconds, float((torch.from_numpy(out) - theirs).abs().max())


def peft_model(layers: int, projections: Projections, adapters: int) -> Any:
    """A PEFT model with these adapters on linear layers whose weights are one number, seen from everywhere."""
    from peft import LoraConfig, get_peft_model

    body = nn.Module()
    body.layers = nn.ModuleList(
        nn.ModuleDict({name: _weightless(*sizes) for name, sizes in projections.items()}) for _ in range(layers)
    )
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(projections), init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(body, config, adapter_name="a0", autocast_adapter_dtype=False)
        for number in range(1, adapters):
            model.add_adapter(f"a{number}", config)
    return model


def _weightless(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False)
    linear.in_features, linear.out_features = inputs, outputs
    linear.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16).expand(outputs, inputs), requires_grad=False)
    return linear


def _give(model: Any, layout: Layout, adapters: Sequence[Tensor]) -> None:
    for number, adapter in enumerate(adapters):
        for name, tensor in layout.views(adapter).items():
            _parameter(model, name, f"a{number}").data = tensor.clone()


def _adapter(model: Any, layout: Layout, adapter: str) -> Tensor:
    return torch.cat([_parameter(model, name, adapter).data.float().flatten() for name in layout.names])


def _parameter(model: Any, name: str, adapter: str) -> Any:
    module, side = name.removesuffix(".weight").rsplit(".", 1)
    return getattr(model.get_submodule(module), side)[adapter].weight


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.merge", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--smoke", action="store_true", help="the embedded model's shapes only, a few runs; no promise of speed"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
