"""vLLM's layers on a CPU, each with a `forward` that goes straight to its kernels.

vLLM (0.32) finds the way to a kernel anew at every call: through a layer's LoRA, its quantisation, its platform, the
context of the step. On a GPU that happens once, while a graph is captured; a CPU has none, and for one row of a small
model finding the way takes longer than going it. Here each layer of a kind that is known looks up once what never
changes. The kernels, their order and what they are given stay the same, so answers stay what they were to the last bit.
A layer that is anything else than expected keeps vLLM's own `forward`.

Not covered: more than one device, quantised weights, attention that is not a decoder's, steps without metadata, as vLLM
warms up with; and compiled models, as what is put in place here hides the layers from a compiler.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from server.engine.cpu_lora import LIKE, add_grouped

Forward = Callable[..., Any]


def shorten(model: Any) -> int:
    """Give each layer of a known kind its own `forward`, once weights are loaded and LoRA is in place; returns to how
    many. A layer may be called as before, and what it gives is the same."""
    from vllm.platforms import current_platform

    ways = _ways() if current_platform.is_cpu() else {}
    count = 0
    for module in model.modules():
        way = ways.get(type(module))
        forward = way(module) if way else None
        if forward is not None:
            module.forward = forward
            count += 1
    return count


def _ways() -> Mapping[type, Callable[[Any], Forward | None]]:
    """By the exact type of a layer; a subclass may do something else."""
    from vllm.lora.layers import (
        ColumnParallelLinearWithLoRA,
        MergedColumnParallelLinearWithLoRA,
        MergedQKVParallelLinearWithLoRA,
        QKVParallelLinearWithLoRA,
        RowParallelLinearWithLoRA,
    )
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.rotary_embedding import Llama3RotaryEmbedding, RotaryEmbedding

    columns = ColumnParallelLinearWithLoRA, MergedColumnParallelLinearWithLoRA
    rows = QKVParallelLinearWithLoRA, MergedQKVParallelLinearWithLoRA, RowParallelLinearWithLoRA
    return (
        dict.fromkeys((*columns, *rows), _linear)
        | dict.fromkeys((RotaryEmbedding, Llama3RotaryEmbedding), _rotary)
        | {Attention: _attention, RMSNorm: _norm, SiluAndMul: _silu}
    )


def _linear(layer: Any) -> Forward | None:
    """W x + b, and each row's adapter."""
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
        RowParallelLinear,
        UnquantizedLinearMethod,
    )

    base = layer.base_layer
    plain = ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    is_plain = type(base) in plain and type(base.quant_method) is UnquantizedLinearMethod
    if not is_plain or layer.tp_size != 1 or not hasattr(base, "cpu_linear") or layer._enable_aux_cuda_stream:
        return None
    if type(base) is RowParallelLinear and not base.input_is_parallel:
        return None
    product, weight = base.cpu_linear, base.weight
    added, returned = (None, base.bias) if base.skip_bias_add else (base.bias, None)
    wrapper, a, b, widths = layer.punica_wrapper, layer.lora_a_stacked, layer.lora_b_stacked, tuple(layer.output_slices)
    returns_bias = base.return_bias

    def forward(x: Tensor) -> Any:
        y = product(x, weight, added)
        rows = wrapper.loramem_rows
        if rows.groups:
            add_grouped(y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1]), rows, a, b, 1.0, widths)
        return (y, returned) if returns_bias else y

    return forward


def _norm(layer: Any) -> Forward | None:
    """As `cpu_norm` does it, which vLLM asks for by name at every call."""
    from server.engine.cpu_norm import fused_add_rms_norm, rms_norm

    weight, epsilon, stock = layer.weight, layer.variance_epsilon, layer.forward
    is_plain = layer.pass_weight and layer.pass_weight_add and layer.variance_size_override is None
    if not is_plain or weight.dtype not in LIKE or not weight.is_contiguous() or not _takes_ours():
        return None
    shape, dtype = weight.shape, weight.dtype

    def forward(x: Tensor, residual: Tensor | None = None) -> Any:
        if x.dtype != dtype or x.shape[-1:] != shape or not x.is_contiguous():
            return stock(x, residual)
        if residual is None:
            return rms_norm(x, weight, epsilon)
        if residual.dtype != dtype or residual.shape != x.shape or not residual.is_contiguous():
            return stock(x, residual)
        return fused_add_rms_norm(x, residual, weight, epsilon)

    return forward


def _takes_ours() -> bool:
    """Whether vLLM was told to norm by `cpu_norm`."""
    from vllm import ir

    from server.engine.cpu_norm import PRIORITY

    operations: Any = ir.ops
    return all(list(getattr(operations, name).get_priority())[:1] == first for name, first in PRIORITY.items())


def _silu(layer: Any) -> Forward | None:
    """silu(first half) * second half, in the place of the former."""
    if layer._forward_method != layer.forward_cpu or hasattr(layer, "op"):  # compiled, on processors that need it
        return None
    silu = torch.ops.aten.silu.default

    def forward(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        out: Tensor = silu(gate).mul_(up)
        return out

    return forward


def _rotary(layer: Any) -> Forward | None:
    if layer._forward_method != layer.forward_cpu:
        return None
    stock, turn = layer.forward, torch.ops._C.rotary_embedding
    cache, size, is_neox = layer.cos_sin_cache, layer.head_size, layer.is_neox_style

    def forward(positions: Tensor, query: Tensor, key: Tensor | None = None) -> Any:
        if key is None or query.dtype != cache.dtype:
            return stock(positions, query, key)
        turn(positions, query, key, size, cache, is_neox)
        return query, key

    return forward


def _attention(layer: Any) -> Forward | None:
    """Keys and values into the cache, then a decoder's attention."""
    from vllm.forward_context import get_forward_context
    from vllm.v1.attention.backend import AttentionType
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    attention: Any = layer.impl
    if type(attention) is not CPUAttentionBackendImpl or attention.attn_type != AttentionType.DECODER:
        return None
    if attention.sinks is not None or layer.query_quant is not None or layer.kv_sharing_target_layer_name is not None:
        return None
    stock, name = layer.forward, layer.layer_name
    keep, attend = torch.ops._C.cpu_attn_reshape_and_cache, torch.ops._C.cpu_attention_with_kv_cache
    heads, kv_heads, size, value_size = layer.num_heads, layer.num_kv_heads, layer.head_size, layer.head_size_v
    kind = attention.kv_cache_dtype
    cache = _Halves()

    def forward(query: Tensor, key: Tensor, value: Tensor, *shape: Any, **other: Any) -> Tensor:
        context = get_forward_context()
        metadata, mapping = context.attn_metadata, context.slot_mapping
        if shape or other or not isinstance(metadata, dict) or not isinstance(mapping, dict) or name not in mapping:
            given: Tensor = stock(query, key, value, *shape, **other)
            return given
        step, rows = metadata[name], len(query)
        keys, values = cache.of(layer.kv_cache)
        scales = layer._k_scale_float, layer._v_scale_float, kind
        key, value = key.view(-1, kv_heads, size), value.view(-1, kv_heads, value_size)
        keep(key, value, keys, values, mapping[name], layer.isa, *scales)
        out = query.new_empty(rows, heads * value_size)
        count = step.num_actual_tokens
        attend(
            query.view(-1, heads, size)[:count],
            keys,
            values,
            out.view(-1, heads, value_size)[:count],
            step.query_start_loc,
            step.seq_lens,
            attention.scale,
            step.causal,
            attention.alibi_slopes,
            attention.sliding_window,
            step.block_table,
            attention.logits_soft_cap,
            step.scheduler_metadata,
            None,
            step.dynamic_causal,
            *scales,
        )
        return out

    return forward


class _Halves:
    """Keys and values of a cache (blocks, heads, block size, 2 * head size), cut anew when there is another cache."""

    def __init__(self) -> None:
        self._cache: Tensor | None = None
        self._halves: tuple[Tensor, ...] = ()

    def of(self, cache: Tensor) -> tuple[Tensor, ...]:
        if cache is not self._cache:
            blocks, heads, block_size, _ = cache.shape
            self._halves = cache.view(blocks, heads, 2 * block_size, -1).chunk(2, dim=2)
            self._cache = cache
        return self._halves
