"""Merges on the product B A: against the best approximation in float64, against PEFT, and against themselves."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, magnitude_based_pruning
from torch import Tensor

from loramem.records import MergeMethod, Recipe, SignMethod
from server.engine.product import merge_product
from tests.server.engine.peft_merges import Adapter, adapter_of, merged_by_peft, merged_by_us, recipe_of

pytestmark = pytest.mark.usefixtures("one_thread")

Factors = tuple[Tensor, Tensor]
Floats = NDArray[np.float64]
METHODS: tuple[MergeMethod, ...] = ("product_linear", "product_ties")
TOLERANCE = 2e-6
"""Of a float32 merge, for each unit of the sizes of all factors together; some twenty times its rounding unit."""


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[Factors], list[float]]:
    """B (out, r) and A (r, in) of one to five sources with any ranks, also above `out` and `in`; and their weights."""
    width_out, width_in, seed = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(0, 10**6))
    ranks = draw(st.lists(st.integers(1, 24), min_size=1, max_size=5))
    noise = torch.Generator().manual_seed(seed)
    factors = [(randn(noise, width_out, rank), randn(noise, rank, width_in)) for rank in ranks]
    return factors, [draw(WEIGHTS) for _ in ranks]


WEIGHTS = st.sampled_from([1.0, 0.0, -1.0]) | st.floats(-2, 3)


def randn(noise: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=noise)


def some(ranks: Sequence[int], width_out: int = 16, width_in: int = 20, seed: int = 0) -> list[Factors]:
    noise = torch.Generator().manual_seed(seed)
    return [(randn(noise, width_out, rank), randn(noise, rank, width_in)) for rank in ranks]


def merged(recipe: Recipe, factors: Sequence[Factors], rank: int | None = None) -> Floats:
    """The product of the merge; the rank is that of the greatest source."""
    rank = rank or max(a.shape[0] for _, a in factors)
    b, a = merge_product(recipe, factors, [source.weight for source in recipe.sources], rank)
    assert b.shape == (factors[0][0].shape[0], rank)
    assert a.shape == (rank, factors[0][1].shape[1])
    return product((b, a))


def recipe_for(
    method: MergeMethod, weights: Sequence[float], density: float = 1.0, sign: SignMethod = "total"
) -> Recipe:
    """Also for one source, which a query's recipe would scale without asking the method."""
    return recipe_of("linear", weights).model_copy(update={"method": method, "density": density, "sign_method": sign})


def product(factors: Factors) -> Floats:
    found: Floats = (factors[0].double() @ factors[1].double()).numpy()
    return found


def total_of(factors: Sequence[Factors], weights: Sequence[float]) -> Floats:
    total: Floats = np.sum([w * product(one) for w, one in zip(weights, factors, strict=True)], axis=0)
    return total


def allowed(factors: Sequence[Factors], weights: Sequence[float]) -> float:
    """By how much float32 may be off: the sum may be small where the summands are not."""
    sizes = [float(b.norm() * a.norm()) for b, a in factors]
    return TOLERANCE * sum(max(abs(w), 1) * size for w, size in zip(weights, sizes, strict=True))


def best(matrix: Floats, rank: int) -> Floats:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    cut: Floats = (u[:, :rank] * s[:rank]) @ v[:rank]
    return cut


def distance(one: Floats, two: Floats) -> float:
    return float(np.linalg.norm(one - two))


# product_linear


@settings(max_examples=100)
@given(sources())
def test_no_approximation_of_the_weighted_sum_is_closer(case: tuple[list[Factors], list[float]]) -> None:
    factors, weights = case
    wanted, rank = total_of(factors, weights), max(a.shape[0] for _, a in factors)
    found = merged(recipe_for("product_linear", weights), factors)
    assert distance(found, wanted) <= distance(best(wanted, rank), wanted) + allowed(factors, weights)


@settings(max_examples=100)
@given(sources())
def test_equals_the_best_approximation_where_there_is_one(case: tuple[list[Factors], list[float]]) -> None:
    factors, weights = case
    wanted, rank = total_of(factors, weights), max(a.shape[0] for _, a in factors)
    found = merged(recipe_for("product_linear", weights), factors)
    assert distance(found, best(wanted, rank)) <= 2 * allowed(factors, weights) * unsteadiness(wanted, rank)


def unsteadiness(matrix: Floats, rank: int) -> float:
    """How much a cut to `rank` magnifies an error (Feppon and Lermusiaux 2018); two equal values have no best cut."""
    values = np.append(np.linalg.svd(matrix, compute_uv=False), np.zeros(rank + 1))
    if values[rank] <= 1e-9 * values[0]:
        return 1.0  # nothing is cut off
    gap = values[rank - 1] - values[rank]
    assume(gap > 1e-3 * values[0])
    return float(values[rank - 1] / gap)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(0, 10**6), st.data())
def test_equals_pefts_svd_merge(ranks: list[int], seed: int, data: st.DataObject) -> None:
    """Up to the smaller dimension: PEFT fails above it."""
    noise = torch.Generator().manual_seed(seed)
    alphas = [data.draw(st.integers(1, 2 * rank)) for rank in ranks]
    adapters = [
        adapter_of(lambda shape: randn(noise, *shape), ["down", "up"], rank, alpha)
        for rank, alpha in zip(ranks, alphas, strict=True)
    ]
    weights = [data.draw(WEIGHTS) for _ in ranks]
    recipe = recipe_of("product_linear", weights)
    ours, theirs = merged_by_us(recipe, adapters), merged_by_peft(recipe, adapters, combination_type="svd")
    assert ours.keys() == theirs.keys()
    for module in ("down", "up"):
        factors = [factors_of(one, module) for one in adapters]
        margin = 4 * allowed(factors, weights) * unsteadiness(total_of(factors, weights), max(ranks))
        assert distance(product(pair(ours, module)), product(pair(theirs, module))) <= margin


def pair(tensors: dict[str, Tensor], module: str) -> Factors:
    name = f"base_model.model.{module}.lora_B.weight"
    return tensors[name], tensors[name.replace("lora_B", "lora_A")]


def factors_of(adapter: Adapter, module: str) -> Factors:
    b, a = pair(dict(adapter.tensors), module)
    return b * (adapter.alpha / adapter.rank), a


def test_the_weights_scale_and_turn_the_updates() -> None:
    factors = some([3, 3])
    only_first = merged(recipe_for("product_linear", [-2.5, 0.0]), factors)
    assert distance(only_first, -2.5 * product(factors[0])) <= allowed(factors, [2.5, 0])


def test_updates_that_cancel_leave_nothing() -> None:
    factors = some([4]) * 2
    assert distance(merged(recipe_for("product_linear", [1.0, -1.0]), factors), np.zeros((16, 20))) <= allowed(
        factors, [1, 1]
    )


# product_ties


@pytest.mark.parametrize("ranks", [[4, 4], [2, 8, 3], [1, 1], [9, 2, 6, 5]])
@pytest.mark.parametrize("sign_method", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
def test_product_ties_is_ties_along_the_axes_of_the_whole_updates(
    ranks: list[int], sign_method: SignMethod, density: float
) -> None:
    """Few cases and always the same, because a trim jumps where two entries are equal."""
    factors, weights = some(ranks, seed=sum(ranks)), [1.0, -0.5, 2.0, 0.75][: len(ranks)]
    found = merged(recipe_for("product_ties", weights, density, sign_method), factors)
    wanted = best(ties_on_axes(factors, weights, density, sign_method), max(ranks))
    assert distance(found, wanted) <= 20 * allowed(factors, weights)
    assert np.linalg.norm(wanted) > 1


def ties_on_axes(
    factors: Sequence[Factors], weights: Sequence[float], density: float, sign_method: SignMethod
) -> Floats:
    """From the whole matrices in float64, with PEFT's steps, on axes that point to where each entry's total is."""
    updates = [product(one) for one in factors]
    together = sum(a.shape[0] for _, a in factors)
    u = np.linalg.svd(np.hstack(updates))[0][:, :together]
    v = np.linalg.svd(np.vstack(updates))[2][:together]
    cores = torch.stack([magnitude_based_pruning(torch.from_numpy(u.T @ d @ v.T), density) for d in updates])
    turn = torch.where(cores.sum(dim=0) < 0, -1, 1)
    agree = calculate_majority_sign_mask(cores * turn, sign_method)
    scaled = cores * torch.tensor(weights, dtype=torch.float64).view(-1, 1, 1)
    back: Floats = u @ disjoint_merge(scaled, agree).numpy() @ v
    return back


@pytest.mark.parametrize("density", [0.25, 0.5, 1.0])
@settings(max_examples=20)
@given(rank=st.integers(4, 20), weight=WEIGHTS, seed=st.integers(0, 10**6))
def test_one_adapter_keeps_its_product(density: float, rank: int, weight: float, seed: int) -> None:
    """Along its own axes it is diagonal, so that a trim to a share of 1 / rank or more takes nothing."""
    factors = some([rank], 24, 30, seed)
    found = merged(recipe_for("product_ties", [weight], density), factors)
    assert distance(found, weight * product(factors[0])) <= allowed(factors, [weight])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_identical_adapters_merge_to_themselves(method: MergeMethod, count: int) -> None:
    factors = some([4]) * count
    weights = [1 / count if method == "product_linear" else 1.0] * count
    found = merged(recipe_for(method, weights, density=0.5), factors)
    assert distance(found, product(factors[0])) <= allowed(factors, weights)


@pytest.mark.parametrize("sign_method", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_only_the_products_matter_not_how_they_are_factored(
    method: MergeMethod, density: float, sign_method: SignMethod, count: int
) -> None:
    factors, weights = some([3, 5, 2, 5][:count], seed=count), [1.0, 0.5, -2.0, 1.5][:count]
    noise = torch.Generator().manual_seed(count)
    other = [refactored(noise, one) for one in factors]
    assert not any(torch.allclose(a, changed, atol=0.1) for (_, a), (_, changed) in zip(factors, other, strict=True))
    recipe = recipe_for(method, weights, density, sign_method)
    assert distance(merged(recipe, factors), merged(recipe, other)) <= 20 * allowed(factors + other, weights * 2)


@pytest.mark.parametrize("sign_method", ["total", "frequency"])
def test_an_even_vote_does_not_depend_on_where_the_axes_point(sign_method: SignMethod) -> None:
    """Turned about, everything is: the larger of two that disagree wins, whatever its sign."""
    factors = [(torch.tensor([[x], [0.0]]), torch.tensor([[1.0, 0.0]])) for x in (2.0, -5.0)]
    for turn in (1, -1):
        turned = [(turn * b, a) for b, a in factors]
        found = merged(recipe_for("product_ties", [1.0, 1.0], sign=sign_method), turned)
        assert found[0, 0] == pytest.approx(-5 * turn)


def refactored(noise: torch.Generator, factors: Factors) -> Factors:
    """(B R, R^-1 A) for a random R that is easy to invert."""
    rank = factors[1].shape[0]
    turn = torch.linalg.qr(randn(noise, rank, rank).double())[0] * torch.linspace(0.5, 2, rank).double()
    return (factors[0].double() @ turn).float(), (torch.linalg.inv(turn) @ factors[1].double()).float()


def test_adapters_that_have_nothing_in_common_are_all_kept() -> None:
    """Each in rows and columns of its own: nobody outvotes anybody, and nothing is averaged away."""
    factors = []
    for i, (b, a) in enumerate(some([2, 2], 4, 5)):
        wide_b, wide_a = torch.zeros(8, 2), torch.zeros(2, 10)
        wide_b[4 * i : 4 * i + 4], wide_a[:, 5 * i : 5 * i + 5] = b, a
        factors.append((wide_b, wide_a))
    found = merged(recipe_for("product_ties", [1.0, 1.0]), factors, rank=4)
    assert distance(found, total_of(factors, [1, 1])) <= 20 * allowed(factors, [1, 1])


def test_a_total_is_of_sizes_and_a_frequency_of_heads() -> None:
    """On one axis: +5 against -1 and -2."""
    factors = [(torch.tensor([[x], [0.0]]), torch.tensor([[1.0, 0.0]])) for x in (5.0, -1.0, -2.0)]
    by_size = merged(recipe_for("product_ties", [1.0] * 3), factors)
    by_heads = merged(recipe_for("product_ties", [1.0] * 3, sign="frequency"), factors)
    assert by_size[0, 0] == pytest.approx(5)
    assert by_heads[0, 0] == pytest.approx(-1.5)


def test_a_smaller_density_leaves_more_out() -> None:
    factors = some([6, 6])
    sizes = [
        float(np.linalg.norm(merged(recipe_for("product_ties", [1.0, 1.0], density), factors, rank=12)))
        for density in (0.02, 0.1, 1.0)
    ]
    assert 0 < sizes[0] < 0.9 * sizes[1]
    whole, trimmed = (merged(recipe_for("product_ties", [1.0, 1.0], density), factors) for density in (1.0, 0.1))
    assert distance(whole, trimmed) > 0.05 * np.linalg.norm(whole)


def test_a_density_of_less_than_one_entry_leaves_nothing() -> None:
    assert not merged(recipe_for("product_ties", [1.0, 1.0], 0.001), some([2, 2])).any()


# both


@pytest.mark.parametrize("method", METHODS)
def test_a_rank_above_both_dimensions_ends_in_zeros(method: MergeMethod) -> None:
    factors = some([7, 9], width_out=3, width_in=5)
    b, a = merge_product(recipe_for(method, [1.0, 1.0]), factors, [1.0, 1.0], 9)
    assert b.shape == (3, 9)
    assert a.shape == (9, 5)
    assert b[:, :3].any()
    assert not b[:, 3:].any()
    assert not a[3:].any()


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_zeros_changes_no_vote_and_no_sum(method: MergeMethod) -> None:
    factors = some([4])
    zeros = (torch.zeros(16, 2), torch.zeros(2, 20))
    found = merged(recipe_for(method, [1.5, 1.0]), [*factors, zeros])
    assert distance(found, 1.5 * product(factors[0])) <= allowed(factors, [1.5])


@pytest.mark.parametrize("method", METHODS)
def test_both_factors_are_of_one_size(method: MergeMethod) -> None:
    """So that rounding to bfloat16 costs neither more than the other."""
    b, a = merge_product(recipe_for(method, [3.0, 1.0]), some([4, 4]), [3.0, 1.0], 4)
    assert torch.allclose(b.norm(dim=0), a.norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_module_of_one_adapter_merges_alone(method: MergeMethod) -> None:
    noise = torch.Generator().manual_seed(4)
    adapters = [
        adapter_of(lambda shape: randn(noise, *shape), modules, rank, alpha=5)
        for modules, rank in ((["gate", "up"], 4), (["down", "gate"], 6))
    ]
    recipe = recipe_of(method, [1.5, -1.0], density=1.0)
    ours = merged_by_us(recipe, adapters)
    for module, adapter, weight in (("up", adapters[0], 1.5), ("down", adapters[1], -1.0)):
        factors = factors_of(adapter, module)
        assert pair(ours, module)[1].shape[0] == 6
        assert distance(product(pair(ours, module)), weight * product(factors)) <= allowed([factors], [weight])


@pytest.mark.parametrize("method", METHODS)
def test_alpha_over_rank_is_in_the_product(method: MergeMethod) -> None:
    noise = torch.Generator().manual_seed(5)
    adapters = [adapter_of(lambda shape: randn(noise, *shape), ["up"], 4, alpha=4) for _ in range(2)]
    threefold = [replace(one, alpha=12) for one in adapters]
    recipe = recipe_of(method, [1.0, 0.5], density=0.5)
    once, thrice = (product(pair(merged_by_us(recipe, them), "up")) for them in (adapters, threefold))
    assert distance(3 * once, thrice) <= 1e-4 * np.linalg.norm(thrice)
