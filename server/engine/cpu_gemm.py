"""Which of vLLM's products a CPU without AMX decodes with.

vLLM (0.32) is built with SGLang's kernels for few rows, `weight_packed_linear`, and takes them where a CPU has AMX, for
small matrices. On one with AVX-512 and bfloat16 but no AMX (AMD from Zen 4 on) every product goes to oneDNN, which
reads the weights at half the pace of memory when a step has few rows: 20 ms a token of the embedded model, 12 by
SGLang's, to the same bits. From some ten rows on both cost the same within a twentieth. So there all are SGLang's, and
the weights lie in memory once, as before. Measured in `benchmarks/LOG.md`.
"""

from typing import Any

import torch

TILE = 16, 32  # the kernel's: outputs and inputs of a matrix are multiples


def install() -> None:
    """Have vLLM's own choice of a product say yes more often; once per process, before a model is loaded."""
    from vllm.model_executor.layers import utils

    stock: Any = utils.check_cpu_sgl_kernel
    if not hasattr(stock, "_loramem"):
        utils.check_cpu_sgl_kernel = _or_without_amx(stock)


def _or_without_amx(stock: Any) -> Any:
    def check(n: int, k: int, dtype: torch.dtype) -> bool:
        return bool(stock(n, k, dtype)) or (
            dtype == torch.bfloat16
            and (n % TILE[0], k % TILE[1]) == (0, 0)
            and has_bfloat16()
            and not torch.cpu._is_amx_tile_supported()
        )

    check._loramem = True  # type: ignore[attr-defined]
    return check


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by AVX-512."""
    return bool(torch.cpu._is_avx512_bf16_supported())
