"""Clients that go away, over a real socket: what they asked for ends in the engine."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from loramem.settings import Settings
from server.app import create_app
from server.gateway import Gateway
from tests.backends import free_port
from tests.server.conftest import MakeGateway
from tests.server.scripted_engine import ScriptedEngine


@pytest.fixture
def served(make_settings: Callable[..., Settings], make_gateway: MakeGateway) -> Iterator[Gateway]:
    """A gateway under uvicorn, whose engine says one word every 50 ms, for ten seconds."""
    settings = make_settings(port=free_port())
    gateway = make_gateway(settings)
    engine = gateway.engine
    assert isinstance(engine, ScriptedEngine)
    engine.words, engine.pause_s = ["word "] * 200, 0.05
    app = create_app(settings, gateway)
    server = uvicorn.Server(uvicorn.Config(app, port=settings.port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started and engine.running)
    yield gateway
    server.should_exit = True
    thread.join(10)


def wait_until(reached: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "never reached"
        time.sleep(0.01)


@contextmanager
def asked(gateway: Gateway, path: str, **body: object) -> Iterator[socket.socket]:
    content = json.dumps(body).encode()
    about = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    head = f"POST {path} HTTP/1.1\r\n{about}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.settings.port), timeout=20) as connection:
        connection.sendall(head.encode() + content)
        yield connection


CALLS = [
    ("/query", {"question": "Why?", "mode": "base", "max_tokens": 200}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 200}),
    ("/v1/completions", {"prompt": "Once", "max_tokens": 200}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), CALLS)
def test_a_client_that_leaves_aborts_its_generation(
    served: Gateway, path: str, body: dict[str, object], stream: bool
) -> None:
    engine = served.engine
    assert isinstance(engine, ScriptedEngine)
    model = {"model": served.base.name} if path.startswith("/v1") else {}
    with asked(served, path, **model, **body, stream=stream) as connection:
        if stream:
            received = b""
            while received.count(b"word ") < 2:
                piece = connection.recv(4096)
                assert piece, received
                received += piece
        else:
            wait_until(lambda: bool(engine.prompts))
            time.sleep(0.1)
    wait_until(lambda: bool(engine.ended))
    (end,) = engine.ended
    assert end.startswith("aborted after ")


def test_prompts_of_one_call_all_end_with_their_client(served: Gateway) -> None:
    engine = served.engine
    assert isinstance(engine, ScriptedEngine)
    with asked(served, "/v1/completions", model=served.base.name, prompt=["One", "Two"], max_tokens=200):
        wait_until(lambda: len(engine.prompts) == 2)
    wait_until(lambda: len(engine.ended) == 2)
    assert all(end.startswith("aborted") for end in engine.ended)


def test_other_clients_are_not_disturbed(served: Gateway) -> None:
    engine = served.engine
    assert isinstance(engine, ScriptedEngine)
    body = {"question": "Why?", "mode": "base"}
    with asked(served, "/query", **body, max_tokens=20) as staying:
        wait_until(lambda: bool(engine.prompts))
        with asked(served, "/query", **body, max_tokens=200):
            wait_until(lambda: len(engine.prompts) == 2)
        assert b"200 OK" in staying.recv(65536)
    wait_until(lambda: len(engine.ended) == 2)
    assert sorted(end.split(" after")[0] for end in engine.ended) == ["aborted", "finished"]


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=b"])
def test_a_client_that_leaves_while_it_uploads_is_no_failure_of_the_server(
    served: Gateway, caplog: pytest.LogCaptureFixture, media_type: str
) -> None:
    about = f"Host: 127.0.0.1\r\nContent-Type: {media_type}\r\nContent-Length: 1000"
    begun = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nThe lamp of'
    with socket.create_connection(("127.0.0.1", served.settings.port), timeout=20) as connection:
        connection.sendall(f"POST /documents HTTP/1.1\r\n{about}\r\n\r\n{begun}".encode())
    wait_until(lambda: requests(served, "none") == 1)
    assert requests(served, "5xx") is None
    assert not [record for record in caplog.records if record.exc_info]


def requests(gateway: Gateway, status_class: str) -> float | None:
    labels = {"method": "POST", "route": "/documents", "status_class": status_class}
    return gateway.metrics.registry.get_sample_value("loramem_http_requests_total", labels)
