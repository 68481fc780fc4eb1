"""Any order of uploads, lessons, deletions, snapshots and restarts, against brute force: with few vectors in delta
alone, folded into a flat main again and again, and in inverted lists that are made meanwhile."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from loramem.database import Database
from loramem.tables import Base
from loramem.vectors import VectorIndex, View
from tests.loramem.test_vectors import DIM, vectors
from tests.loramem.test_vectors_questions import Learnt, learn
from tests.rows import add_document, add_revision, delete_document, serve

NAMES = st.sampled_from(["doc_1", "doc_2", "doc_3"])
COUNTS = st.integers(1, 7)


class Changes(RuleBasedStateMachine):
    constants: ClassVar[dict[str, float]] = {}
    precision: ClassVar[float] = 1e-5

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for name, value in self.constants.items():
            self.patch.setattr(f"loramem.{name}", value)
        self.folder = Path(tempfile.mkdtemp())
        self.database = Database(f"sqlite:///{self.folder / 'loramem.db'}")
        Base.metadata.create_all(self.database.engine)
        self.model: dict[str, NDArray[np.float32]] = {}
        self.learnt: dict[str, Learnt] = {}
        self.restart()

    def teardown(self) -> None:
        self.settle()
        self.patch.undo()
        self.database.close()
        shutil.rmtree(self.folder)

    @rule(name=NAMES, count=COUNTS)
    def upload(self, name: str, count: int) -> None:
        if name in self.model:
            add_revision(self.database, name, "text")
        else:
            add_document(self.database, name)
        self.model[name] = vectors(count)
        serve(self.database, name, self.model[name])

    @rule(name=NAMES, count=COUNTS)
    def index_again(self, name: str, count: int) -> None:
        if name in self.model:
            self.model[name] = vectors(count)
            serve(self.database, name, self.model[name])

    @rule(name=NAMES, count=COUNTS)
    def lesson(self, name: str, count: int) -> None:
        if name in self.model:
            learnt = learn(self.database, name, count)
            self.learnt[name] = self.learnt.get(name, {}) | learnt

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if self.model.pop(name, None) is not None:
            delete_document(self.database, name)
            self.learnt.pop(name, None)

    @rule()
    def snapshot(self) -> None:
        self.index.snapshot()

    @rule()
    def restart(self) -> None:
        self.index = VectorIndex(self.database, dim=DIM, embedder_name="test", snapshot_dir=self.folder / "snapshots")

    @rule()
    def settle(self) -> None:
        """Inverted lists are ready at any time; here at the latest."""
        for thread in list(self.index._listing.values()):
            thread.join()

    @invariant()
    def searches_as_brute_force_does(self) -> None:
        question = vectors(1)[0]
        with self.index.view("default") as view:
            for chosen in (None, {"doc_1", "doc_3"}):
                self.compare_windows(view, question, chosen)
            every = {adapter_id: stored for learnt in self.learnt.values() for adapter_id, stored in learnt.items()}
            compare_questions(view, question, every, None, self.precision)
            compare_questions(view, question, every, set(sorted(every)[::2]), self.precision)

    def compare_windows(self, view: View, question: NDArray[np.float32], chosen: set[str] | None) -> None:
        names = [name for name in self.model if chosen is None or name in chosen]
        scores = [score for name in names for score in (self.model[name] @ question).tolist()]
        expected = sorted(scores, reverse=True)[:6]
        hits = view.search(question, 6, chosen)
        assert [hit.score for hit in hits] == pytest.approx(expected, abs=self.precision)
        places = [float(self.model[hit.document_id][hit.start // 10] @ question) for hit in hits]
        assert [hit.score for hit in hits] == pytest.approx(places, abs=self.precision)


def compare_questions(
    view: View,
    question: NDArray[np.float32],
    every: Mapping[str, NDArray[np.float32]],
    chosen: set[str] | None,
    precision: float,
) -> None:
    among = {adapter_id: every[adapter_id] for adapter_id in (every if chosen is None else chosen)}
    scores = sorted((score for stored in among.values() for score in (stored @ question).tolist()), reverse=True)
    found = view.search_questions(question, 6, chosen)
    assert [score for _, score in found] == pytest.approx(scores[:6], abs=precision)
    for adapter_id, score in found:
        assert np.abs(among[adapter_id] @ question - score).min() <= precision


class Folding(Changes):
    constants: ClassVar[dict[str, float]] = {"vector_set.LEAST_DELTA": 4}


class InLists(Changes):
    """All lists are read, so that what is found is exact but for half precision."""

    constants: ClassVar[dict[str, float]] = {
        "vector_set.LEAST_DELTA": 4,
        "vector_set.FLAT_AT_MOST": 6,
        "vector_lists.PROBED": 1,
    }
    precision: ClassVar[float] = 2e-3


SETTINGS = settings(max_examples=15, stateful_step_count=15, suppress_health_check=list(HealthCheck))
TestChanges, TestFolding, TestInLists = Changes.TestCase, Folding.TestCase, InLists.TestCase
TestChanges.settings = TestFolding.settings = TestInLists.settings = SETTINGS
