"""/jobs: follow, cancel and retry the work on a document or a preview."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from loramem.tables import FINAL_JOB_STATES, Job, JobEvent, Preview
from loramem.transitions import existing
from server.api.common import TheGateway, job_detail, job_out, problems
from server.api.fields import Text
from server.api.schemas import JobDetail, JobOut
from server.gateway import Gateway
from server.stream import event, sse_response

router = APIRouter(prefix="/jobs", tags=["jobs"])

POLL_S = 0.5
POLL_S_A_FOLLOWER = 0.01
"""All followers together look at the database 100 times a second at most."""
EVENTS_A_READ = 100


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
    gateway.followers += 1
    try:
        while not gateway.stopping.is_set():
            job, rows = await asyncio.to_thread(_read, gateway, job_id, after)
            for row in rows:
                after = row.id
                yield event(row.kind, _data(row), row.id)
            if len(rows) == EVENTS_A_READ:
                continue
            if job.state in FINAL_JOB_STATES:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(gateway.stopping.wait(), _pause_s(gateway))
    finally:
        gateway.followers -= 1


def _read(gateway: Gateway, job_id: str, after: int) -> tuple[Job, list[JobEvent]]:
    """The job first: of one that is over then, no event can be missed."""
    return gateway.queue.get(job_id), gateway.queue.events(job_id, after, EVENTS_A_READ)


def _pause_s(gateway: Gateway) -> float:
    return max(POLL_S, gateway.followers * POLL_S_A_FOLLOWER)


def _data(row: JobEvent) -> dict[str, Any]:
    return {"at": row.at, **row.data}
