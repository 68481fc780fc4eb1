"""/jobs: reading, following, cancelling, retrying."""

import threading
import time
from typing import Any

import pytest

from loramem.errors import JobError, TrainingFailed
from loramem.records import Progress
from loramem.transitions import Claim
from tests.server.api.memory import Memory, events_of
from tests.server.learned import learn


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.jobs.POLL_S", 0.02)


def claimed(memory: Memory) -> Claim:
    claim = memory.gateway.queue.claim("worker")
    assert claim is not None
    return claim


def job_of(memory: Memory, **fields: Any) -> str:
    job_id: str = memory.upload(**fields)["job"]["id"]
    return job_id


def report(memory: Memory, claim: Claim, step: int) -> None:
    progress = Progress(phase="train", step=step, total_steps=9, percent=10.0 * step, loss=2.5 / step, eta_s=4.0)
    memory.gateway.queue.report(claim, progress)


def test_a_job_shows_its_progress(memory: Memory) -> None:
    job_id = job_of(memory)
    report(memory, claimed(memory), 5)
    job = memory.client.get(f"/jobs/{job_id}").json()
    assert (job["state"], job["attempts"]) == ("running", 1)
    assert {key: job["progress"][key] for key in ("phase", "step", "total_steps", "percent", "loss", "eta_s")} == {
        "phase": "train", "step": 5, "total_steps": 9, "percent": 50.0, "loss": 0.5, "eta_s": 4.0
    }  # fmt: skip


def test_events_of_a_finished_job_are_its_story(memory: Memory) -> None:
    job_id = job_of(memory)
    learn(memory.gateway, memory.embedder)
    reply = memory.client.get(f"/jobs/{job_id}/events")
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = events_of(reply.text)
    states = [data["state"] for kind, data in found if kind == "state"]
    assert states == ["queued", "running", "succeeded"]
    times = [data["at"] for _, data in found]
    assert times == sorted(times)


def test_following_a_job_that_is_at_work_ends_with_it(memory: Memory) -> None:
    job_id = job_of(memory)
    claim = claimed(memory)

    def work() -> None:
        for step in (1, 2):
            time.sleep(0.1)
            report(memory, claim, step)
        memory.gateway.queue.fail(claim, TrainingFailed("it did not converge"), retryable=False)

    worker = threading.Thread(target=work)
    worker.start()
    found = events_of(memory.client.get(f"/jobs/{job_id}/events").text)
    worker.join()
    assert [data["step"] for kind, data in found if kind == "progress"] == [1, 2]
    assert found[-1][1]["state"] == "failed"
    error = memory.client.get(f"/jobs/{job_id}").json()["error"]
    assert (error["code"], error["detail"]) == ("training-failed", "it did not converge")


def ids_of(text: str) -> list[int]:
    return [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")]


def test_a_follower_that_returns_gets_what_it_missed(memory: Memory) -> None:
    job_id = job_of(memory)
    claim = claimed(memory)
    for step in (1, 2, 3):
        report(memory, claim, step)
    memory.client.post(f"/jobs/{job_id}/cancel")
    memory.gateway.queue.release_cancelled(claim)
    every = ids_of(memory.client.get(f"/jobs/{job_id}/events").text)
    assert every == sorted(set(every))
    assert len(every) >= 6
    headers = {"Last-Event-ID": str(every[3])}
    assert ids_of(memory.client.get(f"/jobs/{job_id}/events", headers=headers).text) == every[4:]
    assert memory.client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": str(every[-1])}).text == ""


def test_a_long_story_is_read_in_pieces(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, events, read = job_of(memory), memory.gateway.queue.events, []

    def noted(*asked: Any) -> Any:
        rows = events(*asked)
        read.append(len(rows))
        return rows

    claim = claimed(memory)
    for step in (1, 2, 3):
        report(memory, claim, step)
    memory.gateway.queue.fail(claim, TrainingFailed("it did not converge"), retryable=False)
    every = [row.id for row in events(job_id)]
    monkeypatch.setattr("server.api.jobs.EVENTS_A_READ", 2)
    monkeypatch.setattr(memory.gateway.queue, "events", noted)
    assert ids_of(memory.client.get(f"/jobs/{job_id}/events").text) == every
    assert max(read) == 2


def test_the_more_follow_the_less_often_each_looks(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, events, looked = job_of(memory), memory.gateway.queue.events, []

    def noted(*asked: Any) -> Any:
        looked.append((time.monotonic(), memory.gateway.followers))
        if len(looked) == 2:
            memory.gateway.stopping.set()
        return events(*asked)

    monkeypatch.setattr(memory.gateway.queue, "events", noted)
    memory.gateway.followers = 29
    memory.client.get(f"/jobs/{job_id}/events")
    (first, followers), (second, _) = looked
    assert followers == 30
    assert second - first >= 0.3
    assert memory.gateway.followers == 29


@pytest.mark.parametrize("strange", ["soon", "-1", "²", "9" * 40, "9" * 5000, ""])
def test_a_strange_last_event_id_is_no_error(memory: Memory, strange: str) -> None:
    job_id = job_of(memory)
    memory.client.post(f"/jobs/{job_id}/cancel")
    headers = [(b"Last-Event-ID", strange.encode("latin-1"))]
    assert memory.client.get(f"/jobs/{job_id}/events", headers=headers).status_code == 200


def test_followers_hang_up_when_the_gateway_stops(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, events = job_of(memory), memory.gateway.queue.events

    def last(*asked: Any) -> Any:
        memory.gateway.stopping.set()
        return events(*asked)

    monkeypatch.setattr(memory.gateway.queue, "events", last)
    found = events_of(memory.client.get(f"/jobs/{job_id}/events").text)
    assert [data["state"] for _, data in found] == ["queued"]


def test_a_queued_job_is_cancelled_at_once(memory: Memory) -> None:
    job_id = job_of(memory)
    assert memory.client.post(f"/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    assert memory.gateway.queue.claim("worker") is None


def test_a_running_job_is_asked_to_stop(memory: Memory) -> None:
    job_id = job_of(memory)
    claim = claimed(memory)
    job = memory.client.post(f"/jobs/{job_id}/cancel").json()
    assert (job["state"], job["cancel_requested"]) == ("running", True)
    assert memory.gateway.queue.renew(claim) is True


def refused(memory: Memory, path: str) -> dict[str, Any]:
    reply = memory.client.post(path)
    assert reply.status_code == 409, reply.text
    problem: dict[str, Any] = reply.json()
    assert problem["code"] == "wrong-job-state"
    return problem


def test_a_job_that_is_over_cannot_be_cancelled(memory: Memory) -> None:
    job_id = job_of(memory)
    learn(memory.gateway, memory.embedder)
    problem = refused(memory, f"/jobs/{job_id}/cancel")
    assert problem["state"] == "succeeded"
    assert job_id in problem["detail"]


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_only_what_ended_badly_can_be_retried(memory: Memory, state: str) -> None:
    job_id = job_of(memory)
    if state == "running":
        claimed(memory)
    if state == "succeeded":
        learn(memory.gateway, memory.embedder)
    assert refused(memory, f"/jobs/{job_id}/retry")["state"] == state


def test_a_retried_job_starts_anew_and_succeeds(memory: Memory) -> None:
    job_id = job_of(memory)
    memory.gateway.queue.fail(claimed(memory), JobError("no luck"), retryable=False)
    job = memory.client.post(f"/jobs/{job_id}/retry").json()
    assert (job["state"], job["attempts"], job["error"]) == ("queued", 0, None)
    learn(memory.gateway, memory.embedder)
    assert memory.client.get(f"/jobs/{job_id}").json()["state"] == "succeeded"


def test_a_job_of_a_replaced_revision_cannot_be_retried(memory: Memory) -> None:
    accepted = memory.upload()
    memory.client.put(f"/documents/{accepted['document']['id']}", json={"text": "Something else."})
    assert memory.client.get(f"/jobs/{accepted['job']['id']}").json()["state"] == "cancelled"
    assert "revision 1" in refused(memory, f"/jobs/{accepted['job']['id']}/retry")["detail"]
