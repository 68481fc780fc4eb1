"""Prometheus metrics of a worker, on a port of their own; labels only from closed sets."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loramem import __version__
from loramem.errors import SettingsError
from loramem.queue import Claim
from loramem.records import ExamResult, Phase, Progress
from loramem.tables import JobKind
from trainer_worker.consume import OUTCOMES
from trainer_worker.lease import Observer

PHASES = tuple(phase for phase in get_args(Phase) if phase not in ("waiting", "done"))

WAIT = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
HOURS = (1, 2, 4, 8, 16, 24, 48)  # twenty full chunks take seven on two slow cores
JOB = (1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800, *(hours * 3600 for hours in HOURS))
STEP = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 40)
TRANSACTION = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One registry per worker. `registry` has the process's own figures, too, as no engine shares this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.wait_seconds = Histogram(
            "loramem_job_wait_seconds", "from being due to being claimed", buckets=WAIT, registry=self.registry
        )
        self.job_seconds = Histogram(
            "loramem_job_duration_seconds",
            "one attempt at a job",
            ["kind", "outcome"],
            buckets=JOB,
            registry=self.registry,
        )
        self.phase_seconds = Histogram(
            "loramem_job_phase_seconds", "one phase of a job", ["phase"], buckets=JOB, registry=self.registry
        )
        self.attempts = Counter("loramem_job_attempts", "attempts by their end", ["outcome"], registry=self.registry)
        self.leases_lost = Counter(
            "loramem_job_leases_lost", "jobs that another worker took over", registry=self.registry
        )
        self.step_seconds = Histogram(
            "loramem_train_step_seconds", "one step of training", buckets=STEP, registry=self.registry
        )
        self.tokens = Counter("loramem_train_tokens", "tokens that adapters learnt from", registry=self.registry)
        self.loss = Gauge("loramem_train_loss", "mean loss of the last step, nats per token", registry=self.registry)
        self.exam_recall = Histogram(
            "loramem_exam_recall",
            "share of held-out questions that an adapter answered",
            buckets=[i / 10 for i in range(11)],
            registry=self.registry,
        )
        self.busy = Gauge("loramem_worker_busy", "1 while a job is worked on", registry=self.registry)
        self.transaction_seconds = Histogram(
            "loramem_database_transaction_seconds",
            "a transaction, its waiting included",
            ["kind"],
            buckets=TRANSACTION,
            registry=self.registry,
        )
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.registry.register(_Device())
        self._begin_at_nought()

    def _begin_at_nought(self) -> None:
        """A series that is born at 1 has no increase: without this, the first event of a kind would not show."""
        for kind, outcome in product(JobKind, OUTCOMES):
            self.job_seconds.labels(kind, outcome)
        for outcome in OUTCOMES:
            self.attempts.labels(outcome)
        for phase in PHASES:
            self.phase_seconds.labels(phase)
        for transaction in ("read", "write"):
            self.transaction_seconds.labels(transaction)

    def observe_transaction(self, kind: Literal["read", "write"], seconds: float) -> None:
        self.transaction_seconds.labels(kind).observe(seconds)

    def observe_end(self, claim: Claim, outcome: str, seconds: float) -> None:
        """How a claimed job ended, in the words of `consume`."""
        self.job_seconds.labels(claim.kind, outcome).observe(seconds)
        self.attempts.labels(outcome).inc()
        if outcome == "lease_lost":
            self.leases_lost.inc()

    def observe_exam(self, facts: Mapping[str, float | int | str | bool], exam: ExamResult) -> None:
        """One adapter that was trained, whether it is kept or not; `facts` are the trainer's."""
        self.tokens.inc(float(facts["tokens"]))
        if exam.questions:
            self.exam_recall.observe(exam.recall)

    @contextmanager
    def watch(self, claim: Claim) -> Iterator[Observer]:
        """Around one job; gives what is told of its progress."""
        self.wait_seconds.observe(claim.waited_s)
        clock = _Clock(self)
        with self.busy.track_inprogress():
            try:
                yield clock.tell
            finally:
                clock.end_phase()

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answer scrapes from a thread; gives what ends that. Raises `SettingsError` where it cannot listen."""
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise SettingsError(
                f"loramem: cannot listen on {host}:{port} ({error.strerror or error}). "
                "Set LORAMEM_WORKER_METRICS_HOST and LORAMEM_WORKER_METRICS_PORT to a free address of this machine."
            ) from None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


class _Clock:
    """Times the phases of a job and the steps of its training by what is reported."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._phase, self._step = "", 0
        self._phase_began = self._step_began = time.monotonic()

    def tell(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase != self._phase:
            self.end_phase()
            self._phase, self._step = progress.phase, progress.step
            self._phase_began = self._step_began = now
        if progress.loss is not None:
            self._metrics.loss.set(progress.loss)
        if progress.phase == "train" and progress.step == self._step + 1:
            self._metrics.step_seconds.observe(now - self._step_began)
        self._step, self._step_began = progress.step, now

    def end_phase(self) -> None:
        if self._phase:
            self._metrics.phase_seconds.labels(self._phase).observe(time.monotonic() - self._phase_began)
            self._phase = ""


class _Device(Collector):
    """The build, and the memory of the GPU where there is one."""

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        import torch

        build = GaugeMetricFamily("loramem_build_info", "constant 1, with the version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            allocated = torch.cuda.memory_allocated()
            yield GaugeMetricFamily("loramem_gpu_memory_bytes", "of the GPU, held by this worker's tensors", allocated)
