"""/documents: what is taken in, found again, replaced, deleted."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import Any
from unicodedata import normalize

import pytest
from sqlalchemy import select

from loramem import sandbox
from loramem.tables import Revision
from tests.files import make_docx, make_epub, make_pdf
from tests.server.api.conftest import MakeMemory
from tests.server.api.memory import BAKERY, LIGHTHOUSE, QUESTION, Memory
from tests.server.learned import learn

PAGE = "<html><head><title>A page</title></head><body><h1>Lamps</h1><p>The lamp of Zorv burns.</p></body></html>"


def text_of(memory: Memory, document_id: str) -> str:
    with memory.gateway.database.read() as session:
        wanted = select(Revision.text).where(Revision.document_id == document_id).order_by(Revision.number.desc())
        return session.scalars(wanted).first() or ""


def test_a_text_is_accepted_with_its_job(memory: Memory) -> None:
    body = {
        "text": LIGHTHOUSE,
        "title": "Korrin",
        "external_id": "k-1",
        "namespace": "coast",
        "metadata": {"year": 1874, "tags": ["sea"]},
        "qa": [{"question": "Who mended the lamp?", "answer": "Ansel Brandt"}],
        "training": {"rank": 32},
    }
    reply = memory.client.post("/documents", json=body)
    assert reply.status_code == 202
    accepted = reply.json()
    document, job = accepted["document"], accepted["job"]
    assert accepted["created"] is True
    assert reply.headers["location"] == f"/jobs/{job['id']}"
    assert int(reply.headers["retry-after"]) > 0
    assert {key: document[key] for key in ("title", "external_id", "namespace", "metadata", "state", "revision")} == {
        "title": "Korrin", "external_id": "k-1", "namespace": "coast", "metadata": body["metadata"],
        "state": "pending", "revision": 1,
    }  # fmt: skip
    assert (job["document_id"], job["state"], job["attempts"]) == (document["id"], "queued", 0)
    with memory.gateway.database.read() as session:
        revision = session.get_one(Revision, (document["id"], 1))
    assert revision.qa == body["qa"]
    assert revision.training["rank"] == 32


def test_the_same_text_again_is_the_same_document(memory: Memory) -> None:
    first, again = memory.upload(), memory.upload()
    assert (first["created"], again["created"]) == (True, False)
    assert first["document"]["id"] == again["document"]["id"]
    assert first["job"]["id"] == again["job"]["id"]
    assert memory.upload(namespace="other")["document"]["id"] != first["document"]["id"]


def test_a_text_is_the_same_however_its_accents_are_encoded(memory: Memory) -> None:
    apart, composed = (
        memory.upload(
            normalize(form, "Björn mended it."),
            title=normalize(form, "Björn"),
            qa=[{"question": normalize(form, "Who is Björn?"), "answer": normalize(form, "André")}],
        )
        for form in ("NFD", "NFC")
    )
    document = apart["document"]
    assert (composed["created"], composed["document"]["id"]) == (False, document["id"])
    assert (document["title"], text_of(memory, document["id"])) == ("Björn", "Björn mended it.")


@pytest.mark.parametrize(
    ("file", "holds", "title"),
    [
        (("a.txt", LIGHTHOUSE.encode(), "text/plain"), "red basalt", None),
        (("a.md", b"# Korrin\n\nA reef of **red** basalt.", "text/markdown"), "basalt", "Korrin"),
        (("a.html", PAGE.encode(), "text/html"), "The lamp of Zorv burns.", "A page"),
        (("a.pdf", make_pdf(["The lamp of Zorv burns."], title="Lamps"), "application/pdf"), "Zorv burns", "Lamps"),
        (("a.docx", make_docx("Zorvian lamps"), ""), "Zorv burns for nine days", "Zorvian lamps"),
        (("a.epub", make_epub({"p.xhtml": PAGE}, title="A Book"), ""), "The lamp of Zorv burns.", "A Book"),
    ],
    ids=["txt", "md", "html", "pdf", "docx", "epub"],
)
def test_each_kind_of_file_is_read(memory: Memory, file: tuple[str, bytes, str], holds: str, title: str | None) -> None:
    reply = memory.client.post("/documents", files={"file": file})
    assert reply.status_code == 202, reply.text
    document = reply.json()["document"]
    assert holds in text_of(memory, document["id"])
    if title is not None:
        assert document["title"] == title


def test_a_forms_fields_are_those_of_the_json_body(memory: Memory) -> None:
    data = {"title": "Mine", "metadata": '{"a": 1}', "training": '{"rank": 8}', "namespace": "coast"}
    data["qa"] = '[{"question": "q?", "answer": "a"}]'
    reply = memory.client.post("/documents", files={"file": ("a.txt", b"Some text.", "text/plain")}, data=data)
    document: Any = reply.json()["document"]
    assert (document["title"], document["metadata"], document["namespace"]) == ("Mine", {"a": 1}, "coast")


def test_a_form_carries_as_many_questions_as_json_does(memory: Memory) -> None:
    pairs = [{"question": f"What is {number}?", "answer": "number " * 100} for number in range(2000)]
    data = {"qa": json.dumps(pairs)}
    assert len(data["qa"]) > 1 << 20
    reply = memory.client.post("/documents", files={"file": ("a.txt", b"Some text.", "text/plain")}, data=data)
    assert reply.status_code == 202, reply.text


def test_a_document_goes_from_pending_to_live(memory: Memory) -> None:
    document_id = memory.upload()["document"]["id"]

    def state() -> tuple[str, int | None]:
        document = memory.client.get(f"/documents/{document_id}").json()
        return document["state"], document["serving_revision"]

    assert state() == ("pending", None)
    learn(memory.gateway, memory.embedder)
    assert state() == ("live", 1)


def test_paging_gives_each_document_once_in_the_order_of_arrival(memory: Memory) -> None:
    made = [memory.upload(f"Text number {n}.", namespace="abc"[n % 3])["document"]["id"] for n in range(7)]
    seen: list[str] = []
    after: str | None = ""
    pages = 0
    while after is not None:
        query = {"limit": 3} | ({"after": after} if after else {})
        page = memory.client.get("/documents", params=query).json()
        seen += [document["id"] for document in page["data"]]
        after, pages = page["next_cursor"], pages + 1
        assert page["has_more"] is (after is not None)
    assert (seen, pages) == (made, 3)
    only = memory.client.get("/documents", params={"namespace": "b"}).json()
    assert [document["id"] for document in only["data"]] == made[1::3]
    assert all(document["job_id"] for document in only["data"])
    assert not any(document["mending_job_id"] for document in only["data"])


def test_a_mending_is_named_and_is_not_the_documents_job(memory: Memory) -> None:
    accepted = memory.upload("The lamp of Zorv burns.")
    document_id, build = accepted["document"]["id"], accepted["job"]["id"]
    queue = memory.gateway.queue
    with queue.database.write() as session:
        mending = queue.enqueue_mending(session, document_id, 1).id
    shown = memory.client.get(f"/documents/{document_id}").json()
    assert (shown["job_id"], shown["mending_job_id"]) == (build, mending)
    assert memory.client.get(f"/jobs/{mending}").json()["kind"] == "mend"
    assert memory.upload("The lamp of Zorv burns.")["job"]["id"] == build
    memory.client.delete(f"/documents/{document_id}")
    assert memory.client.get(f"/jobs/{mending}").json()["state"] == "cancelled"


def test_the_newest_job_is_named_though_the_clock_was_set_back(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the database's clock and the revision; an id has the time of the machine that made it."""
    document_id, now = memory.upload()["document"]["id"], time.time_ns()

    def named(hours: int) -> tuple[str, str]:
        """The job of an upload by a clock that is late, and the one that the document names then."""
        monkeypatch.setattr("time.time_ns", lambda: now - hours * 3600 * 10**9)
        made: str = memory.client.put(f"/documents/{document_id}", json={"text": BAKERY}).json()["job"]["id"]
        return made, memory.client.get(f"/documents/{document_id}").json()["job_id"]

    made, shown = named(hours=1)
    assert shown == made, "of a later revision"
    memory.client.post(f"/jobs/{made}/cancel")
    again, shown = named(hours=2)
    assert again < made
    assert shown == again, "of the same revision"


def test_a_full_last_page_promises_no_more(memory: Memory) -> None:
    for n in range(2):
        memory.upload(f"Text number {n}.")
    page = memory.client.get("/documents", params={"limit": 2}).json()
    assert (len(page["data"]), page["has_more"], page["next_cursor"]) == (2, False, None)


def test_a_replaced_document_answers_with_the_old_text_until_the_new_is_live(memory: Memory) -> None:
    document_id = memory.teach(LIGHTHOUSE)
    reply = memory.client.put(f"/documents/{document_id}", json={"text": BAKERY})
    assert reply.status_code == 202
    assert reply.json()["document"]["revision"] == 2
    assert reply.json()["document"]["serving_revision"] == 1
    memory.ask(mode="icl")
    assert "red basalt" in memory.engine.prompt_text()
    learn(memory.gateway, memory.embedder)
    memory.ask(mode="icl")
    assert "rye loaves" in memory.engine.prompt_text()
    assert "red basalt" not in memory.engine.prompt_text()


def test_replacing_by_the_same_text_is_no_new_revision(memory: Memory) -> None:
    document_id = memory.teach()
    reply = memory.client.put(f"/documents/{document_id}", json={"text": LIGHTHOUSE, "metadata": {"seen": True}})
    assert reply.json()["created"] is False
    document = memory.client.get(f"/documents/{document_id}").json()
    assert (document["revision"], document["state"], document["metadata"]) == (1, "live", {"seen": True})


def test_a_replacement_keeps_what_it_does_not_name(memory: Memory) -> None:
    document_id = memory.upload(LIGHTHOUSE, namespace="coast", metadata={"year": 1874})["document"]["id"]
    document = memory.client.put(f"/documents/{document_id}", json={"text": BAKERY}).json()["document"]
    assert (document["revision"], document["metadata"], document["namespace"]) == (2, {"year": 1874}, "coast")
    cleared = memory.client.put(f"/documents/{document_id}", json={"text": BAKERY, "metadata": {}}).json()["document"]
    assert (cleared["revision"], cleared["metadata"]) == (2, {})


def test_no_namespace_has_the_name_of_the_base_model(memory: Memory) -> None:
    name, before = memory.gateway.base.name, memory.rows()
    reply = memory.client.post("/documents", json={"text": LIGHTHOUSE, "namespace": name})
    assert (reply.status_code, reply.json()["key"], reply.json()["value"]) == (422, "namespace", name)
    assert memory.rows() == before
    assert memory.client.post("/documents?preview=true", json={"text": LIGHTHOUSE, "namespace": name}).is_success


def test_a_document_stays_in_its_namespace(memory: Memory) -> None:
    document_id = memory.upload(LIGHTHOUSE, namespace="coast")["document"]["id"]
    before = memory.rows()
    reply = memory.client.put(f"/documents/{document_id}", json={"text": BAKERY, "namespace": "inland"})
    problem = reply.json()
    assert (reply.status_code, problem["key"], problem["value"], problem["allowed"]) == (
        422, "namespace", "inland", "coast",
    )  # fmt: skip
    assert memory.rows() == before
    assert memory.client.put(f"/documents/{document_id}", json={"text": BAKERY, "namespace": "coast"}).is_success


def test_an_external_id_that_is_anothers_is_a_conflict(memory: Memory) -> None:
    memory.upload(LIGHTHOUSE, external_id="mine")
    other = memory.upload(BAKERY)["document"]["id"]
    before = memory.rows()
    reply = memory.client.put(f"/documents/{other}", json={"text": BAKERY, "external_id": "mine"})
    assert reply.status_code == 409
    assert (reply.json()["key"], reply.json()["value"]) == ("external_id", "mine")
    assert memory.rows() == before


def test_a_deleted_document_is_unanswerable_at_once(memory: Memory) -> None:
    document_id = memory.teach()
    memory.ask(mode="lora")
    assert memory.client.delete(f"/documents/{document_id}").status_code == 204
    assert memory.client.get(f"/documents/{document_id}").status_code == 404
    assert memory.client.delete(f"/documents/{document_id}").status_code == 404
    for mode in ("lora", "rag", "icl", "hybrid"):
        assert memory.client.post("/query", json={"question": QUESTION, "mode": mode}).status_code == 409
    adapters = memory.client.get("/adapters").json()["data"]
    assert [adapter["state"] for adapter in adapters] == ["retired"]


def test_metadata_may_be_large_and_spell_what_it_must_not_hold(memory: Memory) -> None:
    metadata = {"note": "\\u0000", **{f"key{n}": n for n in range(300)}}
    assert memory.upload(metadata=metadata)["document"]["metadata"] == metadata


def test_a_json_body_at_the_limit_of_characters_is_taken(make_memory: MakeMemory) -> None:
    memory = make_memory(max_text_chars=1000)
    memory.upload("x" * 1000)


def test_uploads_beyond_those_that_may_wait_are_refused_and_leave_nothing(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, run = threading.Event(), sandbox._run

    def held_up(*arguments: Any) -> Any:
        assert go.wait(30)
        return run(*arguments)

    def post(number: int) -> Any:
        return memory.client.post("/documents", files={"file": ("a.pdf", make_pdf([f"Lamp {number} burns."]), "")})

    monkeypatch.setattr(sandbox, "_run", held_up)
    monkeypatch.setattr(sandbox, "_PARSERS", sandbox.Parsers(1))
    before = memory.rows()
    with ThreadPoolExecutor(8) as users:
        replies = as_completed([users.submit(post, number) for number in range(8)], timeout=60)
        refused = [reply.result() for reply in islice(replies, 3)]
        assert memory.rows() == before
        go.set()
        taken = [reply.result() for reply in replies]
    assert [reply.status_code for reply in taken] == [202] * 5
    assert [reply.status_code for reply in refused] == [503] * 3
    assert all(reply.json()["code"] == "unavailable" and reply.headers["retry-after"] for reply in refused)
    assert "4 uploads wait" in refused[0].json()["detail"]
    assert memory.rows()["document"] == 5
