"""Prometheus metrics of the gateway; labels only from closed sets. vLLM's own stand beside them on /metrics."""

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from loramem import __version__
from loramem.database import Database
from loramem.queue import JobQueue
from loramem.tables import Adapter, Document
from server.ask import Done, Prepared, Routed
from server.engine.engine import Tiers

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120)
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
STAGE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STAGES = ("embed", "search", "route", "merge", "select", "queue", "prefill", "decode")


class Metrics:
    """One registry per gateway, so that several can live in one process."""

    def __init__(self, queue: JobQueue, database: Database) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "loramem_http_requests", "HTTP requests", ["route", "method", "status_class"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "loramem_http_request_duration_seconds",
            "HTTP request time",
            ["route", "method"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.query_seconds = Histogram(
            "loramem_query_duration_seconds",
            "question to last token",
            ["mode"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.ttft_seconds = Histogram(
            "loramem_query_ttft_seconds", "question to first token", ["mode"], buckets=TTFT, registry=self.registry
        )
        self.stage_seconds = Histogram(
            "loramem_query_stage_duration_seconds",
            "one stage of a query",
            ["mode", "stage"],
            buckets=STAGE,
            registry=self.registry,
        )
        self.tokens = Counter("loramem_tokens", "tokens of queries", ["mode", "kind"], registry=self.registry)
        self.merges = Counter("loramem_merges", "merged adapters prepared", ["method", "cache"], registry=self.registry)
        self.merge_seconds = Histogram(
            "loramem_merge_duration_seconds",
            "merging into a slot of the engine, on a miss",
            ["method"],
            buckets=STAGE,
            registry=self.registry,
        )
        self.route_score = Histogram(
            "loramem_route_score",
            "score of the best adapter",
            buckets=[i / 20 for i in range(21)],
            registry=self.registry,
        )
        self.choices = Counter(
            "loramem_route_choices", "how sure the router was", ["confidence"], registry=self.registry
        )
        self._pool = _Pool()
        self.registry.register(self._pool)
        self.registry.register(_Stores(queue, database))

    def observe_route(self, routed: Routed) -> None:
        if routed.decision.choice is not None:
            self.choices.labels(routed.decision.choice.confidence).inc()
        if routed.adapters:
            self.route_score.observe(routed.adapters[0].score)
        for prepared in routed.prepared:
            self._observe_merge(prepared)

    def _observe_merge(self, prepared: Prepared) -> None:
        """`single` is one adapter at its own strength: nothing to merge, but a slot to fill all the same."""
        method = prepared.recipe.method if prepared.merged else "single"
        self.merges.labels(method, "hit" if prepared.cache_hit else "miss").inc()
        if not prepared.cache_hit:
            self.merge_seconds.labels(method).observe(prepared.seconds)
        self._pool.tiers = prepared.tiers

    def observe_answer(self, mode: str, done: Done) -> None:
        self.query_seconds.labels(mode).observe(done.timings_ms["total"] / 1000)
        if "ttft" in done.timings_ms:
            self.ttft_seconds.labels(mode).observe(done.timings_ms["ttft"] / 1000)
        for stage in STAGES:
            if stage in done.timings_ms:
                self.stage_seconds.labels(mode, stage).observe(done.timings_ms[stage] / 1000)
        self.tokens.labels(mode, "prompt").inc(done.prompt_tokens)
        self.tokens.labels(mode, "completion").inc(done.completion_tokens)
        if done.dropped_tokens:
            self.tokens.labels(mode, "dropped").inc(done.dropped_tokens)

    def exposition(self) -> bytes:
        """Ours, then the process's default registry, where vLLM's are."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)


class _Pool(Collector):
    """The adapters in the engine's worker, as it last told; nothing before the first question to an adapter."""

    def __init__(self) -> None:
        self.tiers: Tiers = {}

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


class _Stores(Collector):
    """Read from the database at scrape time: it is the authority, whatever process did the work."""

    def __init__(self, queue: JobQueue, database: Database) -> None:
        self._queue = queue
        self._database = database

    def describe(self) -> list[Metric]:
        """Empty, so that registering does not query a database."""
        return []

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("loramem_build_info", "constant 1, with the version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        jobs = GaugeMetricFamily("loramem_jobs", "jobs by state", labels=["state"])
        for state, count in self._queue.counts().items():
            jobs.add_metric([state.value], count)
        yield jobs
        oldest = GaugeMetricFamily("loramem_job_queue_oldest_age_seconds", "age of the oldest queued job")
        oldest.add_metric([], self._queue.oldest_queued_age_s())
        yield oldest
        yield from self._counts()

    def _counts(self) -> Iterator[Metric]:
        documents = GaugeMetricFamily("loramem_documents", "documents by state", labels=["state"])
        adapters = GaugeMetricFamily("loramem_adapters", "adapters by state", labels=["state"])
        size = GaugeMetricFamily("loramem_adapter_bytes", "bytes of adapters on disk")
        with self._database.read() as session:
            for state, count in session.execute(select(Document.state, func.count()).group_by(Document.state)):
                documents.add_metric([state], count)
            for state, count in session.execute(select(Adapter.state, func.count()).group_by(Adapter.state)):
                adapters.add_metric([state], count)
            size.add_metric([], session.scalar(select(func.coalesce(func.sum(Adapter.size_bytes), 0))) or 0)
        yield from (documents, adapters, size)
