"""How an idle worker learns at once that a job is waiting.

A doorbell carries no truth: the job row is the authority, a lost ring costs at most one poll, a ring too many one look
at the database. So entries hold only the job id, are deleted as they are read, and are never claimed back.
"""

import logging
import os
import socket
import threading
import time
from typing import Any, Protocol, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from loramem.errors import SettingsError
from loramem.settings import Settings

log = logging.getLogger(__name__)

STREAM = "loramem:jobs"
GROUP = "workers"
MAX_ENTRIES = 1000  # more unread rings than that wake nobody who is not already awake
BACKOFF_S = (0.1, 5.0)  # first and longest wait before a lost Redis is tried again
RING_S = 0.5  # for a ring, which an upload waits for
TIMEOUT_S = 5.0  # for one command; a blocking read stays below it
Answer = list[tuple[bytes, list[tuple[bytes, object]]]]  # of XREADGROUP in RESP2: entries per stream
SCHEMES = ("redis://", "rediss://", "unix://")


class Doorbell(Protocol):
    """Rung after a job row is committed; waited on by workers that found nothing to claim."""

    def ring(self, job_id: str) -> bool:
        """Wake one waiting worker. False: the ring was lost, and was logged; never raises for a lost connection."""

    def wait(self, timeout_s: float) -> None:
        """Return when something may be there, at the latest after `timeout_s` seconds."""

    def close(self) -> None:
        """Release connections; a thread in `wait` returns."""


class PollingDoorbell:
    """No channel between processes: `wait` ends after `poll_s` seconds, or at once for a ring in the same process."""

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s
        self._rung = threading.Event()

    def ring(self, job_id: str) -> bool:
        self._rung.set()
        return True

    def wait(self, timeout_s: float) -> None:
        self._rung.wait(min(timeout_s, self._poll_s))
        self._rung.clear()

    def close(self) -> None:
        self._rung.set()


class RedisDoorbell:
    """One Redis stream with one consumer group: each ring wakes one of all waiting workers."""

    def __init__(self, url: str) -> None:
        # No backoff inside redis-py: a gateway must not wait seconds for a doorbell that is down.
        options: dict[str, Any] = {"socket_connect_timeout": 1.0, "retry": Retry(NoBackoff(), 1), "protocol": 2}
        self._redis: Redis = Redis.from_url(url, socket_timeout=TIMEOUT_S, **options)
        self._ringing: Redis = Redis.from_url(url, socket_timeout=RING_S, **options)
        self._consumer = f"{socket.gethostname()}-{os.getpid()}"
        self._lock = threading.Lock()
        self._ready = False
        self._failures = 0
        self._retry_at = 0.0
        self._closed = threading.Event()

    def ring(self, job_id: str) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._ringing.xadd(STREAM, {"job": job_id}, maxlen=MAX_ENTRIES, approximate=False)
        except RedisError as error:
            self._lost(error)
            return False
        self._found()
        return True

    def wait(self, timeout_s: float) -> None:
        pause_s = self._retry_at - time.monotonic()
        if pause_s > 0:
            self._closed.wait(min(pause_s, timeout_s))
            return
        try:
            self._prepare()
            self._read(timeout_s)
        except RedisError as error:
            if not self._closed.is_set():
                self._lost(error)
            return
        self._found()

    def close(self) -> None:
        self._closed.set()
        self._retry_at = float("inf")
        self._redis.close()
        self._ringing.close()

    def _read(self, timeout_s: float) -> None:
        # NOACK: what is read is never claimed back, so nothing is left pending by a worker that dies right here.
        block_ms = max(1, round(1000 * min(timeout_s, TIMEOUT_S / 2)))
        answer = self._redis.xreadgroup(GROUP, self._consumer, {STREAM: ">"}, count=1, block=block_ms, noack=True)
        for _, entries in cast(Answer, answer):
            self._redis.xdel(STREAM, *(entry_id for entry_id, _ in entries))

    def _prepare(self) -> None:
        """Create the group, also after FLUSHALL or a restart without a file; the first time, look at the durability."""
        if self._ready:
            return
        try:
            self._redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._warn_if_volatile()
        self._ready = True

    def _warn_if_volatile(self) -> None:
        try:
            found = cast(dict[str, str], self._redis.config_get("appendonly"))
        except ResponseError:
            return  # hosted services forbid CONFIG
        if found.get("appendonly") == "no":
            log.warning("Redis runs with appendonly=no: it forgets rings on a restart; jobs are then found by polling")

    def _lost(self, error: RedisError) -> None:
        with self._lock:
            if self._failures == 0:
                log.warning("doorbell lost, jobs are found by polling until it is back: %s", error)
            first, longest = BACKOFF_S
            self._retry_at = max(self._retry_at, time.monotonic() + min(longest, first * 2**self._failures))
            self._failures = min(self._failures + 1, 10)
            self._ready = False

    def _found(self) -> None:
        if self._failures:
            with self._lock:
                self._failures = 0
            log.warning("doorbell is back")


def make_doorbell(settings: Settings) -> Doorbell:
    """Redis when `LORAMEM_REDIS_URL` is set, else polling. Connects at the first use, not here."""
    if not settings.redis_url:
        return PollingDoorbell(settings.poll_s)
    if not settings.redis_url.startswith(SCHEMES):
        raise SettingsError(f"LORAMEM_REDIS_URL: must start with one of {', '.join(SCHEMES)}")
    return RedisDoorbell(settings.redis_url)
