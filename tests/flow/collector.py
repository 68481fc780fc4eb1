"""An OpenTelemetry collector for tests: takes spans over HTTP and keeps them."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent


@dataclass(frozen=True)
class Span:
    """Ids are in hexadecimal; `links` are the traces that it points to."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, service: str, sent: Sent) -> "Span":
        links = tuple(link.trace_id.hex() for link in sent.links)
        ids = (sent.trace_id.hex(), sent.span_id.hex(), sent.parent_span_id.hex())
        return cls(service, sent.name, *ids, links, str(sent))


class Collector:
    """`with Collector() as collector:` listens on `collector.url`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        keep = self._keep

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                keep(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing: what arrives is kept."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Collector":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait(self, wanted: Callable[[Span], bool], timeout_s: float = 30) -> Span:
        """The first span that is wanted, once it is here; processes send theirs from time to time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (found := next(filter(wanted, list(self.spans)), None)) is not None:
                return found
            time.sleep(0.1)
        raise TimeoutError(f"no such span among {sorted({(span.service, span.name) for span in self.spans})}")

    def trace(self, trace: str) -> list[Span]:
        return [span for span in list(self.spans) if span.trace == trace]

    def _keep(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [Span.of(named.get("service.name", ""), span) for span in scope.spans]
