"""Traces: off without a collector, nested within a process, and linked where hours may lie between."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from loramem import tracing
from loramem.settings import Settings


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def test_without_a_collector_nothing_is_recorded_or_carried() -> None:
    tracing.configure(Settings(), "test")
    assert tracing.traces_url(Settings()) is None
    with tracing.span("step") as span:
        assert not span.is_recording()
        assert tracing.headers() == {}
        assert tracing.traceparent() is None


def test_spans_nest_and_carry_what_is_said_of_them(spans: InMemorySpanExporter) -> None:
    with tracing.span("outer", {"loramem.mode": "lora"}):
        with tracing.span("inner"):
            tracing.annotate({"gen_ai.usage.input_tokens": 7})
        begun = tracing.begin("beside")
        begun.end()
    inner, beside, outer = spans.get_finished_spans()
    assert [span.name for span in (inner, beside, outer)] == ["inner", "beside", "outer"]
    assert inner.parent == beside.parent == outer.context
    assert (dict(inner.attributes or {}), dict(outer.attributes or {})) == (
        {"gen_ai.usage.input_tokens": 7},
        {"loramem.mode": "lora"},
    )


def test_an_error_leaves_its_kind_and_not_its_words(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="the secret text"), tracing.span("step"):
        raise ValueError("the secret text")
    (span,) = spans.get_finished_spans()
    assert span.status.status_code == StatusCode.ERROR
    assert dict(span.attributes or {}) == {"error.type": "ValueError"}
    assert "secret" not in span.to_json()


def test_a_root_begins_a_trace_of_its_own_and_links_to_a_stored_one(spans: InMemorySpanExporter) -> None:
    with tracing.span("upload"):
        stored = tracing.traceparent()
        assert tracing.headers()["traceparent"] == stored
        assert stored is not None
        with tracing.span("job", links=tracing.links_to(stored), root=True):
            pass
    job, upload = spans.get_finished_spans()
    assert job.parent is None
    assert job.context.trace_id != upload.context.trace_id
    assert [link.context.span_id for link in job.links] == [upload.context.span_id]


@pytest.mark.parametrize("stored", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_what_cannot_be_read_is_no_link(stored: str) -> None:
    assert tracing.links_to(stored) == []


def test_the_collectors_address_is_a_root(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, otlp_endpoint="http://127.0.0.1:4318/")
    assert tracing.traces_url(settings) == "http://127.0.0.1:4318/v1/traces"
