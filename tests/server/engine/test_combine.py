"""Merges against PEFT itself, for adapters as they are published."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from loramem.records import MIN_DENSITY, TRIMS_AT_RANDOM, MergeMethod, Recipe, SignMethod, Source, merged_rank
from loramem.store import AdapterStore
from server.engine.combine import gains_of, is_elementwise, layout_of_merge, merge_into, trim_of
from server.engine.layout import Layout
from server.engine.pool import SourcePool
from server.engine.published import WHOLE, Part, Trim, as_tensor, random_mask
from tests.server.engine.peft_merges import (
    SHAPES,
    Adapter,
    adapter_of,
    merge_flat_of,
    merged_by_peft,
    merged_by_us,
    publish,
    published,
    recipe_of,
    values_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LIKE_PEFT: tuple[MergeMethod, ...] = ("linear", "ties", "cat", "dare_linear", "dare_ties")
PRODUCTS: tuple[MergeMethod, ...] = ("product_linear", "product_ties")
MIXES_RANKS = ("cat", *PRODUCTS)
WEIGHTS = st.sampled_from([1.0, 0.0, -0.0, -1.0]) | st.floats(-2, 3)
DENSITIES = st.sampled_from([0.001, 0.5, 1.0]) | st.floats(0.01, 1)
EXACT_DENSITIES = st.sampled_from([0.25, 0.5, 1.0])
"""DARE divides by them without rounding. Otherwise five numbers that cancel would leave a rest, whose sign is that of
the order in which they are added, and PEFT adds those at a tensor's end in another order than the others."""
SIGNS: st.SearchStrategy[SignMethod] = st.sampled_from(["total", "frequency"])


Case = tuple[Recipe, list[Adapter]]


SEEDS = st.integers(0, 10**6)
ALL_MODULES = st.just(sorted(SHAPES))
SOME_MODULES = st.permutations(sorted(SHAPES)).flatmap(lambda names: st.integers(1, 3).map(lambda n: names[:n]))
"""Adapters of different modules, in files of different order."""


@st.composite
def merges(draw: st.DrawFn, method: MergeMethod, modules: st.SearchStrategy[list[str]] = ALL_MODULES) -> Case:
    count = draw(st.integers(1, 5))
    rank, kind, seed = draw(st.integers(1, 64)), draw(st.sampled_from(["normal", "coarse", "wide"])), draw(SEEDS)
    mixed = method in MIXES_RANKS
    adapters = [
        adapter_of(
            values_of(kind, seed + i),
            draw(modules),
            draw(st.integers(1, 64)) if mixed else rank,
            draw(st.integers(1, 128)),
        )
        for i in range(count)
    ]
    weights = [draw(WEIGHTS) for _ in range(count)]
    density = draw(EXACT_DENSITIES if kind == "coarse" and method in TRIMS_AT_RANDOM else DENSITIES)
    return recipe_of(method, weights, density, draw(SIGNS), draw(SEEDS)), adapters


def expected_of(recipe: Recipe, adapters: list[Adapter]) -> dict[str, Tensor]:
    trim = Trim("random", recipe.density, recipe.seed)

    def draws(sha256: str, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(random_mask(sha256, name, shape, trim))

    return merged_by_peft(recipe, adapters, draws=draws)


def assert_equal_within_1e_6(recipe: Recipe, ours: dict[str, Tensor], adapters: list[Adapter]) -> None:
    """Factor by factor; of one adapter at weight 1, whose scaling is all on B, the products."""
    expected = expected_of(recipe, adapters)
    assert ours.keys() == expected.keys()
    if is_elementwise(recipe) and [source.weight for source in recipe.sources] == [1.0]:
        ours, expected = products_of(ours), products_of(expected)
    for name, tensor in expected.items():
        assert ours[name].shape == tensor.shape
        scale = max(1.0, float(tensor.abs().max()))
        assert float((ours[name] - tensor).abs().max()) <= 1e-6 * scale, name


def products_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensors[name.replace(".lora_A.", ".lora_B.")] @ tensor
        for name, tensor in tensors.items()
        if ".lora_A." in name
    }


@pytest.mark.parametrize("method", LIKE_PEFT)
@settings(max_examples=40)
@given(st.data())
def test_equals_peft_within_1e_6(method: MergeMethod, data: st.DataObject) -> None:
    recipe, adapters = data.draw(merges(method))
    assert_equal_within_1e_6(recipe, merged_by_us(recipe, adapters), adapters)


@pytest.mark.parametrize("method", LIKE_PEFT)
@settings(max_examples=20)
@given(st.data())
def test_equals_peft_for_adapters_of_different_modules(method: MergeMethod, data: st.DataObject) -> None:
    recipe, adapters = data.draw(merges(method, SOME_MODULES))
    assert_equal_within_1e_6(recipe, merged_by_us(recipe, adapters), adapters)


@pytest.mark.parametrize("method", LIKE_PEFT + PRODUCTS)
@settings(max_examples=10)
@given(st.data())
def test_a_bfloat16_merge_is_the_float32_one_rounded(method: MergeMethod, data: st.DataObject) -> None:
    recipe, adapters = data.draw(merges(method, SOME_MODULES))
    whole, _, _ = merge_flat_of(recipe, adapters, np.float32)
    half, _, _ = merge_flat_of(recipe, adapters, np.uint16)
    assert np.array_equal(half, rounded(whole))


@pytest.mark.parametrize("method", LIKE_PEFT + PRODUCTS)
@settings(max_examples=10)
@given(st.data())
def test_bfloat16_sources_merge_as_the_same_numbers_in_float32(method: MergeMethod, data: st.DataObject) -> None:
    recipe, adapters = data.draw(merges(method, SOME_MODULES))
    halves = [adapter.to(torch.bfloat16) for adapter in adapters]
    wholes = [adapter.to(torch.float32) for adapter in halves]
    for kind in (np.float32, np.uint16):
        from_halves, _, _ = merge_flat_of(recipe, halves, kind)
        from_wholes, _, _ = merge_flat_of(recipe, wholes, kind)
        assert np.array_equal(from_halves, from_wholes)


@settings(max_examples=10)
@given(merges("linear"), st.lists(st.booleans(), min_size=5, max_size=5))
def test_sources_of_both_types_merge_together(case: Case, are_halves: list[bool]) -> None:
    recipe, adapters = case
    mixed = [one.to(torch.bfloat16) if half else one for one, half in zip(adapters, are_halves, strict=False)]
    alike = [one.to(torch.float32) for one in mixed]
    assert_equal_within_1e_6(recipe, merged_by_us(recipe, mixed), alike)


def rounded(whole: NDArray[np.float32] | NDArray[np.uint16]) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = as_tensor(whole).to(torch.bfloat16).view(torch.uint16).numpy()
    return bits


# through files


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", LIKE_PEFT)
def test_the_pool_merges_published_adapters_as_peft_does(
    tmp_path: Path, method: MergeMethod, kind: torch.dtype
) -> None:
    store, pool = AdapterStore(tmp_path), SourcePool(tmp_path, 1 << 20)
    adapters = [replace(noise(8, seed), alpha=seed + 1).to(kind) for seed in range(3)]
    stored = [publish(store, f"a{i}", adapter) for i, adapter in enumerate(adapters)]
    sources = [
        Source(adapter_id=one.path, sha256=one.sha256, weight=weight)
        for one, weight in zip(stored, (0.75, -0.5, 1.5), strict=True)
    ]
    recipe = Recipe.of(method, sources, 0.4, "frequency", 5)
    merge = pool.open(recipe)
    out = np.empty(merge.layout.size, dtype=np.float32)
    pool.merge_into(merge, out)
    assert_equal_within_1e_6(recipe, merge.layout.views(as_tensor(out)), adapters)


# which ranks and layouts go together


@pytest.mark.parametrize(("method", "rank"), [("cat", 5), ("ties", 3), ("dare_linear", 3), ("product_ties", 3)])
def test_a_merge_of_mixed_ranks_has_a_rank_of_its_own(method: MergeMethod, rank: int) -> None:
    layouts = [published(noise(rank), source_of(0)).layout for rank in (2, 3)]
    layout, found = layout_of_merge(recipe_of(method, [1, 1]), layouts, [2, 3])
    assert found == rank == merged_rank(method, [2, 3])
    assert layout == published(noise(rank), source_of(0)).layout


def noise(rank: int, seed: int = 0) -> Adapter:
    return adapter_of(values_of("normal", seed), ["gate", "up"], rank, alpha=rank)


def source_of(index: int) -> Source:
    return recipe_of("linear", [1.0] * (index + 1)).sources[index]


# what each method does, by hand


def merged_by_hand(recipe: Recipe, rows: list[list[float]]) -> list[float]:
    """Merge adapters whose only tensor is one B with these entries; every scaling is 1."""
    layout = Layout(("x.lora_B.weight",), ((len(rows[0]), 1),))
    flats = [np.array(row, dtype=np.float32) for row in rows]
    parts = [Part(flat, layout, 1, 1.0, s.weight) for flat, s in zip(flats, recipe.sources, strict=True)]
    out = np.empty(layout.size, dtype=np.float32)
    merge_into(recipe, parts, layout, out)
    return [float(x) for x in out]


def test_an_election_ignores_weights_and_the_mean_ignores_the_outvoted() -> None:
    recipe = recipe_of("ties", [1.0, 4.0], density=1.0)
    assert merged_by_hand(recipe, [[3.0, 1.0], [-1.0, 1.0]]) == [3.0, 1.5]


def test_a_total_is_of_sizes_and_a_frequency_of_heads() -> None:
    rows = [[5.0], [-1.0], [-2.0]]
    assert merged_by_hand(recipe_of("ties", [1.0] * 3, 1.0, "total"), rows) == [5.0]
    assert merged_by_hand(recipe_of("ties", [1.0] * 3, 1.0, "frequency"), rows) == [-1.5]


def test_a_tie_goes_to_the_positive() -> None:
    for sign_method in ("total", "frequency"):
        recipe = recipe_of("ties", [1.0, 1.0], 1.0, sign_method)
        assert merged_by_hand(recipe, [[-2.0], [2.0]]) == [2.0]


def test_a_weights_sign_is_on_a_and_its_size_on_both_sides() -> None:
    assert gains_of([(-2.0, 2.0), (8.0, 2.0)]).tolist() == [[-2.0, 2.0], [4.0, 4.0]]


def test_one_adapter_at_weight_1_is_served_as_published() -> None:
    adapter = replace(noise(4), alpha=8).to(torch.bfloat16)
    merged, layout, _ = merge_flat_of(recipe_of("linear", [1.0]), [adapter], np.uint16)
    views = layout.views(as_tensor(merged))
    for name, tensor in adapter.tensors.items():
        assert torch.equal(views[name], tensor if ".lora_A." in name else 2 * tensor)


def test_cat_is_the_exact_weighted_sum_of_the_updates() -> None:
    adapters = [replace(noise(rank, seed), alpha=5) for seed, rank in enumerate((2, 7, 3))]
    weights = [0.5, -1.5, 2.0]
    merged = merged_by_us(recipe_of("cat", weights), adapters)
    a, b = ("base_model.model.gate.lora_A.weight", "base_model.model.gate.lora_B.weight")
    wanted = sum(
        (w * 5 / one.rank * (one.tensors[b] @ one.tensors[a]) for w, one in zip(weights, adapters, strict=True)),
        torch.zeros(33, 5),
    )
    assert torch.allclose(merged[b] @ merged[a], wanted, atol=1e-5)


@pytest.mark.parametrize("method", LIKE_PEFT + PRODUCTS)
def test_one_adapter_is_scaled_whatever_the_method(method: MergeMethod) -> None:
    adapter = replace(noise(4), alpha=8)
    merged = merged_by_us(recipe_of(method, [-1.5], density=0.1), [adapter])
    a, b = "base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"
    assert torch.allclose(merged[b] @ merged[a], -1.5 * 2 * adapter.tensors[b] @ adapter.tensors[a], atol=1e-5)


# what is left out before


def test_what_a_method_leaves_out() -> None:
    trims = {method: trim_of(recipe_of(method, [1, 1], 0.25, seed=9)) for method in LIKE_PEFT + PRODUCTS}
    assert trims["ties"] == Trim("magnitude", 0.25)
    assert trims["dare_ties"] == trims["dare_linear"] == Trim("random", 0.25, 9)
    assert {trims[method] for method in ("linear", "cat", *PRODUCTS)} == {WHOLE}


SHAPE = (100, 200)
DARE = Trim("random", 0.3, seed=1)


def test_a_draw_is_the_same_each_time() -> None:
    assert np.array_equal(random_mask("a", "x", SHAPE, DARE), random_mask("a", "x", SHAPE, DARE))


@pytest.mark.parametrize("other", [("b", "x", DARE), ("a", "y", DARE), ("a", "x", replace(DARE, seed=2))])
def test_a_draw_is_of_its_own_by_adapter_tensor_and_seed(other: tuple[str, str, Trim]) -> None:
    one, two = random_mask("a", "x", SHAPE, DARE), random_mask(other[0], other[1], SHAPE, other[2])
    together = float((one & two).mean())
    assert abs(together - 0.3 * 0.3) < 0.02  # independent: as often together as chance has it


@given(st.floats(0.01, 1), SEEDS)
@settings(max_examples=30)
def test_a_draw_keeps_about_the_density(density: float, seed: int) -> None:
    kept = random_mask("a", "x", SHAPE, Trim("random", density, seed)).mean()
    assert abs(kept - density) < 0.025  # seven standard deviations of 20000 draws


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_what_a_draw_keeps_is_scaled_by_one_over_the_density(kind: torch.dtype) -> None:
    adapter = noise(16).to(kind)
    opened = published(adapter, source_of(0))
    thinned = opened.layout.views(as_tensor(opened.flat(DARE)))
    for name, tensor in adapter.tensors.items():
        mask = torch.from_numpy(random_mask(opened.sha256, name, tuple(tensor.shape), DARE))
        assert 0 < mask.sum() < mask.numel()
        assert torch.equal(thinned[name], torch.where(mask, tensor.float() / 0.3, 0.0))


def test_the_least_density_leaves_finite_numbers() -> None:
    merged = merged_by_us(recipe_of("dare_ties", [1.0, 1.0], density=MIN_DENSITY), [noise(8), noise(8, 1)])
    assert all(bool(tensor.isfinite().all()) for tensor in merged.values())


def test_a_draw_does_not_depend_on_what_else_is_merged() -> None:
    adapters = [noise(16, seed) for seed in range(3)]
    alone = merged_by_us(recipe_of("dare_linear", [1.0, 0.0], 0.3, seed=3), adapters[:2])
    among = merged_by_us(recipe_of("dare_linear", [1.0, 0.0, 0.0], 0.3, seed=3), adapters)
    for name, tensor in alone.items():
        assert torch.equal(tensor, among[name])
        assert 0.1 < float((tensor != 0).float().mean()) < 0.5


def test_opening_an_adapter_trimmed_leaves_what_is_published_alone() -> None:
    opened = published(noise(8), source_of(0))
    before = opened.values.copy()
    for trim in (WHOLE, DARE, Trim("magnitude", 0.2), Trim("random", 1.0)):
        flat = opened.flat(trim)
        flat[:] = 0
    assert np.array_equal(opened.values, before)
