"""The slot writer against plain torch, and against vLLM's own `set_lora` where vLLM is there.

On a GPU the kernel runs as it will; without one it is compiled only, or with `TRITON_INTERPRET=1` run on the CPU.
"""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed: it comes with the GPU build of vLLM")

from server.engine.cuda_merge import BLOCK, METHODS, SlotWriter, _kernel, supports  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
PREFIX = "base_model.model.model.layers.0."
SLOTS = 3

pytestmark = pytest.mark.gpu
runs = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="no GPU: set TRITON_INTERPRET=1 to run the kernel on the CPU"
)


@dataclass(frozen=True)
class Shapes:
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    size: int


# a model: module, its parts, the width of its input and of each part's output; HIDDEN * 64 is more than one tile
HIDDEN = 72
MODULES = {
    "self_attn.qkv_proj": ("MergedQKVParallelLinearWithLoRA", ("q_proj", "k_proj", "v_proj"), HIDDEN, (72, 24, 24)),
    "self_attn.o_proj": ("RowParallelLinearWithLoRA", ("o_proj",), HIDDEN, (HIDDEN,)),
    "mlp.gate_up_proj": ("MergedColumnParallelLinearWithLoRA", ("gate_proj", "up_proj"), HIDDEN, (200, 200)),
    "mlp.down_proj": ("RowParallelLinearWithLoRA", ("down_proj",), 200, (HIDDEN,)),
}
ODD = {
    "self_attn.qkv_proj": ("MergedQKVParallelLinearWithLoRA", ("q_proj", "k_proj", "v_proj"), 37, (41, 7, 7)),
    "mlp.down_proj": ("RowParallelLinearWithLoRA", ("down_proj",), 203, (37,)),
}
Modules = dict[str, tuple[str, tuple[str, ...], int, tuple[int, ...]]]


def module(kind: str, a: Any, b: Any, tp_size: int = 1) -> Any:
    """Stands for a vLLM layer: its class name, its buffers, its share of the GPUs."""
    made: Any = type(kind, (SimpleNamespace,), {})
    return made(lora_a_stacked=a, lora_b_stacked=b, tp_size=tp_size, n_slices=len(a))


def dirty(*shape: int, dtype: torch.dtype) -> Tensor:
    """A buffer whose every slot holds some adapter before."""
    return torch.full(shape, 9.0, dtype=dtype, device=DEVICE)


def manager_of(modules: Modules, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> Any:
    layers, packed = {}, {}
    for name, (kind, parts, inputs, outputs) in modules.items():
        full, parent = f"model.layers.0.{name}", f"model.layers.0.{name.split('.')[0]}"
        a = tuple(dirty(SLOTS, 1, width, inputs, dtype=dtype) for _ in parts)
        b = tuple(dirty(SLOTS, 1, out, width, dtype=dtype) for out in outputs)
        layers[full] = module(kind, a, b)
        if len(parts) > 1:
            packed[full] = [f"{parent}.{part}" for part in parts]
    config = SimpleNamespace(max_lora_rank=width)
    return SimpleNamespace(modules=layers, packed_modules=packed, lora_config=config)


def layout_of(modules: Modules, rank: int, start: int = 0) -> Shapes:
    names, shapes = [], []
    for name, (_, parts, inputs, outputs) in modules.items():
        for part, out in zip(parts, outputs, strict=True):
            prefix = f"{PREFIX}{name.split('.')[0]}.{part}"
            names += [f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"]
            shapes += [(rank, inputs), (out, rank)]
    ends = np.cumsum([start, *(a * b for a, b in shapes)]).tolist()
    return Shapes(tuple(names), tuple(shapes), tuple(ends[:-1]), ends[-1])


def sources_of(layout: Shapes, count: int, seed: int = 0) -> list[Tensor]:
    """As trimmed: a third are zeros. Few distinct values, so that elections are tied too."""
    noise = torch.Generator().manual_seed(seed)
    stack = torch.randint(-4, 5, (count, layout.size), generator=noise) / 7.0
    stack += torch.randint(0, 2, stack.shape, generator=noise) * torch.randn(stack.shape, generator=noise)
    stack[torch.rand(stack.shape, generator=noise) < 1 / 3] = 0
    return [row.clone().to(DEVICE) for row in stack]


def gains_of(count: int) -> NDArray[np.float32]:
    """Distinct; A's are negative for every other source, as for a negative weight."""
    b = np.linspace(0.3, 1.7, count, dtype=np.float32)
    return np.stack([b * np.where(np.arange(count) % 2, -1, 1), b], axis=1).astype(np.float32)


# what is right


def merged_plainly(values: Sequence[Tensor], gains: Sequence[float], method: str) -> Tensor:
    """Float32, in the sources' order, from the definition."""
    total, zero = torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for value, gain in zip(values, gains, strict=True):
        total += {"sum": value * gain, "ties_total": value, "ties_frequency": value.sign()}[method]
    if method == "sum":
        return total
    majority, mean, count = torch.where(total >= 0, 1.0, -1.0), zero.clone(), zero.clone()
    for value, gain in zip(values, gains, strict=True):
        agrees = value.sign() == majority
        mean += torch.where(agrees, value * gain, zero)
        count += agrees
    return mean / count.clamp(min=1)


def merged_tensors(
    layout: Shapes, sources: Sequence[Tensor], gains: NDArray[np.float32], method: str
) -> dict[str, Tensor]:
    tensors = {}
    for name, shape, offset in zip(layout.names, layout.shapes, layout.offsets, strict=True):
        values = [source[offset : offset + shape[0] * shape[1]].view(shape).cpu() for source in sources]
        tensors[name] = merged_plainly(values, gains[:, int("lora_B" in name)].tolist(), method)
    return tensors


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """To the nearest, as torch and a GPU do; but Triton's interpreter cuts float32 off to get bfloat16."""
    if INTERPRETED and dtype == torch.bfloat16:
        return (tensor.view(torch.int32) & -0x10000).view(torch.float32).to(dtype)
    return tensor.to(dtype)


def set_plainly(manager: Any, slot: int, tensors: dict[str, Tensor]) -> None:
    """What vLLM's `reset_lora` and `set_lora` do to each slice."""
    for name, layer in manager.modules.items():
        parts = manager.packed_modules.get(name, [name])
        for part, a, b in zip(parts, layer.lora_a_stacked, layer.lora_b_stacked, strict=True):
            a[slot], b[slot] = 0, 0
            left = tensors.get(f"base_model.model.{part}.lora_A.weight")
            if left is not None:
                right = tensors[f"base_model.model.{part}.lora_B.weight"]
                a[slot, 0, : left.shape[0], : left.shape[1]].copy_(rounded(left, a.dtype))
                b[slot, 0, : right.shape[0], : right.shape[1]].copy_(rounded(right, b.dtype))


def buffers_of(manager: Any) -> list[Tensor]:
    return [b for layer in manager.modules.values() for b in (*layer.lora_a_stacked, *layer.lora_b_stacked)]


def assert_same(written: Any, expected: Any) -> None:
    for one, other in zip(buffers_of(written), buffers_of(expected), strict=True):
        assert torch.equal(one.cpu(), other.cpu())


# writes


@runs
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_slot_holds_what_set_lora_of_the_merge_would_leave(count: int, method: str) -> None:
    written, expected = manager_of(MODULES), manager_of(MODULES)
    layout = layout_of(MODULES, rank=16)
    sources, gains = sources_of(layout, count), gains_of(count)
    before = [buffer.data_ptr() for buffer in buffers_of(written)]
    SlotWriter(written, layout).write(1, sources, gains, method)
    set_plainly(expected, 1, merged_tensors(layout, sources, gains, method))
    assert_same(written, expected)  # slots 0 and 2 too, which hold what they held
    assert [buffer.data_ptr() for buffer in buffers_of(written)] == before


@runs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rank", "width"), [(8, 8), (8, 64), (16, 16), (5, 16), (64, 64), (3, 320)])
@pytest.mark.parametrize("modules", [MODULES, ODD], ids=["even", "odd"])
def test_every_rank_width_and_type(modules: Modules, rank: int, width: int, dtype: torch.dtype) -> None:
    written, expected = manager_of(modules, width, dtype), manager_of(modules, width, dtype)
    layout = layout_of(modules, rank, start=3 if modules is ODD else 0)
    sources, gains = sources_of(layout, 3, seed=rank), gains_of(3)
    SlotWriter(written, layout).write(2, sources, gains, "ties_total")
    set_plainly(expected, 2, merged_tensors(layout, sources, gains, "ties_total"))
    assert_same(written, expected)


@runs
def test_modules_that_the_adapter_leaves_alone_are_zeroed() -> None:
    written, expected = manager_of(MODULES), manager_of(MODULES)
    for manager in (written, expected):
        a, b = dirty(SLOTS, 500, 64, dtype=torch.bfloat16), dirty(SLOTS, 1, HIDDEN, 64, dtype=torch.bfloat16)
        manager.modules["model.embed_tokens"] = module("VocabParallelEmbeddingWithLoRA", a, b)
    layout = layout_of({"mlp.down_proj": MODULES["mlp.down_proj"]}, rank=8)
    sources, gains = sources_of(layout, 2), gains_of(2)
    SlotWriter(written, layout).write(0, sources, gains, "sum")
    embedding = written.modules.pop("model.embed_tokens"), expected.modules.pop("model.embed_tokens")
    set_plainly(expected, 0, merged_tensors(layout, sources, gains, "sum"))
    assert_same(written, expected)
    for buffer in (embedding[0].lora_a_stacked, embedding[0].lora_b_stacked):
        assert not buffer[0].any()
        assert bool((buffer[1:] == 9).all())


@runs
def test_a_part_of_a_packed_module_may_be_missing() -> None:
    written, expected = manager_of(MODULES), manager_of(MODULES)
    whole = layout_of(MODULES, rank=8)
    kept = [i for i, name in enumerate(whole.names) if "k_proj" not in name]
    layout = Shapes(
        tuple(whole.names[i] for i in kept),
        tuple(whole.shapes[i] for i in kept),
        tuple(whole.offsets[i] for i in kept),
        whole.size,
    )
    sources, gains = sources_of(layout, 2), gains_of(2)
    SlotWriter(written, layout).write(1, sources, gains, "ties_frequency")
    set_plainly(expected, 1, merged_tensors(layout, sources, gains, "ties_frequency"))
    assert_same(written, expected)


@runs
def test_a_second_merge_replaces_the_first_and_compiling_ahead_writes_nothing() -> None:
    written, expected = manager_of(ODD), manager_of(ODD)
    layout = layout_of(ODD, rank=4)
    writer = SlotWriter(written, layout)
    writer.compile([2, 3])
    assert_same(written, expected)
    for count, method in ((3, "sum"), (2, "ties_total")):
        sources, gains = sources_of(layout, count, seed=count), gains_of(count)
        writer.write(0, sources, gains, method)
        set_plainly(expected, 0, merged_tensors(layout, sources, gains, method))
        assert_same(written, expected)


@runs
def test_equals_vllms_own_set_lora() -> None:
    layers = pytest.importorskip("vllm.lora.layers.column_parallel_linear", reason="vLLM is not installed")
    base = pytest.importorskip("vllm.lora.layers.base_linear", reason="vLLM is not installed")
    written, expected = manager_of(MODULES), manager_of(MODULES)
    layout = layout_of(MODULES, rank=16)
    sources, gains = sources_of(layout, 3), gains_of(3)
    SlotWriter(written, layout).write(1, sources, gains, "ties_total")
    tensors = merged_tensors(layout, sources, gains, "ties_total")
    for name, layer in expected.modules.items():
        kind = layers.MergedColumnParallelLinearWithLoRA if layer.n_slices > 1 else base.BaseLinearLayerWithLoRA
        layer.reset_lora = lambda slot, layer=layer: base.BaseLinearLayerWithLoRA.reset_lora(layer, slot)
        parts = expected.packed_modules.get(name, [name])
        sides = [
            [rounded(tensors[f"base_model.model.{part}.{side}.weight"], torch.bfloat16) for part in parts]
            for side in ("lora_A", "lora_B")
        ]
        kind.set_lora(layer, 1, *(sides if len(parts) > 1 else (side[0] for side in sides)))
    assert_same(written, expected)


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: nothing is compiled")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("unit", "moves"), [(8, {"ld.global.v4.b32": 6, "st.global.v4.b32": 1}), (1, {})])
def test_compiles_for_a_gpu_that_need_not_be_there(unit: int, moves: dict[str, int], method: str) -> None:
    """The interpreter takes code that the compiler refuses. Three sources, eight entries a thread, each read once."""
    kernel, target = _kernel(), importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    dtype = importlib.import_module("triton.language").bfloat16
    constants = {"width": 64, "unit": unit, "block": BLOCK, "k": 3, "method": method, "dtype": dtype}
    types = {"table": "*i64", "slot": "i32", "sources": ("*fp32",) * 3, "on_a": ("fp32",) * 3, "on_b": ("fp32",) * 3}
    aligned = {path: [["tt.divisibility", 16]] for path in ((0,), (2, 0), (2, 1), (2, 2))}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(kernel, {**types, **dict.fromkeys(constants, "constexpr")}, values, aligned)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    assembly = triton.compile(source, target=target, options=options).asm["ptx"]
    assert "fma.rn.f32" not in assembly
    assert "div.full.f32" not in assembly
    assert {move: assembly.count(move) for move in moves} == moves


@pytest.mark.skipif(DEVICE.type == "cpu", reason="no GPU: streams are a GPU's")
def test_the_current_stream_sees_the_write_and_the_write_sees_what_it_was_given() -> None:
    written, expected = manager_of(MODULES), manager_of(MODULES)
    layout = layout_of(MODULES, rank=16)
    final, gains = sources_of(layout, 3), gains_of(3)
    sources = [torch.zeros_like(source) for source in final]
    writer = SlotWriter(written, layout)
    writer.compile([3])
    cuda: Any = torch.cuda
    cuda._sleep(50_000_000)  # cycles: what follows is still to come when the write is launched
    for source, value in zip(sources, final, strict=True):
        source.copy_(value)
    writer.write(1, sources, gains, "ties_total")
    copies = [buffer.clone() for buffer in buffers_of(written)]
    set_plainly(expected, 1, merged_tensors(layout, final, gains, "ties_total"))
    for copy, right in zip(copies, buffers_of(expected), strict=True):
        assert torch.equal(copy, right)


# refusals


@runs
def test_tells_what_it_can_write() -> None:
    assert supports(manager_of(MODULES))
    assert not supports(SimpleNamespace(modules={}, packed_modules={}))
    for change in (_share_with_another_gpu, _use_another_layer, _mix_types, _pack_otherwise, _pad_rows):
        manager = manager_of(MODULES)
        change(manager)
        assert not supports(manager), change.__name__
        with pytest.raises(ValueError, match="set_lora"):
            SlotWriter(manager, layout_of(MODULES, rank=8))


def _share_with_another_gpu(manager: Any) -> None:
    manager.modules["model.layers.0.mlp.down_proj"].tp_size = 2


def _use_another_layer(manager: Any) -> None:
    a, b = dirty(SLOTS, 1, 64, 8, dtype=torch.bfloat16), dirty(SLOTS, 1, 8, 64, dtype=torch.bfloat16)
    manager.modules["model.layers.0.mlp.experts"] = module("FusedMoEWithLoRA", (a,), (b,))


def _mix_types(manager: Any) -> None:
    layer = manager.modules["model.layers.0.mlp.down_proj"]
    layer.lora_a_stacked = (layer.lora_a_stacked[0].float(),)


def _pack_otherwise(manager: Any) -> None:
    manager.packed_modules["model.layers.0.self_attn.qkv_proj"] = ["qkv", "z"]


def _pad_rows(manager: Any) -> None:
    layer = manager.modules["model.layers.0.mlp.down_proj"]
    layer.lora_a_stacked = (dirty(SLOTS, 1, 64, 208, dtype=torch.bfloat16)[..., :200],)


@runs
def test_refuses_a_layout_that_does_not_fit() -> None:
    manager, good = manager_of(MODULES), layout_of(MODULES, rank=16)
    other = {**MODULES, "self_attn.qkv_proj": ("", ("q_proj", "k_proj", "v_proj"), HIDDEN, (72, 24, 25))}
    bad = {
        "with r <= 64": layout_of(MODULES, rank=65),
        r"\(25, 16\)": layout_of(other, rank=16),
        "no LoRA layer": layout_of({"mlp.router": ("", ("router",), HIDDEN, (4,))}, rank=4),
        "lacks its other side": Shapes(good.names[:-1], good.shapes[:-1], good.offsets[:-1], good.size),
        "past the source": Shapes(good.names, good.shapes, good.offsets, good.size - 1),
        "not a LoRA matrix": Shapes((f"{PREFIX}mlp.up_proj.lora_magnitude_vector",), ((200,),), (0,), 200),
    }
    for match, layout in bad.items():
        with pytest.raises(ValueError, match=match):
            SlotWriter(manager, layout)


@runs
def test_refuses_arguments_that_do_not_fit() -> None:
    manager, layout = manager_of(MODULES), layout_of(MODULES, rank=16)
    writer, good, gains = SlotWriter(manager, layout), sources_of(layout, 2), gains_of(2)
    strided = torch.zeros(2 * layout.size, device=DEVICE)[::2]
    for slot, sources, weights, method, match in (
        (SLOTS, good, gains, "sum", "slot must be"),
        (-1, good, gains, "sum", "slot must be"),
        (0, good, gains, "dare", "method must be"),
        (0, good, gains_of(3), "sum", "gains of shape"),
        (0, good * 5, gains_of(10), "sum", "1 to 8"),
        (0, [], gains_of(0), "sum", "1 to 8"),
        (0, [good[0], good[1][:-1]], gains, "sum", "of shape"),
        (0, [good[0], good[1].half()], gains, "sum", "float16"),
        (0, [good[0], strided], gains, "sum", "contiguous"),
    ):
        with pytest.raises(ValueError, match=match):
            writer.write(slot, sources, weights, method)
    assert_same(manager, manager_of(MODULES))
