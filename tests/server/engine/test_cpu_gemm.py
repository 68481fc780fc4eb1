"""Which product vLLM takes on this and on other processors, and that it is the same product."""

from typing import Any

import pytest
import torch
from vllm.model_executor.layers import utils

from server.engine import cpu_gemm

BFLOAT16 = torch.bfloat16


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own choice on a processor without AMX, put back afterwards."""
    monkeypatch.setattr(utils, "check_cpu_sgl_kernel", lambda n, k, dtype: False)


def processor(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("bfloat16", "amx", "dtype", "shape", "taken"),
    [
        (True, False, BFLOAT16, (1536, 576), True),
        (True, False, BFLOAT16, (49152, 576), True),
        (True, False, BFLOAT16, (24, 576), False),
        (True, False, BFLOAT16, (32, 580), False),
        (True, False, torch.float32, (1536, 576), False),
        (True, False, torch.float16, (1536, 576), False),
        (True, False, torch.int8, (1536, 576), False),
        (False, False, BFLOAT16, (1536, 576), False),
        (True, True, BFLOAT16, (1536, 576), False),
    ],
)
@pytest.mark.usefixtures("stock")
def test_where_it_is_taken(
    bfloat16: bool,
    amx: bool,
    dtype: torch.dtype,
    shape: tuple[int, int],
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor(monkeypatch, bfloat16=bfloat16, amx=amx)
    cpu_gemm.install()
    assert utils.check_cpu_sgl_kernel(*shape, dtype) is taken


def test_what_vllm_takes_anyway_stays_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, bfloat16=True, amx=True)
    monkeypatch.setattr(utils, "check_cpu_sgl_kernel", lambda n, k, dtype: True)
    cpu_gemm.install()
    assert utils.check_cpu_sgl_kernel(8, 8, BFLOAT16)


@pytest.mark.usefixtures("stock")
def test_twice_is_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_gemm.install()
    once = utils.check_cpu_sgl_kernel
    cpu_gemm.install()
    assert utils.check_cpu_sgl_kernel is once


@pytest.mark.skipif(not cpu_gemm.has_bfloat16(), reason="this processor has no products of bfloat16 by AVX-512")
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 40])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.usefixtures("stock")
def test_is_the_same_product(rows: int, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, bfloat16=True, amx=False)
    cpu_gemm.install()
    draw = torch.Generator().manual_seed(rows)
    layer: Any = torch.nn.Linear(96, 48, bias=biased, dtype=BFLOAT16)
    layer.weight.data = torch.randn(48, 96, generator=draw).to(BFLOAT16)
    x = torch.randn(rows, 96, generator=draw).to(BFLOAT16)
    with torch.inference_mode():
        expected = layer(x)
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        product = layer.cpu_linear(x, layer.weight, layer.bias)
    assert layer.weight.numel() == 0, "the weights lie in memory once"
    torch.testing.assert_close(product, expected, rtol=0.008, atol=1e-6)
    called = [cell.cell_contents for cell in layer.cpu_linear.__closure__]
    assert any(isinstance(cell, torch.Tensor) and cell.shape == (48, 96) for cell in called), "packed, so SGLang's"
