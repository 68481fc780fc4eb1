"""The gateway as an ASGI application. Importing does nothing; `create_app` wires, the lifespan starts and stops."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from loramem import __version__
from loramem.settings import Settings
from server.api import adapters, documents, errors, health, jobs, openai, queries
from server.api.middleware import ApiKeys, BodyLimit, OwnPages, RequestContext
from server.api.schemas import Problem
from server.gateway import Gateway, build_gateway

DESCRIPTION = "Documents become LoRA adapters; questions are answered from weights, from text, or from both."


class Described(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's description with the schemas that only hand-written parts of it name."""
        description = super().openapi()
        description["components"]["schemas"] |= {**documents.NESTED_SCHEMAS, "Problem": Problem.model_json_schema()}
        return description


def create_app(settings: Settings, gateway: Gateway | None = None) -> FastAPI:
    """Wire the application; `gateway` replaces the one that would be built (it is then started and stopped here)."""
    gateway = gateway or build_gateway(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        gateway.start()
        yield
        gateway.stopping.set()
        await asyncio.shield(gateway.stop())

    app = Described(title="loramem", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.state.gateway = gateway
    errors.install(app)
    for module in (documents, jobs, queries, adapters, openai, health):
        app.include_router(module.router)
    # the last one added is the outermost
    if settings.api_keys:
        app.add_middleware(ApiKeys, keys=[key.get_secret_value() for key in settings.api_keys])
    else:
        app.add_middleware(OwnPages)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestContext, metrics=gateway.metrics)
    if settings.otlp_endpoint:
        _trace_requests(app)
    return app


def _trace_requests(app: FastAPI) -> None:
    """A span for each request but probes and scrapes; one that comes with a `traceparent` goes on with its trace."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(app, excluded_urls="healthz,readyz,metrics", exclude_spans=["receive", "send"])
