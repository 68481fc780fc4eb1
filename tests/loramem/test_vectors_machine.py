"""Any order of uploads, deletions, snapshots and restarts, against brute force."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from loramem.database import Database
from loramem.tables import Base
from loramem.vectors import VectorIndex
from tests.loramem.test_vectors import DIM, vectors
from tests.rows import add_document, add_revision, delete_document, serve

NAMES = st.sampled_from(["doc_1", "doc_2", "doc_3"])


class Changes(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.database = Database(f"sqlite:///{self.folder / 'loramem.db'}")
        Base.metadata.create_all(self.database.engine)
        self.model: dict[str, NDArray[np.float32]] = {}
        self.restart()

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    @rule(name=NAMES, count=st.integers(1, 7))
    def upload(self, name: str, count: int) -> None:
        if name in self.model:
            add_revision(self.database, name, "text")
        else:
            add_document(self.database, name)
        self.model[name] = vectors(count)
        serve(self.database, name, self.model[name])

    @rule(name=NAMES, count=st.integers(1, 7))
    def index_again(self, name: str, count: int) -> None:
        if name in self.model:
            self.model[name] = vectors(count)
            serve(self.database, name, self.model[name])

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if self.model.pop(name, None) is not None:
            delete_document(self.database, name)

    @rule()
    def snapshot(self) -> None:
        self.index.snapshot()

    @rule()
    def restart(self) -> None:
        self.index = VectorIndex(self.database, dim=DIM, embedder_name="test", snapshot_dir=self.folder / "snapshots")

    @invariant()
    def searches_as_brute_force_does(self) -> None:
        question = vectors(1)[0]
        for chosen in (None, {"doc_1", "doc_3"}):
            names = [name for name in self.model if chosen is None or name in chosen]
            scores = [score for name in names for score in (self.model[name] @ question).tolist()]
            expected = sorted(scores, reverse=True)[:6]
            hits = self.index.search("default", question, 6, chosen)
            assert [hit.score for hit in hits] == pytest.approx(expected, abs=1e-5)
            places = [float(self.model[hit.document_id][hit.start // 10] @ question) for hit in hits]
            assert [hit.score for hit in hits] == pytest.approx(places, abs=1e-5)


TestChanges = Changes.TestCase
TestChanges.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
