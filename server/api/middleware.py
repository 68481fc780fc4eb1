"""What happens around every request: an id, an access line, the body limit, the API key, the metrics."""

import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loramem.errors import BodyTooLarge, Forbidden, LoramemError, Unauthorized
from loramem.logs import bind
from loramem.loopback import is_loopback
from server.api.errors import UNEXPECTED, respond
from server.metrics import Metrics
from server.stream import ClientGone

log = logging.getLogger("server.access")

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


class RequestContext:
    """Outermost: gives each request an id (the client's own, if it is a plain one) and tells its story in one line."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Request(scope))
        started = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        with bind(request_id=request_id):
            try:
                await self._app(scope, receive, sending)
            except (ClientGone, ClientDisconnect):
                log.info("%s %s: the client went away", scope["method"], scope["path"])
            except Exception:  # the outermost boundary: a reply that has begun can only be cut off
                log.exception("%s %s failed", scope["method"], scope["path"])
                if status:
                    raise
                await respond(Request(scope), LoramemError(UNEXPECTED))(scope, receive, sending)
            finally:
                self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        quiet = route in (*OPEN_PATHS, "/metrics")
        log.log(
            logging.DEBUG if quiet else logging.INFO, "%s %s %d %.0f ms", scope["method"], scope["path"], status,
            seconds * 1000,
        )  # fmt: skip
        method = scope["method"] if scope["method"] in METHODS else "other"
        labels = (route, method, f"{status // 100}xx" if status else "none")
        self._metrics.requests.labels(*labels).inc()
        self._metrics.request_seconds.labels(*labels).observe(seconds)


class BodyLimit:
    """Refuses a body by its Content-Length, and again while it is read, since a chunked one gives no length."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            await respond(request, self._too_large(int(declared)))(scope, receive, send)
            return
        seen = 0

        async def receiving() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                # FastAPI turns all but this one, raised while it reads a body, into a 400
                raise HTTPException(413) from self._too_large(seen)
            return message

        await self._app(scope, receiving, send)

    def _too_large(self, size: int) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body has {size} bytes or more, at most {self._max_bytes} are allowed (LORAMEM_MAX_BODY_BYTES)",
            key="body",
            value=f"{size} bytes",
            allowed=f"up to {self._max_bytes} bytes",
        )


class ApiKeys:
    """Bearer keys on everything but health."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope) if scope["type"] == "http" else None
        if request is None or request.url.path in OPEN_PATHS or self._knows(request):
            await self._app(scope, receive, send)
            return
        error = Unauthorized("send `Authorization: Bearer <key>` with one of the keys in LORAMEM_API_KEYS")
        await respond(request, error)(scope, receive, send)

    def _knows(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key.strip().encode()
        return scheme.lower() == "bearer" and any(hmac.compare_digest(given, key) for key in self._keys)


class OwnPages:
    """Where no key is asked for: refuses what a page of somewhere else has a browser of this machine send.

    A loopback address keeps other machines out, but any page may have its browser ask there. The browser then names the
    page as `Origin`; or as `Host`, if the page's own name was made to mean this machine (DNS rebinding). Pages that
    this machine serves, on any port, are taken.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope) if scope["type"] == "http" else None
        if request is None or request.url.path in OPEN_PATHS or all(map(is_loopback, _places(request))):
            await self._app(scope, receive, send)
            return
        error = Forbidden(
            "the Host or Origin of this request is not this machine, and without LORAMEM_API_KEYS nobody else may ask: "
            "name it 127.0.0.1 or localhost, or set keys"
        )
        await respond(request, error)(scope, receive, send)


def _places(request: Request) -> list[str]:
    """Host names, in lower case, that a request says it is for and from; empty strings for what cannot be read."""
    stated = [f"//{request.headers['host']}"] if "host" in request.headers else []
    return [_host(place) for place in (*stated, *request.headers.getlist("origin"))]


def _host(place: str) -> str:
    try:
        return urlsplit(place).hostname or ""
    except ValueError:
        return ""


def _request_id(request: Request) -> str:
    wanted = request.headers.get("x-request-id", "")
    return wanted if REQUEST_ID.match(wanted) else uuid.uuid4().hex
