"""Prometheus metrics of the gateway; labels only from closed sets. vLLM's own stand beside them on /metrics."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Literal, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from loramem.errors import LoramemError
from loramem.records import AskedMode, MergeMethod
from server.ask import Choice, Confidence, Done, Event, Prepared, Routed, Token
from server.gauges import Pool

Outcome = Literal["answered", "refused", "rejected", "failed", "aborted"]
"""`refused` says that nothing stored is about the question, `rejected` is the client's fault, `aborted` its leaving."""

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120)
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
STAGE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STAGES = ("embed", "search", "route", "merge", "select", "queue", "prefill", "decode")


class Metrics:
    """One registry per gateway, so that several can live in one process; `registry` takes further collectors."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "loramem_http_requests", "HTTP requests", ["route", "method", "status_class"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "loramem_http_request_duration_seconds",
            "HTTP request time",
            ["route", "method", "status_class"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.query_seconds = Histogram(
            "loramem_query_duration_seconds",
            "question to last token, or to whatever else ended it",
            ["mode", "outcome"],
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
        self.overhead_seconds = Histogram(
            "loramem_query_overhead_seconds",
            "an answer's time outside the engine",
            ["mode"],
            buckets=STAGE,
            registry=self.registry,
        )
        self.in_flight = Gauge("loramem_queries_in_flight", "queries being answered", registry=self.registry)
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
        self.route_margin = Histogram(
            "loramem_route_margin",
            "lead of the best adapter over the next, as a share of its score",
            buckets=[i / 20 for i in range(21)],
            registry=self.registry,
        )
        self.selections = Counter(
            "loramem_selections",
            "answers selected among several adapters, by whether the best routed one gave it",
            ["winner"],
            registry=self.registry,
        )
        self.transaction_seconds = Histogram(
            "loramem_database_transaction_seconds",
            "a transaction, its waiting included",
            ["kind"],
            buckets=STAGE,
            registry=self.registry,
        )
        self._pool = Pool()
        self.registry.register(self._pool)
        self._begin_at_nought()

    def _begin_at_nought(self) -> None:
        """A series that is born at 1 has no increase: without this, the first event of a kind would not show."""
        modes, methods = get_args(AskedMode), ("single", *get_args(MergeMethod))
        values: list[tuple[MetricWrapperBase, Iterable[tuple[str, ...]]]] = [
            (self.query_seconds, product(modes, get_args(Outcome))),
            (self.ttft_seconds, product(modes)),
            (self.overhead_seconds, product(modes)),
            (self.stage_seconds, product(modes, STAGES)),
            (self.tokens, product(modes, ("prompt", "completion", "dropped"))),
            (self.merges, product(methods, ("hit", "miss"))),
            (self.merge_seconds, product(methods)),
            (self.choices, product(get_args(Confidence))),
            (self.selections, product(("first", "other"))),
            (self.transaction_seconds, product(("read", "write"))),
        ]
        for metric, all_labels in values:
            for labels in all_labels:
                metric.labels(*labels)

    def observe_transaction(self, kind: Literal["read", "write"], seconds: float) -> None:
        self.transaction_seconds.labels(kind).observe(seconds)

    @contextmanager
    def query(self, mode: str) -> Iterator["Query"]:
        """Around the answering of one question; the events are to be shown to what it gives."""
        noted = Query(self, mode)
        with self.in_flight.track_inprogress():
            try:
                yield noted
            except LoramemError as error:
                noted.end("rejected" if error.status < 500 else "failed")
                raise
            except Exception:
                noted.end("failed")
                raise
            finally:  # `end` counts once: what comes here unended was left by its client
                noted.end("aborted")

    def observe_route(self, routed: Routed) -> None:
        if routed.decision.choice is not None:
            self._observe_choice(routed.decision.choice)
        if routed.selection is not None:
            self.selections.labels("first" if routed.winner == 0 else "other").inc()
        for prepared in routed.prepared:
            self._observe_merge(prepared)

    def _observe_choice(self, choice: Choice) -> None:
        self.choices.labels(choice.confidence).inc()
        if choice.best is not None:
            self.route_score.observe(choice.best)
            self.route_margin.observe(choice.margin)

    def _observe_merge(self, prepared: Prepared) -> None:
        """`single` is one adapter at its own strength: nothing to merge, but a slot to fill all the same."""
        method = prepared.recipe.method if prepared.merged else "single"
        self.merges.labels(method, "hit" if prepared.cache_hit else "miss").inc()
        if not prepared.cache_hit:
            self.merge_seconds.labels(method).observe(prepared.seconds)
        self._pool.see(prepared.tiers)

    def observe_answer(self, mode: str, done: Done) -> None:
        """Of one that was generated; a refusal is not."""
        if "ttft" in done.timings_ms:
            self.ttft_seconds.labels(mode).observe(done.timings_ms["ttft"] / 1000)
        for stage in STAGES:
            if stage in done.timings_ms:
                self.stage_seconds.labels(mode, stage).observe(done.timings_ms[stage] / 1000)
        engine_ms = [done.timings_ms[stage] for stage in ("queue", "prefill", "decode") if stage in done.timings_ms]
        if engine_ms:
            self.overhead_seconds.labels(mode).observe(max(0.0, done.timings_ms["total"] - sum(engine_ms)) / 1000)
        self.tokens.labels(mode, "prompt").inc(done.prompt_tokens)
        self.tokens.labels(mode, "completion").inc(done.completion_tokens)
        if done.dropped_tokens:
            self.tokens.labels(mode, "dropped").inc(done.dropped_tokens)

    def exposition(self) -> bytes:
        """Ours, then the process's default registry, where vLLM's are."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)


class Query:
    """One question on its way; `see` its events, and it is noted once how it ended."""

    def __init__(self, metrics: Metrics, mode: str) -> None:
        self._metrics, self._mode = metrics, mode
        self._refused = self._begun = self._ended = False
        self._started = time.perf_counter()

    def see(self, event: Event) -> None:
        if isinstance(event, Routed):
            self._mode, self._refused = event.decision.mode, event.decision.refuses
            self._metrics.observe_route(event)
        elif isinstance(event, Token):
            self._begun = True
        elif isinstance(event, Done):
            if not self._refused:
                self._metrics.observe_answer(self._mode, event)
            self.end("refused" if self._refused else "answered")

    def end(self, outcome: Outcome) -> None:
        if not self._ended:
            self._ended = True
            seconds = time.perf_counter() - self._started
            self._metrics.query_seconds.labels(self._mode, outcome).observe(seconds)
            if outcome == "aborted" and not self._begun:  # at least so long: without these an overload looks fast
                self._metrics.ttft_seconds.labels(self._mode).observe(seconds)
