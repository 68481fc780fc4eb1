"""Logging of every process: one line a record on stderr, so that `grep` by id tells the story of a request or job.

    2026-11-23T15:30:12.345Z INFO worker job_id=job_0192 trainer_worker.train: step 20 of 75, loss 0.41

What vLLM warns of at every start, and follows from loramem's own choices, is told at `debug` alone.

A traceback follows its record with the same beginning on each of its lines. Texts of documents, questions and answers,
and keys, do not belong in a log: libraries that would print them at `debug` stay at `warning` whatever the level.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

OWN_LOGGERS = ("loramem", "server", "trainer_worker")
"""What `LORAMEM_LOG_LEVEL=debug` opens; everything else stops at `info`."""

CONFIDING_LOGGERS = ("httpcore", "httpx", "openai", "python_multipart", "urllib3")
"""Libraries that log bodies, headers or a line per call below `warning`."""

CHATTY_LOGGERS = ("alembic", "sentence_transformers")
"""Libraries whose `info` tells nothing that our own lines do not."""

FORESEEN = {
    "vllm.config.speculative": ("Using a custom class-based proposer backend",),
    "vllm.config.vllm": (
        "Async scheduling not supported with ",
        "Enforce eager set",
        "Inductor compilation was disabled",
        "Model Runner V2 requires Triton",
    ),
    "vllm.engine.arg_utils": ("This model does not officially support disabling chunked prefill",),
    "vllm.platforms.cpu": ("Triton is not installed",),
    "vllm.v1.engine.input_processor": (
        "Passing raw prompts to InputProcessor is deprecated",
        "vLLM has deprecated support for supporting different tokenizers for different LoRAs",
    ),
    "vllm.v1.worker.cpu_worker": (
        "%s is not found in LD_PRELOAD",  # tcmalloc and Intel's OpenMP: measured in benchmarks/LOG.md
        "Speculative decoding on CPU without Intel OpenMP",
    ),
    "vllm.v1.sample.logits_processor": ("min_p and logit_bias parameters won't work with speculative decoding",),
}
"""How warnings about loramem's own choices begin, by logger; they say what is so on purpose, as if it were a danger."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_bound: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("bound_ids", default=())


@contextmanager
def bind(**ids: str) -> Iterator[None]:
    """Every record made inside carries these ids: `with bind(job_id=job.id): ...`.

    Holds for the coroutines and `asyncio.to_thread` calls started inside. A plain thread starts empty: run its target
    in `contextvars.copy_context()`.
    """
    token = _bound.set(tuple((dict(_bound.get()) | ids).items()))
    try:
        yield
    finally:
        _bound.reset(token)


def bound_ids() -> dict[str, str]:
    """Ids bound here and now, the outermost first."""
    return dict(_bound.get())


class LineFormatter(logging.Formatter):
    """Time in UTC with milliseconds, level, role, ids, logger, and message, whose control characters are escaped."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        head = self._head(record)
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], record.getMessage())
        lines = [f"{head} {record.name}: {message}"]
        if record.exc_info:
            lines += [f"{head} | {line}" for line in self.formatException(record.exc_info).splitlines()]
        return "\n".join(lines)

    def _head(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        ids = "".join(f" {key}={value}" for key, value in _bound.get())
        return f"{clock}.{int(record.msecs):03d}Z {record.levelname} {self._role}{ids}"


def _is_unforeseen(record: logging.LogRecord) -> bool:
    foreseen = FORESEEN.get(record.name)
    if foreseen is None or record.levelno > logging.WARNING:
        return True
    return not str(record.msg).startswith(foreseen)


def configure(role: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Replace whatever handlers there are. `role` is `gateway`, `worker`, ...; `level` is `LORAMEM_LOG_LEVEL`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(role))
    number = logging.getLevelNamesMapping()[level.upper()]
    if number > logging.DEBUG:
        handler.addFilter(_is_unforeseen)
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(number)
    for name in (*CONFIDING_LOGGERS, *CHATTY_LOGGERS):
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars are no lines; read when tqdm is imported
