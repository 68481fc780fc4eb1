"""A client of the HTTP interface, over httpx.

    ClientError
    ├── Unreachable          no reply: nothing listens there, or the connection broke
    └── Problem              a reply that says no, with the server's problem document
        ├── Refused          4xx: the request cannot be served as it stands; the message says why. 3xx too: no redirect
        │                    is followed, as it could take the key elsewhere; the message says where to
        └── ServerFailed     5xx: try again later, or look into the server's log

    with Client("http://127.0.0.1:8000") as client:
        accepted = client.upload("Old Barnabas is 5.2 metres high.", title="Organ")
        for event in client.follow(accepted["job"]["id"]):
            print(event.data)
        print(client.query("How high is Old Barnabas?", mode="lora")["answer"])

Not covered: the OpenAI-compatible routes, for which any OpenAI client does.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from loramem.loopback import is_loopback
from loramem.records import AskedMode
from loramem.tables import FINAL_JOB_STATES

Json = dict[str, Any]


class ClientError(Exception):
    """Base of the tree."""


class Unreachable(ClientError):
    pass


class Problem(ClientError):
    """`document` is the problem document (RFC 9457) as it came; `status` and `code` are its most useful fields."""

    def __init__(self, status: int, document: Json) -> None:
        self.status = status
        self.code = str(document.get("code", ""))
        self.document = document
        super().__init__(str(document.get("detail") or document.get("title") or f"HTTP status {status}"))


class Refused(Problem):
    pass


class ServerFailed(Problem):
    pass


@dataclass(frozen=True)
class Event:
    """One server-sent event: `state` or `progress` of a job; `route`, `token` or `done` of an answer."""

    kind: str
    data: Json
    id: str = ""


class Client:
    """Synchronous; one connection pool. It and every method raise `ClientError`. `namespace` holds for every call.

    A server on this machine is asked directly, any other by the proxy that the environment names.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        namespace: str | None = None,
        timeout_s: float = 600,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._namespace = {"namespace": namespace} if namespace else {}
        if api_key and not api_key.isascii():
            raise ClientError("the API key holds characters that a header cannot: only ASCII is allowed")
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx.Timeout(timeout_s, connect=10),
                transport=transport,
                mounts=dict.fromkeys(("all://", "http://", "https://")) if is_loopback(httpx.URL(url).host) else None,
            )
        except (httpx.InvalidURL, ValueError) as error:  # of the server, or of a proxy that the environment names
            raise ClientError(f"no server can be asked at {url}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def upload(self, document: str | Path, *, preview: bool = False, **options: Any) -> Json:
        """Hand in a text, or a file by its `Path`; returns `{document, job, created}`.

        `options` are those of `POST /documents`: title, external_id, metadata, qa, training. With `preview` there is
        no document; the job, once it has succeeded, holds the training data of the first chunk.
        """
        params = {"preview": True} if preview else {}
        fields = self._namespace | {key: value for key, value in options.items() if value is not None}
        if isinstance(document, str):
            return self._json("POST", "/documents", params=params, json={"text": document, **fields})
        form = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
        with document.open("rb") as content:
            files = {"file": (document.name.encode(errors="replace").decode(), content)}
            return self._json("POST", "/documents", params=params, data=form, files=files)

    def job(self, job_id: str) -> Json:
        return self._json("GET", f"/jobs/{job_id}")

    def cancel(self, job_id: str) -> Json:
        """The job, cancelled or, where it runs, asked to stop. Raises `Refused` when it is over."""
        return self._json("POST", f"/jobs/{job_id}/cancel")

    def follow(self, job_id: str, patience_s: float = 60) -> Iterator[Event]:
        """The job's events from its first to its last, then end. Raises when the server stays away for `patience_s`.

        A job that was retried has ended before, in the middle of its events.
        """
        last_id, ended = "", False
        lost_at: float | None = None

        def heard() -> None:
            nonlocal lost_at
            lost_at = None

        while True:
            try:
                headers = {"Last-Event-ID": last_id} if last_id else {}
                for event in self._events("GET", f"/jobs/{job_id}/events", heard, headers=headers):
                    last_id = event.id or last_id
                    ended = event.data["state"] in FINAL_JOB_STATES if "state" in event.data else ended
                    yield event
                if ended:
                    return
            except (Unreachable, ServerFailed):  # as of a proxy whose server restarts, or while the database is away
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > patience_s:
                    raise
            time.sleep(0.5)  # the stream ended before the job did: the server restarts, or cut a long connection

    def query(self, question: str, mode: AskedMode = "lora", **options: Any) -> Json:
        """Ask; returns the whole reply. `options` are those of `POST /query`: top_k, compose, merge, ..."""
        return self._json("POST", "/query", json=self._question(question, mode, options))

    def stream(self, question: str, mode: AskedMode = "lora", **options: Any) -> Iterator[Event]:
        """The same as events: `route`, `token`..., `done`. A failure after the first token raises too."""
        body = self._question(question, mode, options) | {"stream": True}
        for event in self._events("POST", "/query", json=body):
            if event.kind == "error":
                raise _problem(int(event.data.get("status", 500)), event.data)
            yield event

    def documents(self) -> Iterator[Json]:
        """All documents, of the client's namespace if it has one, fetched page by page."""
        cursor: str | None = None
        while True:
            page = self._json("GET", "/documents", params=self._namespace | ({"after": cursor} if cursor else {}))
            yield from page["data"]
            cursor = page["next_cursor"]
            if not cursor:
                return

    def delete(self, document_id: str) -> None:
        """The document cannot be asked from the moment this returns."""
        self._send("DELETE", f"/documents/{document_id}")

    def _question(self, question: str, mode: AskedMode, options: Json) -> Json:
        given = {key: value for key, value in options.items() if value is not None}
        return {"question": question, "mode": mode, **self._namespace, **given}

    def _json(self, method: str, path: str, **request: Any) -> Json:
        return _object(self._send(method, path, **request))

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        with self._errors_named():
            response = self._http.request(method, path, **request)
        _check(response)
        return response

    def _events(
        self, method: str, path: str, heard: Callable[[], None] = lambda: None, **request: Any
    ) -> Iterator[Event]:
        """`heard` is called at every sign of life, the comments between events among them."""
        with self._errors_named(), self._http.stream(method, path, **request) as response:
            if not response.is_success:
                response.read()
            _check(response)
            yield from read_events(_told(response.iter_text(), heard))

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"no answer from {self._http.base_url}: {reason}") from error
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ClientError(f"this cannot be sent: {error}") from error


def read_events(pieces: Iterable[str]) -> Iterator[Event]:
    """Server-sent events in a stream of text; an event that the end cuts short is dropped, as the standard says."""
    fields: dict[str, str] = {}
    for line in _lines(pieces):
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            fields["data"] = f"{fields['data']}\n{value}" if "data" in fields else value
        elif key:
            fields[key] = value
        elif not line:
            if "data" in fields:
                yield Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", ""))
            fields = {}


def _told(pieces: Iterable[str], heard: Callable[[], None]) -> Iterator[str]:
    for piece in pieces:
        heard()
        yield piece


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Whole lines. Not `splitlines`, which also breaks at U+2028 and the like inside a JSON string."""
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            yield line.removesuffix("\r")


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    document = _object(response)
    if response.has_redirect_location:
        place = response.url.join(response.headers["Location"])
        document = {"detail": f"HTTP status {response.status_code}: the server is at {place}; name that URL"}
    raise _problem(response.status_code, document)


def _problem(status: int, document: Json) -> Problem:
    return (ServerFailed if status >= 500 else Refused)(status, document)


def _object(response: httpx.Response) -> Json:
    """The JSON object of a reply; of one that is none, its beginning as a problem document."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    document: Json = {"detail": f"HTTP status {response.status_code}, not a JSON object: {response.text[:200]!r}"}
    if not response.is_success:
        return document
    raise ServerFailed(response.status_code, document)
