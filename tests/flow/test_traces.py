"""Traces of a real server: from a request to the engine in one, and from a job back to its upload by a link."""

import pytest

from tests.flow.collector import Collector
from tests.flow.conftest import Library
from tests.flow.live import Live

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(3600)]

QUESTION = "Who dug the harbour of Quillmere?"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_is_one_trace_from_its_caller_to_the_engine(
    live: Live, library: Library, collector: Collector, stream: bool
) -> None:
    trace = TRACE[:-1] + str(int(stream))
    body = {"question": QUESTION, "namespace": "library", "top_k": 1, "max_tokens": 8, "stream": stream}
    reply = live.client.post("/query", json=body, headers={"traceparent": f"00-{trace}-{CALLER}-01"})
    assert reply.status_code == 200
    collector.wait(lambda span: span.trace == trace and span.name == "POST /query")
    collector.wait(lambda span: span.trace == trace and span.name == "llm_request")
    spans = {span.name: span for span in collector.trace(trace)}
    request = spans["POST /query"]
    assert request.parent == CALLER
    assert {spans[name].parent for name in ("route", "prompt", "merge", "llm_request")} == {request.id}
    assert {span.service for span in spans.values()} == {"loramem-gateway"}
    assert "gen_ai.usage.output_tokens" in request.text
    for span in spans.values():
        assert "Quillmere" not in span.text


def test_a_job_is_a_trace_of_its_own_that_points_to_its_upload(
    live: Live, library: Library, collector: Collector
) -> None:
    job = collector.wait(lambda span: span.name == "job build" and library.harbour in span.text)
    assert job.service == "loramem-worker"
    (upload,) = job.links
    assert upload != job.trace
    assert collector.wait(lambda span: span.trace == upload).name == "POST /documents"
    phases = [span for span in collector.trace(job.trace) if span.parent == job.id]
    assert [span.name for span in phases][-3:] == ["train", "examine", "publish"]
    assert "Wrenfield" not in "".join(span.text for span in collector.trace(job.trace))


def test_probes_and_scrapes_are_not_traced(live: Live, collector: Collector) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        live.client.get(path)
    live.client.get("/adapters")
    collector.wait(lambda span: span.name == "GET /adapters")
    names = {span.name for span in collector.spans}
    assert not names & {"GET /healthz", "GET /readyz", "GET /metrics"}
