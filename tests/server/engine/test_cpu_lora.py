"""The grouped LoRA product against one row at a time, alone and inside vLLM's CPU wrapper."""

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from server.engine import cpu_lora
from server.engine.cpu_lora import FEW_ROWS, add_grouped, filled, forget, group_rows, install, padded, warm_up

assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)  # sums in another order
IN, RANK, SLOTS = 6, 4, 3
WIDTHS = (5, 3, 3)  # q, k and v of one packed layer


def stacked(widths: Sequence[int], seed: int = 0) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A and B of each slice in vLLM's layout: (slots, 1, rank, in) and (slots, 1, width, rank)."""
    noise = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn(SLOTS, 1, RANK, IN, generator=noise) for _ in widths)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, generator=noise) for width in widths)
    return a, b


def row_by_row(y: Tensor, x: Tensor, indices: Sequence[int], widths: Sequence[int], scale: float) -> Tensor:
    """The definition: each row through its own adapter, -1 through none."""
    a, b = stacked(widths)
    expected = y.clone()
    for row, slot in enumerate(indices):
        if slot >= 0:
            parts = [b[i][slot, 0] @ (a[i][slot, 0] @ x[row]) for i in range(len(widths))]
            expected[row] += scale * torch.cat(parts)
    return expected


@settings(max_examples=80)
@given(
    st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=12), st.sampled_from([(5,), WIDTHS]), st.integers(0, 9)
)
def test_equals_the_product_row_by_row(indices: list[int], widths: tuple[int, ...], seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(len(indices), IN, generator=noise)
    y = torch.randn(len(indices), sum(widths), generator=noise)
    expected = row_by_row(y, x, indices, widths, 0.5)
    before = y.clone()
    a, b = stacked(widths)
    add_grouped(y, x, group_rows(torch.tensor(indices)), a, b, 0.5, widths)
    assert_close(y, expected)
    base = [row for row, slot in enumerate(indices) if slot == -1]
    assert torch.equal(y[base], before[base])


def test_groups_name_each_slot_once_and_one_slot_takes_all_rows() -> None:
    assert group_rows(torch.tensor([2, 2])).groups == ((2, None),)
    assert group_rows(torch.tensor([-1, -1])).groups == ()
    groups = group_rows(torch.tensor([1, -1, 0, 1])).groups
    assert [(slot, rows.tolist()) for slot, rows in groups if rows is not None] == [(0, [2]), (1, [0, 3])]


def test_an_adapters_few_rows_are_parted_from_anothers_many() -> None:
    rows = group_rows(torch.tensor([0, *[1] * (FEW_ROWS + 1), -1, 0]))
    assert [slot for slot, _ in rows.many] == [1]
    assert rows.few is not None
    assert rows.few.tolist() == [0, *[-1] * (FEW_ROWS + 2), 0]
    assert group_rows(torch.tensor([-1])).few is None
    assert group_rows(torch.zeros(FEW_ROWS + 1, dtype=torch.long)).few is None


@pytest.mark.parametrize("rank", range(1, 10))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_every_rank_and_type_with_few_rows_of_some_adapters_and_many_of_one(rank: int, dtype: torch.dtype) -> None:
    """Against the same product in float64; float16 is not the loop's."""
    noise = torch.Generator().manual_seed(rank)
    size, widths = 37, (21, 8)
    indices = [0, -1, 2, *[1] * (FEW_ROWS + 1), 0]
    a = tuple(torch.randn(SLOTS, 1, rank, size, generator=noise).to(dtype) for _ in widths)
    b = tuple(torch.randn(SLOTS, 1, width, rank, generator=noise).to(dtype) for width in widths)
    x = torch.randn(len(indices), size, generator=noise).to(dtype)
    y = torch.randn(len(indices), sum(widths), generator=noise).to(dtype)
    expected = y.double()
    for row, slot in enumerate(indices):
        if slot >= 0:
            parts = [b[i][slot, 0].double() @ (a[i][slot, 0].double() @ x[row].double()) for i in range(len(widths))]
            expected[row] += 0.5 * torch.cat(parts)
    add_grouped(y, x, group_rows(torch.tensor(indices)), a, b, 0.5, widths)
    assert y.dtype == dtype
    roundings = {torch.bfloat16: 0.02, torch.float32: 1e-5, torch.float16: 0.003}[dtype]
    torch.testing.assert_close(y.double(), expected, atol=roundings * float(expected.abs().max()), rtol=0)
    assert torch.equal(y[1].double(), expected[1])


def test_products_of_a_whole_window_are_of_few_sizes() -> None:
    """Each that oneDNN compiles takes milliseconds, and most of a megabyte for good."""
    assert all(padded(rows) == rows for rows in range(1, FEW_ROWS + 1))
    sizes = {rows: padded(rows) for rows in range(FEW_ROWS + 1, 4097)}
    assert len(set(sizes.values())) < 20
    assert all(rows <= size < max(rows + FEW_ROWS, 1.3 * rows) for rows, size in sizes.items())


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 128, 300, 513])
def test_rows_that_pad_a_size_add_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied: list[int] = []

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        multiplied.append(len(x))
        return torch.nn.functional.linear(x, weight)

    monkeypatch.setattr(cpu_lora, "linear", linear)
    noise = torch.Generator().manual_seed(rows)
    a, b = torch.randn(1, 1, 4, 8, generator=noise), torch.randn(1, 1, 6, 4, generator=noise)
    x, before = torch.randn(rows, 8, generator=noise), torch.randn(rows + 1, 6, generator=noise)
    y = before.clone()
    here = filled((a,), (b,), (6,))
    here.look_up(0)
    here.add(y[:rows], x, 0, 0.5)
    torch.testing.assert_close(y[:rows], before[:rows] + 0.5 * x @ a[0, 0].T @ b[0, 0].T)
    assert multiplied == [padded(rows)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_or_not_finite_stays_so(value: float) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        one = torch.ones(1, 1, 1, 1, dtype=dtype)
        x, y = torch.full((1, 1), value, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
        add_grouped(y, x, group_rows(torch.tensor([0])), (one,), (one,), 1.0, (1,))
        assert torch.equal(y, x) or (y.isnan().all() and x.isnan().all())


def test_rows_that_lie_apart_in_memory() -> None:
    x, y = torch.randn(3, 2 * IN), torch.randn(3, 9)
    indices, (a, b) = [1, -1, 0], stacked((5,))
    expected = row_by_row(y[:, :5], x[:, IN:], indices, (5,), 1.0)
    rest = y[:, 5:].clone()
    add_grouped(y[:, :5], x[:, IN:], group_rows(torch.tensor(indices)), a, b, 1.0, (5,))
    assert_close(y[:, :5], expected)
    assert torch.equal(y[:, 5:], rest)
    across = torch.randn(IN, 3).t()  # no row of it lies in one piece
    y = torch.zeros(3, 5)
    add_grouped(y, across, group_rows(torch.tensor(indices)), a, b, 1.0, (5,))
    assert_close(y, row_by_row(torch.zeros(3, 5), across, indices, (5,), 1.0))


def test_warming_up_compiles_every_type() -> None:
    warm_up()
    from server.engine.cpu_kernels import add_rows

    assert len(add_rows.signatures) == 2


# what is filled of a slot


def packed(rank: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Slot 1 filled to this rank in q and v, k empty; slot 2 empty."""
    a, b = stacked(WIDTHS)
    for part in (*a, *b):
        part[2] = 0
    a[1][1] = 0
    for part_a, part_b in zip(a, b, strict=True):
        part_a[1, 0, rank:] = 0
        part_b[1, 0, :, rank:] = 0
    b[1][1] = 0
    return a, b


def test_what_is_zero_is_left_out() -> None:
    a, b = packed(2)
    here = filled(a, b, WIDTHS)
    for slot in (1, 2):
        here.look_up(slot)
    assert here.table[1, :, 2].tolist() == [2, 0, 2]
    assert here.columns.tolist() == [[0, 5], [5, 3], [8, 3]]
    assert not here.table[2, :, 2].any()
    for rows in (3, FEW_ROWS + 1):  # in the loop, and as products
        x, y = torch.randn(rows, IN), torch.zeros(rows, sum(WIDTHS))
        add_grouped(y, x, group_rows(torch.full((rows,), 1)), a, b, 0.5, WIDTHS)
        products = [0.5 * x @ part_a[1, 0].T @ part_b[1, 0].T for part_a, part_b in zip(a, b, strict=True)]
        assert_close(y, torch.cat(products, dim=1))
        add_grouped(y, x, group_rows(torch.full((rows,), 2)), a, b, 0.5, WIDTHS)
        assert_close(y, torch.cat(products, dim=1))


def product(a: Sequence[Tensor], b: Sequence[Tensor], widths: tuple[int, ...]) -> Tensor:
    """Of ones, through slot 1."""
    y = torch.zeros(1, sum(widths))
    add_grouped(y, torch.ones(1, IN), group_rows(torch.tensor([1])), tuple(a), tuple(b), 1.0, widths)
    return y


def test_the_heads_one_tensor_is_forgotten_like_a_slice() -> None:
    a, b = stacked((5,))
    before = product(a, b, (5,))
    b[0][1] *= 2
    assert torch.equal(product(a, b, (5,)), before), "looked up once"
    forget([SimpleNamespace(lora_a_stacked=a[0])], 1)
    assert_close(product(a, b, (5,)), 2 * before)


def test_another_adapter_in_a_slot_is_seen_once_the_slot_is_forgotten() -> None:
    a, b = packed(2)
    before = product(a, b, WIDTHS)
    here = filled(a, b, WIDTHS)
    assert filled(a, b, WIDTHS) is here
    here.look_up(0)
    other = here.table[0].copy()
    whole_a, whole_b = stacked(WIDTHS, seed=1)
    for part, whole in zip((*a, *b), (*whole_a, *whole_b), strict=True):
        part[1] = whole[1]
    forget([SimpleNamespace(lora_a_stacked=a), SimpleNamespace()], 1)
    after = product(a, b, WIDTHS)
    assert_close(after, product(whole_a, whole_b, WIDTHS))
    assert not torch.allclose(after, before)
    assert (here.table[0] == other).all()


# inside vLLM


@pytest.fixture
def stock() -> Iterator[type[PunicaWrapperCPU]]:
    """vLLM's class as it came, and again after the test."""
    kept = {name: getattr(PunicaWrapperCPU, name) for name in ("update_metadata", "add_lora_linear", "add_lora_logits")}
    yield PunicaWrapperCPU
    for name, method in kept.items():
        setattr(PunicaWrapperCPU, name, method)


def through_vllm(indices: list[int], x: Tensor, y: Tensor, *, is_prefill: bool) -> Tensor:
    """One packed linear layer as vLLM's layers call it; adapter ids are slot + 1, and 0 is no adapter."""
    wrapper = PunicaWrapperCPU(max_num_batched_tokens=64, max_batches=16, device="cpu")
    ids = tuple(slot + 1 for slot in indices)
    mapping = LoRAMapping(index_mapping=ids, prompt_mapping=ids, is_prefill=is_prefill)
    wrapper.update_metadata(mapping, [1, 2, 3], SLOTS, 100)
    a, b = stacked(WIDTHS)
    result = y.clone()
    wrapper.add_lora_linear(result, x, a, b, 1.0, WIDTHS)
    return result


MIXED = [0, -1, 2, 0, -1]


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(3)
    return torch.randn(len(MIXED), IN, generator=noise), torch.randn(len(MIXED), sum(WIDTHS), generator=noise)


@pytest.mark.parametrize("is_prefill", [True, False])
def test_installed_rows_of_a_mixed_batch_get_their_own_adapter(
    stock: type[PunicaWrapperCPU], rows: tuple[Tensor, Tensor], is_prefill: bool
) -> None:
    x, y = rows
    install()
    assert_close(through_vllm(MIXED, x, y, is_prefill=is_prefill), row_by_row(y, x, MIXED, WIDTHS, 1.0))


def test_stock_vllm_gives_base_rows_somebodys_adapter_and_installed_it_does_not(
    stock: type[PunicaWrapperCPU], rows: tuple[Tensor, Tensor]
) -> None:
    x, y = rows
    before = through_vllm(MIXED, x, y, is_prefill=False)
    assert not torch.equal(before[[1, 4]], y[[1, 4]]), "vLLM has mended this: cpu_lora may not be needed any more"
    install()
    assert torch.equal(through_vllm(MIXED, x, y, is_prefill=False)[[1, 4]], y[[1, 4]])


def test_installing_twice_wraps_once(stock: type[PunicaWrapperCPU]) -> None:
    install()
    wrapped = stock.update_metadata
    install()
    assert stock.update_metadata is wrapped


def test_a_batch_after_another_uses_its_own_groups(stock: type[PunicaWrapperCPU], rows: tuple[Tensor, Tensor]) -> None:
    x, y = rows
    install()
    wrapper = PunicaWrapperCPU(max_num_batched_tokens=64, max_batches=16, device="cpu")
    a, b = stacked(WIDTHS)
    for indices in ([1] * 5, [-1] * 5, MIXED):
        ids = tuple(slot + 1 for slot in indices)
        wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill=False), [1, 2, 3], SLOTS, 100)
        result = y.clone()
        wrapper.add_lora_linear(result, x, a, b, 1.0, WIDTHS)
        assert_close(result, row_by_row(y, x, indices, WIDTHS, 1.0))


@pytest.mark.parametrize("vocabulary", [7, 5, 3])
def test_logits_of_a_mixed_batch_get_their_own_adapter(stock: type[PunicaWrapperCPU], vocabulary: int) -> None:
    """One row a sequence, not a token; model and adapter pad the vocabulary of 5 differently."""
    install()
    wrapper = PunicaWrapperCPU(max_num_batched_tokens=64, max_batches=16, device="cpu")
    tokens, sequences = (1, 1, 0, 3, 3, 3), (1, 0, 3)
    wrapper.update_metadata(LoRAMapping(tokens, sequences, is_prefill=True), [1, 2, 3], SLOTS, 100)
    a, b = stacked((5,))
    x, y = torch.randn(3, IN), torch.randn(3, vocabulary)
    expected = y.clone()
    width = min(vocabulary, 5)
    for row, slot in ((0, 0), (2, 2)):
        expected[row, :width] += 0.5 * (b[0][slot, 0] @ (a[0][slot, 0] @ x[row]))[:width]
    wrapper.add_lora_logits(y, x, a[0], b[0], 0.5)
    assert_close(y, expected)
    assert torch.equal(y[1], expected[1])
