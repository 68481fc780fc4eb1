"""What happens around every request: ids, body limits, keys, access lines, metrics, unexpected errors."""

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tests.server.api.conftest import MakeMemory
from tests.server.api.memory import QUESTION, Memory

BASE = {"question": QUESTION, "mode": "base"}


# request ids and the log


def test_each_request_has_an_id_of_its_own(memory: Memory) -> None:
    ids = {memory.client.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(("wanted", "kept"), [("trace-1.a_B", True), ("x" * 65, False), ("a b", False), ("", False)])
def test_a_plain_id_of_the_client_is_kept(memory: Memory, wanted: str, kept: bool) -> None:
    reply = memory.client.get("/documents/nothing", headers={"X-Request-ID": wanted})
    assert (reply.headers["x-request-id"] == wanted) is kept
    assert reply.json()["request_id"] == reply.headers["x-request-id"]


def test_the_access_line_has_method_path_and_status(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "server.access"):
        memory.client.get("/documents/nothing?after=secret")
        memory.client.get("/healthz")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "server.access"]
    assert re.fullmatch(r"GET /documents/nothing 404 \d+ ms", line)


def test_the_log_names_what_is_wrong_and_not_what_was_sent(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        memory.client.post("/documents", json={"text": "ok", "external_id": "hush" * 100})
        memory.client.post("/query", json={"question": QUESTION, "document_ids": ["hush"]})
        memory.client.put("/documents/doc_1", files={"file": ("hush.png", b"\x89PNG\r\n\x1a\n", "image/png")})
    lines = [record.getMessage() for record in caplog.records if record.name == "server.api.errors"]
    assert lines == [
        "POST /documents: invalid-value external_id",
        "POST /query: not-found document_ids",
        "PUT /documents/doc_1: unsupported-media-type file",
    ]


def test_an_unexpected_error_is_a_problem_that_the_log_explains(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    memory.engine.error = ZeroDivisionError("deep inside")
    reply = memory.client.post("/query", json=BASE, headers={"X-Request-ID": "find-me"})
    assert (reply.status_code, reply.headers["content-type"]) == (500, "application/problem+json")
    assert (reply.json()["code"], reply.json()["request_id"]) == ("internal-error", "find-me")
    assert reply.headers["x-request-id"] == "find-me"
    assert "deep inside" not in reply.text
    assert any(record.exc_info and "deep inside" in str(record.exc_info[1]) for record in caplog.records)
    assert 'loramem_http_requests_total{method="POST",route="/query",status_class="5xx"} 1.0' in scrape(memory)


def test_an_unexpected_error_under_v1_has_openais_shape(memory: Memory) -> None:
    memory.engine.error = ZeroDivisionError("deep inside")
    reply = memory.client.post("/v1/completions", json={"model": memory.gateway.base.name, "prompt": "a"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("SELECT 1", {}, Exception("database is locked")),
        PoolTimeout("QueuePool limit of size 5 overflow 10 reached"),
    ],
)
def test_a_database_that_is_away_is_a_503(memory: Memory, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(memory.gateway.database, "read", lambda: (_ for _ in ()).throw(error))
    reply = memory.client.get("/documents")
    assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
    assert reply.headers["retry-after"]


@pytest.mark.parametrize("said", ["database or disk is full", "could not extend file: No space left on device"])
def test_a_database_without_room_says_so(memory: Memory, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    error = OperationalError("INSERT INTO document", {}, Exception(said))
    monkeypatch.setattr(memory.gateway.database, "write", lambda: (_ for _ in ()).throw(error))
    reply = memory.client.post("/documents", json={"text": "The lamp burns."})
    assert (reply.status_code, reply.headers["content-type"]) == (503, "application/problem+json")
    problem = reply.json()
    assert (problem["code"], problem["title"]) == ("disk-full", "The disk is full")
    assert "the disk of the database is full" in problem["detail"]


# bodies


@pytest.fixture
def small(make_memory: MakeMemory) -> Memory:
    return make_memory(max_body_bytes=1000)


def chunks(size: int) -> Iterator[bytes]:
    yield b'{"text": "'
    for _ in range(0, size, 100):
        yield b"x" * 100
    yield b'"}'


def too_large(reply: Any) -> None:
    assert reply.status_code == 413
    problem = reply.json()
    assert (problem["code"], problem["key"], problem["allowed"]) == ("body-too-large", "body", "up to 1000 bytes")
    assert re.fullmatch(r"\d+ bytes", problem["value"])
    assert "LORAMEM_MAX_BODY_BYTES" in problem["detail"]


def test_a_body_that_is_declared_too_large(small: Memory) -> None:
    too_large(small.client.post("/documents", json={"text": "x" * 1000}))
    assert not any(small.rows().values())


@pytest.mark.parametrize("path", ["/documents", "/query"])
def test_a_chunked_body_that_becomes_too_large(small: Memory, path: str) -> None:
    too_large(small.client.post(path, content=chunks(2000), headers={"Content-Type": "application/json"}))
    assert not any(small.rows().values())


def test_a_chunked_form_that_becomes_too_large(small: Memory) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    too_large(small.client.post("/documents", content=iter([start, *[b"x" * 100] * 20]), headers=headers))


def test_under_v1_too_large_has_openais_shape(small: Memory) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (b"x" * 2000, chunks(2000)):
        reply = small.client.post("/v1/completions", content=content, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body-too-large")


def test_a_body_of_exactly_the_limit_is_read(small: Memory) -> None:
    frame = len(b'{"text":""}')
    content = b'{"text":"' + b"x" * (1000 - frame) + b'"}'
    assert small.client.post("/documents", content=content, headers={"Content-Type": "application/json"}).is_success


# keys


@pytest.fixture
def locked(make_memory: MakeMemory) -> Memory:
    return make_memory(api_keys=["first-key", "second-key"])


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic first-key", "first-key", "Bearer first-ke"]
)
@pytest.mark.parametrize("path", ["/documents", "/metrics", "/openapi.json", "/nowhere"])
def test_without_a_key_nothing_is_told(locked: Memory, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = locked.client.get(path, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("authorization", ["Bearer first-key", "bearer second-key", "Bearer  first-key "])
def test_each_key_opens(locked: Memory, authorization: str) -> None:
    assert locked.client.get("/documents", headers={"Authorization": authorization}).status_code == 200


def test_health_is_open_and_v1_refuses_in_its_own_shape(locked: Memory) -> None:
    assert locked.client.get("/healthz").json() == {"status": "ok"}
    assert locked.client.get("/readyz").status_code == 200
    reply = locked.client.get("/v1/models")
    assert (reply.status_code, reply.json()["error"]["code"]) == (401, "unauthorized")
    assert locked.client.get("/v1/models", headers={"Authorization": "Bearer first-key"}).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "evil.example"), ("Host", "evil.example:8000"), ("Host", "127.0.0.1.evil.example"),
        ("Host", "10.0.0.7"), ("Host", "[::1"), ("Host", ""), ("Origin", "https://evil.example"), ("Origin", "null"),
        ("Origin", "http://localhost@evil.example"),
    ],
)  # fmt: skip
def test_without_keys_pages_of_elsewhere_are_refused(memory: Memory, name: str, value: str) -> None:
    files = {"file": ("a.txt", b"planted", "text/plain")}
    reply = memory.client.post("/documents", files=files, headers={name: value})
    assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")
    assert memory.client.get("/documents").json()["data"] == []
    assert memory.client.get("/v1/models", headers={name: value}).json()["error"]["code"] == "forbidden"
    assert memory.client.get("/healthz", headers={name: value}).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "localhost:8000"), ("Host", "LOCALHOST"), ("Host", "127.0.0.2"), ("Host", "[::1]:8000"),
        ("Host", "loramem.localhost"), ("Origin", "http://localhost:3000"), ("Origin", "http://127.0.0.1:8000"),
    ],
)  # fmt: skip
def test_without_keys_this_machine_may_ask(memory: Memory, name: str, value: str) -> None:
    assert memory.client.get("/documents", headers={name: value}).status_code == 200


def test_with_a_key_anybody_may_ask(locked: Memory) -> None:
    headers = {"Authorization": "Bearer first-key", "Host": "memory.example", "Origin": "https://app.example"}
    assert locked.client.get("/documents", headers=headers).status_code == 200


# health and metrics


def scrape(memory: Memory) -> str:
    return memory.client.get("/metrics").text


def test_ready_says_why_not(memory: Memory) -> None:
    assert memory.client.get("/readyz").json() == {"status": "ready", "detail": ""}
    memory.engine.up = False
    reply = memory.client.get("/readyz")
    assert (reply.status_code, reply.json()) == (503, {"status": "starting", "detail": "the engine is loading"})
    memory.gateway.engine_error = "ValueError: no such model"
    assert memory.client.get("/readyz").json() == {"status": "failed", "detail": "ValueError: no such model"}


def test_a_gateway_that_stops_is_not_ready(memory: Memory) -> None:
    memory.gateway.stopping.set()
    reply = memory.client.get("/readyz")
    assert (reply.status_code, reply.json()["detail"]) == (503, "the gateway is shutting down")


def test_requests_are_counted_by_route_not_by_path(memory: Memory) -> None:
    for n in range(3):
        memory.client.get(f"/documents/doc_{n}")
    memory.client.get("/nowhere/at/all")
    memory.client.request("BREW", "/documents")
    text = scrape(memory)
    assert 'loramem_http_requests_total{method="GET",route="/documents/{document_id}",status_class="4xx"} 3.0' in text
    assert 'loramem_http_requests_total{method="GET",route="other",status_class="4xx"} 1.0' in text
    assert 'method="BREW"' not in text
    assert "doc_1" not in text


def test_answers_show_in_the_metrics_whatever_call_asked_for_them(memory: Memory) -> None:
    memory.teach(namespace="coast")
    memory.client.post("/query", json={"question": QUESTION, "namespace": "coast"})
    body = {"model": "coast", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    memory.client.post("/v1/chat/completions", json=body)
    text = scrape(memory)
    assert 'loramem_query_duration_seconds_count{mode="lora",outcome="answered"} 2.0' in text
    assert 'loramem_tokens_total{kind="completion",mode="lora"} 6.0' in text
    assert "loramem_route_score_count 2.0" in text
    assert 'loramem_documents{state="live"} 1.0' in text
