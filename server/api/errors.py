"""Every error as a problem document (RFC 9457), or in OpenAI's shape under /v1."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from loramem.durable import NO_ROOM
from loramem.errors import (
    SHOWN_CHARS,
    BadRequest,
    DiskFull,
    InvalidValue,
    LoramemError,
    MethodNotAllowed,
    NotFound,
    StoredDataDamaged,
    Unavailable,
    UnsupportedMediaType,
)
from loramem.logs import bound_ids

log = logging.getLogger(__name__)

SHOWN_ERRORS = 20
UNEXPECTED = "an unexpected error; the log has it under this request id"
UNREACHABLE = (OperationalError, PoolTimeout)
"""What SQLAlchemy raises for a database that is away, locked, without room, or with no connection for us in time."""
JSON = json.JSONEncoder(ensure_ascii=False, default=str)
UNION_BRANCH = re.compile(r"(constrained-|literal\[|function-\w+\[|list\[|str$|int$)")
"""What pydantic puts into a location to tell which branch of a union it tried; not a key that anybody sent."""


def install(app: FastAPI) -> None:
    app.add_exception_handler(LoramemError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in UNREACHABLE:
        app.add_exception_handler(kind, _database)


def known(error: Exception) -> LoramemError:
    """What may be told of an error that anything raised; the log has what nobody expected."""
    if isinstance(error, LoramemError):
        return error
    if isinstance(error, UNREACHABLE):
        log.error("database unavailable: %s", error)
        if NO_ROOM.search(str(error)):
            return DiskFull("the disk of the database is full, and nothing of this was stored: make room, try again")
        return Unavailable("the database cannot be reached or is locked; try again")
    log.error("unexpected error", exc_info=error)
    return LoramemError(UNEXPECTED)


def problem(error: LoramemError) -> dict[str, Any]:
    """The problem document of a known error."""
    extra = {key: shown(value) if key == "value" else value for key, value in error.extra.items()}
    return {**error.problem(), "request_id": bound_ids().get("request_id"), **extra}


def shown(value: object) -> Any:
    """A user's value as it can be sent back: short, and valid JSON."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < 2**53:  # no NaN is
        return value
    text = value[: SHOWN_CHARS + 1] if isinstance(value, str) else _beginning(value)
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def _beginning(value: object) -> str:
    """Of the value as JSON; no more is written out than is shown."""
    text = ""
    try:
        for piece in JSON.iterencode(value):
            text += piece
            if len(text) > SHOWN_CHARS:
                break
    except ValueError:  # Python writes out no integer of more than 4300 digits
        return "a number too long to be shown"
    return text


def respond(request: Request, error: LoramemError) -> JSONResponse:
    headers = {"Retry-After": "5"} if isinstance(error, Unavailable) else {}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if request.url.path.startswith("/v1/"):
        if error.status == HTTPStatus.CONFLICT or isinstance(error, StoredDataDamaged):
            headers["x-should-retry"] = "false"  # OpenAI's clients would ask twice more, and it would still be so
        return JSONResponse(openai_error(error), status_code=error.status, headers=headers)
    return JSONResponse(
        problem(error), status_code=error.status, headers=headers, media_type="application/problem+json"
    )


def openai_error(error: LoramemError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.detail, "type": kind, "param": error.extra.get("key"), "code": error.code}}


def from_validation(errors: Sequence[Any]) -> BadRequest:
    """One problem for the first findings of pydantic, of which the first gives key, value and allowed."""
    if errors and errors[0]["type"] == "json_invalid":
        reason = errors[0].get("ctx", {}).get("error", "")
        return BadRequest(f"the body is not valid JSON: {reason}", key="body", value="malformed", allowed="JSON")
    findings = [_finding(item) for item in errors[:SHOWN_ERRORS]]
    first = findings[0]
    detail = "; ".join(f"{item['key']}: {item['message']}" for item in findings[:5])
    return InvalidValue(detail, key=first["key"], value=first["value"], allowed=first["message"], errors=findings)


def _finding(item: Mapping[str, Any]) -> dict[str, Any]:
    location = [str(part) for part in item["loc"] if part not in ("body", "query", "path", "header")]
    key = shown(".".join(part for part in location if not UNION_BRANCH.match(part)) or "body")
    value = "(missing)" if item["type"] == "missing" else shown(item.get("input"))
    return {"key": key, "value": value, "message": item["msg"].removeprefix("Value error, ")}


async def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LoramemError)
    level = logging.ERROR if error.status >= 500 and not isinstance(error, Unavailable) else logging.INFO
    what = error.detail if error.status >= 500 else error.extra.get("key", "")  # a refusal's detail holds what was sent
    log.log(level, "%s %s: %s %s", request.method, request.url.path, error.code, what)
    return respond(request, error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    findings = error.errors()
    if findings and findings[0]["loc"] == ("body",) and isinstance(findings[0].get("input"), bytes):
        wrong = UnsupportedMediaType(
            "the body is not said to be JSON: send `Content-Type: application/json`",
            key="Content-Type",
            value=shown(request.headers.get("content-type", "(missing)")),
            allowed="application/json",
        )
        return await _known(request, wrong)
    return await _known(request, from_validation(findings))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, LoramemError):
        return await _known(request, error.__cause__)
    if isinstance(error.__cause__, ValueError | RecursionError):  # no UTF-8, or nested without end
        malformed = BadRequest("the body is not valid JSON in UTF-8", key="body", value="malformed", allowed="JSON")
        return await _known(request, malformed)
    reply = respond(request, _unrouted(request, error))
    reply.headers.update(error.headers or {})
    return reply


def _unrouted(request: Request, error: HTTPException) -> LoramemError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound("path", request.url.path)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not allowed here, but {allowed}"
        return MethodNotAllowed(detail, key="method", value=request.method, allowed=allowed)
    return BadRequest(str(error.detail))


async def _database(request: Request, error: Exception) -> JSONResponse:
    return respond(request, known(error))
