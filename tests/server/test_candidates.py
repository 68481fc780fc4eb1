"""What may answer is found by any of the searches and scored by all, over a real database with vectors made to order.

Vectors are given by their cosine with the question's, so that each search finds what a test lets it find.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select, update

from loramem.database import Database
from loramem.tables import Adapter, AdapterState, Chunk, Question
from loramem.vectors import VectorIndex
from server.ask import RoutedAdapter
from server.candidates import Candidate, Evidence, Search
from tests.backends import database, database_url
from tests.rows import EXAM, FINGERPRINT, add_adapters, add_document, delete_document, serve

__all__ = ["database", "database_url"]

DIM = 8
EMBEDDER = "test"
QUESTION = "Where did the last quagga graze?"
WORDY = "The last quagga grazed there. Where did it graze?"
CUT = "Plains: quagga"
"""Windows are ten characters long, so that none of them holds the word."""
EMPTY = "Nothing of the kind stands in here."


@dataclass(frozen=True)
class Learnt:
    """A question of an adapter; `cosine` is with the question that is asked."""

    question: str = EMPTY
    cosine: float = 0.0
    held_out: bool = False
    embedder: str = EMBEDDER


Learn = Callable[..., str]
Find = Callable[..., list[Candidate]]


def at(cosine: float) -> NDArray[np.float32]:
    """A unit vector, shape (DIM,)."""
    vector = np.zeros(DIM, dtype=np.float32)
    vector[:2] = cosine, np.sqrt(1 - cosine**2)
    return vector


@pytest.fixture
def index(database: Database, tmp_path: Path) -> VectorIndex:
    return VectorIndex(database, dim=DIM, embedder_name=EMBEDDER, snapshot_dir=tmp_path)


@pytest.fixture
def learn(database: Database) -> Learn:
    """Serve a text as one chunk, with an adapter unless it is not `live`; returns the chunk's id."""

    def run(
        document_id: str,
        text: str = EMPTY,
        *,
        windows: Sequence[float] = (0.0,),
        asked: Sequence[Learnt] = (),
        live: bool = True,
        embedder: str = EMBEDDER,
        **adapter: Any,
    ) -> str:
        count = max(len(windows), -(-len(text) // 10))  # a window is ten characters long
        vectors = np.stack([at(cosine) for cosine in [*windows, *[-1.0] * (count - len(windows))]])
        add_document(database, document_id, text)
        serve(database, document_id, vectors, embedder=embedder, per_chunk=count)
        if live:
            add_adapters(database, document_id)
        with database.write() as session:
            of_document = Adapter.document_id == document_id
            session.execute(update(Adapter).where(of_document).values(rank=8, **adapter))
            for adapter_id in session.scalars(select(Adapter.id).where(of_document)):
                session.add_all([_row(adapter_id, one) for one in asked])
            return session.scalars(select(Chunk.id).where(Chunk.document_id == document_id)).one()

    return run


def _row(adapter_id: str, one: Learnt) -> Question:
    return Question(
        adapter_id=adapter_id,
        question=one.question,
        answer="",
        held_out=one.held_out,
        embedder=one.embedder,
        embedding=at(one.cosine).astype("<f4").tobytes(),
    )


@pytest.fixture
def find(index: VectorIndex) -> Find:
    """Candidates for `question`, led to by its `windows` nearest windows and by the other searches."""

    def run(
        question: str = QUESTION,
        *,
        windows: int = 1,
        most: int = 1,
        document_ids: Collection[str] | None = None,
        by: VectorIndex = index,
    ) -> list[Candidate]:
        with by.view("default") as view:
            search = Search(view, "default", question, at(1.0), EMBEDDER, FINGERPRINT, document_ids)
            return search.candidates(view.search(search.vector, windows, document_ids), most)

    return run


def documents(found: Sequence[Candidate]) -> list[str]:
    return [one.document_id for one in found]


def evidence(found: Sequence[Candidate]) -> dict[str, Evidence]:
    return {one.document_id: one.evidence for one in found}


# which


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("words", {"text": CUT}),
        ("question", {"asked": [Learnt(cosine=0.8)]}),
        ("asked", {"asked": [Learnt(WORDY, embedder="another")]}),
        ("window", {"windows": [0.95]}),
    ],
)
def test_one_search_alone_leads_to_a_chunk(learn: Learn, find: Find, kind: str, how: dict[str, Any]) -> None:
    """`doc_near` has the nearest window but for the last case, `doc_far` is what no search finds."""
    chunk_id = learn("doc_wanted", **how)
    learn("doc_near", windows=[0.9])
    learn("doc_far", windows=[0.8])
    found = find()
    assert set(documents(found)) == ({"doc_wanted"} if kind == "window" else {"doc_wanted", "doc_near"})
    wanted = next(one for one in found if one.document_id == "doc_wanted")
    assert (wanted.chunk_id, wanted.revision) == (chunk_id, 1)
    others = {name: value for name, value in vars(wanted.evidence).items() if name != kind}
    assert getattr(wanted.evidence, kind) > 0.1
    assert others == pytest.approx(dict.fromkeys(others, 0.0), abs=1e-6)


def test_words_that_stand_together_lead_to_a_chunk_that_is_long(
    learn: Learn, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the words of chunks a shorter one comes first, by those of windows the one that does not cut them."""
    monkeypatch.setattr("server.candidates.FOUND", 1)
    learn("doc_long", f"The quagga {EMPTY}" + 9 * EMPTY)
    learn("doc_short", CUT)
    learn("doc_near", windows=[0.9])
    found = evidence(find())
    assert set(found) == {"doc_long", "doc_short", "doc_near"}
    assert 0 < found["doc_long"].words < found["doc_short"].words
    assert found["doc_long"].together > found["doc_short"].together == 0


def test_nothing_stored_gives_no_candidates(find: Find) -> None:
    assert find() == []


def test_a_deleted_document_is_no_candidate(database: Database, learn: Learn, find: Find) -> None:
    for name in ("doc_1", "doc_2"):
        learn(name, WORDY, windows=[0.5], asked=[Learnt(WORDY, 0.5)])
    assert sorted(documents(find())) == ["doc_1", "doc_2"]
    delete_document(database, "doc_1")
    assert documents(find()) == ["doc_2"]


# scores


@pytest.mark.parametrize(
    ("evidence", "score"),
    [
        (Evidence(), 0.0),
        (Evidence(window=0.6), 0.2),
        (Evidence(window=0.3, question=0.6), 0.2),
        (Evidence(words=0.6), 0.2),
        (Evidence(together=0.6), 0.2),
        (Evidence(asked=0.6), 0.4),
        (Evidence(words=0.9, together=0.3, asked=0.6), 0.5),
        (Evidence(words=0.3, together=0.9, asked=0.6), 0.5),
        (Evidence(window=-0.3, question=-0.6), -0.1),
        (Evidence(1.0, 1.0, 1.0, 1.0, 1.0), 1.0),
    ],
)
def test_a_third_each_for_meaning_words_and_words_together(evidence: Evidence, score: float) -> None:
    assert evidence.score == pytest.approx(score)


def test_what_one_search_found_is_scored_by_all(
    index: VectorIndex, learn: Learn, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every search may lead to one chunk only, and each leads to another."""
    monkeypatch.setattr("server.candidates.FOUND", 1)
    cosines = {"doc_1": [0.9, 0.3], "doc_2": [0.7, 0.8], "doc_3": [0.2, 0.1], "doc_4": [-0.3, -0.2]}
    texts = {"doc_1": "A quagga. " + EMPTY, "doc_2": "A graze. " + EMPTY, "doc_3": WORDY, "doc_4": "Last. " * 9}
    asked = {
        "doc_1": [Learnt("Where did it graze?", 0.5), Learnt("A quagga.", 0.4)],
        "doc_2": [Learnt("The last ones?", 0.95), Learnt(cosine=0.2), Learnt(cosine=-0.4), Learnt(cosine=0.6)],
        "doc_3": [Learnt("Quagga?", 0.1)],
        "doc_4": [Learnt(QUESTION, 0.3), Learnt("The last quagga?", 0.1), Learnt("graze", 0.1), Learnt("last", 0.1)],
    }
    for name, text in texts.items():
        learn(name, text, windows=cosines[name], asked=asked[name])
    found = find()
    with index.view("default") as view:
        words = dict(view.match(QUESTION, 99))
        together = view.match_windows(QUESTION, 999)
        shares = view.match_questions(QUESTION, 99)
    assert sorted(documents(found)) == sorted(texts)
    for one in found:
        assert one.adapter is not None
        best = sorted((learnt.cosine for learnt in asked[one.document_id]), reverse=True)[:3]
        matched = [share for adapter_id, share in shares if adapter_id == one.adapter.adapter_id][:3]
        wanted = {
            "window": max(cosines[one.document_id]),
            "question": fmean(best),
            "words": words[one.chunk_id],
            "together": max(share for chunk_id, share in together if chunk_id == one.chunk_id),
            "asked": fmean(matched),
        }
        assert vars(one.evidence) == pytest.approx(wanted, abs=1e-6)
        assert one.score == one.adapter.score == one.evidence.score
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_one_near_question_is_less_than_three(learn: Learn, find: Find) -> None:
    learn("doc_chance", asked=[Learnt(cosine=cosine) for cosine in (0.9, 0.1, 0.1)])
    learn("doc_sure", asked=[Learnt(cosine=cosine) for cosine in (0.6, 0.6, 0.6, -0.9)])
    found = evidence(find())
    assert found["doc_chance"].question == pytest.approx(1.1 / 3)
    assert found["doc_sure"].question == pytest.approx(0.6)


def test_three_questions_count_where_another_adapter_has_many_that_match(
    index: VectorIndex, learn: Learn, find: Find
) -> None:
    """Its many leave this one a place for its best alone, which says more than the three together."""
    learn("doc_many", asked=[Learnt("The last quagga grazed there.")] * 70)
    learn("doc_three", asked=[Learnt(WORDY), Learnt("last"), Learnt("graze")])
    with index.view("default") as view:
        shares = [share for _, share in view.match_questions(QUESTION, 999)]
    of_three = fmean(share for share in shares if shares.count(share) == 1)
    assert evidence(find())["doc_three"].asked == pytest.approx(of_three)


def test_windows_of_another_embedder_say_nothing(learn: Learn, find: Find) -> None:
    learn("doc_other", WORDY, windows=[0.9], embedder="another")
    learn("doc_ours", WORDY, windows=[0.5])
    found = evidence(find())
    assert found["doc_other"].window == 0.0
    assert found["doc_ours"].window == pytest.approx(0.5)
    assert found["doc_other"].words == pytest.approx(found["doc_ours"].words)


# of which adapters


def test_named_documents_alone_are_looked_at(learn: Learn, find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    """A better chunk elsewhere takes none of the few places that a search has."""
    monkeypatch.setattr("server.candidates.FOUND", 1)
    learn("doc_best", QUESTION, windows=[1.0], asked=[Learnt(QUESTION, 1.0)])
    learn("doc_words", WORDY)
    learn("doc_asked", asked=[Learnt(WORDY, embedder="another")])
    learn("doc_question", asked=[Learnt(cosine=0.9)])
    learn("doc_window", windows=[0.9])
    named = ["doc_words", "doc_asked", "doc_question", "doc_window"]
    assert sorted(documents(find(document_ids=named))) == sorted(named)
    assert documents(find(document_ids=["doc_words"])) == ["doc_words"]
    assert find(document_ids=["doc_nowhere"]) == find(document_ids=[]) == []


@pytest.mark.parametrize("change", [{"fingerprint": "0" * 64}, {"state": AdapterState.RETIRED}])
def test_adapters_that_cannot_be_used_leave_their_chunk_and_nothing_of_what_they_learnt(
    learn: Learn, find: Find, change: dict[str, Any]
) -> None:
    asked = [Learnt(QUESTION, 1.0)] * 3
    learn("doc_useless", WORDY, windows=[0.5], asked=asked, **change)
    learn("doc_untold", asked=asked, **change)
    learn("doc_ours", asked=[Learnt(cosine=0.1)])
    found = {one.document_id: one for one in find()}
    assert set(found) == {"doc_useless", "doc_ours"}
    useless = found["doc_useless"]
    assert useless.adapter is None
    assert (useless.evidence.question, useless.evidence.asked) == (0.0, 0.0)
    assert useless.evidence.window == pytest.approx(0.5)
    assert useless.evidence.words > 0.1


def test_questions_held_out_do_not_count(learn: Learn, find: Find) -> None:
    learn("doc_1", WORDY, asked=[Learnt(QUESTION, 1.0, held_out=True)] * 3)
    learn("doc_2", asked=[Learnt(QUESTION, 1.0, held_out=True)] * 3)
    learn("doc_3", asked=[Learnt(cosine=0.25), Learnt(QUESTION, 1.0, held_out=True)])
    learn("doc_4", windows=[0.9])
    found = evidence(find())
    assert set(found) == {"doc_1", "doc_3", "doc_4"}
    assert (found["doc_1"].question, found["doc_1"].asked) == (0.0, 0.0)
    assert found["doc_3"].question == pytest.approx(0.25)
    assert found["doc_3"].asked == 0.0


def test_a_chunk_without_an_adapter_is_a_candidate(learn: Learn, find: Find) -> None:
    learn("doc_1", WORDY, windows=[0.6], live=False)
    (found,) = find()
    assert found.adapter is None
    assert found.score == found.evidence.score > 0.2


def test_an_adapter_comes_with_what_the_router_hands_on(learn: Learn, find: Find) -> None:
    learn("doc_weak", WORDY, windows=[0.6], exam=EXAM.model_dump() | {"weak": True})
    learn("doc_sound", windows=[0.5])
    weak, sound = find(windows=2)
    assert weak.adapter is not None
    assert weak.adapter == RoutedAdapter(
        adapter_id=weak.adapter.adapter_id,
        sha256="weights of revision 1",
        rank=8,
        document_id="doc_weak",
        title="Title of doc_weak",
        chunk=0,
        score=weak.score,
        weight=0.0,
        weak=True,
    )
    assert sound.adapter is not None
    assert not sound.adapter.weak


# order


def test_equals_come_in_one_order_whoever_looks(
    database: Database, learn: Learn, find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the chunks' ids, as rows come in any order from a database."""
    chunks = [learn(f"doc_{number}", WORDY, windows=[0.5], asked=[Learnt(WORDY, 0.5)]) for number in range(7)]
    better = learn("doc_better", WORDY, windows=[0.75], asked=[Learnt(WORDY, 0.5)])
    fresh = VectorIndex(database, dim=DIM, embedder_name=EMBEDDER, snapshot_dir=tmp_path / "another")
    asking: list[dict[str, Any]] = [{}, {"by": fresh}, {"windows": 99}]
    for how in asking:
        assert [one.chunk_id for one in find(**how)] == [better, *sorted(chunks)]
    read = Search._read
    monkeypatch.setattr(Search, "_read", lambda *given: read(*given)[::-1])
    assert [one.chunk_id for one in find()] == [better, *sorted(chunks)]


@pytest.mark.parametrize(("kept", "most", "expected"), [(2, 1, 3), (2, 2, 6), (5, 1, 5), (99, 1, 8)])
def test_the_best_are_kept_at_least_three_for_each_adapter_wanted(
    learn: Learn, find: Find, monkeypatch: pytest.MonkeyPatch, kept: int, most: int, expected: int
) -> None:
    monkeypatch.setattr("server.candidates.KEPT", kept)
    cosines = {f"doc_{number}": 0.1 + 0.1 * number for number in range(8)}
    for name, cosine in cosines.items():
        learn(name, windows=[cosine])
    best = sorted(cosines, key=lambda name: -cosines[name])[:expected]
    assert documents(find(windows=99, most=most)) == best


def test_the_database_is_not_read_from_end_to_end(database: Database, learn: Learn, index: VectorIndex) -> None:
    """SQLite's own steps, in tens, for as many candidates among few adapters and among many."""
    if not database.is_sqlite:
        pytest.skip("counts steps of SQLite's machine")
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    def steps() -> int:
        nonlocal count
        with index.view("default") as view:
            connection = view.session.connection().connection.driver_connection
            assert connection is not None
            search = Search(view, "default", QUESTION, at(1.0), EMBEDDER, FINGERPRINT)
            connection.set_progress_handler(step, 10)
            count = 0
            search.candidates(view.search(search.vector, 5), 5)
            connection.set_progress_handler(None, 0)
        return count

    for number in range(8):
        learn(f"doc_{number}", windows=[0.9])
    few = steps()
    for number in range(8, 150):
        learn(f"doc_{number}")
    assert steps() < 1.5 * few
