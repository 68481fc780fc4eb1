"""Which product vLLM takes on this and on other processors, and that it is the same product."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm import _custom_ops
from vllm.model_executor.layers import utils
from vllm.platforms import current_platform

from server.engine import cpu_gemm
from server.engine.cpu_lora import padded

BFLOAT16 = torch.bfloat16
runs_here = pytest.mark.skipif(
    not (current_platform.is_cpu() and torch.cpu._is_avx512_bf16_supported()),
    reason="needs vLLM for CPUs and AVX-512 with bfloat16",
)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own choice on a processor without AMX, put back afterwards."""
    monkeypatch.setattr(utils, "check_cpu_sgl_kernel", lambda n, k, dtype: False)
    monkeypatch.setattr(_custom_ops, "onednn_mm", _custom_ops.onednn_mm)
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", utils.dispatch_cpu_unquantized_gemm)


def processor(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool = True, amx: bool = False, cpu: bool = True) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda platform: cpu)


@pytest.mark.parametrize(
    ("bfloat16", "amx", "dtype", "shape", "taken"),
    [
        (True, False, BFLOAT16, (1536, 576), True),
        (True, False, BFLOAT16, (49152, 4096), True),
        (True, False, BFLOAT16, (4096, 4128), False),
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
    cpu_gemm.install(in_half=True)
    assert utils.check_cpu_sgl_kernel(*shape, dtype) is taken


def test_what_vllm_takes_anyway_stays_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, amx=True)
    monkeypatch.setattr(utils, "check_cpu_sgl_kernel", lambda n, k, dtype: True)
    cpu_gemm.install(in_half=True)
    assert utils.check_cpu_sgl_kernel(8, 8, BFLOAT16)


@pytest.mark.usefixtures("stock")
def test_twice_is_once(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch)
    cpu_gemm.install(in_half=True)
    once = utils.check_cpu_sgl_kernel
    cpu_gemm.install(in_half=True)
    assert utils.check_cpu_sgl_kernel is once


@pytest.mark.usefixtures("stock")
def test_beside_a_gpu_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, cpu=False)
    before = utils.check_cpu_sgl_kernel
    cpu_gemm.install(in_half=True)
    assert utils.check_cpu_sgl_kernel is before


@runs_here
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 40])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("remove_weight", [False, True])
@pytest.mark.usefixtures("stock")
def test_is_the_same_product(rows: int, biased: bool, remove_weight: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch)
    cpu_gemm.install(in_half=True)
    calls: list[int] = []
    product = _custom_ops.weight_packed_linear_cpu

    def counted(x: torch.Tensor, *rest: Any) -> Any:
        calls.append(len(x))
        return product(x, *rest)

    monkeypatch.setattr(_custom_ops, "weight_packed_linear_cpu", counted)
    draw = torch.Generator().manual_seed(rows)
    layer: Any = torch.nn.Linear(96, 48, bias=biased, dtype=BFLOAT16)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw).to(BFLOAT16)
    x = torch.randn(rows, 96, generator=draw).to(BFLOAT16)
    with torch.inference_mode():
        expected = torch.nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float() if biased else None)
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=remove_weight)
        found = layer.cpu_linear(x, layer.weight, layer.bias)
    assert calls == [rows]
    assert (layer.weight.numel() == 0) == remove_weight
    torch.testing.assert_close(found, expected.to(BFLOAT16), rtol=0.008, atol=1e-4)


@runs_here
@pytest.mark.parametrize("shape", [(40, 96), (70, 96), (3, 50, 96), (128, 96)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.usefixtures("stock")
def test_what_stays_with_onednn_has_one_of_a_few_numbers_of_rows(
    shape: tuple[int, ...], biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiplied: list[int] = []
    product = torch.ops._C.onednn_mm

    def counted(output: torch.Tensor, x: torch.Tensor, *rest: Any) -> Any:
        multiplied.append(len(x))
        return product(output, x, *rest)

    monkeypatch.setattr(torch.ops._C, "onednn_mm", counted)
    processor(monkeypatch, amx=True)
    cpu_gemm.install(in_half=True)
    draw = torch.Generator().manual_seed(len(shape))
    layer: Any = torch.nn.Linear(96, 48, bias=biased, dtype=BFLOAT16)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw).to(BFLOAT16)
    x = torch.randn(shape, generator=draw).to(BFLOAT16)
    with torch.inference_mode():
        expected = torch.nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float() if biased else None)
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
        found = layer.cpu_linear(x, layer.weight, layer.bias)
    assert multiplied == [padded(math.prod(shape[:-1]))]
    torch.testing.assert_close(found, expected.to(BFLOAT16), rtol=0.008, atol=1e-4)


has_fbgemm = pytest.mark.skipif(
    not (current_platform.is_cpu() and "fbgemm" in torch.backends.quantized.supported_engines),
    reason="needs vLLM for CPUs and FBGEMM",
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def half_dispatched(
    layer: Any, monkeypatch: pytest.MonkeyPatch, *, precision: str = "float32", remove_weight: bool = False
) -> bool:
    """Whether the product that `layer` gets where the engine computes in `precision` is FBGEMM's."""
    monkeypatch.setattr(cpu_gemm, "precision", lambda: precision)
    cpu_gemm.install(in_half=True)
    utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=remove_weight)
    return bool(layer.cpu_linear.__module__ == cpu_gemm.__name__)


def layer_of(weight: torch.Tensor, *, biased: bool = False) -> Any:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=biased, dtype=weight.dtype)
    layer.weight.data = weight
    return layer


def entries(*shape: int, seed: int = 0) -> torch.Tensor:
    """float32 of what bfloat16 holds."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BFLOAT16).float()


@has_fbgemm
@pytest.mark.parametrize("shape", [(1, 96), (3, 96), (40, 96), (3, 50, 96), (0, 96)])
@pytest.mark.parametrize(("outputs", "biased"), [(48, False), (48, True), (35, True)])
@pytest.mark.parametrize("remove_weight", [False, True])
@pytest.mark.usefixtures("stock", "one_thread")
def test_in_half_precision_it_is_the_same_product(
    shape: tuple[int, ...], outputs: int, biased: bool, remove_weight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = layer_of(entries(outputs, 96), biased=biased), entries(*shape, seed=1)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
        assert half_dispatched(layer, monkeypatch, remove_weight=remove_weight)
        found = layer.cpu_linear(x, layer.weight, layer.bias)
        apart = layer.cpu_linear(torch.stack([x, x], dim=-1)[..., 0], layer.weight, layer.bias)
    assert (layer.weight.numel() == 0) == remove_weight
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(apart, expected, rtol=1e-5, atol=1e-4)


@has_fbgemm
@pytest.mark.usefixtures("stock", "one_thread")
def test_the_largest_that_half_precision_holds_of_bfloat16_is_kept_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(torch.full((16, 16), 65_280.0))
    assert half_dispatched(layer, monkeypatch)
    assert layer.cpu_linear(torch.ones(1, 16), layer.weight, None).tolist() == [[16 * 65_280.0] * 16]


@has_fbgemm
@pytest.mark.usefixtures("stock", "one_thread")
def test_a_weight_that_two_layers_share_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, head = layer_of(entries(48, 96)), layer_of(entries(48, 96))
    head.weight = embedding.weight
    assert half_dispatched(embedding, monkeypatch)
    utils.dispatch_cpu_unquantized_gemm(head, remove_weight=False)
    assert head.cpu_linear is embedding.cpu_linear


@pytest.mark.usefixtures("stock", "one_thread")
def test_an_engine_of_several_threads_multiplies_as_vllm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    assert not half_dispatched(layer_of(entries(48, 96)), monkeypatch)


@has_fbgemm
@pytest.mark.parametrize("tiny", [1e-5, 1e-7, 1e-30, 0.0, -6e-5])
@pytest.mark.usefixtures("stock", "one_thread")
def test_what_is_tiny_beside_others_is_kept_in_half(tiny: float, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.full((16, 16), tiny).to(BFLOAT16).float()
    weight[0, 0] = 0.5
    layer = layer_of(weight)
    assert half_dispatched(layer, monkeypatch)
    found = layer.cpu_linear(torch.ones(1, 16), weight, None)
    torch.testing.assert_close(found, weight.sum(dim=1)[None], rtol=1e-5, atol=16 * 3e-8)


@has_fbgemm
@pytest.mark.parametrize(
    "other",
    [65_536.0, math.inf, math.nan, 0.1],
    ids=["large", "infinite", "nan", "finer"],
)
@pytest.mark.usefixtures("stock", "one_thread")
def test_what_half_precision_would_change_stays_with_vllm(other: float, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = entries(16, 16)
    weight[15, 15] = other
    layer = layer_of(weight)
    assert not half_dispatched(layer, monkeypatch)
    found = layer.cpu_linear(torch.ones(1, 16), weight, None)
    torch.testing.assert_close(found, weight.sum(dim=1)[None], equal_nan=True)


@has_fbgemm
@pytest.mark.parametrize(
    ("weight", "precision"),
    [
        (entries(48, 96), "bfloat16"),
        (entries(48, 96).to(BFLOAT16), "float32"),
        (entries(48, 96).half(), "float32"),
        (entries(48, 96) * 2.0**-20, "float32"),
        (entries(4, 48, 96), "float32"),
        (torch.empty(0, 96), "float32"),
        (torch.empty(48, 96, device="meta"), "float32"),
    ],
    ids=["asked-for", "bfloat16", "float16", "all-tiny", "experts", "empty", "missing"],
)
@pytest.mark.usefixtures("stock", "one_thread")
def test_other_layers_are_vllms(weight: torch.Tensor, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", chosen)
    layer: Any = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert not half_dispatched(layer, monkeypatch, precision=precision)


@pytest.mark.usefixtures("stock", "one_thread")
def test_in_a_stock_engine_nothing_is_kept_in_half() -> None:
    before = utils.dispatch_cpu_unquantized_gemm
    cpu_gemm.install(in_half=False)
    assert utils.dispatch_cpu_unquantized_gemm is before
