"""RMS norm in one call against vLLM's own, operation by operation."""

import pytest
import torch
from torch import Tensor
from vllm import ir

from server.engine.cpu_norm import PRIORITY, PROVIDER, fused_add_rms_norm, install, rms_norm, takes, takes_sum

EPSILON = 1e-5
SHAPES = [(1, 1), (1, 576), (5, 576), (2, 3, 37)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """But for the order of a sum, which may turn the last bit of a few entries."""
    torch.testing.assert_close(ours, theirs, rtol=0.008 if ours.dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    assert (ours == theirs).float().mean() > 0.98 or ours.dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_is_the_models_own_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = drawn(shape, dtype), drawn(shape[-1:], dtype, 1)
    before = x.clone()
    assert_same(rms_norm(x, weight, EPSILON), ir.ops.rms_norm.impls["native"].impl_fn(x, weight, EPSILON))
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_with_a_residual_both_are_written_in_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual, weight = drawn(shape, dtype), drawn(shape, dtype, 1), drawn(shape[-1:], dtype, 2)
    native = ir.ops.fused_add_rms_norm.impls["native"].impl_fn
    normed, total = native(x.clone(), residual.clone(), weight, EPSILON)
    ours = fused_add_rms_norm(x, residual, weight, EPSILON)
    assert ours[0] is x
    assert ours[1] is residual
    assert torch.equal(residual, total)
    assert_same(x, normed)


def test_what_it_does_not_take_is_left_to_vllm() -> None:
    x, weight = drawn((4, 8), torch.bfloat16), drawn((8,), torch.bfloat16)
    assert takes(x, weight, EPSILON)
    assert takes_sum(x, x.clone(), weight, EPSILON)
    assert not takes(x, None, EPSILON)
    assert not takes(x, weight.float(), EPSILON)
    assert not takes(x, weight, EPSILON, 4)
    assert not takes(x, weight[:1], EPSILON)
    assert not takes(x[:, ::2], weight[:4], EPSILON)
    assert not takes(x.half(), weight.half(), EPSILON)
    assert not takes_sum(x, x.float(), weight, EPSILON)
    assert not takes_sum(x, x[:1], weight, EPSILON)


def test_no_rows_are_no_work() -> None:
    assert rms_norm(torch.empty(0, 8), torch.ones(8), EPSILON).shape == (0, 8)


def test_vllm_takes_it_once_it_is_installed() -> None:
    install()
    install()
    x, residual, weight = (drawn(shape, torch.bfloat16) for shape in ((2, 8), (2, 8), (8,)))
    for name, of in PRIORITY.items():
        operation = getattr(ir.ops, name)
        with operation.set_priority([*of, "native"]):
            assert operation.get_priority() == [PROVIDER, "native"]
            arguments = (x, weight) if name == "rms_norm" else (x, residual, weight)
            assert operation.dispatch(*arguments, EPSILON).provider == PROVIDER
    kept = x.clone()
    with ir.ops.fused_add_rms_norm.set_priority([PROVIDER, "native"]):
        ir.ops.fused_add_rms_norm(x, residual, weight, EPSILON)
        assert torch.equal(x, kept), "the plain form of the operation leaves its arguments alone"
