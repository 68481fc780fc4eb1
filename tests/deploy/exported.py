"""Metrics as they are exported: loramem's from live registries, vLLM's from its source."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.queue import JobQueue
from loramem.settings import Settings
from loramem.tables import JobState
from tests.deploy.promql import Known, labels_of
from tests.rows import add_adapters, add_document, serve
from tests.rules import ROOT
from trainer_worker.consume import OUTCOMES

Labels = dict[str, frozenset[str]]

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
SUFFIXES: dict[str, dict[str, list[str]]] = {
    "gauge": {"": []},
    "counter": {"_total": []},
    "histogram": {"_bucket": ["le"], "_sum": [], "_count": []},
}
TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus gives to whatever it scrapes."""
OF_PROMETHEUS: Labels = {"up": TARGET, "ALERTS": frozenset({"alertname", "alertstate", "severity"})}
WITH_A_GPU: Labels = {"loramem_gpu_memory_bytes": frozenset()}
"""Not exported where the tests run; `test_what_needs_a_gpu_is_in_the_source` looks for it."""
TIERS = {"host": {"bytes": 1, "entries": 1, "hits": 1, "misses": 1, "evictions": 1}}
VALUES = {
    "alertstate": {"firing"},
    "alertname": {"Loramem.+"},
    "cache": {"hit", "miss"},
    "job": {"gateway", "trainer"},
    "le": {"2.5"},
    "outcome": {"answered", "refused", "rejected", "failed", "aborted", *OUTCOMES},
    "result": {"hit", "miss"},
    "route": {"/healthz", "/readyz", "/metrics"},
    "sli": {"requests", "questions", "ttft"},
    "slo": {"availability", "latency"},
    "state": {str(state) for state in JobState},
    "status_class": {"2xx", "3xx", "4xx", "5xx", "none"},
    "winner": {"first", "other"},
}
"""Of labels whose values are asked for; those of `kind` depend on the metric."""


def known(folder: Path) -> Known:
    """Everything that Prometheus can be asked for; `folder` takes a database."""
    scraped = gateway(folder) | worker() | of_the_process() | of_vllm() | WITH_A_GPU
    metrics = {name: labels | TARGET for name, labels in scraped.items()} | OF_PROMETHEUS
    values = {label: frozenset(allowed) for label, allowed in VALUES.items()}
    for rule in recording_rules():
        found = labels_of(rule["expr"], Known(metrics, values)) | set(rule.get("labels", ()))
        metrics[rule["record"]] = metrics.get(rule["record"], frozenset()) | found
    return Known(metrics, values)


def gateway(folder: Path) -> Labels:
    from server.gauges import Process, Stores
    from server.metrics import Metrics
    from server.slots import Slots

    metrics, settings = Metrics(), Settings(home=folder)
    _touch(metrics)
    metrics._pool.tiers = TIERS
    database = Database(f"sqlite:///{folder / 'loramem.db'}")
    add_document(database, "doc_a", "text")
    serve(database, "doc_a", np.eye(4, dtype=np.float32)[:2], per_chunk=1)
    add_adapters(database, "doc_a")
    queue = JobQueue(database, PollingDoorbell(0.1), settings)
    index, engine = SimpleNamespace(held=dict), SimpleNamespace(running=True, slots=1)
    metrics.registry.register(Stores(queue, database, cast(Any, index), settings))
    metrics.registry.register(Process(cast(Any, engine), Slots(lambda: 1)))
    found = _samples(metrics.registry)
    database.close()
    return found


def worker() -> Labels:
    from trainer_worker.metrics import Metrics

    metrics = Metrics()
    _touch(metrics)
    return _samples(metrics.registry)


def of_the_process() -> Labels:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return _samples(registry)


def of_vllm() -> Labels:
    """Read, not imported: importing vLLM takes long."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    sources = Path(spec.submodule_search_locations[0], "v1")
    drafts = drafting_names(sources.joinpath("spec_decode", "metrics.py").read_text())
    return dict(vllm_names(sources.joinpath("metrics", "loggers.py").read_text())) | dict(drafts)


def drafting_names(source: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Counters with vLLM's usual labels, of pairs such as `("vllm:spec_decode_...", "documentation")`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            name = node.elts[0]
            if isinstance(name, ast.Constant) and str(name.value).startswith("vllm:spec_decode_"):
                yield from _of_kind(str(name.value), "counter", {"model_name", "engine"})


def vllm_names(source: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Samples and their labels, of calls such as `self._gauge_cls(name="vllm:...", labelnames=labelnames + ["x"])`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            kind = node.func.attr.strip("_").removesuffix("_cls")
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            name = given.get("name")
            if kind in SUFFIXES and isinstance(name, ast.Constant) and "labelnames" in given:
                yield from _of_kind(str(name.value), kind, _label_names(given["labelnames"]))


def _of_kind(name: str, kind: str, labels: set[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """prometheus_client adds `_total` to a counter that has none."""
    stem = name.removesuffix("_total") if kind == "counter" else name
    for suffix, more in SUFFIXES[kind].items():
        yield stem + suffix, frozenset(labels | {*more})


def _label_names(given: ast.expr) -> set[str]:
    """Of a list, or of vLLM's usual labels with a list."""
    parts = list(ast.walk(given))
    labels = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return labels | ({"model_name", "engine"} if any(isinstance(part, ast.Name) for part in parts) else set())


def recording_rules() -> list[dict[str, Any]]:
    return [rule for rule in all_rules() if "record" in rule]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in all_rules() if "alert" in rule]


def all_rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def _touch(metrics: object) -> None:
    """Give each metric a first series: one with labels shows none before, and its labels cannot be asked for."""
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase) and metric._labelnames:
            metric.labels(*("x" for _ in metric._labelnames))


def _samples(registry: CollectorRegistry) -> Labels:
    found: dict[str, set[str]] = defaultdict(set)
    for family in registry.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found[sample.name] |= set(sample.labels)
    return {name: frozenset(labels) for name, labels in found.items()}
