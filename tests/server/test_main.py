"""How the gateway's process ends."""

import asyncio
import signal
from types import SimpleNamespace

import uvicorn

from server.__main__ import GracefulServer


def test_the_first_signal_tells_followers_to_hang_up_and_ends_the_server() -> None:
    stopping = asyncio.Event()
    app = SimpleNamespace(state=SimpleNamespace(gateway=SimpleNamespace(stopping=stopping)))
    server = GracefulServer(uvicorn.Config(app))  # type: ignore[arg-type]
    server.handle_exit(signal.SIGTERM, None)
    assert stopping.is_set()
    assert (server.should_exit, server.force_exit) == (True, False)
