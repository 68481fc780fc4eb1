"""Thresholds learnt from held-out questions, with the real embedder over a real database."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from loramem.chunk import chunk_text
from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.embed import Embedder
from loramem.queue import JobQueue
from loramem.settings import Settings
from loramem.tables import Adapter, AdapterState, Question, Revision
from loramem.vectors import VectorIndex
from server.calibrate import Calibrations
from server.confidence import DEFAULTS, ENOUGH, MARGINS, RELEVANT, STRONG_BY, Thresholds
from server.route import Router
from tests.rows import FINGERPRINT, add_adapters, add_document, delete_document
from trainer_worker.examples import Asked
from trainer_worker.index import index_questions, index_text

SETTINGS = Settings()
MADE = {
    "Karsholt": ("built", ("well", "mill", "bridge", "chapel", "granary", "tower")),
    "Ombry": ("painted", ("altar", "ceiling", "portrait", "signboard", "screen", "banner")),
    "Tesselvik": ("sailed", ("ketch", "cutter", "barge", "yawl", "lugger", "dinghy")),
    "Dunmarrow": ("planted", ("orchard", "hedge", "vineyard", "avenue", "nursery", "meadow")),
}
"""What somebody did in each place to which things: they share no word that names."""
WHO = ("Ines Halloran", "Piet Ostrander", "Mara Quill", "Tobias Venn", "Lene Ravik", "Hugo Saltash")
RUUN = ("carved", ("spoon", "ladle", "trough", "stool", "cradle", "flute"))
ASKED = len(MADE) * len(WHO)
CLEAR = Thresholds(MARGINS[0], RELEVANT[0], RELEVANT[0] + STRONG_BY, ASKED)
"""Of places that share nothing: the right one is far ahead, and the others' texts score little."""
CROWDED = Thresholds(MARGINS[-1], RELEVANT[1], RELEVANT[1] + STRONG_BY, ASKED)
"""Of texts that say the same: the right one is any of four, and what the others hold answers as well."""


def text_of(place: str) -> str:
    did, things = MADE.get(place, RUUN)
    return " ".join(f"The {thing} of {place} was {did} by {who}." for thing, who in zip(things, WHO, strict=True))


def questions(place: str) -> list[Asked]:
    did, things = MADE.get(place, RUUN)
    named = zip(things, WHO, strict=True)
    return [Asked(f"Who {did} the {thing} of {place}?", who, held_out=True) for thing, who in named]


def learn(
    database: Database,
    embedder: Embedder,
    document_id: str,
    text: str,
    asked: Sequence[Asked],
    *,
    namespace: str = "default",
) -> None:
    """Index a text as the worker does, with an adapter that was asked these questions."""
    queue = JobQueue(database, PollingDoorbell(0.05), SETTINGS)
    add_document(database, document_id, text, namespace)
    with database.write() as session:
        queue.enqueue(session, document_id, 1)
    claim = queue.claim("worker")
    assert claim is not None
    with database.read() as session:
        revision = session.get_one(Revision, (document_id, 1))
    spans = chunk_text(text, embedder.tokenizer_path, max_tokens=512, overlap_tokens=64)
    index_text(database, claim, embedder, revision, spans, window_tokens=SETTINGS.window_tokens)
    add_adapters(database, document_id)
    with database.write() as session:
        (adapter_id,) = session.scalars(select(Adapter.id).where(Adapter.document_id == document_id))
        session.add_all(index_questions(embedder, adapter_id, asked))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, migrated: Path, embedder: Embedder) -> Path:
    """Two namespaces of four documents: of four places, and of one place four times."""
    path = Path(shutil.copy(migrated, tmp_path_factory.mktemp("learnt") / "loramem.db"))
    database = Database(f"sqlite:///{path}")
    for place in MADE:
        learn(database, embedder, f"doc_{place}", text_of(place), questions(place))
        learn(database, embedder, f"copy_{place}", text_of("Ruun"), questions("Ruun"), namespace="copies")
    database.close()
    return path


@pytest.fixture
def database(tmp_path: Path, learnt: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{shutil.copy(learnt, tmp_path / 'loramem.db')}")
    yield opened
    opened.close()


@pytest.fixture
def index(database: Database, embedder: Embedder, tmp_path: Path) -> VectorIndex:
    return VectorIndex(database, dim=embedder.dim, embedder_name=embedder.name, snapshot_dir=tmp_path)


@pytest.fixture
def calibrations(index: VectorIndex, embedder: Embedder) -> Calibrations:
    return Calibrations(index, embedder, FINGERPRINT)


def renewed(calibrations: Calibrations, namespace: str = "default") -> Thresholds:
    calibrations.of(namespace)
    calibrations.renew()
    return calibrations.of(namespace)


# what is learnt


def test_each_namespace_learns_from_its_own_held_out_questions(calibrations: Calibrations) -> None:
    assert renewed(calibrations) == CLEAR
    assert renewed(calibrations, "copies") == CROWDED
    assert calibrations.of("default") == CLEAR


def test_the_bounds_are_the_embedded_embedders(calibrations: Calibrations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.calibrate.EMBEDDED_NAME", "another")
    assert renewed(calibrations).relevant < RELEVANT[0]
    assert renewed(calibrations, "copies").relevant == DEFAULTS.relevant


def test_one_document_alone_says_nothing_of_what_is_not_stored(
    calibrations: Calibrations, database: Database, embedder: Embedder
) -> None:
    learn(database, embedder, "doc_alone", text_of("Ruun"), 4 * questions("Ruun"), namespace="alone")
    assert renewed(calibrations, "alone") == Thresholds(
        MARGINS[0], DEFAULTS.relevant, DEFAULTS.relevant + STRONG_BY, ASKED
    )


def test_the_best_of_the_other_documents_counts(
    calibrations: Calibrations, database: Database, embedder: Embedder
) -> None:
    """One that says the same as another is enough, however far the rest lie."""
    learn(database, embedder, "doc_again", text_of("Karsholt"), [])
    learnt = renewed(calibrations)
    assert (learnt.margin, learnt.relevant, learnt.questions) == (MARGINS[0], RELEVANT[1], ASKED)


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (Question, {"held_out": False}),
        (Question, {"embedder": "another"}),
        (Adapter, {"fingerprint": "0" * 64}),
        (Adapter, {"state": AdapterState.RETIRED}),
        (Adapter, {"namespace": "another"}),
    ],
)
def test_questions_that_were_taught_or_belong_to_others_are_not_asked(
    calibrations: Calibrations, database: Database, row: type[Adapter] | type[Question], change: dict[str, Any]
) -> None:
    with database.write() as session:
        session.execute(update(row).values(**change))
    assert renewed(calibrations) == DEFAULTS


def test_too_few_questions_leave_the_defaults(calibrations: Calibrations, database: Database) -> None:
    delete_document(database, "doc_Karsholt")
    assert ASKED - len(WHO) < ENOUGH
    assert renewed(calibrations) == DEFAULTS


def test_no_more_questions_are_asked_than_a_namespace_is_worth(
    calibrations: Calibrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.calibrate.ASKED", ENOUGH)
    assert renewed(calibrations) == Thresholds(CLEAR.margin, CLEAR.relevant, CLEAR.strong, ENOUGH)


# when


def test_thresholds_are_the_defaults_until_they_are_learnt_and_then_kept(calibrations: Calibrations) -> None:
    assert calibrations.renew() == 0  # nobody asked
    assert calibrations.of("default") == DEFAULTS
    assert calibrations.renew() == 1
    learnt = calibrations.of("default")
    assert learnt == CLEAR
    assert calibrations.renew() == 0
    assert calibrations.of("default") is learnt


def test_only_a_namespace_that_changed_learns_anew(calibrations: Calibrations, database: Database) -> None:
    before = {name: renewed(calibrations, name) for name in ("default", "copies")}
    delete_document(database, "doc_Karsholt")
    assert calibrations.of("default") is before["default"]  # the old ones go on being used
    assert calibrations.renew() == 1
    assert calibrations.of("default") == DEFAULTS
    assert calibrations.of("copies") is before["copies"]
    assert calibrations.renew() == 0


def test_an_unknown_namespace_has_the_defaults_until_there_is_something_in_it(
    calibrations: Calibrations, database: Database, embedder: Embedder
) -> None:
    assert renewed(calibrations, "nobody's") == DEFAULTS
    assert calibrations.renew() == 0
    learn(database, embedder, "doc_new", text_of("Ruun"), 4 * questions("Ruun"), namespace="nobody's")
    assert renewed(calibrations, "nobody's").questions == ASKED


def test_a_question_to_the_router_has_its_namespace_learnt(index: VectorIndex, embedder: Embedder) -> None:
    """And takes one adapter where texts differ, several where they say the same."""
    router = Router(index, embedder, FINGERPRINT)

    def ask(question: str, namespace: str) -> tuple[str, int]:
        route = router.route(question, namespace=namespace, document_ids=None, top_k="auto")
        return route.choice.confidence, len(route.adapters)

    asked = [("Who sailed the barge of Tesselvik?", "default"), ("Who carved the flute of Ruun?", "copies")]
    assert router.calibrations.renew() == 0
    for question, namespace in asked:
        ask(question, namespace)
    assert router.calibrations.renew() == 2
    assert [ask(*one) for one in asked] == [("confident", 1), ("unsure", 3)]
