"""Whatever the API's own description allows or forbids, no request makes the server fail."""

import uuid
from collections import defaultdict
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import content_type_conformance, not_a_server_error

from tests.flow.conftest import QUICK, Library
from tests.flow.live import Live

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(3600)]

EXAMPLES = 40
"""Of each operation and kind; `schemathesis run URL/openapi.json` goes on for as long as one likes."""
KINDS = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)

Case = schemathesis.Case[Any]


Ids = dict[str, str]
"""By the name of the path's parameter."""
ASKED = {"role": "user", "content": "How high is the lighthouse?"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_no_request_makes_the_server_fail(live: Live, library: Library, kind: schemathesis.GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    results: list[Any] = list(schema.get_all_operations())
    operations = [result.ok() for result in results]
    assert len(operations) > 15
    sender = Sender(live, _of_the_library(live, library))
    for operation in operations:
        sender.send(operation, kind)
    assert live.client.get("/readyz").status_code == 200
    if kind == schemathesis.GenerationMode.POSITIVE:
        refused = {label: seen for label, seen in sender.statuses.items() if not any(200 <= one < 300 for one in seen)}
        assert not refused, "nothing behind the refusals was reached"


class Sender:
    """`statuses`: what each operation was answered with."""

    def __init__(self, live: Live, library: Ids) -> None:
        self.live, self.library = live, library
        self.statuses: defaultdict[str, set[int]] = defaultdict(set)

    def send(self, operation: Any, kind: schemathesis.GenerationMode) -> None:
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=kind), st.booleans())
        def send(case: Case, aimed: bool) -> None:
            _short_answers(case)
            own = self._aim(case) if aimed and kind == schemathesis.GenerationMode.POSITIVE else ""
            response = case.call(base_url=self.live.url, timeout=300)
            self.statuses[operation.label].add(response.status_code)
            case.validate_response(response, checks=[not_a_server_error, content_type_conformance])
            _discard(self.live, response)
            if own:
                self.live.client.delete(f"/documents/{own}")

        # nothing can be wrong in an operation without parameters
        with suppress(Unsatisfiable) if kind == schemathesis.GenerationMode.NEGATIVE else nullcontext():
            send()

    def _aim(self, case: Case) -> str:
        """Have a valid request be about something that is there: the library, or, for a change, a document of its own,
        whose id is returned."""
        body: Any = case.body
        if isinstance(body, dict):
            _ask_the_library(case.path, body)
        if not case.path_parameters:
            return ""
        own = {} if case.method == "GET" else self._own(cancelled=case.path.endswith("/retry"))
        ids = own or self.library
        case.path_parameters.update({name: ids[name] for name in case.path_parameters})
        return own.get("document_id", "")

    def _own(self, *, cancelled: bool) -> Ids:
        document_id, job_id = self.live.upload(f"Text {uuid.uuid4()}.", namespace="fuzz", training=QUICK)
        if cancelled:
            self.live.client.post(f"/jobs/{job_id}/cancel")
            self.live.wait_job(job_id, "cancelled")
        return {"document_id": document_id, "job_id": job_id}


def _of_the_library(live: Live, library: Library) -> Ids:
    document = live.client.get(f"/documents/{library.harbour}").json()
    adapter = live.client.get("/adapters", params={"document_id": library.harbour}).json()["data"][0]
    ids = {"document_id": library.harbour, "job_id": document["job_id"]}
    return {**ids, "adapter_id": adapter["id"], "model": "library"}


def _ask_the_library(path: str, body: dict[str, Any]) -> None:
    if path == "/documents/{document_id}":
        body.pop("namespace", None)  # a document keeps its own
        return
    if body.get("messages"):
        body.pop("question", None)
        body["messages"][-1] = ASKED
    if path == "/query":
        for narrowing in ("document_ids", "metadata"):
            body.pop(narrowing, None)
        body["namespace"] = "library"
        if not body.get("messages"):
            body.pop("messages", None)
            body["question"] = body.get("question") or ASKED["content"]
    elif path.startswith("/v1"):
        body["model"] = "library"


def _short_answers(case: Case) -> None:
    """A valid request may ask for a thousand tokens, or under `/v1` get hundreds unasked; what is tested does not need
    them."""
    body: Any = case.body
    if not isinstance(body, dict):
        return
    keys = ("max_tokens", "max_completion_tokens")
    for key in keys:
        if isinstance(body.get(key), int) and body[key] > 8:
            body[key] = 8
    if case.path.startswith("/v1/") and all(body.get(key) is None for key in keys):
        body["max_tokens"] = 8


def _discard(live: Live, response: schemathesis.Response) -> None:
    """A document that was accepted needs no training, and a preview no writing."""
    if response.status_code == 202 and b'"document"' in response.content:
        accepted = response.json()
        if accepted["document"]:
            live.client.delete(f"/documents/{accepted['document']['id']}")
        else:
            live.client.post(f"/jobs/{accepted['job']['id']}/cancel")
