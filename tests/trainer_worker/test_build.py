"""The write flow around steps whose results are scripted: what is tried on a weak adapter, and what goes live."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import select

from loramem.base_model import BaseModel
from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.embed import Embedder, load_embedder
from loramem.errors import TrainingFailed
from loramem.queue import Claim, JobQueue
from loramem.records import ExamResult, Fullness, Remedy
from loramem.settings import Settings
from loramem.store import AdapterStore
from loramem.tables import Adapter, AdapterState, Chunk, Document, Job, JobKind, Namespace, Question, Revision, Window
from tests.backends import database, database_url
from tests.rows import add_document
from tests.trainer_worker.jobs import raises
from tests.trainer_worker.texts import MILL, writer
from trainer_worker import build as build_module
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.build import Builder
from trainer_worker.consume import Hooks, consume
from trainer_worker.examples import Example
from trainer_worker.loop import Recipe
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

    recipe: Recipe = field(default_factory=Recipe)
    unrelated: Sequence[Any] = ()
    trained: list[tuple[int, int, int]] = field(default_factory=list)
    before: Callable[[], None] | None = None

    def train_in_room(self, lessons: Sequence[Lesson], *, rank: int, **options: Any) -> list[TrainedAdapter]:
        if self.before is not None:
            self.before()
        options["on_step"](1, 1, 0.5)
        self.trained += [(len(lessons), rank, len(lesson.examples)) for lesson in lessons]
        published = self.recipe.published_rank(rank)
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

        consume(self.builder.queue, self.builder.work, self.builder.settings, stop, hooks=Hooks(observe=observe))
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


def test_every_chunk_gets_an_adapter_in_its_order(worker: Worker) -> None:
    assert worker.work() == "succeeded"
    chunks = sorted(worker.rows(Chunk), key=lambda row: row.ordinal)
    assert len(chunks) > 1
    assert [(row.ordinal, row.chunk_id) for row in worker.adapters] == [(row.ordinal, row.id) for row in chunks]
    assert worker.tried() == [[] for _ in chunks]
    assert {beside for beside, _, _ in worker.trainer.trained} == {len(chunks)}


def test_a_weak_one_gets_more_data_then_a_greater_rank_and_is_then_called_weak(worker: Worker) -> None:
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1), WEAK, WEAK]
    assert worker.mend() == "succeeded"
    first, *others = worker.trainer.trained[: chunks_of(worker)]
    data, rank = worker.trainer.trained[chunks_of(worker) :]
    assert data[:2] == (1, 16)
    assert data[2] == first[2] + 1
    assert rank[:2] == (1, 32)
    assert worker.tried() == [["data", "rank"], *([] for _ in others)]
    assert [row.exam["weak"] for row in worker.adapters] == [True, *(False for _ in others)]


def test_the_better_of_two_attempts_is_kept(worker: Worker) -> None:
    middling = WEAK.model_copy(update={"recall": 0.2})
    worker.exams += [middling, *[GOOD] * (chunks_of(worker) - 1), WEAK, WEAK]
    assert worker.mend() == "succeeded"
    assert len(worker.rows(Adapter)) == chunks_of(worker), "nothing new went live"
    assert worker.adapters[0].exam["recall"] == 0.2
    assert worker.adapters[0].rank == 16
    assert worker.tried()[0] == ["data", "rank"]


def test_one_that_is_full_gets_a_greater_rank_and_is_then_split(worker: Worker) -> None:
    count = chunks_of(worker)
    worker.exams += [FULL, *[GOOD] * (count - 1), FULL]
    assert worker.work() == "succeeded"
    others = [row.id for row in worker.adapters[1:]]
    assert worker.settle() == "succeeded"
    assert [row.id for row in worker.adapters[-len(others) :]] == others, "those that passed go on serving"
    chunks = sorted(worker.rows(Chunk), key=lambda row: row.ordinal)
    assert len(chunks) == len(worker.adapters) > count
    assert [row.chunk_id for row in worker.adapters] == [row.id for row in chunks]
    assert [row.ordinal for row in worker.adapters] == list(range(len(chunks)))
    parts = len(chunks) - count + 1
    assert worker.tried() == [*[["rank", "split"]] * parts, *[[] for _ in range(count - 1)]]
    spans = [(row.start, row.end) for row in chunks]
    assert spans[0][0] == 0
    assert not any(LONG[before:begin].strip() for (_, before), (begin, _) in pairwise(spans))
    assert {window.chunk_id for window in worker.rows(Window)} == {row.id for row in chunks}


def test_a_rank_that_was_asked_for_is_kept(worker: Worker) -> None:
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1), WEAK]
    assert worker.mend(rank=8) == "succeeded"
    assert {row.rank for row in worker.adapters} == {8}
    assert worker.tried()[0] == ["data", "split"]


def test_a_writer_with_nothing_to_add_costs_no_training(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "more", lambda *given, **options: [])
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1), GOOD]
    assert worker.mend() == "succeeded"
    assert [entry[:2] for entry in worker.trainer.trained[chunks_of(worker) :]] == [(1, 32)]
    assert worker.tried()[0] == ["data", "rank"]


def test_all_passed_nothing_to_mend(worker: Worker) -> None:
    worker.work()
    assert [job.kind for job in worker.rows(Job)] == [JobKind.BUILD]


def test_a_document_may_do_without_mending(worker: Worker) -> None:
    worker.exams.append(WEAK)
    assert worker.work(mend=False) == "succeeded"
    assert worker.adapters[0].exam["weak"]
    assert [job.kind for job in worker.rows(Job)] == [JobKind.BUILD]


def test_a_weak_adapter_serves_until_a_better_one_is_there(worker: Worker) -> None:
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1)]
    worker.work()
    before, asked = [row.id for row in worker.adapters], worker.trainer.trained[:]
    generation = worker.generation
    assert worker.adapters[0].exam["weak"]
    assert worker.settle() == "succeeded"
    assert worker.generation > generation, "the index goes on serving what is no longer there"
    after = [row.id for row in worker.adapters]
    assert (after[0] != before[0], after[1:]) == (True, before[1:])
    assert not worker.adapters[0].exam["weak"]
    mended = worker.trainer.trained[len(asked) :]
    assert [lessons[2] - 1 for lessons in mended] == [asked[0][2]], "its own lesson, kept, and one question more"


def test_a_mending_makes_way_for_an_upload(worker: Worker) -> None:
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1)]
    worker.work()
    queue = worker.builder.queue

    def arrives() -> None:
        with queue.database.write() as session:
            queue.enqueue(session, "doc_2", 1).not_before -= 10

    add_document(queue.database, "doc_2", MILL)
    worker.trainer.before = arrives
    assert worker.settle() == "postponed"
    worker.trainer.before = None
    assert worker.settle() == "succeeded"
    assert {row.document_id for row in worker.adapters} == {"doc_1", "doc_2"}
    mending = next(job for job in worker.rows(Job) if job.kind == JobKind.MEND)
    assert (mending.state, mending.attempts) == ("queued", 0)


def test_a_mending_of_an_older_revision_changes_nothing(worker: Worker) -> None:
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1)]
    worker.work()
    before = [row.id for row in worker.adapters]
    with worker.builder.database.write() as session:
        session.get_one(Document, "doc_1").serving_revision = 2
    assert worker.settle() == "cancelled"
    assert [row.id for row in worker.adapters] == before


def test_parts_that_know_less_do_not_replace_the_whole(worker: Worker) -> None:
    count = chunks_of(worker)
    less = FULL.model_copy(update={"recall": 0.05})
    worker.exams += [FULL, *[GOOD] * (count - 1), FULL, *[less] * 4]
    assert worker.mend() == "succeeded"
    assert len(worker.rows(Chunk)) == len(worker.adapters) == count
    assert worker.tried()[0] == ["rank", "split"]


def test_a_gpu_is_shared_with_the_engine(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, given_back = list[float](), list[int]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(1))
    monkeypatch.setattr(build_module, "Trainer", lambda *given, **options: Pretender())
    del worker.builder.__dict__["trainer"]
    worker.trainer.before = lambda: raises(RuntimeError("never asked"))
    assert worker.work() == "succeeded"
    assert shares == [pytest.approx(0.35)]
    assert given_back == [1]
    settings = Settings(gpu_memory_fraction=0.95)
    assert (settings.trainer_gpu_share, Settings(trainer_gpu_memory_fraction=0.9).trainer_gpu_share) == (0.05, 0.9)


def test_parts_share_out_the_exam_of_the_whole(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, train = list[Sequence[Lesson]](), Pretender.train_in_room

    def notes(self: Pretender, lessons: Sequence[Lesson], **options: Any) -> list[TrainedAdapter]:
        taken.append(lessons)
        return train(self, lessons, **options)

    monkeypatch.setattr(Pretender, "train_in_room", notes)
    texts = [one.strip() for one in LONG.split(".") if one.strip()]
    with worker.builder.database.write() as session:
        session.get_one(Revision, ("doc_1", 1)).qa = [
            {"question": f"{word} is said of {text}?", "answer": text} for text in texts for word in ("What", "Which")
        ]
    worker.exams += [FULL, *[GOOD] * (chunks_of(worker) - 1), FULL, GOOD, GOOD]
    assert worker.mend() == "succeeded"
    (whole, *_), parts = taken[0], taken[-1]
    assert len(parts) > 1
    assert len(whole.held_out) > 1
    assert Counter(one for part in parts for one in part.held_out) == Counter(whole.held_out)
    assert not {one.question for part in parts for one in part.examples} & {one.question for one in whole.held_out}


def test_a_training_that_fails_is_a_remedy_that_did_not_help(worker: Worker) -> None:
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1)]
    worker.work()
    before = [row.id for row in worker.adapters]

    def diverges() -> None:
        raise TrainingFailed("the loss is not finite")

    worker.trainer.before = diverges
    assert worker.settle() == "succeeded"
    assert [row.id for row in worker.adapters] == before
    assert worker.tried()[0] == ["data", "rank"]


def test_adapters_of_another_base_are_left_alone(worker: Worker) -> None:
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1)]
    worker.work()
    with worker.builder.database.write() as session:
        for row in session.scalars(select(Adapter)):
            row.fingerprint = "e" * 64
    assert worker.settle() == "cancelled"


def test_what_was_mended_before_an_interruption_stays_mended(worker: Worker) -> None:
    count = chunks_of(worker)
    worker.exams += [WEAK] * count
    worker.work()
    before = [row.id for row in worker.adapters]
    trained = worker.trainer.trained
    worker.trainer.before = lambda: None if len(trained) == count else raises(RuntimeError("the machine broke"))
    assert worker.settle() == "error"
    assert [new != old for new, old in zip([row.id for row in worker.adapters], before, strict=True)] == [
        True,
        *[False] * (count - 1),
    ]


def test_one_adapter_for_the_whole_document(worker: Worker) -> None:
    count = chunks_of(worker)
    assert worker.work(per="document", max_seconds=None) == "succeeded"
    (adapter,), (chunk,) = worker.adapters, worker.rows(Chunk)
    assert (chunk.start, chunk.end, adapter.chunk_id) == (0, len(LONG), chunk.id)
    assert {window.chunk_id for window in worker.rows(Window)} == {chunk.id}
    manifest = worker.builder.store.manifest(adapter.id)
    assert manifest.training["seconds"] == count * worker.builder.settings.train_max_s


def test_the_options_reach_the_trainer(worker: Worker) -> None:
    worker.work(placement="ffn", variant="pissa", freeze_a=True, distil=0.25, rank=8)
    recipe = worker.trainer.recipe
    assert (recipe.placement, recipe.variant, recipe.freeze_a, recipe.distil) == ("ffn", "pissa", True, 0.25)


def test_pissa_doubles_the_rank_so_it_is_widened_less(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.exams += [FULL, *[GOOD] * (chunks_of(worker) - 1), FULL, GOOD]
    monkeypatch.setattr("trainer_worker.ladder.SMALLEST_HALF", 10_000)
    monkeypatch.setattr("trainer_worker.ladder.MOST", 5)
    assert worker.mend(variant="pissa") == "succeeded"
    assert [rank for _, rank, _ in worker.trainer.trained[chunks_of(worker) :]] == [32]
    assert worker.tried()[0] == ["rank"], "64 would be published as 128, more than the engine serves"


def test_what_an_earlier_attempt_finished_is_not_trained_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "SIDE_BY_SIDE", 1)
    original, calls = Pretender.train_in_room, list[int]()

    def breaks(self: Pretender, lessons: Sequence[Lesson], **options: Any) -> list[TrainedAdapter]:
        calls.append(len(lessons))
        if len(calls) == 2:
            raise RuntimeError("the machine broke")
        return original(self, lessons, **options)

    monkeypatch.setattr(Pretender, "train_in_room", breaks)
    assert worker.work() == "error"
    with worker.builder.database.write() as session:
        session.scalars(select(Job)).one().not_before = 0
    assert worker.settle() == "succeeded"
    assert len(calls) == chunks_of(worker) + 1
    assert len(worker.adapters) == chunks_of(worker)


def chunks_of(worker: Worker) -> int:
    return len(worker.builder._chunk(LONG))


def test_an_adapter_goes_live_with_what_it_was_asked(worker: Worker, embedder: Embedder) -> None:
    with worker.builder.database.write() as session:
        session.get_one(Revision, ("doc_1", 1)).qa = [{"question": "Who keeps the mill of Esk?", "answer": "Odo."}]
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1), GOOD]
    assert worker.work(formats=["qa"]) == "succeeded"
    live, weak = {row.id for row in worker.adapters}, worker.adapters[0].id
    assert {row.adapter_id for row in worker.rows(Question)} <= live
    users = [row for row in worker.rows(Question) if row.answer == "Odo."]
    assert [row.question for row in users] == ["Who keeps the mill of Esk?"]
    assert len({(row.adapter_id, row.question, row.answer) for row in worker.rows(Question)}) == len(
        worker.rows(Question)
    )
    for row in worker.rows(Question)[:3] + [row for row in worker.rows(Question) if row.held_out][:1]:
        [expected] = embedder.embed([row.question if row.held_out else f"{row.question} {row.answer}"])
        assert np.allclose(np.frombuffer(row.embedding, "<f4"), expected, atol=1e-4)
    assert worker.settle() == "succeeded"  # the mending replaces one adapter, its questions with it
    asked = {row.adapter_id: row.question for row in worker.rows(Question)}
    assert weak not in asked
    assert asked[worker.adapters[0].id] == EXTRA.question
