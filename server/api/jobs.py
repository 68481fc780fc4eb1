"""/jobs: follow, cancel and retry the work on a document or a preview."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from loramem.tables import FINAL_JOB_STATES, Job, JobEvent, Preview
from loramem.transitions import existing
from server.api.common import TheGateway, job_detail, job_out, problems
from server.api.schemas import JobDetail, JobOut, Text
from server.gateway import Gateway
from server.stream import event, sse_response

router = APIRouter(prefix="/jobs", tags=["jobs"])

POLL_S = 0.5


@router.get("/{job_id}", responses=problems(404))
def read_job(job_id: Text, gateway: TheGateway) -> JobDetail:
    """State and progress; of a preview that succeeded, what it wrote."""
    with gateway.database.read() as session:
        job = existing(session.get(Job, job_id), job_id)
        return job_detail(job, session.get(Preview, job_id))


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={**problems(404), 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def follow_job(
    job_id: Text, gateway: TheGateway, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Server-sent events `state` and `progress`, from the first or after `Last-Event-ID`; ends with the job."""
    await asyncio.to_thread(gateway.queue.get, job_id)
    after = int(last_event_id[:18]) if last_event_id and last_event_id.isascii() and last_event_id.isdigit() else 0
    return sse_response(_events(gateway, job_id, after))


@router.post("/{job_id}/cancel", responses=problems(404, 409))
def cancel_job(job_id: Text, gateway: TheGateway) -> JobOut:
    """A queued job is cancelled at once, a running one at its next step."""
    return job_out(gateway.queue.cancel(job_id))


@router.post("/{job_id}/retry", responses=problems(404, 409))
def retry_job(job_id: Text, gateway: TheGateway) -> JobOut:
    """Queue a job that failed, died or was cancelled once more."""
    return job_out(gateway.queue.retry(job_id))


async def _events(gateway: Gateway, job_id: str, after: int) -> AsyncGenerator[bytes, None]:
    while not gateway.stopping.is_set():
        job = await asyncio.to_thread(gateway.queue.get, job_id)
        for row in await asyncio.to_thread(gateway.queue.events, job_id, after):
            after = row.id
            yield event(row.kind, _data(row), row.id)
        if job.state in FINAL_JOB_STATES:
            return
        await asyncio.sleep(POLL_S)


def _data(row: JobEvent) -> dict[str, Any]:
    return {"at": row.at, **row.data}
