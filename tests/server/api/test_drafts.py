"""What an answer may repeat is sent to the engine with the question: of the adapters that answer, and of no other."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, update

from loramem.tables import Adapter, Question
from server.drafts import Drafts
from server.engine.speculate import BETWEEN
from tests.server.api.memory import BAKERY, LIGHTHOUSE, Memory

ORCHARD = "The orchard of Fenwold was planted by Jory Pell in 1921. It grows medlars and quinces."


def texts_of(drafts: bytes, tokenizer: Any) -> list[str]:
    texts: list[list[int]] = [[]]
    for token in np.frombuffer(drafts, dtype=np.int32).tolist():
        if token == BETWEEN:
            texts.append([])
        else:
            texts[-1].append(token)
    assert texts.pop() == []
    return [tokenizer.decode(text) for text in texts]


def adapter_of(memory: Memory, text: str, *answers: str) -> str:
    document_id = memory.teach(text)
    (routed,) = memory.ask(mode="lora", document_ids=[document_id])["routed"]
    adapter_id: str = routed["adapter_id"]
    with memory.gateway.database.write() as session:
        for answer in answers:
            session.add(
                Question(
                    adapter_id=adapter_id, question="?", answer=answer, held_out=False, embedder="none", embedding=b""
                )
            )
    return adapter_id


def fresh(memory: Memory) -> Drafts:
    return Drafts(memory.gateway.database, memory.engine)


@contextmanager
def statements_of(memory: Memory) -> Iterator[list[str]]:
    """Those of this thread meanwhile: the gateway's housekeeping reads the same database."""
    here, seen = threading.get_ident(), list[str]()

    def note(*told: Any) -> None:
        if threading.get_ident() == here:
            seen.append(told[2])

    engine = memory.gateway.database.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_answers_with_their_end_and_then_the_text(memory: Memory, tokenizer: Any) -> None:
    adapter_id = adapter_of(memory, LIGHTHOUSE, "Ada Korrin.", "In 1887.", "Ada Korrin.")
    found = fresh(memory).of([adapter_id])
    assert list(found) == [adapter_id]
    *answers, text = texts_of(found[adapter_id], tokenizer)
    assert sorted(answers) == [f"Ada Korrin.{tokenizer.eos_token}", f"In 1887.{tokenizer.eos_token}"]
    assert text == LIGHTHOUSE.strip()


def test_they_are_read_once(memory: Memory) -> None:
    adapter_id = adapter_of(memory, LIGHTHOUSE)
    drafts = fresh(memory)
    with statements_of(memory) as statements:
        first = drafts.of([adapter_id])
        read = len(statements)
        assert read
        assert drafts.of([adapter_id]) == first
        assert len(statements) == read


def test_those_of_the_newest_are_read_ahead(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.drafts.AHEAD", 2)
    older, *newest = (adapter_of(memory, text) for text in (LIGHTHOUSE, BAKERY, ORCHARD))
    drafts = fresh(memory)
    drafts.read_ahead()
    with statements_of(memory) as statements:
        assert all(drafts.of(newest).values())
        assert not statements
        assert drafts.of([older])[older]
        assert statements


@pytest.mark.parametrize("what", ["up", "speculates"])
def test_nothing_is_read_ahead_for_an_engine_that_has_no_use_for_it(memory: Memory, what: str) -> None:
    adapter_of(memory, LIGHTHOUSE)
    setattr(memory.engine, what, False)
    with statements_of(memory) as statements:
        fresh(memory).read_ahead()
    assert not statements


def test_what_is_retired_is_not_read_ahead(memory: Memory) -> None:
    adapter_id = adapter_of(memory, LIGHTHOUSE)
    with memory.gateway.database.write() as session:
        session.execute(update(Adapter).where(Adapter.id == adapter_id).values(state="retired"))
    drafts = fresh(memory)
    drafts.read_ahead()
    with statements_of(memory) as statements:
        drafts.of([adapter_id])
    assert statements


def test_an_adapter_that_is_gone_has_none(memory: Memory) -> None:
    assert fresh(memory).of(["ada_gone"]) == {"ada_gone": b""}


@pytest.mark.parametrize("mode", ["base", "rag", "icl"])
def test_what_no_adapter_answers_is_sent_none(memory: Memory, mode: str) -> None:
    memory.teach(LIGHTHOUSE)
    memory.ask(mode=mode)
    assert memory.engine.drafts[-1] == b""


def test_a_merge_is_sent_those_of_all_its_adapters(memory: Memory, tokenizer: Any) -> None:
    for text in (LIGHTHOUSE, BAKERY):
        memory.teach(text)
    answer = memory.ask(mode="lora", top_k=2, compose="merge")
    of_each = fresh(memory).of(one["adapter_id"] for one in answer["routed"])
    assert len(of_each) == 2
    assert memory.engine.drafts[-1] == b"".join(of_each.values())
    assert set(texts_of(memory.engine.drafts[-1], tokenizer)) == {LIGHTHOUSE.strip(), BAKERY.strip()}


def test_a_candidate_is_sent_its_own(memory: Memory) -> None:
    for text in (LIGHTHOUSE, BAKERY):
        memory.teach(text)
    before = len(memory.engine.drafts)
    answer = memory.ask(mode="lora", top_k=2, compose="select")
    of_each = fresh(memory).of(one["adapter_id"] for one in answer["routed"])
    began = [one["adapter_id"] for one in answer["routed"] if one["logprob"] is not None]
    assert memory.engine.drafts[before:] == [of_each[adapter_id] for adapter_id in began]


def test_an_engine_that_does_not_speculate_is_sent_none(memory: Memory) -> None:
    memory.teach(LIGHTHOUSE)
    memory.engine.speculates = False
    memory.ask(mode="lora")
    assert memory.engine.drafts[-1] == b""
