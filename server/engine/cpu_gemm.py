"""Which products a CPU multiplies by, and with how many rows.

vLLM (0.32) is built with SGLang's kernels, `weight_packed_linear`, and takes them where a CPU has AMX, for small
matrices. On one with AVX-512 and bfloat16 but no AMX (AMD from Zen 4 on) every product goes to oneDNN, which reads the
weights at half the pace of memory when a step has few rows: the products of one token of the embedded model take 20 ms,
by SGLang's kernels 12. From some ten rows on both cost about the same, if the input is not too wide. Such matrices are
SGLang's then, packed by them alone, so that no weight is kept twice for it. Measured in decision 0022.

On one without AVX-512 the engine computes in float32, and a step of decoding reads twice the bytes that the model was
stored in. FBGEMM, which comes with PyTorch, keeps the weights in half precision and multiplies in float32, on one
thread. Where the engine has no more, as on two cores, the products of one token take two fifths of the time, those of a
long prompt five sixths. Measured in decision 0032.
"""

import warnings
from typing import Any

import torch
from torch.nn.functional import pad

from loramem.precision import precision
from server.engine.cpu_lora import padded

TILE = 16, 32
"""The kernel's; outputs and inputs of a matrix are multiples."""
MOST_INPUTS = 4096
"""The kernel does not cut the inputs into blocks: beyond this its tiles leave the cache, and many rows take up to three
times as long as by oneDNN."""
HALF_FROM, HALF_TO = 2.0**-14, 65504.0
"""In absolute value, what half precision holds with more digits than bfloat16; below it a number loses 3e-8 at most."""
ROWS = 4096
"""Of a matrix that are looked at together."""


def install(*, in_half: bool) -> None:
    """Have vLLM's own choice of a product say yes to SGLang's more often, and pad what it says no to; once per process,
    before a model is loaded. `in_half`: before that, see whether FBGEMM can keep the weights in half precision. Only
    for an engine that compiles nothing: `torch.compile` could not trace such a product."""
    from vllm import _custom_ops as products
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and not hasattr(utils.check_cpu_sgl_kernel, "_loramem"):
        utils.check_cpu_sgl_kernel = _or_without_amx(utils.check_cpu_sgl_kernel)
        products.onednn_mm = _of_few_sizes(products.onednn_mm)
        if in_half:
            utils.dispatch_cpu_unquantized_gemm = _or_in_half(utils.dispatch_cpu_unquantized_gemm)
            warnings.filterwarnings("ignore", message="fbgemm_.* is deprecated")


def _or_without_amx(stock: Any) -> Any:
    def check(n: int, k: int, dtype: torch.dtype) -> bool:
        return bool(stock(n, k, dtype)) or (
            dtype == torch.bfloat16
            and (n % TILE[0], k % TILE[1]) == (0, 0)
            and k <= MOST_INPUTS
            and torch.cpu._is_avx512_bf16_supported()
            and not torch.cpu._is_amx_tile_supported()
        )

    check._loramem = True  # type: ignore[attr-defined]
    return check


def _of_few_sizes(stock: Any) -> Any:
    def onednn_mm(handler: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows = x.numel() // handler.k
        more = padded(rows) - rows
        if not more:
            found: torch.Tensor = stock(handler, x, bias)
            return found
        long: torch.Tensor = stock(handler, pad(x.reshape(rows, handler.k), (0, 0, 0, more)), bias)
        return long[:rows].view(*x.shape[:-1], handler.n)

    return onednn_mm


def _or_in_half(stock: Any) -> Any:
    def dispatch(layer: Any, remove_weight: bool) -> None:
        weight = layer.weight
        if not hasattr(weight, "_loramem_half"):  # it has where embedding and output head share it
            weight._loramem_half = _half_product(weight) if _is_widened(weight) and _fits_half(weight) else None
        if weight._loramem_half is None:
            stock(layer, remove_weight)
            return
        layer.cpu_linear = weight._loramem_half
        if remove_weight:
            layer.weight = torch.nn.Parameter(weight.new_empty(0), requires_grad=False)

    return dispatch


def _half_product(weight: torch.Tensor) -> Any:
    """x W^T + bias, of a copy of the weight in half precision; by the older of PyTorch's two calls, as the newer takes
    seven times as long to make."""
    packed = torch.fbgemm_pack_gemm_matrix_fp16(weight)
    return lambda x, weight, bias: torch.fbgemm_linear_fp16_weight_fp32_activation(x, packed, bias)


def _is_widened(weight: torch.Tensor) -> bool:
    """A matrix in float32 because the CPU has no products of bfloat16, in an engine of one thread: FBGEMM's has one."""
    can = "fbgemm" in torch.backends.quantized.supported_engines and torch.get_num_threads() == 1
    is_matrix = weight.device.type == "cpu" and weight.ndim == 2 and weight.numel() > 0
    return can and is_matrix and weight.dtype == torch.float32 and precision() == "float32"


def _fits_half(weight: torch.Tensor) -> bool:
    """Stored as bfloat16, and the largest number within what half precision holds: FBGEMM would cut larger ones, and
    make something of what is not a number."""
    parts = torch.split(weight.detach(), ROWS)
    largest = max(float(rows.abs().max()) for rows in parts)
    return HALF_FROM <= largest <= HALF_TO and all(torch.equal(rows, rows.bfloat16().float()) for rows in parts)
