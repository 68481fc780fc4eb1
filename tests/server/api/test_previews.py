"""POST /documents?preview=true: the training data to look at, and no trace of a document."""

from typing import Any

import pytest

from loramem.queue import Claim
from tests.files import PNG, make_docx
from tests.server.api.conftest import MakeMemory
from tests.server.api.memory import LIGHTHOUSE, QUESTION, Json, Memory, events_of
from tests.server.api.test_bad_input import HUGE, TEXT_FILE, named, refused
from tests.server.learned import learn
from trainer_worker.examples import Example
from trainer_worker.preview import store_examples

PATH = "/documents?preview=true"
EXAMPLES = [
    Example("Who mended the lamp?", "Ansel Brandt mended it.", "written", "Ansel Brandt"),
    Example("From where is it seen?", "From nineteen miles away.", "written"),
    Example("Of what is the stair?", "Of oak.", "user"),
]


def preview(memory: Memory, **request: Any) -> str:
    """POST one; returns its job's id."""
    reply = memory.client.post(PATH, **(request or {"json": {"text": LIGHTHOUSE}}))
    assert reply.status_code == 202, reply.text
    job_id: str = reply.json()["job"]["id"]
    assert reply.headers["location"] == f"/jobs/{job_id}"
    assert (reply.json()["document"], reply.json()["created"]) == (None, False)
    return job_id


def claimed(memory: Memory) -> Claim:
    claim = memory.gateway.queue.claim("worker")
    assert claim is not None
    return claim


def finish(memory: Memory) -> None:
    store_examples(memory.gateway.database, memory.gateway.queue, claimed(memory), EXAMPLES)


def job_of(memory: Memory, job_id: str) -> Json:
    found: Json = memory.client.get(f"/jobs/{job_id}").json()
    return found


@pytest.mark.parametrize(
    "request_body",
    [
        {"json": {"text": LIGHTHOUSE, "title": "Korrin", "training": {"formats": ["qa"]}}},
        {"files": {"file": ("a.docx", make_docx("Zorvian lamps"), "")}, "data": {"namespace": "coast"}},
    ],
    ids=["json", "file"],
)
def test_a_preview_shows_its_examples_when_it_has_succeeded(memory: Memory, request_body: dict[str, Any]) -> None:
    job_id = preview(memory, **request_body)
    waiting = job_of(memory, job_id)
    assert (waiting["kind"], waiting["document_id"], waiting["revision"]) == ("preview", None, None)
    assert (waiting["state"], waiting["preview"], waiting["preview_counts"]) == ("queued", None, None)
    finish(memory)
    done = job_of(memory, job_id)
    assert done["state"] == "succeeded"
    assert done["preview"][0] == {
        "question": "Who mended the lamp?", "answer": "Ansel Brandt mended it.", "kind": "written"
    }  # fmt: skip
    assert len(done["preview"]) == 3
    assert done["preview_counts"] == {"written": 2, "user": 1}


def test_an_upload_shows_none(memory: Memory) -> None:
    job_id = memory.upload()["job"]["id"]
    learn(memory.gateway, memory.embedder)
    job = job_of(memory, job_id)
    assert (job["kind"], job["state"], job["preview"], job["preview_counts"]) == ("build", "succeeded", None, None)


def test_its_text_can_be_neither_listed_nor_asked(memory: Memory) -> None:
    preview(memory)
    finish(memory)
    assert memory.client.get("/documents").json()["data"] == []
    assert memory.client.get("/adapters").json()["data"] == []
    for mode in ("lora", "rag", "icl", "hybrid"):
        reply = memory.client.post("/query", json={"question": QUESTION, "mode": mode})
        assert reply.status_code == 409, reply.text
        assert "job_id" not in reply.json()


def test_the_same_text_can_then_be_uploaded(memory: Memory) -> None:
    job_id = preview(memory)
    accepted = memory.upload()
    assert (accepted["created"], accepted["job"]["kind"]) == (True, "build")
    finish(memory)
    assert job_of(memory, job_id)["state"] == "succeeded"
    assert job_of(memory, accepted["job"]["id"])["state"] == "queued"


@pytest.mark.parametrize(
    ("status", "key", "request_body"),
    [
        (415, "file", {"files": {"file": ("picture.png", PNG, "image/png")}}),
        (422, "file", {"files": {"file": ("notes.txt", b"caf\xe9 \xff\xfe", "text/plain")}}),
        (422, "training.rank", {"files": {"file": TEXT_FILE}, "data": {"training": '{"rank": 7}'}}),
        (422, "text", {"json": {"text": " "}}),
        (422, "namespace", {"json": {"text": "ok", "namespace": "Not a name"}}),
        (415, "Content-Type", {"content": b"text", "headers": {"Content-Type": "text/plain"}}),
    ],
)
def test_what_is_no_upload_is_no_preview_either(
    memory: Memory, status: int, key: str, request_body: dict[str, Any]
) -> None:
    assert named(refused(memory, "POST", PATH, status, **request_body))[0] == key


def test_the_limits_are_those_of_an_upload(make_memory: MakeMemory) -> None:
    memory = make_memory(max_text_chars=1000)
    assert named(refused(memory, "POST", PATH, 413, json={"text": HUGE})) == ("text", 3000)


def test_preview_is_true_or_false(memory: Memory) -> None:
    problem = refused(memory, "POST", "/documents?preview=perhaps", 422, json={"text": LIGHTHOUSE})
    assert named(problem) == ("preview", "perhaps")
    reply = memory.client.post("/documents?preview=false", json={"text": LIGHTHOUSE})
    assert reply.json()["document"]["title"]


def test_its_events_are_a_jobs(memory: Memory) -> None:
    job_id = preview(memory)
    finish(memory)
    found = events_of(memory.client.get(f"/jobs/{job_id}/events").text)
    assert [data["state"] for _, data in found] == ["queued", "running", "succeeded"]


def test_it_is_cancelled_and_wanted_again_like_any_job(memory: Memory) -> None:
    job_id = preview(memory)
    assert memory.client.post(f"/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    assert job_of(memory, job_id)["preview"] is None
    retried = memory.client.post(f"/jobs/{job_id}/retry")
    assert (retried.status_code, retried.json()["state"]) == (200, "queued")
    finish(memory)
    assert len(job_of(memory, job_id)["preview"]) == 3
    assert memory.client.post(f"/jobs/{job_id}/cancel").status_code == 409
