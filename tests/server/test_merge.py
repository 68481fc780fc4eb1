"""Recipes, weights, ranks and ids: what the engine is asked to load."""

import asyncio
import itertools
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramem.errors import InvalidValue, MemoryNotReady, StoredDataDamaged
from loramem.records import MergeMethod, Recipe
from server.ask import MergeOptions, Prepared, RoutedAdapter
from server.merge import AdapterIds, Merger, recipe_of
from tests.server.scripted_engine import ScriptedEngine

METHODS: tuple[MergeMethod, ...] = get_args(MergeMethod)


def routed(*weights: float, ranks: tuple[int, ...] = ()) -> list[RoutedAdapter]:
    return [
        RoutedAdapter(f"ada_{i}", f"{i}" * 64, rank, f"doc_{i}", "A title", 0, 0.9 - i / 10, weight)
        for i, (weight, rank) in enumerate(zip(weights, ranks or (16,) * len(weights), strict=True))
    ]


def weights(recipe: Recipe) -> list[float]:
    return [source.weight for source in recipe.sources]


@pytest.fixture
def engine() -> ScriptedEngine:
    made = ScriptedEngine(tokenizer=None)
    asyncio.run(made.start())
    return made


async def held(
    merger: Merger, adapters: list[RoutedAdapter], options: MergeOptions | None = None, *, waits: bool = True
) -> Prepared:
    async with merger.held(adapters, options or MergeOptions(), waits=waits) as opened:
        return await opened.prepared


@pytest.fixture
def prepare(engine: ScriptedEngine) -> Callable[..., Prepared]:
    merger = Merger(engine, max_rank=64)

    def run(adapters: list[RoutedAdapter], options: MergeOptions | None = None) -> Prepared:
        return asyncio.run(held(merger, adapters, options))

    return run


# recipes


@given(st.permutations(routed(0.5, 0.25, 0.25)), st.sampled_from(METHODS), st.sampled_from(["uniform", "router"]))
def test_the_order_of_a_route_does_not_matter(
    adapters: list[RoutedAdapter], method: MergeMethod, weighting: str
) -> None:
    options = MergeOptions(method=method, weights=weighting)  # type: ignore[arg-type]
    recipe, sorted_one = recipe_of(adapters, options, 64), recipe_of(routed(0.5, 0.25, 0.25), options, 64)
    assert recipe.canonical() == sorted_one.canonical()
    assert recipe.digest() == sorted_one.digest()


def test_recipes_differ_by_everything_that_changes_the_weights() -> None:
    options = [
        MergeOptions(),
        MergeOptions(weights="router"),
        MergeOptions(method="ties"),
        MergeOptions(method="ties", density=0.4),
        MergeOptions(method="ties", sign_method="frequency"),
        MergeOptions(method="linear"),
        MergeOptions(method="dare_ties"),
        MergeOptions(method="dare_ties", seed=1),
        MergeOptions(method="product_ties"),
    ]
    digests = {recipe_of(routed(0.75, 0.25), option, 64).digest() for option in options}
    digests |= {recipe_of(some, MergeOptions(), 64).digest() for some in (routed(0.5, 0.25, 0.25), routed(1, 1)[1:])}
    assert len(digests) == len(options) + 2


@pytest.mark.parametrize(
    ("ranks", "method", "weight"),
    [((16, 16, 32), "cat", 1 / 3), ((16, 16, 33), "ties", 1.0), ((8,) * 8, "cat", 1 / 8), ((64,), "linear", 1.0)],
)
def test_without_a_method_it_is_the_mean_of_the_updates_where_a_slot_has_room(
    ranks: tuple[int, ...], method: MergeMethod, weight: float
) -> None:
    recipe = recipe_of(routed(*[1 / len(ranks)] * len(ranks), ranks=ranks), MergeOptions(), 64)
    assert (recipe.method, weights(recipe)) == (method, [weight] * len(ranks))


@pytest.mark.parametrize("method", ["linear", "cat", "product_linear"])
def test_what_a_method_ignores_does_not_change_its_recipe(method: MergeMethod) -> None:
    plain = recipe_of(routed(0.5, 0.5), MergeOptions(method=method), 64)
    other = recipe_of(routed(0.5, 0.5), MergeOptions(method=method, density=0.1, sign_method="frequency", seed=9), 64)
    assert plain == other


def test_a_replaced_adapter_is_another_recipe() -> None:
    adapters = routed(0.5, 0.5)
    newer = [adapters[0], RoutedAdapter(**{**vars(adapters[1]), "sha256": "9" * 64})]
    assert recipe_of(adapters, MergeOptions(), 64).digest() != recipe_of(newer, MergeOptions(), 64).digest()


@pytest.mark.parametrize(
    ("method", "weighting", "expected"),
    [
        ("ties", "uniform", [1.0, 1.0, 1.0]),
        ("ties", "router", [1.5, 0.75, 0.75]),
        ("dare_ties", "uniform", [1.0, 1.0, 1.0]),
        ("product_ties", "router", [1.5, 0.75, 0.75]),
        ("dare_linear", "router", [0.5, 0.25, 0.25]),
        ("linear", "uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("linear", "router", [0.5, 0.25, 0.25]),
        ("cat", "uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("cat", "router", [0.5, 0.25, 0.25]),
    ],
)
def test_weights_are_gains_for_ties_and_shares_for_the_others(
    method: MergeMethod, weighting: str, expected: list[float]
) -> None:
    options = MergeOptions(method=method, weights=weighting)  # type: ignore[arg-type]
    assert weights(recipe_of(routed(0.5, 0.25, 0.25), options, 64)) == pytest.approx(expected)


# ids


def test_ids_are_positive_different_and_stable() -> None:
    ids = AdapterIds()
    first = [ids.of(f"name {n}") for n in range(100)]
    assert len(set(first)) == 100
    assert all(0 < one < 2**31 for one in first)
    assert [ids.of(f"name {n}") for n in range(100)] == first


def test_forgotten_ids_are_never_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.merge.IDS_KEPT", 3)
    ids = AdapterIds()
    a, b, c = (ids.of(name) for name in "abc")
    assert ids.of("a") == a  # used again, so b is the one to go
    d = ids.of("d")
    assert [ids.of("c"), ids.of("a"), ids.of("d")] == [c, a, d]
    assert ids.of("b") not in (a, b, c, d)


# preparing


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_is_used_as_it_was_published(
    prepare: Callable[..., Prepared], engine: ScriptedEngine, method: MergeMethod
) -> None:
    prepared = prepare(routed(1.0, ranks=(64,)), MergeOptions(method))
    assert not prepared.merged
    assert (prepared.recipe.method, weights(prepared.recipe)) == ("linear", [1.0])
    assert engine.activated == [prepared.adapter]
    assert prepared.seconds == 0.004


def test_a_merge_is_named_by_its_digest_and_id_and_carries_its_recipe(prepare: Callable[..., Prepared]) -> None:
    prepared = prepare(routed(0.5, 0.5))
    assert prepared.merged
    assert prepared.adapter.name == f"{prepared.recipe.digest()}.{prepared.adapter.int_id}"
    assert Recipe.from_path(prepared.adapter.path) == prepared.recipe


def test_the_same_merge_again_is_the_same_adapter_and_a_hit(prepare: Callable[..., Prepared]) -> None:
    first, second = prepare(routed(0.5, 0.5)), prepare(list(reversed(routed(0.5, 0.5))))
    assert first.adapter == second.adapter
    assert (first.cache_hit, second.cache_hit) == (False, True)
    other = prepare(routed(0.5, 0.5), MergeOptions("ties", density=0.9))
    assert other.adapter.int_id != first.adapter.int_id


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_unequal_ranks(
    prepare: Callable[..., Prepared], engine: ScriptedEngine, method: MergeMethod
) -> None:
    prepared = prepare(routed(0.5, 0.25, 0.25, ranks=(8, 32, 16)), MergeOptions(method=method))
    assert (prepared.merged, prepared.recipe.method, len(prepared.recipe.sources)) == (True, method, 3)
    assert engine.activated == [prepared.adapter]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "cat"])
def test_all_but_cat_need_no_more_than_the_greatest_rank(prepare: Callable[..., Prepared], method: MergeMethod) -> None:
    assert prepare(routed(0.5, 0.5, ranks=(8, 64)), MergeOptions(method=method)).merged


@pytest.mark.parametrize("method", ["ties", "dare_linear", "product_linear"])
def test_one_rank_above_the_engines_is_refused(
    prepare: Callable[..., Prepared], engine: ScriptedEngine, method: MergeMethod
) -> None:
    wanted = routed(0.5, 0.5, ranks=(8, 128))
    with pytest.raises(MemoryNotReady, match=rf"adapter {wanted[1].adapter_id} has rank 128, .* have 64: raise LORA"):
        prepare(wanted, MergeOptions(method=method))
    assert engine.activated == []


def test_who_has_to_wait_for_a_slot_has_the_sources_brought_into_memory_meanwhile(engine: ScriptedEngine) -> None:
    merger = Merger(engine, max_rank=64)
    engine.slot_count = 1
    holding, other = routed(0.5, 0.5), routed(1.0)

    async def scenario() -> None:
        async with merger.held(holding, MergeOptions()) as first:
            await first.prepared
            assert (engine.prefetched, engine.activated) == ([], [first.adapter])
            later = asyncio.create_task(held(merger, other))
            shared = await held(merger, holding)
            await asyncio.sleep(0.05)
            assert (len(engine.prefetched), len(engine.activated), later.done()) == (1, 2, False)
            assert not merger.has_slot_for(other, MergeOptions())
            at_once = await held(merger, other, waits=False)
        waited = await later
        assert engine.prefetched == [waited.adapter]
        assert [one.adapter for one in (first, shared, at_once, waited)] == engine.activated
        assert waited.waited >= 0.05
        assert at_once.waited < waited.waited

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_what_will_be_refused_waits_for_no_slot(engine: ScriptedEngine) -> None:
    merger = Merger(engine, max_rank=64)
    engine.slot_count = 1

    async def scenario() -> None:
        async with merger.held(routed(1.0), MergeOptions()):
            with pytest.raises(MemoryNotReady, match="has rank 128"):
                await held(merger, routed(0.5, 0.5, ranks=(8, 128)), MergeOptions(method="ties"))
        assert engine.prefetched == []

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_summed_rank_above_the_engines_is_refused_with_both_numbers(
    prepare: Callable[..., Prepared], engine: ScriptedEngine
) -> None:
    message = r"cat of ranks \[16, 16, 16, 16, 16\] needs rank 80, the engine's slots have 64; use a smaller top_k"
    with pytest.raises(InvalidValue, match=message) as refused:
        prepare(routed(*[0.2] * 5), MergeOptions(method="cat"))
    assert refused.value.extra == {"key": "merge.method", "value": "cat", "allowed": "summed rank up to 64"}
    assert engine.activated == []


def test_every_method_merges_two_to_eight(prepare: Callable[..., Prepared]) -> None:
    for method, count in itertools.product(METHODS, range(2, 9)):
        prepared = prepare(routed(*[1 / count] * count, ranks=(8,) * count), MergeOptions(method=method))
        assert len(prepared.recipe.sources) == count


def test_what_the_engine_says_of_damage_reaches_the_caller(
    prepare: Callable[..., Prepared], engine: ScriptedEngine
) -> None:
    engine.refusal = StoredDataDamaged("adapter ada_0 does not match its sha256")
    with pytest.raises(StoredDataDamaged, match="ada_0"):
        prepare(routed(0.5, 0.5))


def test_a_merge_that_was_refused_is_another_adapter_the_next_time(
    prepare: Callable[..., Prepared], engine: ScriptedEngine
) -> None:
    """KV blocks made while it was missing are kept under its name."""
    before = prepare(routed(0.5, 0.5)).adapter
    engine.refusal = StoredDataDamaged("adapter ada_0 does not match its sha256")
    with pytest.raises(StoredDataDamaged):
        prepare(routed(0.5, 0.5))
    engine.refusal = None
    after = prepare(routed(0.5, 0.5)).adapter
    assert after.path == before.path
    assert after.name != before.name
    assert after.int_id != before.int_id


@pytest.mark.parametrize("failure", [asyncio.CancelledError(), RuntimeError("the prompt cannot be read")])
def test_an_adapter_whose_question_ended_before_it_was_known_to_be_there_is_another_the_next_time(
    engine: ScriptedEngine, failure: BaseException
) -> None:
    merger = Merger(engine, max_rank=64)
    engine.merge_s = 30

    async def left() -> int:
        async with merger.held(routed(0.5, 0.5), MergeOptions()) as opened:
            ids.append(opened.adapter.int_id)
            raise failure
        raise AssertionError("not reached")

    async def scenario() -> None:
        before = asyncio.all_tasks()
        for _ in range(2):
            with pytest.raises(type(failure)):
                await left()
        assert asyncio.all_tasks() == before

    ids: list[int] = []
    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert len(set(ids)) == 2
    assert merger.slots.in_use == 0


def test_one_that_was_loaded_before_stays_itself_when_a_question_ends_early(engine: ScriptedEngine) -> None:
    merger = Merger(engine, max_rank=64)

    async def asked(*, leaves: bool) -> int:
        async with merger.held(routed(0.5, 0.5), MergeOptions()) as opened:
            if leaves:
                raise RuntimeError("the prompt is too long")
            await opened.prepared
        return opened.adapter.int_id

    async def scenario() -> tuple[int, int]:
        first = await asked(leaves=False)
        engine.merge_s = 30
        with pytest.raises(RuntimeError):
            await asked(leaves=True)
        engine.merge_s = 0
        again = await asked(leaves=False)
        engine.refusal = StoredDataDamaged("adapter ada_0 does not match its sha256")
        with pytest.raises(StoredDataDamaged):
            await asked(leaves=False)
        engine.refusal = None
        assert await asked(leaves=False) != first, "an error is another matter"
        return first, again

    first, again = asyncio.run(asyncio.wait_for(scenario(), 20))
    assert first == again


def test_only_the_id_that_was_refused_is_forgotten() -> None:
    ids = AdapterIds()
    first = ids.of("a")
    ids.forget("a", first)
    second = ids.of("a")
    assert second != first
    ids.forget("a", first)
    ids.forget("b", 99)
    assert ids.of("a") == second


def test_an_adapter_may_be_used_before_it_is_prepared(engine: ScriptedEngine) -> None:
    engine.merge_s = 0.01

    async def scenario() -> None:
        async with Merger(engine, max_rank=64).held(routed(0.5, 0.5), MergeOptions()) as opened:
            assert engine.activated == []
            assert (await opened.prepared).adapter == opened.adapter
        assert engine.activated == [opened.adapter]

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize("method", METHODS)
def test_strength_scales_every_weight(method: MergeMethod) -> None:
    adapters = routed(0.75, 0.25)
    whole = weights(recipe_of(adapters, MergeOptions(method, weights="router"), 64))
    quarter = weights(recipe_of(adapters, MergeOptions(method, weights="router", strength=0.25), 64))
    assert quarter == [weight / 4 for weight in whole]


def test_one_adapter_below_full_strength_is_a_linear_merge_of_one(prepare: Callable[..., Prepared]) -> None:
    prepared = prepare(routed(1.0), MergeOptions("ties", strength=0.25))
    assert prepared.merged
    assert (prepared.recipe.method, weights(prepared.recipe)) == ("linear", [0.25])
    assert prepared.adapter.path == prepared.recipe.path()
