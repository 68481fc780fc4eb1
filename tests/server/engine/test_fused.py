"""The kernel that merges on a CPU, against the same arithmetic in plain NumPy, to the last bit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.engine import fused
from server.engine.fused import CODES, Elementwise, Flat, Gains, merge_flat, warm_up
from server.engine.layout import TILE, Layout
from server.engine.published import as_tensor

Floats = NDArray[np.float32]
METHODS: st.SearchStrategy[Elementwise] = st.sampled_from(sorted(CODES))
SIZES = st.sampled_from([1, TILE - 1, TILE, TILE + 1]) | st.integers(1, 40)
SMALLEST = np.float32(2**-149)
"""The smallest subnormal."""


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    warm_up()


@dataclass(frozen=True)
class Case:
    method: Elementwise
    sources: list[Floats]
    gains: Gains
    layout: Layout


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = draw(st.lists(SIZES, min_size=1, max_size=4))
    count = draw(st.integers(1, 8))
    noise = np.random.default_rng(draw(st.integers(0, 10**6)))
    layout = layout_of(sizes)
    sources = [values(noise, layout.size) for _ in range(count)]
    gains = noise.normal(size=(count, 2)).astype(np.float32)
    gains[noise.random((count, 2)) < 0.1] = 0
    return Case(draw(METHODS), sources, gains, layout)


def layout_of(sizes: Sequence[int]) -> Layout:
    """Tensors of these many entries, A and B by turns."""
    names = [f"model.{i}.lora_{'AB'[i % 2]}.weight" for i in range(len(sizes))]
    return Layout(tuple(names), tuple((size, 1) for size in sizes))


def values(noise: np.random.Generator, size: int) -> Floats:
    """Of every kind: zeros of both signs, subnormals, small multiples that cancel each other, and any others."""
    kinds = [
        np.zeros(size),
        np.full(size, -0.0),
        noise.integers(-3, 4, size) * float(SMALLEST),
        noise.integers(-2, 3, size) / 2,
        noise.normal(size=size),
        noise.normal(size=size) * 10.0 ** noise.integers(-30, 30, size),
    ]
    return np.choose(noise.integers(0, len(kinds), size), kinds).astype(np.float32)


def reference(case: Case) -> Floats:
    """PEFT's `ties` after its trim, or its weighted sum, in float32 and in the order of the sources."""
    by_entry = [
        np.repeat(gain[[i % 2 for i in range(len(case.layout.names))]], [s[0] for s in case.layout.shapes])
        for gain in case.gains
    ]
    votes = in_order([s if case.method == "ties_total" else np.sign(s) for s in case.sources])
    elected = np.where(votes >= 0, 1, -1)
    agree = [np.full(s.shape, True) if case.method == "sum" else np.sign(s) == elected for s in case.sources]
    kept = [
        np.where(agrees, source * gain, np.float32(0))
        for source, gain, agrees in zip(case.sources, by_entry, agree, strict=True)
    ]
    count = np.maximum(np.sum(agree, axis=0), 1).astype(np.float32)
    return in_order(kept) / (np.float32(1) if case.method == "sum" else count)


def in_order(rows: Sequence[Floats]) -> Floats:
    total = np.zeros_like(rows[0])
    for row in rows:
        total = total + row
    return total


def merged(case: Case, sources: Sequence[Flat], kind: type[np.generic] = np.float32) -> Flat:
    out: Flat = np.full(case.layout.size, 77, dtype=kind)
    merge_flat(case.method, sources, case.gains, case.layout.tiles, out)
    return out


@settings(max_examples=80)
@given(cases())
def test_equals_plain_arithmetic_to_the_last_bit(case: Case) -> None:
    assert np.array_equal(merged(case, case.sources), reference(case))


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("method", sorted(CODES))
def test_every_method_and_number_of_sources_at_every_edge_of_a_tile(method: Elementwise, count: int) -> None:
    noise = np.random.default_rng(count)
    layout = layout_of([1, TILE - 1, TILE, TILE + 1, 2 * TILE, 7])
    sources = [values(noise, layout.size) for _ in range(count)]
    case = Case(method, sources, noise.normal(size=(count, 2)).astype(np.float32), layout)
    assert np.array_equal(merged(case, sources), reference(case))
    assert np.array_equal(merged(case, [bits_of(source) for source in sources], np.uint16), bits_of(halved(case)))


def halved(case: Case) -> Floats:
    """The reference from the sources as bfloat16."""
    return reference(replace(case, sources=[as_tensor(bits_of(source)).float().numpy() for source in case.sources]))


@settings(max_examples=40)
@given(cases())
def test_bfloat16_is_written_as_torch_rounds_it(case: Case) -> None:
    assert np.array_equal(merged(case, case.sources, np.uint16), bits_of(merged(case, case.sources)))


@settings(max_examples=40)
@given(cases(), st.lists(st.booleans(), min_size=8, max_size=8))
def test_bfloat16_is_read_as_the_numbers_that_it_is(case: Case, are_halves: list[bool]) -> None:
    halves = [bits_of(source) for source in case.sources]
    wholes = [as_tensor(half).float().numpy() for half in halves]
    mixed: list[Flat] = [h if half else w for h, w, half in zip(halves, wholes, are_halves, strict=False)]
    assert np.array_equal(merged(case, mixed), merged(case, wholes))


def bits_of(whole: Flat) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = torch.from_numpy(whole).to(torch.bfloat16).view(torch.uint16).numpy()
    return bits


@cache
def long_case() -> Case:
    """Enough tiles for several threads, most of them small."""
    noise = np.random.default_rng(3)
    layout = layout_of([int(size) for size in noise.integers(1, 9, 700)])
    sources = [values(noise, layout.size) for _ in range(3)]
    return Case("ties_total", sources, noise.normal(size=(3, 2)).astype(np.float32), layout)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_several_threads_write_what_one_does(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    case = long_case()
    monkeypatch.setattr(fused, "_thread_count", lambda: 1)
    alone = merged(case, case.sources)
    monkeypatch.setattr(fused, "_thread_count", lambda: threads)
    assert len(fused._shares(len(case.layout.tiles))) == threads
    assert np.array_equal(merged(case, case.sources), alone)
    assert np.array_equal(alone, reference(case))


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("tiles", [0, 1, 127, 128, 1000, 1001])
def test_shares_follow_one_another_to_the_last_tile(monkeypatch: pytest.MonkeyPatch, threads: int, tiles: int) -> None:
    monkeypatch.setattr(fused, "_thread_count", lambda: threads)
    shares = fused._shares(tiles)
    assert 1 <= len(shares) <= threads
    assert [number for first, last in shares for number in range(first, last)] == list(range(tiles))


# by hand


def by_hand(method: Elementwise, rows: list[list[float]], gains: list[float] | None = None) -> list[float]:
    scales = np.array([[gain, gain] for gain in gains or [1.0] * len(rows)], dtype=np.float32)
    sources = [np.array(row, dtype=np.float32) for row in rows]
    return [float(x) for x in merged(Case(method, sources, scales, layout_of([len(rows[0])])), sources)]


@pytest.mark.parametrize("method", ["ties_total", "ties_frequency"])
def test_a_tie_elects_the_positive(method: Elementwise) -> None:
    assert by_hand(method, [[-2.0, 2.0], [2.0, -2.0]]) == [2.0, 2.0]


@pytest.mark.parametrize("method", ["ties_total", "ties_frequency"])
def test_zeros_of_either_sign_are_neither_heard_nor_counted(method: Elementwise) -> None:
    assert by_hand(method, [[-0.0, 0.0], [-4.0, 4.0], [0.0, -0.0]]) == [-4.0, 4.0]
    assert by_hand(method, [[-0.0, 0.0], [0.0, 0.0]]) == [0.0, 0.0]


def test_the_smallest_numbers_are_heard() -> None:
    tiny = float(SMALLEST)
    assert by_hand("ties_total", [[-tiny], [-tiny], [tiny]], [1.0, 3.0, 1.0]) == [-2 * tiny]
    assert by_hand("sum", [[tiny], [tiny]]) == [2 * tiny]


def test_votes_are_not_scaled_but_the_mean_is() -> None:
    assert by_hand("ties_total", [[3.0], [-1.0]], [1.0, 100.0]) == [3.0]
    assert by_hand("ties_total", [[3.0], [1.0]], [-1.0, 5.0]) == [1.0]


def test_each_side_has_gains_of_its_own() -> None:
    case = Case("sum", [np.ones(4, np.float32)], np.array([[2.0, 3.0]], np.float32), layout_of([1, 2, 1]))
    assert merged(case, case.sources).tolist() == [2.0, 3.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("number", "rounded"),
    [
        (1 + 2**-8, 0x3F80),  # half way: to the even one
        (1 + 3 * 2**-8, 0x3F82),
        (1 + 2**-8 + 2**-20, 0x3F81),
        (-0.0, 0x0000),  # adding to zero makes it positive
        (2.0**-133, 0x0001),
        (3.4e38, 0x7F80),  # above the largest bfloat16: infinity
    ],
)
def test_rounding_by_hand(number: float, rounded: int) -> None:
    case = Case("sum", [np.array([number], np.float32)], np.ones((1, 2), np.float32), layout_of([1]))
    assert merged(case, case.sources, np.uint16).tolist() == [rounded]
