"""Which of vLLM's products a CPU multiplies by, and with how many rows.

vLLM (0.32) is built with SGLang's kernels, `weight_packed_linear`, and takes them where a CPU has AMX, for small
matrices. On one with AVX-512 and bfloat16 but no AMX (AMD from Zen 4 on) every product goes to oneDNN, which reads the
weights at half the pace of memory when a step has few rows: the products of one token of the embedded model take 20 ms,
by SGLang's kernels 12. From some ten rows on both cost about the same, if the input is not too wide. Such matrices are
SGLang's then, packed by them alone, so that no weight is kept twice for it. Measured in decision 0022.
"""

from typing import Any

import torch
from torch.nn.functional import pad

from server.engine.cpu_lora import padded

TILE = 16, 32
"""The kernel's; outputs and inputs of a matrix are multiples."""
MOST_INPUTS = 4096
"""The kernel does not cut the inputs into blocks: beyond this its tiles leave the cache, and many rows take up to three
times as long as by oneDNN."""


def install() -> None:
    """Have vLLM's own choice of a product say yes more often, and pad what it says no to; once per process, before a
    model is loaded."""
    from vllm import _custom_ops as products
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and not hasattr(utils.check_cpu_sgl_kernel, "_loramem"):
        utils.check_cpu_sgl_kernel = _or_without_amx(utils.check_cpu_sgl_kernel)
        products.onednn_mm = _of_few_sizes(products.onednn_mm)


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
