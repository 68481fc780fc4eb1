"""Routing with the real embedder over a real database: what is found, what may be used, and how it is weighted."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from loramem.chunk import chunk_text
from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.embed import Embedder, load_embedder
from loramem.errors import NotFound
from loramem.queue import JobQueue
from loramem.settings import Settings
from loramem.tables import Adapter, Document, Revision
from loramem.vectors import VectorIndex
from server.ask import Route, Scalar
from server.route import Router, weights_of
from tests.backends import database, database_url
from tests.rows import FINGERPRINT, add_adapters, add_document, delete_document, replace_revision
from trainer_worker.index import index_text

__all__ = ["database", "database_url"]

SETTINGS = Settings()
LIGHTHOUSE = """The lighthouse of Korrin stands on a reef of red basalt. Its lamp was mended by the keeper Ansel Brandt.
Ships see the lamp from nineteen miles away. The stair inside has two hundred and six steps of oak."""
BAKERY = """The bakery of Tamsin Oake opens at four in the morning. Its rye loaves rise in baskets of willow.
A loaf costs three crowns, and on Sundays the baker gives away the burnt ones."""
ORCHARD = """The orchard at Lower Fenn grows a blue pear. The pears are picked by goats that were trained by Odo Marsh.
Each autumn nine barrels of perry are pressed and buried until spring."""
DOCUMENTS = {"doc_light": LIGHTHOUSE, "doc_bread": BAKERY, "doc_pears": ORCHARD}
QUESTIONS = {
    "Who repaired the lamp of the lighthouse?": "doc_light",
    "How far can ships see the light?": "doc_light",
    "What does a loaf of bread cost?": "doc_bread",
    "When does the bakery open?": "doc_bread",
    "Which animals pick the pears?": "doc_pears",
    "How many barrels of perry are made?": "doc_pears",
}


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(SETTINGS, device="cpu")


@pytest.fixture
def index(database: Database, embedder: Embedder, tmp_path: Path) -> VectorIndex:
    return VectorIndex(database, dim=embedder.dim, embedder_name=embedder.name, snapshot_dir=tmp_path)


@pytest.fixture
def router(index: VectorIndex, embedder: Embedder) -> Router:
    return Router(index, embedder, FINGERPRINT)


Upload = Callable[..., None]


@pytest.fixture
def upload(database: Database, embedder: Embedder) -> Upload:
    """Index a text as the worker does, and give each chunk a live adapter."""
    queue = JobQueue(database, PollingDoorbell(0.05), SETTINGS)

    def run(
        document_id: str, text: str, *, live: bool = True, chunk_tokens: int = 768, namespace: str = "default"
    ) -> None:
        add_document(database, document_id, text, namespace)
        with database.write() as session:
            queue.enqueue(session, document_id, 1)
        claim = queue.claim("worker")
        assert claim is not None
        with database.read() as session:
            revision = session.get_one(Revision, (document_id, 1))
        spans = chunk_text(text, embedder.tokenizer_path, max_tokens=chunk_tokens, overlap_tokens=chunk_tokens // 4)
        index_text(database, claim, embedder, revision, spans, window_tokens=SETTINGS.window_tokens)
        if live:
            add_adapters(database, document_id)

    return run


@pytest.fixture
def three(upload: Upload) -> None:
    for document_id, text in DOCUMENTS.items():
        upload(document_id, text)


def ask(router: Router, question: str, *, document_ids: Sequence[str] | None = None, top_k: int = 1) -> Route:
    return router.route(question, namespace="default", document_ids=document_ids, top_k=top_k)


@pytest.mark.usefixtures("three")
def test_questions_find_their_document_and_the_sentence_that_answers(router: Router) -> None:
    for question, document_id in QUESTIONS.items():
        route = ask(router, question)
        assert [adapter.document_id for adapter in route.adapters] == [document_id], question
        assert next(iter(route.documents)) == document_id
        assert route.passages[0].document_id == document_id
    assert "three crowns" in ask(router, "What does a loaf of bread cost?").passages[0].text
    assert set(route.timings_ms) == {"embed", "search"}


@pytest.mark.usefixtures("three")
def test_passages_are_cut_out_of_the_text_and_best_comes_first(router: Router) -> None:
    route = ask(router, "Who repaired the lamp of the lighthouse?", top_k=3)
    assert len(route.passages) > 3
    for passage in route.passages:
        assert passage.text == DOCUMENTS[passage.document_id][passage.start : passage.end] != ""
        assert (passage.revision, passage.chunk) == (1, 0)
        assert passage.title == f"Title of {passage.document_id}"
    for scores in (
        [passage.score for passage in route.passages],
        [adapter.score for adapter in route.adapters],
        list(route.documents.values()),
    ):
        assert scores == sorted(scores, reverse=True)
    assert route.adapters[0].score == route.documents["doc_light"]


@pytest.mark.usefixtures("three")
def test_a_route_without_passages_is_the_same_route(router: Router) -> None:
    question = "Who repaired the lamp of the lighthouse?"
    without = router.route(question, namespace="default", document_ids=None, top_k=3, with_passages=False)
    route = ask(router, question, top_k=3)
    assert without == replace(route, passages=(), timings_ms=without.timings_ms)


@pytest.mark.usefixtures("three")
def test_up_to_top_k_adapters_with_weights_that_add_up(router: Router) -> None:
    for top_k in (1, 2, 3, 8):
        route = ask(router, "Which animals pick the pears?", top_k=top_k)
        assert len(route.adapters) == min(top_k, 3)
        assert sum(adapter.weight for adapter in route.adapters) == 1
        assert len({adapter.adapter_id for adapter in route.adapters}) == len(route.adapters)
        assert {adapter.rank for adapter in route.adapters} == {16}
        assert {adapter.sha256 for adapter in route.adapters} == {"weights of revision 1"}


def test_many_windows_of_one_chunk_do_not_hide_the_next_chunk(
    index: VectorIndex, embedder: Embedder, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.route.WINDOWS_PER_CHUNK", 2)
    router = Router(index, embedder, FINGERPRINT, passages=4)
    upload("doc_1", "The blue pear is picked by goats in autumn at Lower Fenn. " * 40)
    upload("doc_2", BAKERY)
    route = ask(router, "Who picks the blue pear?", top_k=2)
    assert [adapter.document_id for adapter in route.adapters] == ["doc_1", "doc_2"]


def test_the_chunk_that_answers_comes_first_and_overlaps_are_not_repeated(router: Router, upload: Upload) -> None:
    upload("doc_1", "\n\n".join(DOCUMENTS.values()), chunk_tokens=64)
    route = ask(router, "When does the bakery open?", top_k=8)
    assert len(route.adapters) > 2
    assert [adapter.chunk for adapter in route.adapters] != sorted(adapter.chunk for adapter in route.adapters)
    best = route.passages[0]
    assert "four in the morning" in best.text
    assert best.chunk == route.adapters[0].chunk
    for number, passage in enumerate(route.passages):
        for better in route.passages[:number]:
            shared = min(passage.end, better.end) - max(passage.start, better.start)
            assert shared <= (passage.end - passage.start) / 2


@pytest.mark.usefixtures("three")
def test_named_documents_alone_are_searched(router: Router) -> None:
    route = ask(router, "Which animals pick the pears?", document_ids=["doc_bread", "doc_light"], top_k=8)
    assert set(route.documents) == set(route.revisions) == {"doc_bread", "doc_light"}
    assert {adapter.document_id for adapter in route.adapters} == {"doc_bread", "doc_light"}
    assert {passage.document_id for passage in route.passages} == {"doc_bread", "doc_light"}


@pytest.mark.usefixtures("three")
def test_unknown_documents_and_those_of_others_are_not_found(router: Router, upload: Upload) -> None:
    upload("doc_secret", "The vault opens with the word heron.", namespace="others")
    for unknown in ("doc_nowhere", "doc_secret"):
        with pytest.raises(NotFound, match=unknown):
            ask(router, "What opens the vault?", document_ids=["doc_light", unknown])
    route = ask(router, "What opens the vault?", top_k=8)
    assert "doc_secret" not in route.documents
    other = router.route("What opens the vault?", namespace="others", document_ids=None, top_k=8)
    assert set(other.documents) == {"doc_secret"}


def test_nothing_indexed_is_an_empty_route(router: Router, database: Database) -> None:
    route = ask(router, "Is anybody there?", top_k=3)
    assert (route.adapters, route.passages, dict(route.documents)) == ((), (), {})
    add_document(database, "doc_waiting", "text")
    assert ask(router, "Is anybody there?", document_ids=["doc_waiting"]).passages == ()


def test_a_text_without_adapters_gives_passages(router: Router, upload: Upload) -> None:
    upload("doc_light", LIGHTHOUSE, live=False)
    upload("doc_bread", BAKERY)
    route = ask(router, "Who repaired the lamp of the lighthouse?", top_k=8)
    assert route.passages[0].document_id == "doc_light"
    assert [adapter.document_id for adapter in route.adapters] == ["doc_bread"]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("change", [{"state": "retired"}, {"fingerprint": "0" * 64}])
def test_only_live_adapters_of_this_base_model_are_used(
    router: Router, database: Database, change: dict[str, str]
) -> None:
    with database.write() as session:
        session.execute(update(Adapter).where(Adapter.document_id == "doc_light").values(**change))
    route = ask(router, "Who repaired the lamp of the lighthouse?", top_k=8)
    assert {adapter.document_id for adapter in route.adapters} == {"doc_bread", "doc_pears"}


@pytest.mark.usefixtures("three")
def test_a_deleted_document_is_unanswerable_at_once(router: Router, database: Database) -> None:
    assert ask(router, "What does a loaf of bread cost?").passages[0].document_id == "doc_bread"
    delete_document(database, "doc_bread")
    route = ask(router, "What does a loaf of bread cost?", top_k=8)
    assert "doc_bread" not in route.documents
    assert "doc_bread" not in {adapter.document_id for adapter in route.adapters}
    assert "doc_bread" not in {passage.document_id for passage in route.passages}
    with pytest.raises(NotFound):
        ask(router, "What does a loaf of bread cost?", document_ids=["doc_bread"])


def test_a_route_never_mixes_two_revisions(router: Router, database: Database, embedder: Embedder) -> None:
    """Each revision has as many windows and adapters as its number, and all of them carry it."""
    question = "Which revision is this?"
    vector = embedder.embed_query(question)
    add_document(database, "doc_1")
    replace_revision(database, "doc_1", "revision 2" * 2, np.tile(vector, (2, 1)), embedder.name)
    done, asked, mixed = threading.Event(), 0, []

    def keep_asking() -> None:
        nonlocal asked
        while not done.is_set():
            route = ask(router, question, top_k=8)
            number = len(route.passages)
            texts = {(passage.revision, passage.text) for passage in route.passages}
            weights = [adapter.sha256 for adapter in route.adapters]
            if texts != {(number, f"revision {number}")} or weights != [f"weights of revision {number}"] * number:
                mixed.append((texts, weights))
            asked += 1

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(3, 9):
        replace_revision(database, "doc_1", f"revision {number}" * number, np.tile(vector, (number, 1)), embedder.name)
        before = asked
        while asked < before + 4 and not mixed and all(thread.is_alive() for thread in threads):
            done.wait(0.005)
    done.set()
    for thread in threads:
        thread.join()
    assert mixed == []
    assert len(ask(router, question, top_k=8).adapters) == 8


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_weights_are_sixteenths_that_add_up_and_keep_the_order(scores: list[float]) -> None:
    scores = sorted(scores, reverse=True)
    weights = weights_of(scores)
    assert sum(weights) == 1
    assert all(weight >= 1 / 16 and (weight * 16).is_integer() for weight in weights)
    assert weights == sorted(weights, reverse=True)


def test_weights_follow_the_lead() -> None:
    assert weights_of([0.5]) == [1.0]
    assert weights_of([0.5, 0.5]) == [0.5, 0.5]
    assert weights_of([0.6, 0.5]) == [14 / 16, 2 / 16]
    assert weights_of([0.9, 0.1, 0.1]) == [14 / 16, 1 / 16, 1 / 16]


def test_metadata_chooses_the_documents(router: Router, upload: Upload, database: Database) -> None:
    for document_id, text in DOCUMENTS.items():
        upload(document_id, text)
    values: dict[str, dict[str, Any]] = {
        "doc_light": {"year": 1931, "region": "coast"},
        "doc_bread": {"year": 1931, "open": True, "count": 1},
        "doc_pears": {"year": "1931", "share": 0.5, "open": "true"},
    }
    with database.write() as session:
        for document_id, meta in values.items():
            session.execute(update(Document).where(Document.id == document_id).values(meta=meta))

    def found(**metadata: Scalar) -> set[str]:
        route = router.route(
            "Which animals pick the pears?", namespace="default", document_ids=None, metadata=metadata, top_k=8
        )
        assert {passage.document_id for passage in route.passages} == {one.document_id for one in route.adapters}
        return {one.document_id for one in route.adapters}

    assert found(region="coast") == {"doc_light"}
    assert found(year=1931) == {"doc_light", "doc_bread", "doc_pears"}  # compared as text
    assert found(year=1931, open=True) == {"doc_bread", "doc_pears"}
    assert found(open="true") == {"doc_bread", "doc_pears"}
    assert found(count=1) == found(count="1") == {"doc_bread"}
    assert found(share=0.5) == {"doc_pears"}
    for missing in (
        {"region": "inland"},
        {"open": False},
        {"open": 1},
        {"open": "1"},
        {"count": True},
        {"nothing": "x"},
        {"year": 193},
    ):
        with pytest.raises(NotFound, match="with metadata"):
            found(**missing)


@pytest.mark.parametrize(
    "value", [1700000000.123456, 0.30000000000000004, 1e-07, 1e16, -0.0, 12345678901234567890, "1e-07"]
)
def test_metadata_is_found_to_its_last_digit(router: Router, upload: Upload, database: Database, value: Scalar) -> None:
    upload("doc_light", DOCUMENTS["doc_light"])
    with database.write() as session:
        session.execute(update(Document).values(meta={"größe": value}))
    asked: dict[str, Any] = {"namespace": "default", "document_ids": None, "top_k": 1}
    found = router.route("Which animals?", metadata={"größe": value}, **asked)
    assert [one.document_id for one in found.adapters] == ["doc_light"]
    with pytest.raises(NotFound, match="with metadata"):
        router.route("Which animals?", metadata={"größe": 1700000000.123457}, **asked)


def test_metadata_and_names_both_have_to_fit(router: Router, upload: Upload, database: Database) -> None:
    for document_id, text in DOCUMENTS.items():
        upload(document_id, text)
    with database.write() as session:
        session.execute(update(Document).values(meta={"kind": "place"}))
    route = router.route(
        "Which animals pick the pears?",
        namespace="default",
        document_ids=["doc_bread"],
        metadata={"kind": "place"},
        top_k=8,
    )
    assert {one.document_id for one in route.adapters} == {"doc_bread"}
