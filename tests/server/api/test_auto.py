"""`mode: auto` over HTTP: what answers, and what is told of the decision."""

from typing import Any

import pytest
from sqlalchemy import update

from loramem.tables import Adapter, AdapterState, Namespace
from server.decide import UNKNOWN
from tests.server.api.memory import BAKERY, QUESTION, Memory, events_of

UNRELATED = "Which comet did the Harlan probe photograph near Jupiter?"
FOLLOW_UP = "How old was he?"


def asked(last: str) -> dict[str, Any]:
    """A conversation about the lighthouse that ends with this question."""
    said = [("user", QUESTION), ("assistant", "Ansel Brandt."), ("user", last)]
    return {"question": None, "messages": [{"role": role, "content": text} for role, text in said]}


def test_a_question_about_what_is_stored_is_answered_from_the_weights(memory: Memory) -> None:
    memory.teach()
    memory.teach(BAKERY)
    answer = memory.ask(mode="auto")
    assert (answer["mode"], answer["refused"], len(answer["routed"])) == ("lora", False, 1)
    assert answer["choice"]["confidence"] == "confident"
    assert answer["choice"]["count"] == 1
    assert answer["choice"]["margin"] > 0
    assert "leads" in answer["choice"]["reason"]


def test_a_question_about_nothing_stored_is_refused_and_no_model_is_asked(memory: Memory) -> None:
    memory.teach()
    reply = memory.client.post("/query", json={"question": UNRELATED, "mode": "auto"}).json()
    assert (reply["mode"], reply["refused"], reply["answer"]) == ("base", True, UNKNOWN)
    assert reply["choice"]["confidence"] == "none"
    assert (reply["routed"], reply["context"], reply["merge"], reply["compose"]) == ([], [], None, None)
    assert reply["usage"]["total_tokens"] == 0
    assert reply["timings_ms"]["total"] >= reply["timings_ms"]["embed"] > 0
    assert memory.engine.prompts == []


def test_a_refusal_streams_as_an_answer_does(memory: Memory) -> None:
    memory.teach()
    text = memory.client.post("/query", json={"question": UNRELATED, "mode": "auto", "stream": True}).text
    found = events_of(text)
    assert [kind for kind, _ in found] == ["route", "token", "done"]
    assert found[0][1]["refused"] is True
    assert found[-1][1]["answer"] == UNKNOWN


def test_a_document_that_was_named_is_read_however_little_speaks_for_it(memory: Memory) -> None:
    document_id = memory.teach(metadata={"place": "Korrin"})
    for chosen in ({"document_ids": [document_id]}, {"metadata": {"place": "Korrin"}}):
        reply = memory.client.post("/query", json={"question": UNRELATED, "mode": "auto", **chosen}).json()
        assert (reply["mode"], reply["refused"], reply["choice"]["confidence"]) == ("hybrid", False, "weak")
        assert "were chosen" in reply["choice"]["reason"]


def test_what_is_read_whole_has_the_metadata_too(memory: Memory) -> None:
    """`icl` reads the documents named, of which one has other metadata."""
    first, second = memory.teach(metadata={"Größe": "L"}), memory.teach(BAKERY, metadata={"Größe": "S"})
    answer = memory.ask(mode="icl", document_ids=[first, second], metadata={"Größe": "S"})
    assert [span["document_id"] for span in answer["context"]] == [second]
    missing = memory.client.post("/query", json={"question": QUESTION, "mode": "rag", "metadata": {"Größe": "M"}})
    assert missing.status_code == 404


def test_text_without_an_adapter_yet_is_read(memory: Memory) -> None:
    memory.teach(BAKERY)
    document_id = memory.teach()
    with memory.gateway.database.write() as session:
        session.execute(update(Adapter).where(Adapter.document_id == document_id).values(state=AdapterState.RETIRED))
        session.execute(update(Namespace).values(generation=Namespace.generation + 1))
    answer = memory.ask(mode="auto")
    assert (answer["mode"], answer["choice"]["confidence"], answer["routed"]) == ("rag", "untrained", [])
    assert answer["context"][0]["document_id"] == document_id


def test_an_empty_namespace_is_not_ready_rather_than_ignorant(memory: Memory) -> None:
    memory.upload()
    reply = memory.client.post("/query", json={"question": QUESTION, "mode": "auto"})
    assert reply.status_code == 409
    assert reply.json()["job_id"]


def test_a_refusal_reaches_an_openai_client_as_a_message(memory: Memory) -> None:
    memory.teach()
    body = {"model": "default:auto", "messages": [{"role": "user", "content": UNRELATED}]}
    reply = memory.client.post("/v1/chat/completions", json=body).json()
    assert reply["choices"][0]["message"]["content"] == UNKNOWN
    assert reply["choices"][0]["finish_reason"] == "stop"


# what was asked before


def test_a_follow_up_is_routed_with_the_question_that_it_points_back_to(memory: Memory) -> None:
    memory.teach(BAKERY)
    document_id = memory.teach()
    assert memory.ask(question=FOLLOW_UP, mode="auto")["refused"]
    answer = memory.ask(**asked(FOLLOW_UP), mode="auto")
    assert not answer["refused"]
    assert answer["routed"][0]["document_id"] == document_id


def test_a_question_of_its_own_is_refused_whatever_was_asked_before(memory: Memory) -> None:
    memory.teach()
    assert not memory.ask(**asked(QUESTION), mode="auto")["refused"]
    answer = memory.ask(**asked(UNRELATED), mode="auto")
    assert (answer["refused"], answer["choice"]["confidence"]) == (True, "none")


# what is not read yet


@pytest.mark.parametrize(("pending", "said"), [(1, "1 more document is"), (2, "2 more documents are")])
def test_a_refusal_says_how_many_documents_are_still_to_be_read(memory: Memory, pending: int, said: str) -> None:
    memory.teach()
    memory.upload(BAKERY, namespace="elsewhere")
    for number in range(pending):
        memory.upload(f"Text number {number}.")
    answer = memory.ask(question=UNRELATED, mode="auto")
    assert answer["refused"]
    assert f"nothing read so far is about this, and {said} to be read" in answer["answer"]
