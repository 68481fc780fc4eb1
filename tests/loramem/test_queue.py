"""One conformance suite for the job queue: each database with each doorbell. Cancel and retry: test_queue_cancel."""

import threading
from collections.abc import Callable
from itertools import chain

import pytest
from redis import Redis
from sqlalchemy.exc import OperationalError

from loramem.database import Database, epoch_now
from loramem.doorbell import PollingDoorbell, RedisDoorbell
from loramem.errors import LeaseLost, LoramemError, NotFound
from loramem.queue import JobQueue
from loramem.settings import Settings
from loramem.tables import Job, JobKind, JobState, Namespace
from tests.backends import Valkey, database, database_url, valkey
from tests.loramem.queue_steps import (
    BROKEN,
    TRAIN,
    add,
    add_mending,
    add_preview,
    change,
    doorbell,
    let_lease_expire,
    make_due,
    publish,
    queue,
    settings,
    states,
    succeed,
    take,
)

__all__ = ["database", "database_url", "doorbell", "queue", "settings", "valkey"]


class TestLife:
    def test_a_job_goes_from_queued_to_succeeded_and_leaves_its_story(self, queue: JobQueue) -> None:
        job_id = add(queue, "doc_1", 7)
        claim = take(queue, "w1")
        assert (claim.job_id, claim.document_id, claim.revision, claim.attempts) == (job_id, "doc_1", 7, 1)
        assert claim.kind == JobKind.BUILD
        assert queue.report(claim, TRAIN) is False
        succeed(queue, claim)
        job = queue.get(job_id)
        assert (job.state, job.progress["phase"], job.progress["percent"]) == (JobState.SUCCEEDED, "done", 100)
        assert job.created_at <= (job.started_at or 0) <= (job.finished_at or 0)
        events = queue.events(job_id)
        assert [event.kind for event in events] == ["state", "state", "progress", "state"]
        assert events[2].data == TRAIN.model_dump()
        assert states(queue, job_id) == ["queued", "running", "succeeded"]
        assert [event.id for event in queue.events(job_id, after=events[1].id)] == [event.id for event in events[2:]]

    def test_enqueue_belongs_to_the_callers_transaction(self, queue: JobQueue) -> None:
        with queue.database.write() as session:
            job_id = queue.enqueue(session, "doc_1", 1).id
            session.rollback()
        assert queue.claim("w") is None
        with pytest.raises(NotFound):
            queue.get(job_id)

    def test_succeed_rolls_back_what_the_loser_published(self, queue: JobQueue) -> None:
        job_id = add(queue)
        zombie = take(queue, "frozen")
        let_lease_expire(queue, job_id)
        heir = take(queue, "heir")
        with pytest.raises(LeaseLost):
            publish(queue, zombie)
        with queue.database.read() as session:
            assert session.get(Namespace, "published") is None
        succeed(queue, heir)
        assert states(queue, job_id).count("succeeded") == 1

    def test_jobs_are_claimed_in_the_order_they_came(self, queue: JobQueue) -> None:
        wanted = [add(queue, f"doc_{number}") for number in range(4)]
        assert [take(queue).job_id for _ in wanted] == wanted

    def test_previews_wait_in_the_same_queue_and_are_of_no_document(self, queue: JobQueue) -> None:
        wanted = [add(queue, "doc_1"), add_preview(queue), add(queue, "doc_2")]
        claims = [take(queue) for _ in wanted]
        assert [claim.job_id for claim in claims] == wanted
        assert [claim.kind for claim in claims] == ["build", "preview", "build"]
        job = queue.get(wanted[1])
        assert (job.document_id, job.revision) == (None, None)
        succeed(queue, claims[1])
        assert states(queue, wanted[1]) == ["queued", "running", "succeeded"]

    def test_mendings_come_last_and_are_not_waited_for(self, queue: JobQueue) -> None:
        mending = add_mending(queue)
        build = add(queue, "doc_2")
        with queue.database.write() as session:
            session.get_one(Job, mending).not_before -= 100
        assert queue.oldest_queued_age_s() < 50
        assert [take(queue).job_id for _ in range(2)] == [build, mending]
        assert queue.oldest_queued_age_s() == 0

    def test_a_mending_is_wanted_elsewhere_for_what_waits_and_for_what_lost_its_worker(self, queue: JobQueue) -> None:
        add_mending(queue, "doc_2")
        build = add(queue)
        assert not queue.is_wanted_elsewhere(waiting_s=60)
        assert queue.is_wanted_elsewhere(waiting_s=-1)
        take(queue)
        assert not queue.is_wanted_elsewhere(waiting_s=-1)
        let_lease_expire(queue, build)
        assert queue.is_wanted_elsewhere(waiting_s=60)

    def test_counts_and_age(self, queue: JobQueue) -> None:
        assert queue.oldest_queued_age_s() == 0
        oldest = add(queue)
        add(queue, "doc_2")
        change(queue, oldest, not_before=epoch_now() - 60)
        assert queue.oldest_queued_age_s() == pytest.approx(60, abs=2)
        take(queue)
        assert (queue.counts()[JobState.QUEUED], queue.counts()[JobState.RUNNING]) == (1, 1)
        assert queue.counts()[JobState.DEAD] == 0


class TestLease:
    def test_two_claimers_never_get_the_same_job(self, database: Database, settings: Settings) -> None:
        queues = [JobQueue(Database(_url(database)), PollingDoorbell(1), settings) for _ in range(4)]
        wanted = [add(queues[0], f"doc_{number}") for number in range(24)]
        taken: list[list[str]] = [[] for _ in queues]

        def drain(number: int) -> None:
            while (claim := queues[number].claim(f"w{number}")) is not None:
                taken[number].append(claim.job_id)

        threads = [threading.Thread(target=drain, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for opened in queues:
            opened.database.close()
        assert sorted(chain.from_iterable(taken)) == wanted

    def test_an_expired_lease_is_taken_over_and_the_zombie_changes_nothing(self, queue: JobQueue) -> None:
        job_id = add(queue)
        zombie = take(queue, "frozen")
        assert queue.claim("too early") is None
        let_lease_expire(queue, job_id)
        heir = take(queue, "heir")
        assert heir.fence > zombie.fence
        assert heir.attempts == 2
        writes: list[Callable[[], object]] = [
            lambda: queue.renew(zombie),
            lambda: queue.report(zombie, TRAIN),
            lambda: queue.count_anew(zombie),
            lambda: queue.postpone(zombie, 0, "late"),
            lambda: queue.fail(zombie, BROKEN, retryable=False),
            lambda: queue.fail(zombie, BROKEN, retryable=True),
            lambda: queue.release_cancelled(zombie),
            lambda: succeed(queue, zombie),
        ]
        before = len(queue.events(job_id))
        for write in writes:
            with pytest.raises(LeaseLost):
                write()
        assert not queue.holds(zombie)
        assert queue.holds(heir)
        assert queue.get(job_id).owner == "heir"
        assert len(queue.events(job_id)) == before

    def test_the_heartbeat_extends_the_lease_by_the_databases_clock(self, queue: JobQueue) -> None:
        job_id = add(queue)
        claim = take(queue)
        let_lease_expire(queue, job_id)
        assert queue.renew(claim) is False  # late, but nobody took it
        assert queue.claim("other") is None

    def test_a_job_whose_workers_all_died_is_dead_with_an_explanation(self, queue: JobQueue) -> None:
        job_id = add(queue)
        for _ in range(2):
            take(queue)
            let_lease_expire(queue, job_id)
        assert queue.claim("third") is None
        job = queue.get(job_id)
        assert job.state == JobState.DEAD
        assert job.error is not None
        assert set(job.error) == {"type", "title", "status", "detail", "code"}
        assert job.error["code"] == "attempts-exhausted"
        assert "2 of 2" in job.error["detail"]

    def test_a_job_that_gets_further_outlives_any_number_of_workers(self, queue: JobQueue) -> None:
        job_id = add(queue)
        for _ in range(5):
            assert queue.count_anew(take(queue)) is False
            let_lease_expire(queue, job_id)
        assert take(queue).attempts == 2, "the last of them counts, and this one"
        let_lease_expire(queue, job_id)
        assert queue.claim("third without getting further") is None
        assert queue.get(job_id).state == JobState.DEAD

    def test_a_job_that_gets_further_may_be_handed_back(self, queue: JobQueue) -> None:
        job_id = add(queue)
        queue.count_anew(claim := take(queue))
        queue.postpone(claim, 0, "stopping")
        assert queue.get(job_id).attempts == 0

    def test_a_dead_job_does_not_keep_others_waiting(self, queue: JobQueue) -> None:
        poison = add(queue, "poison")
        change(queue, poison, attempts=2)
        healthy = add(queue, "healthy")
        assert take(queue).job_id == healthy
        assert queue.get(poison).state == JobState.DEAD


class TestEnds:
    def test_postponing_counts_no_attempt_and_waits(self, queue: JobQueue) -> None:
        job_id = add(queue)
        for _ in range(5):
            queue.postpone(take(queue), 60, "the writer is away")
            assert queue.claim("w") is None
            make_due(queue, job_id)
        assert take(queue).attempts == 1
        assert queue.events(job_id)[-2].data["reason"] == "the writer is away"

    def test_a_job_handed_back_is_free_at_once(self, queue: JobQueue) -> None:
        add(queue)
        queue.postpone(take(queue), 0, "stopping")
        assert take(queue).attempts == 1

    def test_a_retryable_failure_waits_longer_each_time_then_is_dead(self, queue: JobQueue) -> None:
        job_id = add(queue)
        queue.fail(take(queue), LoramemError("out of memory"), retryable=True)
        job = queue.get(job_id)
        assert job.state == JobState.QUEUED
        assert 2 < job.not_before - queue.events(job_id)[-1].at <= 5
        assert queue.claim("w") is None
        make_due(queue, job_id)
        queue.fail(take(queue), LoramemError("out of memory again"), retryable=True)
        dead = queue.get(job_id)
        assert (dead.state, dead.attempts) == (JobState.DEAD, 2)
        assert dead.error is not None
        assert "out of memory again" in dead.error["detail"]

    def test_a_terminal_failure_is_not_tried_again(self, queue: JobQueue) -> None:
        job_id = add(queue)
        queue.fail(take(queue), BROKEN, retryable=False)
        job = queue.get(job_id)
        assert (job.state, job.error) == (JobState.FAILED, BROKEN.problem())
        assert queue.claim("w") is None


class TestAnnouncing:
    def test_a_waiting_worker_wakes_at_once(self, queue: JobQueue) -> None:
        woken = threading.Event()

        def wait_for_work() -> None:
            while queue.claim("w") is None:
                queue.doorbell.wait(30)
            woken.set()

        worker = threading.Thread(target=wait_for_work)
        worker.start()
        add(queue)
        assert woken.wait(5)
        worker.join()

    def test_reconcile_rings_for_what_was_not_announced(self, queue: JobQueue) -> None:
        with queue.database.write() as session:
            job_id = queue.enqueue(session, "doc_1", 1).id  # and the process dies before it announces
        assert queue.reconcile() == 1
        assert queue.reconcile() == 0  # announced just now
        change(queue, job_id, announced_at=epoch_now() - 6)
        assert queue.reconcile() == 1
        take(queue)
        change(queue, job_id, announced_at=epoch_now() - 6)
        assert queue.reconcile() == 0

    def test_what_is_committed_stays_accepted_when_the_ring_cannot_be_noted(
        self, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with queue.database.write() as session:
            job_id = queue.enqueue(session, "doc_1", 1).id
        away = OperationalError("UPDATE job", None, Exception("connection refused"))
        with monkeypatch.context() as patched:
            patched.setattr(queue.database, "write", lambda: (_ for _ in ()).throw(away))
            queue.announce(job_id)
        assert queue.get(job_id).announced_at is None
        assert queue.reconcile() == 1

    def test_a_postponed_job_is_not_announced_before_its_time(self, queue: JobQueue) -> None:
        job_id = add(queue)
        queue.postpone(take(queue), 60, "later")
        assert queue.get(job_id).progress["message"] == "later"
        assert queue.reconcile() == 0
        make_due(queue, job_id)
        assert queue.reconcile() == 1


def test_redis_killed_loses_no_job(database: Database, valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    queue = JobQueue(database, RedisDoorbell(valkey.url), Settings())
    queue.doorbell.wait(0.01)
    valkey.kill()
    first = add(queue)
    assert "doorbell lost" in caplog.text
    queue.doorbell.wait(0.05)
    assert take(queue).job_id == first  # found by polling while Redis is away
    second = add(queue, "doc_2")
    valkey.start()
    for _ in range(100):
        queue.doorbell.wait(0.1)
        if "doorbell is back" in caplog.text:
            break
    assert queue.get(second).announced_at is None
    assert queue.reconcile() == 1
    with Redis.from_url(valkey.url) as redis:
        assert redis.xlen("loramem:jobs") == 1
    assert take(queue).job_id == second
    assert caplog.text.count("doorbell lost") == 1
    queue.doorbell.close()


def _url(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=False)
