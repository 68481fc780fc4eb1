"""A worker whose trainer only pretends, and whose exams end as they are told; the rest is real."""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select

from loramem.base_model import BaseModel
from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.embed import Embedder, load_embedder
from loramem.queue import Claim, JobQueue
from loramem.records import ExamResult, Fullness, Progress, Remedy
from loramem.settings import Settings
from loramem.store import AdapterStore
from loramem.tables import Adapter, AdapterState, Job, JobKind, Namespace, Revision
from tests.backends import database, database_url
from tests.rows import add_document
from tests.trainer_worker.texts import MILL, writer
from trainer_worker import build as build_module
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.build import Builder
from trainer_worker.consume import Hooks, consume
from trainer_worker.examples import Example
from trainer_worker.loop import Hyperparameters
from trainer_worker.train import Lesson

__all__ = ["database", "database_url"]

GOOD = ExamResult(questions=8, recall=0.8, base_recall=0, loss=0.1, weak=False)
WEAK = ExamResult(questions=8, recall=0.1, base_recall=0, loss=0.9, weak=True)
FULL = WEAK.model_copy(update={"fullness": Fullness(load_bits=100, stored_bits=20, capacity_bits=50, full=2.0)})
EXTRA = Example("What else is there?", "A larch wheel.", "written")
LONG = "\n\n".join(MILL.replace("Hadle", name) for name in ("Hadle", "Brack", "Corran", "Dunmore", "Esk", "Farrow"))


@dataclass
class Pretender:
    """A trainer that remembers what it was asked for, and gives adapters of zeros."""

    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    unrelated: Sequence[Any] = ()
    trained: list[tuple[int, int, int]] = field(default_factory=list)
    before: Callable[[], None] | None = None

    def train_in_room(self, lessons: Sequence[Lesson], *, rank: int, **options: Any) -> list[TrainedAdapter]:
        if self.before is not None:
            self.before()
        options["on_step"](1, 1, 0.5)
        self.trained += [(len(lessons), rank, len(lesson.examples)) for lesson in lessons]
        published = self.hyperparameters.published_rank(rank)
        weights = {
            f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": torch.zeros(shape)
            for side, shape in (("A", (published, 8)), ("B", (8, published)))
        }
        return [TrainedAdapter(published, weights, {"seconds": options["max_seconds"]}) for _ in lessons]


@dataclass
class Worker:
    builder: Builder
    trainer: Pretender
    exams: list[ExamResult]
    shown: list[Progress] = field(default_factory=list)

    def work(self, **training: Any) -> str:
        """Upload, run the worker's loop until the job is settled; returns how it ended."""
        queue = self.builder.queue
        with queue.database.write() as session:
            session.get_one(Revision, ("doc_1", 1)).training = training
            queue.enqueue(session, "doc_1", 1)
        return self.settle()

    def mend(self, **training: Any) -> str:
        """The same, and then the job that it leaves for the weak."""
        assert self.work(**training) == "succeeded"
        assert self.rows(Job)[-1].kind == JobKind.MEND
        return self.settle()

    def settle(self) -> str:
        stop, outcomes = threading.Event(), list[str]()

        def observe(claim: Claim, outcome: str, seconds: float) -> None:
            outcomes.append(outcome)
            stop.set()

        hooks = Hooks(observe=observe, watches=(lambda claim: nullcontext(self.shown.append),))
        consume(self.builder.queue, self.builder.work, self.builder.settings, stop, hooks=hooks)
        return outcomes[0]

    def rows(self, table: type[Any]) -> list[Any]:
        with self.builder.database.read() as session:
            return list(session.scalars(select(table).order_by(table.id)))

    @property
    def adapters(self) -> list[Adapter]:
        live = [row for row in self.rows(Adapter) if row.state == AdapterState.LIVE]
        return sorted(live, key=lambda row: row.ordinal)

    @property
    def generation(self) -> int:
        """What the gateway's index follows."""
        with self.builder.database.read() as session:
            return session.get_one(Namespace, "default").generation

    def tried(self) -> list[list[Remedy]]:
        return [list(row.exam["tried"]) for row in self.adapters]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(Settings(), device="cpu")


@pytest.fixture
def worker(database: Database, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    add_document(database, "doc_1", LONG)
    settings = Settings(home=str(tmp_path), chunk_tokens=250, chunk_overlap_tokens=0, poll_s=0.02)
    queue = JobQueue(database, PollingDoorbell(0.02), settings)
    base = BaseModel(Path(embedder.tokenizer_path).parent, "tokenizer only", "f" * 64)
    store, asked = AdapterStore(settings.adapters_path), writer(lambda prompt: f" has {len(prompt)} wheels of larch")
    builder, trainer = Builder(settings, base, database, queue, store, embedder, asked), Pretender()
    monkeypatch.setitem(builder.__dict__, "trainer", trainer)
    exams: list[ExamResult] = []
    monkeypatch.setattr(build_module, "examine", lambda *given, **options: exams.pop(0) if exams else GOOD)
    monkeypatch.setattr(build_module, "more", lambda *given, **options: [EXTRA])
    return Worker(builder, trainer, exams)


def chunks_of(worker: Worker) -> int:
    return len(worker.builder._chunk(LONG))
