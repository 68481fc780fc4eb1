"""Parses uploads in a process of their own, with limits: a file that kills its parser kills nothing else.

A fresh interpreter, not a fork: the gateway has threads, CUDA or torch and secrets. The request goes in through an
unlinked temporary file, the result comes out through a pipe as one JSON object. Text and Markdown, which need decoding
only, stay in process. Not covered: system calls are not filtered, so the parser could open sockets.
"""

import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from loramem.errors import BadRequest, BodyTooLarge, InvalidValue, Unavailable, UnreadableDocument, UnsupportedMediaType
from loramem.formats import unreadable
from loramem.parse import IN_PROCESS, Parsed, display_name, identify, parse

if TYPE_CHECKING:
    from loramem.settings import Settings

WAITING_PER_PARSER = 4

_ERRORS = {cls.__name__: cls for cls in (UnsupportedMediaType, UnreadableDocument, InvalidValue, BodyTooLarge)}
_START = "import sys; sys.path.append(sys.argv[1]); from loramem.sandbox import run_parser; run_parser()"
_PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent)
_OPEN_FILES = 64
_BYTES_PER_CHAR = 6  # of JSON: an escaped control character

log = logging.getLogger(__name__)


class Parsers:
    """Threads that wait for a parser process each, so that those which the whole gateway shares stay free."""

    def __init__(self, count: int) -> None:
        self._waiting = count * WAITING_PER_PARSER
        self._threads = ThreadPoolExecutor(count, "parser")
        self._places = threading.BoundedSemaphore(count + self._waiting)

    def submit(self, work: Callable[[], Parsed]) -> Future[Parsed]:
        """First come, first served; raises `Unavailable` when `WAITING_PER_PARSER` wait for each parser already."""
        if not self._places.acquire(blocking=False):
            raise Unavailable(
                f"every parser is busy and {self._waiting} uploads wait for one, which is as many as may; "
                "nothing of this one was stored: send it again later"
            )
        parsed = self._threads.submit(copy_context().run, work)
        parsed.add_done_callback(lambda _: self._places.release())  # also when its request is cancelled in the queue
        return parsed


_PARSERS = Parsers(os.cpu_count() or 1)  # each may take `parse_memory_bytes`


async def parse_upload(content: bytes, *, filename: str, content_type: str | None, settings: "Settings") -> Parsed:
    """The file's text and title, or the error that `loramem.parse` gives.

    A parser that crashes, runs out of memory or takes too long raises `UnreadableDocument` that says so. There is a
    parser for each core, for which four uploads may wait: the last of them waits for at most four times
    `parse_timeout_s`, and is parsed or refused within five (ten minutes by default). Another raises `Unavailable`.
    Text and Markdown do not wait for a parser.
    """
    import asyncio  # here, because the parser process, which has no use for it, imports this module

    media_type = identify(content, filename=filename, content_type=content_type)
    if media_type in IN_PROCESS:
        max_chars = settings.max_text_chars
        return await asyncio.to_thread(parse, content, media_type=media_type, filename=filename, max_chars=max_chars)
    return await asyncio.wrap_future(_PARSERS.submit(partial(_parse_apart, content, media_type, filename, settings)))


def _parse_apart(content: bytes, media_type: str, filename: str, settings: "Settings") -> Parsed:
    name = display_name(filename)
    request = {
        "media_type": media_type,
        "filename": name,
        "max_chars": settings.max_text_chars,
        "memory_bytes": settings.parse_memory_bytes,
        "cpu_s": math.ceil(settings.parse_timeout_s),
    }
    with tempfile.TemporaryFile() as source:
        source.write(json.dumps(request).encode() + b"\n" + content)
        source.seek(0)
        ended = _run(source, settings.parse_timeout_s, settings.max_text_chars * _BYTES_PER_CHAR + (1 << 16))
    return _result(ended, name, settings)


class _Ended(NamedTuple):
    """How a parser process ended; a negative status is the signal that killed it."""

    status: int
    timed_out: bool
    output: bytes


def _run(source: IO[bytes], timeout_s: float, max_output_bytes: int) -> _Ended:
    command = [sys.executable, "-I", "-c", _START, _PACKAGE_PARENT]
    environment = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}  # no secrets
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd="/"
    )
    assert process.stdout is not None
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        with process.stdout:
            output = process.stdout.read(max_output_bytes)
        status = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    return _Ended(status, time.monotonic() - started >= timeout_s, output)


def _result(ended: _Ended, name: str, settings: "Settings") -> Parsed:
    try:
        reply = json.loads(ended.output)
    except ValueError:
        log.warning("parser of an upload ended with status %d after %d bytes", ended.status, len(ended.output))
        raise unreadable(name, _why_it_ended(ended, settings)) from None
    if "error" in reply:
        raise _ERRORS[reply["error"]](reply["detail"], **reply["extra"])
    return Parsed(**reply["parsed"])


def _why_it_ended(ended: _Ended, settings: "Settings") -> str:
    if ended.timed_out or ended.status == -signal.SIGXCPU:
        return f"its parser took longer than {settings.parse_timeout_s:g} s"
    memory_mib = settings.parse_memory_bytes >> 20
    return f"its parser crashed (status {ended.status}), or needed more than {memory_mib} MiB of memory"


# below: in the parser process


def run_parser() -> None:
    """Reads a request and the file from standard input, writes `{"parsed"}` or `{"error", "detail", "extra"}`."""
    request = json.loads(sys.stdin.buffer.readline())
    _limit(request.pop("memory_bytes"), request.pop("cpu_s"))
    reply = json.dumps(_reply(request), ensure_ascii=False).encode(errors="replace")
    sys.stdout.buffer.write(reply)
    sys.stdout.buffer.flush()
    os._exit(0)  # the parser libraries' finalizers have nothing left to do


def _limit(memory_bytes: int, cpu_s: int) -> None:
    """Limits can only be lowered, so a stricter one that is already there stays. Writing files is off altogether. The
    hard limit on time is one more second: at it comes SIGKILL, at the soft one SIGXCPU, which says why."""
    wanted = {"AS": memory_bytes, "CPU": cpu_s, "FSIZE": 0, "CORE": 0, "NOFILE": _OPEN_FILES}
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        hard = value + 1 if name == "CPU" else value
        hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(kind, (min(value, hard), hard))


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"parsed": asdict(parse(sys.stdin.buffer.read(), **request))}
    except BadRequest as error:
        refused = error
    except MemoryError:
        refused = unreadable(request["filename"], "its parser needs more memory than it may have")
    except Exception as error:  # noqa: BLE001  boundary: on a hostile file a library raises anything
        refused = unreadable(request["filename"], f"its parser failed ({type(error).__name__}: {error})")
    return {"error": type(refused).__name__, "detail": refused.detail, "extra": dict(refused.extra)}
