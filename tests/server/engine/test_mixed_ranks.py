"""Merges of adapters of different ranks, against PEFT's merges of the same adapters filled up with zeros.

PEFT trims what it is given, zeros included, so for TIES it is given what its own trim left of each adapter as it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.merge_utils import magnitude_based_pruning
from torch import Tensor

from loramem.records import TRIMS_AT_RANDOM, MergeMethod, Recipe, SignMethod
from server.engine.published import Trim, random_mask
from tests.server.engine.peft_merges import (
    SHAPES,
    Adapter,
    adapter_of,
    merge_flat_of,
    merged_by_peft,
    merged_by_us,
    padded,
    recipe_of,
    values_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ELEMENTWISE: tuple[MergeMethod, ...] = ("linear", "ties", "dare_linear", "dare_ties")
DOUBLED, TRIPLED = (1, 2, 4, 8, 16, 32, 64), (1, 3, 6, 12, 24, 48)
"""Each divides those after it, so that alpha stays a whole number when the rank grows and alpha / rank must not."""
MODULES = st.permutations(sorted(SHAPES)).flatmap(lambda names: st.integers(1, 3).map(lambda n: names[:n]))
A, B = "base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"
Case = tuple[Recipe, list[Adapter]]


@st.composite
def mixed_merges(draw: st.DrawFn, method: MergeMethod, modules: st.SearchStrategy[list[str]]) -> Case:
    """Two to five adapters, not all of one rank."""
    ranks = st.sampled_from(draw(st.sampled_from([DOUBLED, TRIPLED])))
    chosen = draw(st.lists(ranks, min_size=2, max_size=5).filter(lambda some: len(set(some)) > 1))
    kind, seed = draw(st.sampled_from(["normal", "coarse", "wide"])), draw(st.integers(0, 10**6))
    adapters = [
        adapter_of(values_of(kind, seed + i), draw(modules), rank, draw(st.integers(1, 128)))
        for i, rank in enumerate(chosen)
    ]
    exact = kind == "coarse" and method in TRIMS_AT_RANDOM  # see test_combine.py
    density = draw(st.sampled_from([0.25, 0.5, 1.0]) if exact else st.floats(0.01, 1))
    weights = [draw(st.sampled_from([1.0, 0.0, -1.0]) | st.floats(-2, 3)) for _ in chosen]
    sign_method: SignMethod = draw(st.sampled_from(["total", "frequency"]))
    return recipe_of(method, weights, density, sign_method, draw(st.integers(0, 10**6))), adapters


def expected_of(recipe: Recipe, adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    rank = max(adapter.rank for adapter in adapters)
    if recipe.method == "ties":
        adapters = [_trimmed(adapter, recipe.density) for adapter in adapters]
        recipe = recipe.model_copy(update={"density": 1.0})
    return merged_by_peft(recipe, [padded(one, rank) for one in adapters], draws=_own_draws(recipe, adapters))


def _trimmed(adapter: Adapter, density: float) -> Adapter:
    kept = {name: magnitude_based_pruning(tensor, density) for name, tensor in adapter.tensors.items()}
    return replace(adapter, tensors=kept)


def _own_draws(recipe: Recipe, adapters: Sequence[Adapter]) -> Callable[[str, str, tuple[int, ...]], Tensor]:
    """DARE's masks as they are for each adapter at its own rank; of the zeros that were added nothing is kept."""
    trim = Trim("random", recipe.density, recipe.seed)
    tensors = {one.sha256: adapter.tensors for one, adapter in zip(recipe.sources, adapters, strict=True)}

    def draws(sha256: str, name: str, shape: tuple[int, ...]) -> Tensor:
        own = tuple(tensors[sha256][name].shape)
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[: own[0], : own[1]] = torch.from_numpy(random_mask(sha256, name, own, trim))
        return mask

    return draws


def assert_equal_within_1e_6(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].shape == tensor.shape
        scale = max(1.0, float(tensor.abs().max()))
        assert float((ours[name] - tensor).abs().max()) <= 1e-6 * scale, name


@pytest.mark.parametrize("method", ELEMENTWISE)
@settings(max_examples=30)
@given(st.data())
def test_equals_peft_of_the_adapters_filled_up_with_zeros(method: MergeMethod, data: st.DataObject) -> None:
    recipe, adapters = data.draw(mixed_merges(method, st.just(sorted(SHAPES)) | MODULES))
    assert_equal_within_1e_6(merged_by_us(recipe, adapters), expected_of(recipe, adapters))


@pytest.mark.parametrize("ranks", [(8, 16), (16, 8), (8, 32, 16)])
@pytest.mark.parametrize("sign_method", ["total", "frequency"])
@pytest.mark.parametrize("method", ELEMENTWISE)
def test_of_two_and_of_three_ranks(method: MergeMethod, sign_method: SignMethod, ranks: tuple[int, ...]) -> None:
    adapters = [noise(rank, seed, alpha=5 * seed + 3) for seed, rank in enumerate(ranks)]
    recipe = recipe_of(method, [0.75, -0.5, 1.5][: len(ranks)], 0.4, sign_method, seed=3)
    out, layout, rank = merge_flat_of(recipe, adapters, np.float32)
    assert rank == max(ranks)
    assert layout.size == len(out)
    assert_equal_within_1e_6(merged_by_us(recipe, adapters), expected_of(recipe, adapters))


@pytest.mark.parametrize("method", ELEMENTWISE)
@settings(max_examples=10)
@given(st.data())
def test_a_bfloat16_merge_is_the_float32_one_rounded(method: MergeMethod, data: st.DataObject) -> None:
    recipe, adapters = data.draw(mixed_merges(method, MODULES))
    halves = [adapter.to(torch.bfloat16) for adapter in adapters]
    whole, _, _ = merge_flat_of(recipe, halves, np.float32)
    half, _, _ = merge_flat_of(recipe, halves, np.uint16)
    assert np.array_equal(half, torch.from_numpy(whole).to(torch.bfloat16).view(torch.uint16).numpy())


@pytest.mark.parametrize("method", ELEMENTWISE)
def test_zeros_leave_the_product_of_a_source_as_it_was(method: MergeMethod) -> None:
    """Beside an adapter that says nothing, and neither outvotes nor thins a mean."""
    adapter, nothing = noise(8, 1, alpha=24), adapter_of(torch.zeros, ["up"], 16, 16)
    merged = merged_by_us(recipe_of(method, [0.5, 1.0], density=1.0), [adapter, nothing])
    assert merged[A].shape[0] == 16
    update = 0.5 * 3 * adapter.tensors[B] @ adapter.tensors[A]
    torch.testing.assert_close(merged[B] @ merged[A], update, atol=1e-5, rtol=1e-5)


def test_what_is_trimmed_is_a_share_of_the_sources_own_entries() -> None:
    adapter, nothing = noise(8, 1, alpha=8), adapter_of(torch.zeros, ["up"], 64, 64)
    merged = merged_by_us(recipe_of("ties", [1.0, 1.0], density=0.25), [adapter, nothing])
    for name in (A, B):
        assert int((merged[name] != 0).sum()) == adapter.tensors[name].numel() // 4


@pytest.mark.parametrize("rank", [4, 16, 64])
def test_what_is_dropped_does_not_depend_on_the_ranks_of_the_others(rank: int) -> None:
    recipe = recipe_of("dare_linear", [1.0, 0.0], density=0.3, seed=3)
    alone = merged_by_us(recipe, [noise(8, 1), noise(8, 2)])
    beside = merged_by_us(recipe, [noise(8, 1), noise(rank, 2)])
    assert torch.equal(beside[A][:8], alone[A])
    assert torch.equal(beside[B][:, :8], alone[B])
    assert not beside[A][8:].any()
    assert not beside[B][:, 8:].any()
    assert 0.1 < float((alone[A] != 0).float().mean()) < 0.5


def noise(rank: int, seed: int, alpha: int = 16) -> Adapter:
    return adapter_of(values_of("normal", seed), ["up"], rank, alpha)
