"""What the routers share: the gateway of this app, paging, and rows as replies."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from loramem.records import ExamResult, PreviewExample, Progress
from loramem.tables import Adapter, Document, Job, JobKind, Preview
from server.api.fields import Text
from server.api.schemas import AdapterOut, DocumentOut, JobDetail, JobOut
from server.gateway import Gateway


async def _gateway(request: Request) -> Gateway:  # async: a plain function would go through a thread
    gateway: Gateway = request.app.state.gateway
    return gateway


TheGateway = Annotated[Gateway, Depends(_gateway)]
Limit = Annotated[int, Query(ge=1, le=100, description="rows in a page")]
After = Annotated[Text | None, Query(max_length=64, description="`next_cursor` of the page before")]
NamespaceFilter = Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]

Row = TypeVar("Row", Adapter, Document)
PROBLEM = "#/components/schemas/Problem"
USUAL = {
    400: "Bad request",
    401: "Missing or wrong API key",
    403: "Not from here",
    422: "Invalid value",
    503: "Temporarily unavailable",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {"application/problem+json": {"schema": {"$ref": PROBLEM}}}}
    for code, text in USUAL.items()
}


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Response descriptions for the API's own description: the usual ones and these."""
    return {**PROBLEMS, **{code: {**PROBLEMS[400], "description": "see `detail`"} for code in codes}}


def page(
    session: Session, table: type[Row], conditions: Sequence[ColumnElement[bool]], limit: int, after: str | None
) -> tuple[list[Row], str | None]:
    """Rows in the order of their ids, and the cursor of the next page, where there is one."""
    wanted = select(table).where(*conditions).order_by(table.id).limit(limit + 1)
    rows = list(session.scalars(wanted if after is None else wanted.where(table.id > after)))
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


def job_out(job: Job) -> JobOut:
    return JobOut(
        id=job.id,
        kind=job.kind,
        document_id=job.document_id,
        revision=job.revision,
        state=job.state,
        progress=Progress.model_validate(job.progress) if job.progress else None,
        attempts=job.attempts,
        max_attempts=job.max_attempts,
        cancel_requested=job.cancel_requested,
        error=job.error,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def job_detail(job: Job, preview: Preview | None) -> JobDetail:
    """With what a preview's job wrote, once it has succeeded."""
    rows = preview.examples if preview is not None else None
    examples = None if rows is None else [PreviewExample.model_validate(row) for row in rows]
    counts = None if examples is None else Counter(example.kind for example in examples)
    return JobDetail(**dict(job_out(job)), preview=examples, preview_counts=counts)


def document_out(document: Document, job_id: str | None, mending_job_id: str | None = None) -> DocumentOut:
    return DocumentOut(
        id=document.id,
        namespace=document.namespace,
        external_id=document.external_id,
        title=document.title,
        metadata=document.meta,
        state=document.state,
        revision=document.newest_revision,
        serving_revision=document.serving_revision,
        job_id=job_id,
        mending_job_id=mending_job_id,
        created_at=document.created_at,
        updated_at=document.updated_at,
    )


def adapter_out(adapter: Adapter) -> AdapterOut:
    return AdapterOut(
        id=adapter.id,
        document_id=adapter.document_id,
        namespace=adapter.namespace,
        revision=adapter.revision,
        chunk=adapter.ordinal,
        rank=adapter.rank,
        alpha=adapter.alpha,
        size_bytes=adapter.size_bytes,
        sha256=adapter.sha256,
        base_fingerprint=adapter.fingerprint,
        exam=ExamResult.model_validate(adapter.exam),
        state=adapter.state,
        created_at=adapter.created_at,
    )


def latest_jobs(session: Session, document_ids: Sequence[str]) -> dict[str, str]:
    """Id of each document's newest build."""
    return _newest(session, document_ids, JobKind.BUILD)


def mending_jobs(session: Session, document_ids: Sequence[str]) -> dict[str, str]:
    """Id of each document's newest mending, of those that have one."""
    return _newest(session, document_ids, JobKind.MEND)


def _newest(session: Session, document_ids: Sequence[str], kind: JobKind) -> dict[str, str]:
    wanted = select(Job.document_id, Job.id).where(Job.document_id.in_(document_ids), Job.kind == kind)
    rows = session.execute(wanted.order_by(Job.revision, Job.created_at, Job.id))  # ids follow a clock that may be set
    return {document_id: job_id for document_id, job_id in rows if document_id is not None}
