"""/healthz, /readyz and /metrics."""

import asyncio

from fastapi import APIRouter, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from server.api.common import PROBLEMS, TheGateway
from server.api.schemas import Health, Ready

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Ready}})
async def readyz(response: Response, gateway: TheGateway) -> Ready:
    """The engine takes questions. Uploads are accepted before that."""
    if gateway.engine.running and not gateway.stopping.is_set():
        return Ready(status="ready")
    response.status_code = 503
    if gateway.engine_error:
        return Ready(status="failed", detail=gateway.engine_error)
    detail = "the gateway is shutting down" if gateway.stopping.is_set() else "the engine is loading"
    return Ready(status="starting", detail=detail)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, 401: PROBLEMS[401], 403: PROBLEMS[403]},
)
async def metrics(gateway: TheGateway) -> Response:
    """Prometheus text format: loramem's metrics and vLLM's."""
    content = await asyncio.to_thread(gateway.metrics.exposition)
    return Response(content, media_type=CONTENT_TYPE_PLAIN_0_0_4)
