"""Both doorbells; the queue's own use of them is in test_queue."""

import logging
import socket
import threading
import time
from pathlib import Path

import pytest
from redis import Redis

from loramem.doorbell import GROUP, MAX_ENTRIES, STREAM, Doorbell, PollingDoorbell, RedisDoorbell, make_doorbell
from loramem.errors import SettingsError
from loramem.settings import Settings
from tests.backends import Valkey, free_port, valkey

__all__ = ["valkey"]


def seconds_of_wait(bell: Doorbell, timeout_s: float) -> float:
    started = time.monotonic()
    bell.wait(timeout_s)
    return time.monotonic() - started


class TestPolling:
    def test_waits_no_longer_than_a_poll_or_the_timeout(self) -> None:
        assert 0.05 <= seconds_of_wait(PollingDoorbell(0.05), 30) < 5
        assert seconds_of_wait(PollingDoorbell(30), 0.05) < 5

    def test_a_ring_is_remembered_and_heard_once(self) -> None:
        bell = PollingDoorbell(30)
        assert bell.ring("job_1")
        assert seconds_of_wait(bell, 30) < 20
        assert seconds_of_wait(bell, 0.2) >= 0.19

    def test_close_ends_a_wait(self) -> None:
        bell = PollingDoorbell(60)
        waiter = threading.Thread(target=bell.wait, args=(60,))
        waiter.start()
        bell.close()
        waiter.join(5)
        assert not waiter.is_alive()


class TestRedis:
    def test_a_ring_between_two_processes_is_read_and_gone(self, valkey: Valkey) -> None:
        gateway, worker = RedisDoorbell(valkey.url), RedisDoorbell(valkey.url)
        assert gateway.ring("job_1")  # before any worker has ever waited
        assert seconds_of_wait(worker, 4) < 3
        with Redis.from_url(valkey.url) as redis:
            assert redis.xlen(STREAM) == 0
            assert redis.xpending(STREAM, GROUP)["pending"] == 0
        assert seconds_of_wait(worker, 0.3) >= 0.25
        gateway.close()
        worker.close()

    def test_one_ring_wakes_one_of_two_workers(self, valkey: Valkey) -> None:
        bells = [RedisDoorbell(valkey.url) for _ in range(2)]
        for bell in bells:
            bell.wait(0.01)
        bells[0].ring("job_1")
        waits = sorted(seconds_of_wait(bell, 1.5) for bell in bells)
        assert waits[0] < 1.4 < waits[1]
        for bell in bells:
            bell.close()

    def test_rings_that_nobody_reads_do_not_pile_up(self, valkey: Valkey) -> None:
        bell = RedisDoorbell(valkey.url)
        for _ in range(MAX_ENTRIES + 5):
            bell.ring("job_1")
        with Redis.from_url(valkey.url) as redis:
            assert redis.xlen(STREAM) == MAX_ENTRIES
        bell.close()

    def test_a_flushed_server_is_set_up_again(self, valkey: Valkey) -> None:
        bell = RedisDoorbell(valkey.url)
        bell.wait(0.01)
        with Redis.from_url(valkey.url) as redis:
            redis.flushall()
        assert _heard(bell, valkey)
        bell.close()

    def test_a_killed_server_costs_nobody_time_and_comes_back(
        self, valkey: Valkey, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        bell = RedisDoorbell(valkey.url)
        bell.wait(0.01)
        valkey.kill()
        started = time.monotonic()
        assert not any(bell.ring("job_1") for _ in range(50))
        bell.wait(0.05)
        assert time.monotonic() - started < 2
        valkey.start()
        assert _heard(bell, valkey)
        assert [record.message.split(",")[0] for record in caplog.records] == ["doorbell lost", "doorbell is back"]
        bell.close()

    def test_a_server_that_is_not_there_at_the_start_is_a_state_too(self) -> None:
        bell = RedisDoorbell(f"redis://127.0.0.1:{free_port()}")
        assert not bell.ring("job_1")
        assert seconds_of_wait(bell, 0.1) < 1
        bell.close()

    def test_a_server_that_accepts_and_says_nothing_costs_a_ring_about_a_second(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            bell = RedisDoorbell(f"redis://127.0.0.1:{silent.getsockname()[1]}")
            started = time.monotonic()
            assert not bell.ring("job_1")
            assert time.monotonic() - started < 4
            bell.close()

    def test_warns_of_a_server_that_forgets(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        server = Valkey(tmp_path, appendonly="no")
        bell = RedisDoorbell(server.url)
        bell.wait(0.01)
        bell.wait(0.01)
        server.kill()
        assert caplog.text.count("appendonly=no") == 1
        bell.close()


class TestChoice:
    def test_follows_the_settings(self) -> None:
        assert isinstance(make_doorbell(Settings(redis_url="")), PollingDoorbell)
        bell = make_doorbell(Settings(redis_url="redis://127.0.0.1:1"))
        assert isinstance(bell, RedisDoorbell)

    def test_a_wrong_url_stops_the_start_without_showing_its_password(self) -> None:
        with pytest.raises(SettingsError, match="LORAMEM_REDIS_URL") as caught:
            make_doorbell(Settings(redis_url="http://:secret@redis"))
        assert "secret" not in str(caught.value)


def _heard(bell: RedisDoorbell, valkey: Valkey) -> bool:
    """Whether a ring gets through within a few tries that outlast the backoff: accepted, then read from the stream."""
    rung = False
    with Redis.from_url(valkey.url) as redis:
        for _ in range(40):
            rung = rung or bell.ring("job_1")
            bell.wait(0.2)
            if rung and redis.xlen(STREAM) == 0:
                return True
    return False
