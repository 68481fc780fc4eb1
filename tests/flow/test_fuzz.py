"""Whatever the API's own description allows or forbids, no request makes the server fail."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance

from tests.flow.live import Live

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLES = 12
"""Of each operation. The long-running benchmark of this is `schemathesis run` against a server of one's own."""

Case = schemathesis.Case[Any]

schema = schemathesis.pytest.from_fixture("api")


@pytest.fixture(scope="session")
def api(live: Live) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{live.url}/openapi.json")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_makes_the_server_fail(case: Case, live: Live) -> None:
    _short_answers(case)
    response = case.call(base_url=live.url, timeout=60, stream=case.path.endswith("/events"))
    case.validate_response(response, checks=[not_a_server_error, content_type_conformance])
    _discard(live, response)


def _short_answers(case: Case) -> None:
    """A valid request may ask for a thousand tokens; what is tested does not need them."""
    body: Any = case.body
    for key in ("max_tokens", "max_completion_tokens"):
        if isinstance(body, dict) and isinstance(body.get(key), int) and body[key] > 8:
            body[key] = 8


def _discard(live: Live, response: schemathesis.Response) -> None:
    """A document that was accepted needs no training."""
    if response.status_code == 202 and "application/json" in response.headers.get("content-type", [""])[0]:
        live.client.delete(f"/documents/{response.json()['document']['id']}")
