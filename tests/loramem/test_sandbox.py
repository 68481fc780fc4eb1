"""The parser process: same results and errors as in process, and limits that hold."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from loramem import logs, sandbox
from loramem.errors import (
    BodyTooLarge,
    InvalidValue,
    LoramemError,
    Unavailable,
    UnreadableDocument,
    UnsupportedMediaType,
)
from loramem.parse import Parsed
from loramem.sandbox import WAITING_PER_PARSER, Parsers, parse_upload
from loramem.settings import Settings
from tests.files import ENCRYPT, PNG, make_docx, make_epub, make_pdf, make_zip, with_member

PROLOGUE = "import json, os, sys; request = json.loads(sys.stdin.buffer.readline());"


def upload(content: bytes, filename: str, **settings: Any) -> Parsed:
    return asyncio.run(parse_upload(content, filename=filename, content_type=None, settings=Settings(**settings)))


def run_instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """The parser process runs `code` after it has read the request."""
    monkeypatch.setattr(sandbox, "_START", PROLOGUE + code)


def run_limited(monkeypatch: pytest.MonkeyPatch, expression: str) -> Any:
    """What `expression` is in a limited parser process."""
    limited = "sys.path.append(sys.argv[1]); from loramem import sandbox; sandbox._limit(1 << 30, 5);"
    reply = f"print(json.dumps({{'parsed': dict(text={expression}, title='', media_type='')}}))"
    run_instead(monkeypatch, limited + reply)
    return upload(b"<p>a</p>", "a.html").text


@pytest.mark.parametrize(
    ("content", "filename", "text"),
    [
        (b"words\r\n", "a.txt", "words"),
        (b"# words", "a.md", "# words"),
        ("<p>wörter 😀</p>".encode(), "a.html", "wörter 😀"),
        (make_pdf(["words"]), "a.pdf", "words"),
        (make_docx(), "a.docx", "Zorvian lamps"),
        (make_epub({"a.xhtml": "<html><body>words</body></html>"}), "a.epub", "words"),
    ],
)
def test_every_format_is_read(content: bytes, filename: str, text: str) -> None:
    assert upload(content, filename).text.startswith(text)


@pytest.mark.parametrize(
    ("content", "filename", "error"),
    [
        (PNG, "a.txt", UnsupportedMediaType),
        (make_zip({"a": "b"}), "a.docx", UnsupportedMediaType),
        (b"%PDF-1.7 rest", "a.pdf", UnreadableDocument),
        (make_pdf(["a"], encrypt=ENCRYPT), "a.pdf", UnreadableDocument),
        (with_member(make_docx(), "word/media/x.bin", bytes(2 << 20)), "a.docx", UnreadableDocument),
        (make_pdf([]), "a.pdf", InvalidValue),
        (b"<p>0123456789</p>", "a.html", BodyTooLarge),
    ],
)
def test_errors_come_back_as_they_are(content: bytes, filename: str, error: type[LoramemError]) -> None:
    with pytest.raises(error) as caught:
        upload(content, filename, max_text_chars=9)
    assert type(caught.value) is error
    assert caught.value.extra["key"] == "file"
    assert filename in caught.value.detail or error in (InvalidValue, BodyTooLarge)


def test_text_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_run", None)
    assert upload(b"words", "a.md").text == "words"


def test_a_parser_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    run_instead(monkeypatch, "import time; time.sleep(60)")
    started = time.monotonic()
    with pytest.raises(UnreadableDocument, match=r"longer than 0\.3 s"):
        upload(make_pdf(["a"]), "a.pdf", parse_timeout_s=0.3)
    assert time.monotonic() - started < 5


def test_processor_time_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    run = sandbox._run
    monkeypatch.setattr(sandbox, "_run", lambda source, timeout_s, most_bytes: run(source, 200, most_bytes))
    with pytest.raises(UnreadableDocument, match="longer than 1 s"):
        upload(b"<div>" * 200_000 + b"deep", "a.html", parse_timeout_s=1)


@pytest.mark.parametrize("signal_number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_the_files_fault(monkeypatch: pytest.MonkeyPatch, signal_number: signal.Signals) -> None:
    run_instead(monkeypatch, f"os.kill(os.getpid(), {int(signal_number)})")
    with pytest.raises(UnreadableDocument, match=rf"crashed \(status -{int(signal_number)}\)"):
        upload(make_pdf(["a"]), "a.pdf")


def test_memory_is_limited() -> None:
    page = b"<p>" + b"<b>x</b>" * 1_000_000
    with pytest.raises(UnreadableDocument, match="memory"):
        upload(page, "a.html", parse_memory_bytes=96 << 20)


def test_an_error_that_no_reader_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import loramem.sandbox as s; s.parse = lambda *a, **k: {}['gone']; s.run_parser()"
    monkeypatch.setattr(sandbox, "_START", f"import sys; sys.path.append(sys.argv[1]); {broken}")
    with pytest.raises(UnreadableDocument, match=r"its parser failed.*KeyError: 'gone'"):
        upload(make_pdf(["a"]), "a.pdf")


def test_endless_output_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    run_instead(monkeypatch, "\nwhile True: os.write(1, b'x' * 65536)")
    with pytest.raises(UnreadableDocument, match="crashed"):
        upload(make_pdf(["a"]), "a.pdf", max_text_chars=1000)


def test_the_environment_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMEM_WRITER_API_KEY", "secret")
    assert "secret" not in json.dumps(run_limited(monkeypatch, "repr(dict(os.environ))"))


def test_no_descriptor_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    inheritable = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    try:
        listed = run_limited(monkeypatch, "repr(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])")
    finally:
        os.close(inheritable)
    assert json.loads(listed) == [0, 1, 2]


def test_no_file_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = tmp_path / "x"
    with pytest.raises(UnreadableDocument, match=r"crashed \(status 1\)"):
        run_limited(monkeypatch, f"os.write(os.open({str(target)!r}, os.O_CREAT | os.O_WRONLY), b'text')")
    assert target.read_bytes() == b""


def test_uploads_at_the_same_time_do_not_mix() -> None:
    files = [(make_pdf([f"file {number}"]), f"{number}.pdf") for number in range(5)]
    with ThreadPoolExecutor(5) as pool:
        parsed = list(pool.map(lambda file: upload(*file), files))
    assert [(item.text, item.title) for item in parsed] == [(f"file {n}", str(n)) for n in range(5)]


class TestQueue:
    """Two parsers, held up until the test lets them go, and an event loop whose own pool has one thread."""

    @pytest.fixture(autouse=True)
    def let_go(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        event, run = threading.Event(), sandbox._run

        def held_up(*arguments: Any) -> Any:
            assert event.wait(30)
            return run(*arguments)

        monkeypatch.setattr(sandbox, "_run", held_up)
        monkeypatch.setattr(sandbox, "_PARSERS", Parsers(2))
        yield event
        event.set()

    def run(self, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def on_one_thread() -> None:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            await asyncio.wait_for(scenario(), 60)

        asyncio.run(on_one_thread())

    def begin(self, number: int) -> asyncio.Task[Parsed]:
        content = make_pdf([f"file {number}"])
        return asyncio.create_task(parse_upload(content, filename="a.pdf", content_type=None, settings=Settings()))

    def test_slow_parsers_hold_up_nobody_else_and_the_surplus_is_refused(self, let_go: threading.Event) -> None:
        places = 2 * (1 + WAITING_PER_PARSER)

        async def scenario() -> None:
            uploads = [self.begin(number) for number in range(places + 3)]
            refused, _ = await asyncio.wait(uploads[places:], timeout=20)
            assert len(refused) == 3
            for upload in refused:
                with pytest.raises(Unavailable, match="busy and 8 uploads wait"):
                    upload.result()
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "answered"), 5) == "answered"
            text = parse_upload(b"words", filename="a.md", content_type=None, settings=Settings())
            assert (await asyncio.wait_for(text, 5)).text == "words"
            assert not any(upload.done() for upload in uploads[:places])
            let_go.set()
            parsed = await asyncio.gather(*uploads[:places])
            assert [item.text for item in parsed] == [f"file {number}" for number in range(places)]
            assert (await self.begin(99)).text == "file 99", "every place is free again"

        self.run(scenario)

    def test_an_upload_that_is_cancelled_gives_its_place_away(self, let_go: threading.Event) -> None:
        async def scenario() -> None:
            uploads = [self.begin(number) for number in range(2 * (1 + WAITING_PER_PARSER))]
            await asyncio.sleep(0)
            last = uploads.pop()
            last.cancel()
            with suppress(asyncio.CancelledError):
                await last
            uploads.append(self.begin(99))
            await asyncio.sleep(0)
            let_go.set()
            assert (await asyncio.gather(*uploads))[-1].text == "file 99"

        self.run(scenario)

    def test_a_parsers_fault_is_given_back_and_so_is_its_place(
        self, let_go: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        let_go.set()
        run_instead(monkeypatch, "os.abort()")
        for _ in range(3 * (1 + WAITING_PER_PARSER)):
            with pytest.raises(UnreadableDocument, match="crashed"):
                upload(make_pdf(["a"]), "a.pdf")

    def test_what_is_logged_of_a_parser_carries_the_requests_id(
        self, let_go: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        let_go.set()
        run_instead(monkeypatch, "os.abort()")
        seen: list[dict[str, str]] = []
        monkeypatch.setattr(sandbox.log, "warning", lambda *arguments: seen.append(logs.bound_ids()))
        with logs.bind(request_id="req_1"), pytest.raises(UnreadableDocument):
            upload(make_pdf(["a"]), "a.pdf")
        assert seen == [{"request_id": "req_1"}]
