"""The GPU half of `benchmarks.merge`: a slot written by one kernel, beside the bandwidth's floor and PEFT on that GPU.

The floor is the time in which the bytes that must move, k sources read and one slot written, move at the bandwidth that
a large copy reaches in the same run.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.circumstances import check
from benchmarks.merge import DENSITY, KS, RANK, Projections, layout_of, peft_model, trim_all
from server.engine.cuda_merge import SlotWriter
from server.engine.layout import Layout

SLOTS = 2
RUNS = 50
PEFT_RUNS = 5
COPY_BYTES = 1 << 30
MOST_FLOORS = 3.0


def measure_on_gpu(layers: int, projections: Projections, name: str) -> dict[str, Any]:
    layout = layout_of(layers, projections, RANK)
    sources = [trim_all(layout, torch.randn(layout.size).to(torch.bfloat16)).cuda() for _ in range(max(KS))]
    writer = SlotWriter(_manager(layers, projections), layout)
    writer.compile(KS, ["ties_total"])
    bandwidth = _bandwidth()
    by_k = {k: _merge_ms(writer, sources[:k], layout, bandwidth) for k in KS}
    floors = by_k[3]["merge_ms"] / by_k[3]["floor_ms"]
    return {
        "shape": name,
        "gpu": torch.cuda.get_device_name(),
        "parameters": layout.size,
        "rank": RANK,
        "bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "by_k": by_k,
        "peft_ms": round(_peft_ms(layers, projections, layout, sources[:3]), 1),
        "promised": [check(f"{name}: ours / floor, k=3", floors, f"<= {MOST_FLOORS:g}", floors <= MOST_FLOORS)],
        "exact": [],
    }


def _merge_ms(writer: SlotWriter, sources: Sequence[Tensor], layout: Layout, bandwidth: float) -> dict[str, float]:
    gains, slots = np.ones((len(sources), 2), dtype=np.float32), count()
    merge_ms = _median_ms(lambda: writer.write(next(slots) % SLOTS, sources, gains, "ties_total"), RUNS)
    floor_ms = 1000 * 2 * layout.size * (len(sources) + 1) / bandwidth
    return {"merge_ms": round(merge_ms, 4), "floor_ms": round(floor_ms, 4)}


def _bandwidth() -> float:
    """Bytes a second, read and written, of a copy within the GPU."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / (_median_ms(lambda: target.copy_(source), 20) / 1000)


def _median_ms(call: Callable[[], object], runs: int) -> float:
    """By the GPU's own clock, after three calls that are not counted."""
    cuda: Any = torch.cuda
    times = []
    for run in range(runs + 3):
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if run >= 3:
            times.append(float(start.elapsed_time(end)))
    return statistics.median(times)


def _peft_ms(layers: int, projections: Projections, layout: Layout, sources: Sequence[Tensor]) -> float:
    model = peft_model(layers, projections, len(sources)).to("cuda")
    for number, source in enumerate(sources):
        for name, tensor in layout.views(source).items():
            module, side = name.removesuffix(".weight").rsplit(".", 1)
            getattr(model.get_submodule(module), side)[f"a{number}"].weight.data = tensor.clone()
    names = [f"a{number}" for number in range(len(sources))]

    def merge() -> None:
        model.base_model.add_weighted_adapter(names, [1.0] * len(names), "merged", "ties", density=DENSITY)
        model.base_model.delete_adapter("merged")

    return _median_ms(merge, PEFT_RUNS)


def _manager(layers: int, projections: Projections) -> Any:
    """The slots that vLLM would have for this model: q, k, v packed, gate and up packed."""
    modules = dict(_modules(layers, projections))
    packed = {name: parts for name, (parts, _) in modules.items() if len(parts) > 1}
    config = SimpleNamespace(max_lora_rank=RANK)
    return SimpleNamespace(
        modules={name: layer for name, (_, layer) in modules.items()}, packed_modules=packed, lora_config=config
    )


PACKED = {
    "MergedQKVParallelLinearWithLoRA": ("q_proj", "k_proj", "v_proj"),
    "RowParallelLinearWithLoRA": ("o_proj",),
    "MergedColumnParallelLinearWithLoRA": ("gate_proj", "up_proj"),
    "ReplicatedLinearWithLoRA": ("down_proj",),
}
"""vLLM's layer by the projections that it holds."""


def _modules(layers: int, projections: Projections) -> Iterator[tuple[str, tuple[list[str], Any]]]:
    for layer in range(layers):
        for kind, parts in PACKED.items():
            names = [f"layers.{layer}.{part}" for part in parts]
            a = tuple(_slots(RANK, projections[part][0]) for part in parts)
            b = tuple(_slots(projections[part][1], RANK) for part in parts)
            made = type(kind, (), {"tp_size": 1, "lora_a_stacked": a, "lora_b_stacked": b})()
            yield f"layers.{layer}.{'+'.join(parts)}" if len(parts) > 1 else names[0], (names, made)


def _slots(rows: int, columns: int) -> Tensor:
    return torch.zeros(SLOTS, 1, rows, columns, dtype=torch.bfloat16, device="cuda")
