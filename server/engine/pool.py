"""Published adapters in the engine's worker process: what merges are made from, in tiers with budgets of bytes.

disk      mapped, checked once, not resident        every adapter that was lately asked for
host      trimmed as a method wants it, flat        within `host_bytes`; pinned memory where there is a GPU
device    the same on the GPU                       within `device_bytes`; not used on a CPU

vLLM's own copies are not used: alpha / rank is folded into their B, and merging those elects other signs.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from loramem.errors import LoramemError
from loramem.records import Recipe, Source
from loramem.store import AdapterStore
from server.engine.combine import layout_of_merge, merge_into, trim_of
from server.engine.cpu_threads import use_every_core
from server.engine.fused import Flat
from server.engine.layout import Layout
from server.engine.published import Part, PublishedAdapter, Trim, as_tensor, open_published

log = logging.getLogger(__name__)

MAPPED_BYTES = 1 << 38
"""Address space, not memory: 256 GiB of mapped adapters."""
MAPPED_ADAPTERS = 4096
FORGET_EVERY_S = 60.0
Key = tuple[str, ...]
"""Of an entry: the adapter's id first."""
T = TypeVar("T")


@dataclass(frozen=True)
class TierStats:
    bytes: int
    entries: int
    hits: int
    misses: int
    evictions: int


class Tier(Generic[T]):
    """LRU by bytes, for several threads: who asks for what another thread is loading waits for it.

    What is in use outlives its eviction, so a merge needs no locks. The newest entry stays, even above the budget.
    """

    def __init__(self, budget_bytes: int, size_of: Callable[[T], int], most_entries: int = 1 << 30) -> None:
        self.budget_bytes = budget_bytes
        self.most_entries = most_entries
        self._size_of = size_of
        self._entries: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: Hashable, load: Callable[[], T]) -> T:
        """The entry, loaded where it is missing. Raises what `load` raises; a failure is not kept."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._hits += 1
                self._entries.move_to_end(key)
            else:
                self._misses += 1
                own = self._entries[key] = Future()
        if found is not None:
            return found.result()
        try:
            value = load()
        except BaseException as error:
            with self._lock:
                del self._entries[key]
            own.set_exception(error)
            raise
        own.set_result(value)
        self._admit(key, value)
        return value

    def held(self) -> list[Hashable]:
        with self._lock:
            return list(self._entries)

    def forget(self, keys: Collection[Hashable]) -> None:
        """What is being loaded stays."""
        with self._lock:
            for key in [key for key in keys if key in self._entries and self._entries[key].done()]:
                self._bytes -= self._size_of(self._entries.pop(key).result())
                self._evictions += 1

    @property
    def stats(self) -> TierStats:
        return TierStats(self._bytes, len(self._entries), self._hits, self._misses, self._evictions)

    def _admit(self, key: Hashable, value: T) -> None:
        with self._lock:
            self._bytes += self._size_of(value)
            for oldest in list(self._entries):
                if self._bytes <= self.budget_bytes and len(self._entries) <= self.most_entries:
                    return
                if oldest != key and self._entries[oldest].done():
                    self._bytes -= self._size_of(self._entries.pop(oldest).result())
                    self._evictions += 1


@dataclass(frozen=True)
class Merge:
    """A recipe with its sources opened: it can be made at any time from now on, even after they were deleted."""

    recipe: Recipe
    sources: tuple[PublishedAdapter, ...]
    layout: Layout
    rank: int


class SourcePool:
    """One a process. `open` may raise; `merge_into` never does for what has been opened; `prefetch` returns at once.

    `keeps_opened`: what was opened stays mapped when its folder is deleted, for an engine that may load it again in the
    middle of a step.
    """

    def __init__(self, root: Path, host_bytes: int, device_bytes: int = 0, *, keeps_opened: bool = False) -> None:
        self._keeps_opened = keeps_opened
        self.store = AdapterStore(root)
        self.device: Tier[Tensor] = Tier(device_bytes, lambda tensor: tensor.nbytes)
        self.disk: Tier[PublishedAdapter] = Tier(MAPPED_BYTES, lambda adapter: adapter.mapped_bytes, MAPPED_ADAPTERS)
        self.host: Tier[Flat] = Tier(host_bytes, _host_bytes)
        self._forgets_at = time.monotonic() + FORGET_EVERY_S
        self._background = ThreadPoolExecutor(1, "prefetch", initializer=use_every_core)

    def open(self, recipe: Recipe) -> Merge:
        """Raises `StoredDataDamaged` for a source that is gone or altered."""
        sources = tuple(self._published(source) for source in recipe.sources)
        layout, rank = layout_of_merge(
            recipe, [source.layout for source in sources], [source.rank for source in sources]
        )
        return Merge(recipe, sources, layout, rank)

    def merge_into(self, merge: Merge, out: Flat) -> None:
        """Write the merge to `out` (size,)."""
        merge_into(merge.recipe, self._parts(merge), merge.layout, out)

    def on_device(self, merge: Merge, device: torch.device) -> list[Tensor]:
        """The sources, trimmed, as tensors (size,) on the GPU that lie as the merge does, in the recipe's order."""
        trim, layout = trim_of(merge.recipe), merge.layout
        return [
            self.device.get((*_key(adapter, trim), layout), partial(self._to_device, adapter, trim, layout, device))
            for adapter in merge.sources
        ]

    def prefetch(self, recipe: Recipe) -> None:
        """Bring the sources into the host tier in the background; an error is left to who needs them."""
        self._background.submit(self._fetch, recipe)

    def close(self) -> None:
        """Wait for what is being prefetched, and prefetch no more."""
        self._background.shutdown()

    def _fetch(self, recipe: Recipe) -> None:
        try:
            self._parts(self.open(recipe))
        except (LoramemError, ValueError) as error:
            log.debug("prefetch: %s", error)

    def _parts(self, merge: Merge) -> Sequence[Part]:
        trim = trim_of(merge.recipe)
        return [
            Part(self._flat(adapter, trim), adapter.layout, adapter.rank, adapter.scaling, source.weight)
            for adapter, source in zip(merge.sources, merge.recipe.sources, strict=True)
        ]

    def _to_device(self, adapter: PublishedAdapter, trim: Trim, layout: Layout, device: torch.device) -> Tensor:
        own = as_tensor(self._flat(adapter, trim)).to(device, non_blocking=True)
        if adapter.layout == layout:
            return own
        spread = torch.zeros(layout.size, dtype=own.dtype, device=device)
        adapter.layout.copy_into(layout, own, spread)
        return spread

    def _flat(self, adapter: PublishedAdapter, trim: Trim) -> Flat:
        return self.host.get(_key(adapter, trim), partial(_load, adapter, trim))

    def _published(self, source: Source) -> PublishedAdapter:
        return self.disk.get((source.adapter_id, source.sha256), partial(self._open, source))

    def _open(self, source: Source) -> PublishedAdapter:
        """With new adapters, deleted ones are let go of: a mapping keeps the blocks of its file on the disk."""
        opened = open_published(self.store, source.adapter_id, source.sha256)
        if time.monotonic() >= self._forgets_at:
            self._forgets_at = time.monotonic() + FORGET_EVERY_S
            self._background.submit(self._forget_deleted)
        return opened

    def _forget_deleted(self) -> None:
        tiers: tuple[Tier[Any], ...] = (self.host, self.device)
        for tier in tiers if self._keeps_opened else (self.disk, *tiers):
            gone = [key for key in tier.held() if not self.store.path(cast("Key", key)[0]).is_dir()]
            tier.forget(gone)

    @property
    def stats(self) -> dict[str, dict[str, Any]]:
        """By tier; plain values, because they cross a process."""
        tiers: dict[str, Tier[Any]] = {"disk": self.disk, "host": self.host, "device": self.device}
        return {name: vars(tier.stats) for name, tier in tiers.items()}


def _host_bytes(flat: Flat) -> int:
    """Pinned memory is given out in powers of two (`CachingHostAllocator.h`)."""
    return 1 << (flat.nbytes - 1).bit_length() if torch.cuda.is_available() and flat.nbytes else flat.nbytes


def _key(adapter: PublishedAdapter, trim: Trim) -> tuple[str, str, Trim]:
    return adapter.adapter_id, adapter.sha256, trim


def _load(adapter: PublishedAdapter, trim: Trim) -> Flat:
    """In pinned memory where a GPU reads it from."""
    flat = adapter.flat(trim)
    if not torch.cuda.is_available():
        return flat
    try:
        pinned = as_tensor(flat).pin_memory()
    except RuntimeError as error:  # no more memory may be pinned: slower to copy, nothing worse
        log.warning("adapter %s is not pinned: %s", adapter.adapter_id, error)
        return flat
    return pinned.view(torch.uint16).numpy() if flat.dtype == np.uint16 else pinned.numpy()
