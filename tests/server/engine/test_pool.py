"""The pool of published adapters: what it reads, what it refuses, what it keeps, and what it can still do later."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loramem.errors import StoredDataDamaged
from loramem.records import MergeMethod, Recipe, Source
from loramem.store import CONFIG, WEIGHTS, AdapterStore
from server.engine.combine import elementwise_of, gains_of
from server.engine.fused import merge_flat
from server.engine.pool import Merge, SourcePool, Tier
from server.engine.published import as_tensor
from tests.server.learned import LAYER, peft_tensors, store_adapter

ENTRY_BYTES = sum(tensor.nbytes for tensor in peft_tensors(8).values())
PINNED_BYTES = 2048
"""What one takes of pinned memory, which is given out in powers of two."""
HOST_BYTES = PINNED_BYTES if torch.cuda.is_available() else ENTRY_BYTES
A, B = (f"{LAYER}.q_proj.{side}.weight" for side in ("lora_A", "lora_B"))


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path)


def source(store: AdapterStore, seed: int, weight: float = 1.0, rank: int = 8) -> Source:
    manifest, stored = store_adapter(store, rank=rank, seed=seed)
    return Source(adapter_id=manifest.adapter_id, sha256=stored.sha256, weight=weight)


def pool(store: AdapterStore, entries: float = 100) -> SourcePool:
    return SourcePool(store.root, int(entries * HOST_BYTES))


def recipe(method: MergeMethod, *sources: Source, density: float = 0.5) -> Recipe:
    return Recipe.of(method, list(sources), density)


def tensors(kept: SourcePool, merge: Merge) -> dict[str, Tensor]:
    out = np.zeros(merge.layout.size, dtype=np.float32)
    kept.merge_into(merge, out)
    return merge.layout.views(as_tensor(out))


def made(kept: SourcePool, wanted: Recipe) -> dict[str, Tensor]:
    return tensors(kept, kept.open(wanted))


# merges


def test_a_linear_merge_is_the_weighted_sum_of_what_was_published(store: AdapterStore) -> None:
    merged = made(pool(store), recipe("linear", source(store, 1, weight=0.5), source(store, 2, weight=-2.0)))
    first, second = peft_tensors(8, 1), peft_tensors(8, 2)  # alpha is twice the rank
    torch.testing.assert_close(merged[A], first[A] - 2 * second[A])
    torch.testing.assert_close(merged[B], first[B] + 2 * second[B])


def test_cat_lays_the_sources_side_by_side(store: AdapterStore) -> None:
    opened = pool(store).open(recipe("cat", source(store, 1, weight=0.5), source(store, 2, rank=16)))
    assert opened.rank == 24
    merged = tensors(pool(store), opened)
    update = (
        0.5 * 2 * peft_tensors(8, 1)[B] @ peft_tensors(8, 1)[A] + 2 * peft_tensors(16, 2)[B] @ peft_tensors(16, 2)[A]
    )
    torch.testing.assert_close(merged[B] @ merged[A], update, atol=1e-5, rtol=1e-5)


def test_ties_keeps_nothing_that_every_source_trims(store: AdapterStore) -> None:
    merged = made(pool(store), recipe("ties", source(store, 1), source(store, 2), density=0.1))
    kept = float((merged[A] != 0).float().mean())
    assert 0.05 < kept <= 0.2


def test_a_merge_of_one_is_not_trimmed(store: AdapterStore) -> None:
    merged = made(pool(store), recipe("ties", source(store, 1), density=0.1))
    assert all(bool((tensor != 0).all()) for tensor in merged.values())


def test_merging_twice_gives_the_same(store: AdapterStore) -> None:
    kept, both = pool(store), (source(store, 1), source(store, 2))
    for method in ("ties", "linear", "dare_ties"):
        first, again = (made(kept, recipe(method, *both)) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_linear_merge_of_two_ranks_adds_where_both_have_entries(store: AdapterStore) -> None:
    kept = pool(store)
    opened = kept.open(recipe("linear", source(store, 1, weight=0.5), source(store, 2, weight=-2.0, rank=16)))
    assert opened.rank == 16
    merged = tensors(kept, opened)
    first, second = peft_tensors(8, 1), peft_tensors(16, 2)  # alpha is twice the rank
    torch.testing.assert_close(merged[A], torch.cat([first[A] - 2 * second[A][:8], -2 * second[A][8:]]))
    torch.testing.assert_close(merged[B], torch.cat([first[B] + 2 * second[B][:, :8], 2 * second[B][:, 8:]], dim=1))


@pytest.mark.parametrize("method", ["ties", "linear", "cat", "dare_linear", "product_ties"])
def test_an_open_merge_can_be_made_after_its_sources_were_deleted(store: AdapterStore, method: MergeMethod) -> None:
    both = (source(store, 1), source(store, 2))
    wanted = recipe(method, *both, density=0.4)
    expected = made(pool(store), wanted)
    cold = pool(store)
    opened = cold.open(wanted)
    for one in both:
        store.remove(one.adapter_id)
    late = tensors(cold, opened)
    assert all(torch.equal(expected[name], late[name]) for name in expected)


# on the device: here the CPU stands for one


@pytest.mark.parametrize("ranks", [(8, 8), (8, 16), (16, 4, 8)])
@pytest.mark.parametrize("method", ["ties", "linear", "dare_ties", "dare_linear"])
def test_what_is_on_the_device_lies_as_the_merge_does(
    store: AdapterStore, method: MergeMethod, ranks: tuple[int, ...]
) -> None:
    kept = pool(store)
    wanted = recipe(method, *(source(store, seed, 1.0 + seed, rank) for seed, rank in enumerate(ranks)), density=0.4)
    opened = kept.open(wanted)
    flats = kept.on_device(opened, torch.device("cpu"))
    gains = gains_of([(one.weight, own.scaling) for one, own in zip(wanted.sources, opened.sources, strict=True)])
    out, expected = (np.zeros(opened.layout.size, dtype=np.float32) for _ in range(2))
    merge_flat(elementwise_of(wanted), [flat.numpy() for flat in flats], gains, opened.layout.tiles, out)
    kept.merge_into(opened, expected)
    assert np.array_equal(out, expected)


def test_the_device_keeps_an_adapter_once_for_each_rank_that_it_is_merged_at(store: AdapterStore) -> None:
    kept = SourcePool(store.root, 100 * ENTRY_BYTES, 100 * ENTRY_BYTES)
    small, other, great = source(store, 1), source(store, 2), source(store, 3, rank=16)
    for pair in ((small, other), (small, great), (other, great), (other, small)):
        kept.on_device(kept.open(recipe("linear", *pair)), torch.device("cpu"))
    assert kept.stats["device"] == {"bytes": 8 * ENTRY_BYTES, "entries": 5, "hits": 3, "misses": 5, "evictions": 0}


# tiers


def test_each_trim_of_an_adapter_is_an_entry_of_its_own(store: AdapterStore) -> None:
    kept = pool(store)
    sources = [source(store, 1), source(store, 2)]
    for method, density in (("ties", 0.5), ("ties", 0.25), ("linear", 0.5), ("cat", 0.5)):  # the last two share theirs
        made(kept, recipe(method, *sources, density=density))  # type: ignore[arg-type]
    assert kept.stats["host"] == {"bytes": 6 * HOST_BYTES, "entries": 6, "hits": 2, "misses": 6, "evictions": 0}
    assert kept.stats["disk"] == {"bytes": 2 * ENTRY_BYTES, "entries": 2, "hits": 6, "misses": 2, "evictions": 0}


def test_what_was_used_longest_ago_leaves_memory_first(store: AdapterStore) -> None:
    kept = pool(store, entries=2.5)
    a, b, c = (source(store, seed) for seed in (1, 2, 3))
    for one in (a, b, a, c, a, c):  # b was used longest ago when c comes
        made(kept, recipe("linear", one))
    assert kept.stats["host"] == {"bytes": 2 * HOST_BYTES, "entries": 2, "hits": 3, "misses": 3, "evictions": 1}


def test_an_adapter_greater_than_the_budget_is_used_all_the_same(store: AdapterStore) -> None:
    small = pool(store, entries=0.1)
    made(small, recipe("cat", source(store, 1), source(store, 2)))
    assert small.host.stats.bytes == HOST_BYTES


def test_deleted_adapters_are_let_go_of_when_a_new_one_is_opened(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.pool.FORGET_EVERY_S", 0.0)
    kept = pool(store)
    old, other, new = (source(store, seed) for seed in (1, 2, 3))
    opened = kept.open(recipe("linear", old, other))
    before = tensors(kept, opened)
    store.remove(old.adapter_id)
    kept.open(recipe("linear", new))
    kept.close()
    assert [tier.stats.entries for tier in (kept.disk, kept.host)] == [2, 1]
    assert kept.host.stats.bytes == HOST_BYTES
    after = tensors(kept, opened)  # what is open can be made all the same
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_engine_that_may_load_it_again_keeps_what_it_has_opened(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a step, where an adapter that is gone would end the engine."""
    monkeypatch.setattr("server.engine.pool.FORGET_EVERY_S", 0.0)
    kept = SourcePool(store.root, 100 * ENTRY_BYTES, keeps_opened=True)
    wanted = recipe("linear", source(store, 1), source(store, 2))
    before = made(kept, wanted)
    store.remove(wanted.sources[0].adapter_id)
    kept.open(recipe("linear", source(store, 3)))
    kept.close()
    assert [tier.stats.entries for tier in (kept.disk, kept.host)] == [3, 1], "memory is let go of, the mapping is not"
    again = made(kept, wanted)
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_pinned_memory_counts_as_it_is_given_out(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    kept = pool(store)
    made(kept, recipe("linear", source(store, 1)))
    assert kept.host.stats.bytes == PINNED_BYTES


def test_prefetch_brings_the_sources_into_memory(store: AdapterStore) -> None:
    kept, wanted = pool(store), recipe("ties", source(store, 1), source(store, 2))
    kept.prefetch(wanted)
    kept.prefetch(recipe("ties", source(store, 3).model_copy(update={"sha256": "0" * 64})))  # fails for itself alone
    kept.close()
    assert kept.stats["host"]["entries"] == 2
    made(kept, wanted)
    assert kept.stats["host"]["misses"] == 2


# damage


def test_altered_weights_are_refused(store: AdapterStore) -> None:
    one = source(store, 1)
    save_file(peft_tensors(8, seed=2), store.path(one.adapter_id) / WEIGHTS)
    with pytest.raises(StoredDataDamaged, match=f"{one.adapter_id}"):
        pool(store).open(recipe("linear", one))


def test_the_same_id_with_another_sha256_is_another_adapter(store: AdapterStore) -> None:
    kept, one = pool(store), source(store, 1)
    made(kept, recipe("linear", one))
    with pytest.raises(StoredDataDamaged, match="does not match its sha256"):
        kept.open(recipe("linear", one.model_copy(update={"sha256": "0" * 64})))


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS, None])
def test_a_missing_file_or_folder_is_damage(store: AdapterStore, missing: str | None) -> None:
    one = source(store, 1)
    if missing is None:
        store.remove(one.adapter_id)
    else:
        (store.path(one.adapter_id) / missing).unlink()
    with pytest.raises(StoredDataDamaged, match=one.adapter_id):
        pool(store).open(recipe("linear", one))


def test_damage_that_was_repaired_is_forgotten(store: AdapterStore) -> None:
    kept, one = pool(store), source(store, 1)
    weights = store.path(one.adapter_id) / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(b"")
    with pytest.raises(StoredDataDamaged):
        kept.open(recipe("linear", one))
    weights.write_bytes(content)
    assert kept.open(recipe("linear", one)).rank == 8


def test_tensors_of_another_rank_than_the_configuration_says_are_damage(store: AdapterStore) -> None:
    manifest, stored = store_adapter(store, rank=8, seed=1, config_rank=4)
    wanted = recipe("linear", Source(adapter_id=manifest.adapter_id, sha256=stored.sha256, weight=1.0))
    with pytest.raises(StoredDataDamaged, match="another rank than its configuration"):
        pool(store).open(wanted)


# one tier


def counting() -> tuple[list[str], Callable[[str], Callable[[], str]]]:
    loads: list[str] = []

    def loader(key: str) -> Callable[[], str]:
        def load() -> str:
            loads.append(key)
            return key

        return load

    return loads, loader


def test_threads_that_want_the_same_wait_for_one_load() -> None:
    tier: Tier[str] = Tier(10, len)
    gate, loads = threading.Event(), []

    def slow() -> str:
        gate.wait(10)
        loads.append("x")
        return "x"

    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(tier.get, "key", slow) for _ in range(4)]
        gate.set()
        assert [future.result() for future in waiting] == ["x"] * 4
    assert loads == ["x"]
    assert (tier.stats.hits, tier.stats.misses) == (3, 1)


def test_a_load_that_fails_is_tried_again() -> None:
    tier: Tier[str] = Tier(10, len)

    def fail() -> str:
        raise OSError("disk")

    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            tier.get("key", fail)
    assert tier.get("key", lambda: "x") == "x"
    assert tier.stats.bytes == 1


def test_a_tier_keeps_no_more_entries_than_it_may() -> None:
    tier: Tier[str] = Tier(1000, len, most_entries=2)
    loads, load = counting()
    for key in ("a", "b", "c", "a"):
        tier.get(key, load(key))
    assert loads == ["a", "b", "c", "a"]
    assert (tier.stats.entries, tier.stats.evictions) == (2, 2)


def test_a_tier_evicts_by_use_and_stays_in_its_budget() -> None:
    tier: Tier[str] = Tier(4, len)
    loads, load = counting()
    for key in ("aa", "bb", "aa", "cc", "aa", "bb"):
        tier.get(key, load(key))
    assert loads == ["aa", "bb", "cc", "bb"]
    assert (tier.stats.bytes, tier.stats.entries, tier.stats.evictions) == (4, 2, 2)
