"""OpenTelemetry traces. Without `LORAMEM_OTLP_ENDPOINT` no span is recorded and nothing is sent.

One trace goes from a request to the engine. A job is a trace of its own with a link to the upload that asked for it,
because it may wait for hours. Spans carry ids, counts and kinds of errors; never texts, questions or answers.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.trace import Link, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from loramem import __version__
from loramem.settings import Settings

Value = str | int | float | bool | Sequence[str]
_W3C = TraceContextTextMapPropagator()
_HEADER = "traceparent"
FLUSH_MS = 5_000


def traces_url(settings: Settings) -> str | None:
    """Where spans go; None where traces are off."""
    return f"{settings.otlp_endpoint}/v1/traces" if settings.otlp_endpoint else None


def configure(settings: Settings, service: str) -> None:
    """Record spans of this process and send them in the background, or leave everything off. Call once.

    The SDK's own variables hold beside ours, `OTEL_TRACES_SAMPLER` and `OTEL_RESOURCE_ATTRIBUTES` among them.
    """
    url = traces_url(settings)
    if url is None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", f"loramem-{service}")
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Send what was recorded. A process that ends by a signal does not do so by itself."""
    flushing = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flushing is not None:
        flushing(FLUSH_MS)


@contextmanager
def span(
    name: str, attributes: Mapping[str, Value] | None = None, *, links: Sequence[Link] = (), root: bool = False
) -> Iterator[Span]:
    """Around a step; spans begun inside are its children. An error leaves its kind, not its words.

    Not around a `yield` of an asynchronous generator, which may be closed in another context than it was begun in.
    `root` begins a new trace.
    """
    context = trace.set_span_in_context(trace.INVALID_SPAN) if root else None
    tracer = trace.get_tracer("loramem", __version__)
    with tracer.start_as_current_span(
        name, context, links=links, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as begun:
        try:
            yield begun
        except BaseException as error:
            begun.set_attribute("error.type", type(error).__name__)
            begun.set_status(Status(StatusCode.ERROR))
            raise


def begin(name: str) -> Span:
    """A child of the current span that is not current itself; whoever begins it ends it."""
    return trace.get_tracer("loramem", __version__).start_span(name)


def annotate(attributes: Mapping[str, Value]) -> None:
    """Say more about the span that is current."""
    trace.get_current_span().set_attributes(attributes)


def headers() -> dict[str, str]:
    """W3C headers that carry the current trace to another process; empty where there is none."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier


def traceparent() -> str | None:
    """The current span's context in one line, to be stored."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get(_HEADER)


def links_to(traceparent: str) -> list[Link]:
    """A link to a stored context; none where nothing, or nothing readable, was stored."""
    context = trace.get_current_span(_W3C.extract({_HEADER: traceparent})).get_span_context()
    return [Link(context)] if traceparent and context.is_valid else []
