"""RMS norm on a CPU in one call, as a provider of vLLM's own for its operation.

vLLM (0.32) has compiled norms, but takes them on GPUs only; on a CPU a norm is ten operations of torch, which for one
row take longer to call than to do: 37 microseconds, 61 times a step of the embedded model. This rounds where those do,
so answers stay what they were. `PRIORITY` is for vLLM's `ir_op_priority`.
"""

from typing import Any

import torch
from torch import Tensor

from server.engine.cpu_lora import LIKE

PROVIDER = "loramem"
PRIORITY = {"rms_norm": [PROVIDER], "fused_add_rms_norm": [PROVIDER]}


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """x / rms(x) * weight, of shape (..., size); a new tensor."""
    assert weight is not None
    out = torch.empty_like(x)
    _norm(x, None, weight, out, epsilon)
    return out


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The norm of x + x_residual, in the place of x, and that sum, in the place of x_residual."""
    assert weight is not None
    _norm(x, x_residual, weight, x, epsilon)
    return x, x_residual


def takes(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """Whether `rms_norm` can do it; vLLM's own does the rest."""
    fits = weight is not None and weight.dtype == x.dtype and weight.shape == x.shape[-1:] and weight.is_contiguous()
    return fits and variance_size is None and x.dtype in LIKE and x.is_contiguous() and x.device.type == "cpu"


def takes_sum(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    """Whether `fused_add_rms_norm` can."""
    alike = x_residual.dtype == x.dtype and x_residual.shape == x.shape and x_residual.is_contiguous()
    return alike and takes(x, weight, epsilon, variance_size)


def install() -> None:
    """Register both with vLLM, where the model runs on a CPU; once per process."""
    from vllm import ir
    from vllm.platforms import current_platform

    operations: Any = ir.ops
    if not current_platform.is_cpu() or PROVIDER in operations.rms_norm.impls:
        return
    operations.rms_norm.register_impl(PROVIDER, supports_args=takes)(rms_norm)
    operations.fused_add_rms_norm.register_impl(PROVIDER, supports_args=takes_sum, inplace=True)(fused_add_rms_norm)


def warm_up() -> None:
    """Have the loop compiled, or read from Numba's cache, before a query needs it."""
    for dtype in LIKE:
        rms_norm(torch.ones(1, 1, dtype=dtype), torch.ones(1, dtype=dtype), 1.0)


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, epsilon: float) -> None:
    from server.engine.cpu_kernels import norm_rows

    size = x.shape[-1]
    at = (x.data_ptr(), residual.data_ptr() if residual is not None else 0, weight.data_ptr(), out.data_ptr())
    norm_rows(LIKE[x.dtype], *at, x.numel() // size if size else 0, size, epsilon)
