"""The API's description of itself: valid, complete, and true where a test can see it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis

from tests.server.api.memory import LIGHTHOUSE, QUESTION, Json, Memory

CALLS = {
    "POST /documents", "GET /documents", "GET /documents/{document_id}", "PUT /documents/{document_id}",
    "DELETE /documents/{document_id}", "GET /jobs/{job_id}", "GET /jobs/{job_id}/events", "POST /jobs/{job_id}/cancel",
    "POST /jobs/{job_id}/retry", "POST /query", "GET /adapters", "GET /adapters/{adapter_id}",
    "GET /adapters/{adapter_id}/download", "POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models",
    "GET /v1/models/{model}", "GET /healthz", "GET /readyz", "GET /metrics",
}  # fmt: skip


@pytest.fixture
def description(memory: Memory) -> Json:
    found: Json = memory.client.get("/openapi.json").json()
    return found


def operations(description: Json) -> Iterator[tuple[str, Json]]:
    for path, item in description["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def test_it_is_valid_openapi(description: Json) -> None:
    schemathesis.openapi.from_dict(description).validate()


def test_every_schema_it_refers_to_is_there(description: Json) -> None:
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(description)))
    assert named
    assert named <= description["components"]["schemas"].keys()


def test_it_names_every_call(description: Json) -> None:
    assert {name for name, _ in operations(description)} == CALLS


def test_asking_twice_gives_the_same(memory: Memory, description: Json) -> None:
    assert memory.client.get("/openapi.json").json() == description


def test_every_call_describes_its_errors_in_the_shape_they_have(description: Json) -> None:
    for name, operation in operations(description):
        for status, reply in operation["responses"].items():
            if not status.startswith(("4", "5")) or name == "GET /readyz":
                continue
            media_type = "application/json" if "/v1/" in name else "application/problem+json"
            schema = "ErrorOut" if "/v1/" in name else "Problem"
            assert reply["content"][media_type]["schema"] == {"$ref": f"#/components/schemas/{schema}"}, (name, status)


def statuses(operation: Json) -> set[int]:
    return set(map(int, operation["responses"]))


def test_every_call_describes_what_it_may_refuse(description: Json) -> None:
    for name, operation in operations(description):
        expected = set() if name in ("GET /healthz", "GET /readyz") else {401, 403}
        if name.split()[1] not in ("/healthz", "/readyz", "/metrics"):
            expected.add(503)
        if "requestBody" in operation:
            expected |= {400, 413, 415}
        if "requestBody" in operation or operation.get("parameters"):
            expected.add(422)
        if "{" in name:
            expected.add(404)
        assert expected <= statuses(operation), name


def test_calls_that_read_adapters_say_that_these_may_be_damaged(description: Json) -> None:
    damaged = {name for name, operation in operations(description) if 500 in statuses(operation)}
    assert damaged == {
        "POST /query", "POST /v1/chat/completions", "POST /v1/completions", "GET /adapters/{adapter_id}/download",
    }  # fmt: skip


def test_every_body_refuses_keys_it_does_not_name(description: Json) -> None:
    for name in ("QueryIn", "ChatIn", "CompletionIn", "TrainingOptions", "MergeIn"):
        assert description["components"]["schemas"][name]["additionalProperties"] is False


def test_uploads_are_described_in_both_forms(description: Json) -> None:
    for name in ("post /documents", "put /documents/{document_id}"):
        method, path = name.split()
        content = description["paths"][path][method]["requestBody"]["content"]
        assert content["application/json"]["schema"]["properties"].keys() >= {"text", "qa", "training", "metadata"}
        assert content["multipart/form-data"]["schema"]["properties"]["file"]["format"] == "binary"


def test_a_preview_is_asked_for_with_an_upload_alone(description: Json) -> None:
    taking = [
        name
        for name, operation in operations(description)
        if "preview" in [parameter["name"] for parameter in operation.get("parameters", ())]
    ]
    assert taking == ["POST /documents"]


def _resolve(description: Json, schema: Json) -> Json:
    while "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("post", "/documents", 202, {"text": LIGHTHOUSE}),
        ("get", "/documents", 200, None),
        ("get", "/adapters", 200, None),
        ("get", "/v1/models", 200, None),
        ("post", "/query", 200, {"question": QUESTION, "mode": "base"}),
        ("post", "/query", 409, {"question": QUESTION, "mode": "lora", "namespace": "empty"}),
        ("post", "/query", 422, {"question": QUESTION, "mode": "magic"}),
    ],
)
def test_replies_hold_the_keys_described(
    memory: Memory, description: Json, method: str, path: str, status: int, body: Any
) -> None:
    reply = memory.client.request(method, path, json=body)
    assert reply.status_code == status
    content = description["paths"][path][method]["responses"][str(status)]["content"]
    schema = _resolve(description, content[reply.headers["content-type"]]["schema"])
    assert set(schema["required"]) <= reply.json().keys()
    if not schema.get("additionalProperties", True):
        assert reply.json().keys() <= schema["properties"].keys()
