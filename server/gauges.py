"""What Prometheus reads of stores, index, disk and engine, which are looked at when it asks."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from loramem import __version__
from loramem.database import Database
from loramem.queue import JobQueue
from loramem.settings import Settings
from loramem.tables import Adapter, Document, Namespace
from loramem.vectors import VectorIndex
from server.engine.engine import Engine, Tiers
from server.slots import Slots

log = logging.getLogger(__name__)


class Gauges(Collector):
    """`describe` is empty, so that registering does not look at anything."""

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        raise NotImplementedError


class Pool(Gauges):
    """The adapters in the engine's worker, as it last told; nothing before the first question to an adapter."""

    def __init__(self) -> None:
        self.tiers: Tiers = {}

    def see(self, tiers: Tiers) -> None:
        """What one answer was told; of several that run at once, not always in order."""
        if _requests(tiers) >= _requests(self.tiers):
            self.tiers = tiers

    def collect(self) -> Iterator[Metric]:
        size = GaugeMetricFamily("loramem_adapter_pool_bytes", "bytes of adapters by tier", labels=["tier"])
        entries = GaugeMetricFamily("loramem_adapter_pool_entries", "adapters by tier", labels=["tier"])
        asked = CounterMetricFamily("loramem_adapter_pool_requests", "lookups by tier", labels=["tier", "result"])
        evicted = CounterMetricFamily("loramem_adapter_pool_evictions", "evictions by tier", labels=["tier"])
        for tier, stats in self.tiers.items():
            size.add_metric([tier], stats["bytes"])
            entries.add_metric([tier], stats["entries"])
            asked.add_metric([tier, "hit"], stats["hits"])
            asked.add_metric([tier, "miss"], stats["misses"])
            evicted.add_metric([tier], stats["evictions"])
        yield from (size, entries, asked, evicted)


def _requests(tiers: Tiers) -> int:
    return sum(stats["hits"] + stats["misses"] for stats in tiers.values())


class Process(Gauges):
    """Which build this is, whether its engine takes questions, and how much of it is taken."""

    def __init__(self, engine: Engine, slots: Slots) -> None:
        self._engine = engine
        self._slots = slots

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("loramem_build_info", "constant 1, with the version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield GaugeMetricFamily("loramem_engine_up", "1 when the engine takes questions", self._engine.running)
        yield GaugeMetricFamily("loramem_slots", "adapters that can run in one batch", self._engine.slots)
        yield GaugeMetricFamily("loramem_slots_held", "adapters that answers hold a slot for", self._slots.in_use)
        yield GaugeMetricFamily("loramem_slots_waiting", "questions that wait for a slot", self._slots.waiting)


class Stores(Gauges):
    """Read from the database, which is the authority, whatever process did the work, and from the data folder.

    Where the database does not answer, `loramem_database_up` is 0 and what it knows is missing, so that a scrape still
    tells of the rest.
    """

    def __init__(self, queue: JobQueue, database: Database, index: VectorIndex, settings: Settings) -> None:
        self._queue = queue
        self._database = database
        self._index = index
        self._home = settings.home_path
        self._folders = {"cache": settings.cache_path, "jobs": settings.jobs_path}

    def collect(self) -> Iterator[Metric]:
        stored = {name: _bytes_of(folder) for name, folder in self._folders.items()}
        try:
            found = [*self._jobs(), *self._rows(stored)]
        except SQLAlchemyError as error:  # told by the gauge; the next scrape asks again
            log.warning("the database does not answer a scrape: %s", error)
            found = []
        yield GaugeMetricFamily("loramem_database_up", "1 when the database answered this scrape", bool(found))
        yield from found
        size = GaugeMetricFamily("loramem_store_bytes", "bytes on disk by what they are", labels=["kind"])
        for kind, count in stored.items():
            size.add_metric([kind], count)
        yield size
        usage = shutil.disk_usage(self._home)
        yield GaugeMetricFamily("loramem_disk_free_bytes", "free where the data folder is", usage.free)
        yield GaugeMetricFamily("loramem_disk_size_bytes", "size of the file system of the data folder", usage.total)

    def _jobs(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("loramem_jobs", "jobs by state", labels=["state"])
        for state, count in self._queue.counts().items():
            jobs.add_metric([state.value], count)
        yield jobs
        age = self._queue.oldest_queued_age_s()
        yield GaugeMetricFamily("loramem_job_queue_oldest_age_seconds", "age of the oldest queued job", age)

    def _rows(self, stored: dict[str, int]) -> Iterator[Metric]:
        documents = GaugeMetricFamily("loramem_documents", "documents by state", labels=["state"])
        adapters = GaugeMetricFamily("loramem_adapters", "adapters by state", labels=["state"])
        with self._database.read() as session:
            for state, count in session.execute(select(Document.state, func.count()).group_by(Document.state)):
                documents.add_metric([state], count)
            for state, count in session.execute(select(Adapter.state, func.count()).group_by(Adapter.state)):
                adapters.add_metric([state], count)
            stored["adapters"] = session.scalar(select(func.coalesce(func.sum(Adapter.size_bytes), 0))) or 0
            stored["database"] = _database_bytes(session)
            newest = dict(session.execute(select(Namespace.name, Namespace.generation)).all())
        yield from (documents, adapters)
        yield from self._vectors(newest)

    def _vectors(self, newest: Mapping[str, int]) -> Iterator[Metric]:
        """Of namespaces that were asked since the start; others are read at their first question."""
        held = self._index.held()
        vectors = GaugeMetricFamily("loramem_index_vectors", "vectors in memory", labels=["kind"])
        vectors.add_metric(["text"], sum(len(one.windows) for one in held.values()))
        vectors.add_metric(["questions"], sum(len(one.questions) for one in held.values()))
        yield vectors
        behind = sum(max(0, newest.get(name, 0) - one.generation) for name, one in held.items())
        about = "changes of the database that the index does not have yet; it looks every few seconds"
        yield GaugeMetricFamily("loramem_index_lag", about, behind)


def _database_bytes(session: Session) -> int:
    if session.get_bind().dialect.name == "postgresql":
        return int(session.scalar(text("SELECT pg_database_size(current_database())")) or 0)
    pages, size = (session.scalar(text(f"PRAGMA {name}")) for name in ("page_count", "page_size"))
    return int(pages or 0) * int(size or 0)


def _bytes_of(folder: Path) -> int:
    """Of all files below; what is removed while we look counts or does not."""
    return sum(_size(os.path.join(inside, name)) for inside, _, names in os.walk(folder) for name in names)


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0
