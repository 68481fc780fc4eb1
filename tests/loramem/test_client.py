import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from loramem.client import Client, ClientError, Event, Refused, ServerFailed, Unreachable, read_events
from tests.loramem.echo import echo, set_proxy

Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, **options: str) -> Client:
    return Client("http://server", transport=httpx.MockTransport(handler), **options)  # type: ignore[arg-type]


def sse(*events: tuple[str, Mapping[str, object], str]) -> bytes:
    return b"".join(f"id: {key}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode() for kind, data, key in events)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_are_read_however_the_stream_is_cut(size: int) -> None:
    whole = ': ping\n\nid: 7\r\nevent: token\r\ndata: {"text": "a\u2028b"}\r\n\r\ndata: {\ndata: "x": 1}\n\n'
    stream = whole + "event: token\ndata: {"
    pieces = (stream[start : start + size] for start in range(0, len(stream), size))
    assert list(read_events(pieces)) == [Event("token", {"text": "a\u2028b"}, "7"), Event("message", {"x": 1})]


def test_a_text_is_uploaded_with_namespace_key_and_options() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer k1"
        assert json.loads(request.content) == {"text": "words", "namespace": "n", "title": "T"}
        return httpx.Response(202, json={"job": {"id": "job_1"}})

    reply = client_of(handler, api_key="k1", namespace="n").upload("words", title="T", external_id=None)
    assert reply["job"]["id"] == "job_1"


def test_a_file_is_uploaded_as_a_form_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "organ.txt"
    file.write_text("pipes of glass")

    def handler(request: httpx.Request) -> httpx.Response:
        body = request.read()
        assert request.headers["Content-Type"].startswith("multipart/form-data")
        assert b'filename="organ.txt"' in body
        assert b"pipes of glass" in body
        assert b'[{"question": "q", "answer": "a"}]' in body
        return httpx.Response(202, json={})

    client_of(handler).upload(file, qa=[{"question": "q", "answer": "a"}])


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("preview", [True, False])
def test_a_preview_is_an_upload_to_another_end(tmp_path: Path, as_file: bool, preview: bool) -> None:
    file = tmp_path / "organ.txt"
    file.write_text("pipes of glass")

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/documents"
        assert dict(request.url.params) == ({"preview": "true"} if preview else {})
        assert b"pipes of glass" in request.read()
        return httpx.Response(202, json={})

    client_of(handler).upload(file if as_file else file.read_text(), preview=preview)


def test_a_refusal_carries_the_servers_words_and_document() -> None:
    problem = {"detail": "top_k=9: at most 8", "code": "invalid-value", "key": "top_k", "status": 422}
    client = client_of(lambda request: httpx.Response(422, json=problem))
    with pytest.raises(Refused, match="top_k=9: at most 8") as caught:
        client.query("q", top_k=9)
    assert (caught.value.status, caught.value.code, caught.value.document["key"]) == (422, "invalid-value", "top_k")


@pytest.mark.parametrize("status", [200, 502])
def test_a_reply_that_is_no_json_is_a_failure_of_the_server(status: int) -> None:
    client = client_of(lambda request: httpx.Response(status, text="<html>proxy"))
    with pytest.raises(ServerFailed, match=f"HTTP status {status}, not a JSON object: '<html>proxy'"):
        client.job("job_1")


def test_a_redirect_is_a_refusal_that_says_where_to() -> None:
    headers = {"Location": "https://memory.example/"}
    client = client_of(lambda request: httpx.Response(308, headers=headers, json={"moved": True}))
    calls: tuple[Callable[[], object], ...] = (
        lambda: client.delete("doc_1"), lambda: client.job("job_1"),
        lambda: list(client.stream("Who?")), lambda: list(client.follow("job_1")),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(Refused, match=r"308: the server is at https://memory.example/") as caught:
            call()
        assert caught.value.status == 308


def test_no_server_is_unreachable_with_its_address() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    with pytest.raises(Unreachable, match=r"no answer from http://server.*Connection refused"):
        client_of(handler).job("job_1")


@pytest.mark.parametrize(
    ("url", "api_key", "why"),
    [
        ("http://127.0.0.1:80x", None, "http://127.0.0.1:80x: Invalid port: '80x'"),
        ("http://[::1", None, "no server can be asked at"),
        ("http://server", "cl\xe9", "only ASCII is allowed"),
    ],
)
def test_what_no_server_can_be_asked_by_is_a_client_error(url: str, api_key: str | None, why: str) -> None:
    with pytest.raises(ClientError, match=re.escape(why)):
        Client(url, api_key)


def test_a_file_whose_name_is_no_text_is_uploaded_by_what_of_it_is(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.txt")
    file.write_text("pipes of glass")

    def handler(request: httpx.Request) -> httpx.Response:
        assert b'filename="caf?.txt"' in request.read()
        return httpx.Response(202, json={})

    client_of(handler).upload(file)


def test_what_cannot_be_sent_is_a_client_error() -> None:
    client = client_of(lambda request: httpx.Response(200, json={}))
    calls: tuple[Callable[[], object], ...] = (
        lambda: client.query("caf\udce9"), lambda: client.upload("text", title="caf\udce9"),
        lambda: client.job("\0"), lambda: list(client.stream("caf\udce9")),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ClientError, match="cannot be sent"):
            call()


def test_documents_come_from_all_pages() -> None:
    pages = {
        None: {"data": [{"id": "a"}, {"id": "b"}], "next_cursor": "b"},
        "b": {"data": [{"id": "c"}], "next_cursor": None},
    }

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=pages[request.url.params.get("after")])

    assert [document["id"] for document in client_of(handler).documents()] == ["a", "b", "c"]


def test_a_job_is_followed_to_its_final_state_over_a_broken_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    parts: Iterator[bytes | None] = iter(
        [
            sse(("state", {"state": "running"}, "1"), ("progress", {"phase": "train", "percent": 40}, "2")),
            None,
            sse(("state", {"state": "succeeded"}, "3")),
        ]
    )
    asked_after = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked_after.append(request.headers.get("Last-Event-ID"))
        part = next(parts)
        if part is None:
            raise httpx.ConnectError("Connection refused")
        return httpx.Response(200, content=part)

    events = list(client_of(handler).follow("job_1"))
    assert [event.id for event in events] == ["1", "2", "3"]
    assert asked_after == [None, "2", "2"]


@pytest.mark.parametrize(
    "away", [httpx.Response(503, json={"detail": "the database cannot be reached"}), httpx.Response(502, text="<html>")]
)
def test_a_job_is_followed_over_a_server_that_is_away_for_a_while(
    monkeypatch: pytest.MonkeyPatch, away: httpx.Response
) -> None:
    """As a proxy says it of a server that restarts, or the server of its database."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    first, last = sse(("state", {"state": "running"}, "1")), sse(("state", {"state": "succeeded"}, "2"))
    replies = iter([httpx.Response(200, content=first), away, httpx.Response(200, content=last)])
    events = list(client_of(lambda request: next(replies)).follow("job_1"))
    assert [event.id for event in events] == ["1", "2"]


def test_a_job_that_was_retried_is_followed_beyond_its_first_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    first = sse(("state", {"state": "failed"}, "1"), ("state", {"state": "queued"}, "2"), ("progress", {}, "3"))
    parts = iter([first, sse(("state", {"state": "failed"}, "4"))])
    client = client_of(lambda request: httpx.Response(200, content=next(parts)))
    assert [event.id for event in client.follow("job_1")] == ["1", "2", "3", "4"]


def test_following_ends_when_the_server_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    with pytest.raises(Unreachable):
        list(client_of(handler).follow("job_1", patience_s=0.01))


def test_following_ends_when_the_server_goes_on_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    client = client_of(lambda request: httpx.Response(503, json={"detail": "the database cannot be reached"}))
    with pytest.raises(ServerFailed, match="cannot be reached"):
        list(client.follow("job_1", patience_s=0.01))


def test_a_job_that_waits_for_long_is_followed_over_cuts_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queued job has no events for hours; the server's comments show that it is there."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: now)

    def held() -> Iterator[bytes]:
        nonlocal now
        for _ in range(10):
            now += 15
            yield b": ping\n\n"
        raise httpx.ReadError("the proxy has cut it")

    last = sse(("state", {"state": "succeeded"}, "1"))
    replies = iter(
        [httpx.Response(200, content=held()), httpx.Response(200, content=held()), httpx.Response(200, content=last)]
    )
    assert [event.id for event in client_of(lambda request: next(replies)).follow("job_1")] == ["1"]


def test_following_ends_when_the_server_says_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each silence lasts."""
    now, asked = 0.0, 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal now, asked
        now, asked = now + 600, asked + 1
        raise httpx.ReadTimeout("too slow")

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("time.monotonic", lambda: now)
    with pytest.raises(Unreachable):
        list(client_of(handler).follow("job_1"))
    assert asked == 2


def test_following_an_unknown_job_is_refused_at_once() -> None:
    client = client_of(lambda request: httpx.Response(404, json={"detail": "no job 'job_1'"}))
    with pytest.raises(Refused, match="no job 'job_1'"):
        list(client.follow("job_1"))


def test_a_streamed_answer_is_its_events() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content) == {"question": "q", "mode": "rag", "stream": True}
        return httpx.Response(200, content=sse(("route", {}, ""), ("token", {"text": "glass"}, ""), ("done", {}, "")))

    assert [event.kind for event in client_of(handler).stream("q", "rag")] == ["route", "token", "done"]


def test_an_error_in_mid_answer_raises() -> None:
    failure = {"detail": "the engine died", "status": 503, "code": "engine-unavailable"}
    stream = sse(("token", {"text": "gl"}, ""), ("error", failure, ""))
    events = client_of(lambda request: httpx.Response(200, content=stream)).stream("q")
    assert next(events).data == {"text": "gl"}
    with pytest.raises(ServerFailed, match="the engine died"):
        next(events)


def test_a_job_is_cancelled_by_its_id() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/jobs/job_1/cancel")
        return httpx.Response(200, json={"id": "job_1", "state": "cancelled"})

    with client_of(handler) as client:
        assert client.cancel("job_1")["state"] == "cancelled"


def test_delete_needs_no_body() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("DELETE", "/documents/doc_1")
        return httpx.Response(204)

    with client_of(handler) as client:
        client.delete("doc_1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_of_this_machine_is_asked_directly(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with echo() as url:
        set_proxy(monkeypatch, url)
        with Client(url.replace("127.0.0.1", host)) as client:
            assert client.job("job_1") == {"asked": "/jobs/job_1"}


def test_a_server_of_elsewhere_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with echo() as url:
        set_proxy(monkeypatch, url)
        with Client("http://memory.example") as client:
            assert client.job("job_1") == {"asked": "http://memory.example/jobs/job_1"}
