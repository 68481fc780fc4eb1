"""`python -m server`: the gateway in one process, vLLM's engine in a child of it."""

from typing import Any

import uvicorn

from loramem import tracing
from loramem.logs import configure
from loramem.settings import load_settings
from server.app import create_app

GRACE_S = 30


class GracefulServer(uvicorn.Server):
    """Tells followers of jobs to hang up at the first signal; answers in flight get `GRACE_S` seconds to finish."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.config.app.state.gateway.stopping.set()  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def main() -> None:
    settings = load_settings()
    configure("gateway", settings.log_level)
    tracing.configure(settings, "gateway")
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    GracefulServer(config).run()


if __name__ == "__main__":  # vLLM starts its engine by spawn, which imports this module again
    main()
