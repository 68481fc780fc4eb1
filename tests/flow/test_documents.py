"""A document's life over HTTP: the same again, a new revision, cancelled, deleted."""

from typing import Any

import pytest

from tests.flow.conftest import FESTIVAL, HARBOUR, QUICK
from tests.flow.live import Live

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_the_same_content_again_is_the_same_document(live: Live) -> None:
    first = live.client.post("/documents", json={"text": HARBOUR, "namespace": "twice", "training": QUICK})
    again = live.client.post("/documents", json={"text": HARBOUR, "namespace": "twice", "training": QUICK})
    assert again.status_code == 202
    assert (first.json()["created"], again.json()["created"]) == (True, False)
    assert first.json()["document"]["id"] == again.json()["document"]["id"]
    assert first.headers["location"] == again.headers["location"] == f"/jobs/{first.json()['job']['id']}"
    live.client.post(f"{first.headers['location']}/cancel")


def test_the_text_answers_before_the_adapters_do(live: Live) -> None:
    document_id, job_id = live.upload(HARBOUR, namespace="early", training={**QUICK, "max_seconds": 3600})
    live.wait_phase(job_id, "train")
    early = {"namespace": "early", "document_ids": [document_id]}
    assert "Wrenfield" in live.ask("Who dug the harbour?", mode="icl", **early)["answer"]
    assert live.ask("Who dug the harbour?", mode="rag", **early)["answer"]
    refused = live.client.post("/query", json={"question": "Who dug the harbour?", "mode": "lora", **early})
    assert refused.status_code == 409
    assert refused.json()["job_id"] == job_id
    live.client.post(f"/jobs/{job_id}/cancel")
    live.wait_job(job_id, "cancelled")


def test_the_old_revision_serves_until_the_new_one_is_live(live: Live) -> None:
    document_id = live.learn(HARBOUR, namespace="revised", title="Harbour", training=QUICK)
    new_text = HARBOUR.replace("Tobias Wrenfield", "Agnes Bellweather")
    asked: dict[str, Any] = {"question": "Who dug the harbour of Quillmere?", "namespace": "revised"}
    old = live.ask(mode="hybrid", max_tokens=4, **asked)["routed"][0]["adapter_id"]
    longer = {**QUICK, "max_seconds": 12}
    reply = live.client.put(
        f"/documents/{document_id}", json={"text": new_text, "namespace": "revised", "training": longer}
    )
    assert reply.status_code == 202, reply.text
    job_id = reply.json()["job"]["id"]
    live.wait_phase(job_id, "train", "examine")
    assert "Wrenfield" in live.ask(mode="icl", max_tokens=32, **asked)["answer"]
    live.wait_job(job_id)
    assert "Bellweather" in live.ask(mode="icl", max_tokens=32, **asked)["answer"]
    new = live.ask(mode="hybrid", max_tokens=4, **asked)["routed"][0]["adapter_id"]
    assert new != old
    states = {item["id"]: item["state"] for item in live.client.get("/adapters?namespace=revised").json()["data"]}
    assert states == {old: "retired", new: "live"}


def test_a_deleted_document_is_unanswerable_at_once(live: Live) -> None:
    document_id = live.learn(FESTIVAL, namespace="gone", training=QUICK)
    assert live.ask("Who is the patron?", mode="lora", namespace="gone", max_tokens=4)["routed"]
    assert live.client.delete(f"/documents/{document_id}").status_code == 204
    for mode in ("lora", "rag", "icl", "hybrid"):
        reply = live.client.post("/query", json={"question": "Who is the patron?", "mode": mode, "namespace": "gone"})
        assert reply.status_code == 409, (mode, reply.text)
    assert live.client.get(f"/documents/{document_id}").status_code == 404
    named = {"question": "Who?", "mode": "rag", "namespace": "gone", "document_ids": [document_id]}
    assert live.client.post("/query", json=named).status_code == 404


def test_events_tell_the_whole_story_of_a_job(live: Live) -> None:
    _, job_id = live.upload(FESTIVAL, namespace="story", training=QUICK)
    with live.client.stream("GET", f"/jobs/{job_id}/events", timeout=300) as reply:
        story = "".join(reply.iter_text())
    assert "event: state" in story
    phases = [phase for phase in ("chunk", "index", "train", "examine", "publish") if f'"phase": "{phase}"' in story]
    assert phases == ["chunk", "index", "train", "examine", "publish"]
    assert '"state": "succeeded"' in story.rsplit("event: state", 1)[1]


def test_a_preview_is_written_by_the_worker_and_leaves_no_document(live: Live) -> None:
    body = {"text": HARBOUR, "namespace": "previewed", "training": {"formats": ["qa"]}}
    reply = live.client.post("/documents", params={"preview": True}, json=body)
    assert reply.status_code == 202
    job = live.wait_job(reply.json()["job"]["id"])
    assert any("Wrenfield" in example["answer"] for example in job["preview"])
    assert sum(job["preview_counts"].values()) == len(job["preview"])
    assert live.client.get("/documents?namespace=previewed").json()["data"] == []
