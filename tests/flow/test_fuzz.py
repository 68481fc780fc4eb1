"""Whatever the API's own description allows or forbids, no request makes the server fail."""

from contextlib import nullcontext, suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import content_type_conformance, not_a_server_error

from tests.flow.live import Live

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLES = 40
"""Of each operation and kind; `schemathesis run URL/openapi.json` goes on for as long as one likes."""
KINDS = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)

Case = schemathesis.Case[Any]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_no_request_makes_the_server_fail(live: Live, kind: schemathesis.GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    results: list[Any] = list(schema.get_all_operations())
    operations = [result.ok() for result in results]
    assert len(operations) > 15
    for operation in operations:
        _send(live, operation, kind)
    assert live.client.get("/readyz").status_code == 200


def _send(live: Live, operation: Any, kind: schemathesis.GenerationMode) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=kind))
    def send(case: Case) -> None:
        _short_answers(case)
        response = case.call(base_url=live.url, timeout=60)
        case.validate_response(response, checks=[not_a_server_error, content_type_conformance])
        _discard(live, response)

    # nothing can be wrong in an operation without parameters
    with suppress(Unsatisfiable) if kind == schemathesis.GenerationMode.NEGATIVE else nullcontext():
        send()


def _short_answers(case: Case) -> None:
    """A valid request may ask for a thousand tokens; what is tested does not need them."""
    body: Any = case.body
    for key in ("max_tokens", "max_completion_tokens"):
        if isinstance(body, dict) and isinstance(body.get(key), int) and body[key] > 8:
            body[key] = 8


def _discard(live: Live, response: schemathesis.Response) -> None:
    """A document that was accepted needs no training, and a preview no writing."""
    if response.status_code == 202 and b'"document"' in response.content:
        accepted = response.json()
        if accepted["document"]:
            live.client.delete(f"/documents/{accepted['document']['id']}")
        else:
            live.client.post(f"/jobs/{accepted['job']['id']}/cancel")
