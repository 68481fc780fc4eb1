"""/documents: upload, list, read, replace, delete."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from loramem.chunk import count_tokens
from loramem.errors import BadRequest, InvalidValue, NotFound, UnsupportedMediaType
from loramem.lines import check_text, tidy, too_long
from loramem.prompts import MAX_ANSWER_TOKENS, MAX_QUESTION_TOKENS
from loramem.records import QAPair, TrainingOptions
from loramem.sandbox import parse_upload
from loramem.settings import Settings
from loramem.tables import Document, Job
from server.api.common import (
    After,
    Limit,
    NamespaceFilter,
    TheGateway,
    document_out,
    job_out,
    latest_jobs,
    mending_jobs,
    page,
    problems,
)
from server.api.fields import Text
from server.api.schemas import AcceptedOut, DocumentFields, DocumentIn, DocumentOut, DocumentPage
from server.gateway import Gateway
from server.upload import Upload, create_document, create_preview, delete_document, replace_document

OnlyPreview = Annotated[
    bool, Query(description="write the first chunk's training data for you to look at, and keep no document")
]

router = APIRouter(prefix="/documents", tags=["documents"])

FORM_JSON_FIELDS = ("metadata", "qa", "training")
MAX_FORM_FIELDS = 16
UNTIDY = 3
"""So many times the characters allowed may a text have before it is tidied: of Korean in parts of syllables a third
stays, of other texts more."""
FORM_CHARSETS = ("utf-8", "utf8", "us-ascii")
FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "txt, md, html, pdf, docx or epub"},
        "title": {"type": "string", "maxLength": 500},
        "external_id": {"type": "string"},
        "namespace": {"type": "string"},
        **{name: {"type": "string", "description": "JSON"} for name in FORM_JSON_FIELDS},
    },
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": DocumentIn.model_json_schema(ref_template="#/components/schemas/{model}")},
            "multipart/form-data": {"schema": FORM_SCHEMA},
        },
    }
}
NESTED_SCHEMAS: dict[str, Any] = BODY["requestBody"]["content"]["application/json"]["schema"].pop("$defs")
"""Schemas that `DocumentIn` refers to; `app` puts them among the components."""


@router.post("", status_code=202, openapi_extra=BODY, responses=problems(413, 415))
async def upload(
    request: Request, response: Response, gateway: TheGateway, preview: OnlyPreview = False
) -> AcceptedOut:
    """Accept a document; its text is searchable and its adapters live when the job named in `Location` is done.

    The same content again is the same document. With `preview` nothing is trained and there is no document: the job
    then shows the training data of the first chunk, for a day.
    """
    wanted = await _read_upload(request, gateway)
    if preview:
        job = await asyncio.to_thread(create_preview, gateway.database, gateway.queue, wanted)
        return _accepted(response, job)
    _check_askable(wanted.namespace, gateway)
    accepted = await asyncio.to_thread(create_document, gateway.database, gateway.queue, wanted)
    return _accepted(response, accepted.job, accepted.document, accepted.created)


@router.put("/{document_id}", status_code=202, openapi_extra=BODY, responses=problems(404, 409, 413, 415))
async def replace(document_id: Text, request: Request, response: Response, gateway: TheGateway) -> AcceptedOut:
    """Accept a new revision; the old one answers until the new one is live.

    The document keeps its namespace, and its metadata and `external_id` where none are given.
    """
    wanted = await _read_upload(request, gateway)
    accepted = await asyncio.to_thread(replace_document, gateway.database, gateway.queue, document_id, wanted)
    return _accepted(response, accepted.job, accepted.document, accepted.created)


@router.get("", responses=problems())
def list_documents(
    gateway: TheGateway, namespace: NamespaceFilter = None, limit: Limit = 50, after: After = None
) -> DocumentPage:
    """Newest last, in pages."""
    wanted = [] if namespace is None else [Document.namespace == namespace]
    with gateway.database.read() as session:
        rows, cursor = page(session, Document, wanted, limit, after)
        ids = [row.id for row in rows]
        jobs, mendings = latest_jobs(session, ids), mending_jobs(session, ids)
    data = [document_out(row, jobs.get(row.id), mendings.get(row.id)) for row in rows]
    return DocumentPage(data=data, has_more=cursor is not None, next_cursor=cursor)


@router.get("/{document_id}", responses=problems(404))
def read_document(document_id: Text, gateway: TheGateway) -> DocumentOut:
    with gateway.database.read() as session:
        document = session.get(Document, document_id)
        if document is None:
            raise NotFound("document", document_id)
        jobs, mendings = latest_jobs(session, [document_id]), mending_jobs(session, [document_id])
        return document_out(document, jobs.get(document_id), mendings.get(document_id))


@router.delete("/{document_id}", status_code=204, responses=problems(404))
def delete(document_id: Text, gateway: TheGateway) -> None:
    """Unanswerable at once; the adapters' files go after a grace period for answers in flight."""
    delete_document(gateway.database, gateway.queue, document_id)


def _accepted(
    response: Response, job: Job | None, document: Document | None = None, created: bool = False
) -> AcceptedOut:
    if job is not None:
        response.headers["Location"] = f"/jobs/{job.id}"
        response.headers["Retry-After"] = "5"
    shown = document_out(document, job.id if job else None) if document else None
    return AcceptedOut(document=shown, job=job_out(job) if job else None, created=created)


async def _read_upload(request: Request, gateway: Gateway) -> Upload:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return await _from_json(request, gateway)
    if media_type == "multipart/form-data":
        return await _from_form(request, gateway)
    raise UnsupportedMediaType(
        f"a document comes as application/json or multipart/form-data, not as {media_type or 'an untyped body'}",
        key="Content-Type",
        value=media_type or "(missing)",
        allowed="application/json with `text`, or multipart/form-data with `file`",
    )


async def _from_json(request: Request, gateway: Gateway) -> Upload:
    wanted = _validated(DocumentIn, await request.body())
    text = await asyncio.to_thread(_tidied, wanted.text, gateway.settings.max_text_chars)
    await asyncio.to_thread(_check_pairs, wanted.qa, gateway)
    return _upload(wanted, text, "", "text/plain", gateway)


def _tidied(text: str, max_chars: int) -> str:
    """The text as it is stored. Tidying takes seconds, so what it would leave too long is refused before."""
    if len(text) > UNTIDY * max_chars:
        raise too_long(text, key="text", max_chars=max_chars)
    return check_text(tidy(text), key="text", max_chars=max_chars)


async def _from_form(request: Request, gateway: Gateway) -> Upload:
    async with _form(request, gateway.settings.max_body_bytes) as form:
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise InvalidValue("the form has no file", key="file", value="(missing)", allowed="one file part")
        fields = {key: value for key, value in form.items() if key != "file" and isinstance(value, str)}
        wanted = _validated(DocumentFields, _form_json(fields))
        content, filename, declared = await file.read(), file.filename or "", file.content_type
    await asyncio.to_thread(_check_pairs, wanted.qa, gateway)
    parsed = await parse_upload(content, filename=filename, content_type=declared, settings=gateway.settings)
    return _upload(wanted, parsed.text, parsed.title, parsed.media_type, gateway)


@asynccontextmanager
async def _form(request: Request, max_bytes: int) -> AsyncGenerator[FormData, None]:
    """`max_bytes` of the whole body are checked elsewhere. Raises `BadRequest` for what cannot be taken apart."""
    _check_charset(request)
    limits = {"max_files": 1, "max_fields": MAX_FORM_FIELDS, "max_part_size": max_bytes}
    try:
        async with aclosing(request.stream()) as stream:
            form = await MultiPartParser(request.headers, stream, **limits).parse()
    except MultiPartException as error:
        raise BadRequest(
            f"the form cannot be read: {error.message}",
            key="body",
            value="malformed",
            allowed=f"multipart/form-data with a boundary, one file and at most {MAX_FORM_FIELDS} other fields",
        ) from None
    try:
        yield form
    finally:
        await form.close()


def _check_charset(request: Request) -> None:
    """The parser would take any codec of Python, and some take minutes."""
    _, options = parse_options_header(request.headers["content-type"])
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in FORM_CHARSETS:
        raise UnsupportedMediaType(
            f"a form comes in UTF-8, not in {charset}",
            key="Content-Type",
            value=f"charset={charset}",
            allowed=f"charset {', '.join(FORM_CHARSETS)}, or none",
        )


def _form_json(fields: dict[str, str]) -> str:
    """The form's text fields as one JSON object: some hold JSON themselves."""
    return json.dumps(
        {key: _decoded(key, value) if key in FORM_JSON_FIELDS else value for key, value in fields.items()}
    )


def _decoded(key: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"{key} is not valid JSON: {error}", key=key, value=value, allowed="JSON") from None


def _validated(schema: type[Any], body: bytes | str) -> Any:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None


def _upload(wanted: DocumentFields, text: str, title: str, media_type: str, gateway: Gateway) -> Upload:
    _check_servable(wanted.training, gateway.settings)
    return Upload(
        namespace=wanted.namespace,
        title=wanted.title or title,
        text=text,
        media_type=media_type,
        external_id=wanted.external_id,
        metadata=wanted.metadata if "metadata" in wanted.model_fields_set else None,
        qa=tuple(wanted.qa),
        training=wanted.training,
        names_namespace="namespace" in wanted.model_fields_set,
    )


def _check_pairs(pairs: Sequence[QAPair], gateway: Gateway) -> None:
    """Say now what the trainer would have to cut."""
    tokenizer_path = str(gateway.base.path / "tokenizer.json")
    for number, pair in enumerate(pairs):
        for name, most in (("question", MAX_QUESTION_TOKENS), ("answer", MAX_ANSWER_TOKENS)):
            said = getattr(pair, name)
            if len(said.encode()) <= most:  # a token has a byte at least
                continue
            count = count_tokens(said, tokenizer_path)
            if count >= most:
                raise InvalidValue(
                    f"qa.{number}.{name} has {count} tokens of the base model, fewer than {most} can be learnt",
                    key=f"qa.{number}.{name}",
                    value=f"{count} tokens",
                    allowed=f"fewer than {most} tokens",
                )


def _check_askable(namespace: str, gateway: Gateway) -> None:
    """Under /v1 one name cannot be two models."""
    if namespace == gateway.base.name:
        raise InvalidValue(
            f"namespace {namespace!r} has the name of the base model (LORAMEM_SERVED_MODEL_NAME), so /v1 would never "
            "ask it: take another, or set that",
            key="namespace",
            value=namespace,
            allowed=f"any but {namespace}",
        )


def _check_servable(training: TrainingOptions, settings: Settings) -> None:
    """Say now what the engine would say when the adapter is trained. `rank: auto` keeps within its limit by itself."""
    if training.rank == "auto":
        return
    rank = training.rank or settings.rank
    published = training.published_rank(rank)
    if published > settings.max_lora_rank:
        raise InvalidValue(
            f"an adapter of rank {published} ({training.variant} at rank {rank}) cannot be served: the engine's slots "
            f"have rank {settings.max_lora_rank}; take a smaller rank, or raise LORAMEM_MAX_LORA_RANK",
            key="training.rank",
            value=training.rank,
            allowed=f"up to {settings.max_lora_rank // training.published_rank(1)}",
        )
