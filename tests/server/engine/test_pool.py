"""The pool of as-trained adapters: what it reads, what it refuses, what it keeps."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loramem.errors import StoredDataDamaged
from loramem.records import MergeMethod, Recipe, Source
from loramem.store import CONFIG, WEIGHTS, AdapterStore
from server.engine.combine import SourceAdapter, combine, trim
from server.engine.pool import SourcePool, read_source
from tests.server.learned import LAYER, peft_tensors, store_adapter

ENTRY_BYTES = sum(tensor.nbytes for tensor in peft_tensors(8).values())


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path)


def source(store: AdapterStore, seed: int, weight: float = 1.0, rank: int = 8) -> Source:
    manifest, stored = store_adapter(store, rank=rank, seed=seed)
    return Source(adapter_id=manifest.adapter_id, sha256=stored.sha256, weight=weight)


def pool(store: AdapterStore, entries: float = 100) -> SourcePool:
    return SourcePool(store.root, int(entries * ENTRY_BYTES))


def recipe(method: MergeMethod, *sources: Source, density: float = 0.5) -> Recipe:
    return Recipe.of(method, list(sources), density)


@pytest.mark.parametrize("method", ["ties", "linear", "cat"])
def test_a_merge_is_that_of_the_published_tensors(store: AdapterStore, method: MergeMethod) -> None:
    sources = [source(store, seed, weight=0.5 + seed) for seed in (1, 2)]
    wanted = recipe(method, *sources, density=0.3)
    density = 0.3 if method == "ties" else 1.0
    parts = [
        SourceAdapter({name: trim(t, density) for name, t in peft_tensors(8, seed).items()}, 8, 16) for seed in (1, 2)
    ]
    expected = combine(wanted, parts)
    merged = pool(store).merge(wanted)
    assert merged.rank == expected.rank
    for name, tensor in expected.tensors.items():
        assert torch.equal(merged.tensors[name], tensor)


def test_a_merge_of_one_is_not_trimmed(store: AdapterStore) -> None:
    one = source(store, 1)
    merged = pool(store).merge(recipe("ties", one, density=0.1))
    assert all(bool((tensor != 0).all()) for tensor in merged.tensors.values())


def test_merging_leaves_the_kept_tensors_as_they_are(store: AdapterStore) -> None:
    both = pool(store)
    wanted = recipe("linear", source(store, 1), source(store, 2))
    first = both.merge(wanted)
    for tensor in first.tensors.values():
        tensor.zero_()  # as vLLM's optimize() would change them in place
    again = both.merge(wanted)
    assert all(bool(tensor.any()) for tensor in again.tensors.values())


def test_trimmed_copies_are_entries_of_their_own(store: AdapterStore) -> None:
    kept = pool(store)
    sources = [source(store, 1), source(store, 2)]
    kept.merge(recipe("ties", *sources, density=0.5))
    kept.merge(recipe("ties", *sources, density=0.25))
    kept.merge(recipe("linear", *sources))
    kept.merge(recipe("cat", *sources))  # shares the whole ones with linear
    assert kept.size_bytes == 6 * ENTRY_BYTES


def test_what_was_used_longest_ago_goes_first(store: AdapterStore) -> None:
    kept = pool(store, entries=2.5)
    a, b, c = (source(store, seed) for seed in (1, 2, 3))
    for one in (a, b, a, c):  # b was used longest ago when c comes
        kept.merge(recipe("linear", one))
    assert kept.size_bytes == 2 * ENTRY_BYTES
    for one in (a, b, c):
        store.remove(one.adapter_id)
    kept.merge(recipe("linear", a))
    kept.merge(recipe("linear", c))
    with pytest.raises(StoredDataDamaged, match=b.adapter_id):
        kept.merge(recipe("linear", b))


def test_an_adapter_greater_than_the_budget_is_used_all_the_same(store: AdapterStore) -> None:
    small = pool(store, entries=0.1)
    sources = [source(store, 1), source(store, 2)]
    assert small.merge(recipe("cat", *sources)).rank == 16
    assert small.size_bytes == ENTRY_BYTES


def test_altered_weights_are_refused(store: AdapterStore) -> None:
    one = source(store, 1)
    save_file(peft_tensors(8, seed=2), store.path(one.adapter_id) / WEIGHTS)
    with pytest.raises(StoredDataDamaged, match=f"{one.adapter_id} does not match its sha256"):
        pool(store).merge(recipe("linear", one))


def test_the_same_id_with_another_sha256_is_another_adapter(store: AdapterStore) -> None:
    kept = pool(store)
    one = source(store, 1)
    kept.merge(recipe("linear", one))
    with pytest.raises(StoredDataDamaged):
        kept.merge(recipe("linear", one.model_copy(update={"sha256": "0" * 64})))


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS, None])
def test_a_missing_file_or_folder_is_damage(store: AdapterStore, missing: str | None) -> None:
    one = source(store, 1)
    folder = store.path(one.adapter_id)
    if missing is None:
        store.remove(one.adapter_id)
    else:
        (folder / missing).unlink()
    with pytest.raises(StoredDataDamaged, match=rf"adapter {one.adapter_id} cannot be read: No such file"):
        read_source(folder, one.sha256)


def test_reads_rank_and_alpha_of_the_config(store: AdapterStore) -> None:
    one = source(store, 1, rank=16)
    read = read_source(store.path(one.adapter_id), one.sha256)
    assert (read.rank, read.alpha, read.scaling) == (16, 32.0, 2.0)
    assert torch.equal(
        read.tensors[f"{LAYER}.q_proj.lora_A.weight"], peft_tensors(16, 1)[f"{LAYER}.q_proj.lora_A.weight"]
    )


def test_ranks_that_do_not_merge_are_refused(store: AdapterStore) -> None:
    with pytest.raises(ValueError, match="equal ranks"):
        pool(store).merge(recipe("ties", source(store, 1, rank=8), source(store, 2, rank=16)))
