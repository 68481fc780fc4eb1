"""The write flow around steps whose results are scripted: what is tried on a weak adapter, and what goes live."""

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from sqlalchemy import select

from loramem.chunk import chunk_text
from loramem.errors import SettingsError
from loramem.settings import Settings
from loramem.tables import Chunk, Job, JobKind, Window
from tests.backends import database, database_url
from tests.trainer_worker.jobs import raises
from tests.trainer_worker.pretended import FULL, GOOD, LONG, Pretender, Worker, chunks_of, embedder, worker
from trainer_worker import build as build_module
from trainer_worker import study as study_module
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.assign import assign_pairs
from trainer_worker.checkpoint import sweep_checkpoints
from trainer_worker.sweep import sweep_retired
from trainer_worker.train import Lesson

__all__ = ["database", "database_url", "embedder", "worker"]


def test_every_chunk_gets_an_adapter_in_its_order(worker: Worker) -> None:
    assert worker.work() == "succeeded"
    chunks = sorted(worker.rows(Chunk), key=lambda row: row.ordinal)
    assert len(chunks) > 1
    assert [(row.ordinal, row.chunk_id) for row in worker.adapters] == [(row.ordinal, row.id) for row in chunks]
    assert worker.tried() == [[] for _ in chunks]
    assert {beside for beside, _, _ in worker.trainer.trained} == {len(chunks)}


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


def test_publishing_tells_of_every_chunk(worker: Worker) -> None:
    worker.work()
    told = [(progress.step, progress.total_steps) for progress in worker.shown if progress.phase == "publish"]
    assert told == [(done, chunks_of(worker)) for done in range(chunks_of(worker))]


def test_all_passed_nothing_to_mend(worker: Worker) -> None:
    worker.work()
    assert [job.kind for job in worker.rows(Job)] == [JobKind.BUILD]


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


def test_a_base_that_does_not_fit_the_share_of_the_gpu_stops_the_start(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(build_module, "Trainer", load)
    del worker.builder.__dict__["trainer"]
    with pytest.raises(SettingsError, match=r"does not fit into 35% .* raise LORAMEM_TRAINER_GPU_MEMORY_FRACTION"):
        _ = worker.builder.trainer


def test_what_the_base_is_asked_once_is_kept_in_a_cache_of_its_own(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(build_module, "Trainer", lambda *paths, **options: given.update(options))
    del worker.builder.__dict__["trainer"]
    _ = worker.builder.trainer
    assert given["cache"].parent == worker.builder.settings.cache_path
    assert worker.builder.base.fingerprint[:16] in given["cache"].name


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
    used = worker.trainer.hyperparameters
    assert (used.placement, used.variant, used.freeze_a, used.distil) == ("ffn", "pissa", True, 0.25)


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


def test_the_users_pairs_are_given_out_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, given = list[int](), list[int]()
    monkeypatch.setattr(build_module, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(build_module, "chunk_text", noting(chunk_text, cut))
    monkeypatch.setattr(study_module, "assign_pairs", noting(assign_pairs, given))
    assert worker.work() == "succeeded"
    assert len(worker.adapters) > 1
    assert (len(cut), len(given)) == (1, 1)


def noting(step: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    """The step itself, which notes that it was called."""

    def noted(*given: Any, **options: Any) -> Any:
        calls.append(1)
        return step(*given, **options)

    return noted


class TestPoison:
    """A document that ends each attempt in the same place, and how far its job gets."""

    @pytest.fixture(autouse=True)
    def one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build_module, "SIDE_BY_SIDE", 1)

    def again(self, worker: Worker) -> str:
        with worker.builder.database.write() as session:
            session.scalars(select(Job)).one().not_before = 0
        return worker.settle()

    def breaks_after(self, worker: Worker, trained: int) -> None:
        """In each training but the first `trained`."""
        done = worker.trainer.trained
        worker.trainer.before = lambda: None if len(done) < trained else raises(RuntimeError("the machine broke"))

    def test_attempts_are_counted_since_the_last_chunk_that_was_kept(self, worker: Worker) -> None:
        self.breaks_after(worker, 0)
        assert [worker.work(), self.again(worker)] == ["error", "error"]
        self.breaks_after(worker, 1)
        assert [self.again(worker) for _ in range(3)] == ["error", "error", "dead"]

    def test_what_is_done_again_each_time_gets_a_job_no_further(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish = worker.builder.store.publish

        def breaks(adapter_id: str, write: Any, sealed: Any) -> Any:
            if sealed({}).chunk == 1:
                raise RuntimeError("the machine broke")
            return publish(adapter_id, write, sealed)

        monkeypatch.setattr(build_module, "SIDE_BY_SIDE", 4)
        monkeypatch.setattr(worker.builder.store, "publish", breaks)
        assert [worker.work(), self.again(worker), self.again(worker)] == ["error", "error", "dead"]

    def test_nor_does_what_could_not_be_kept(self, worker: Worker) -> None:
        worker.builder.settings.jobs_path.write_text("a file where the folder should be")
        self.breaks_after(worker, 1)
        outcomes = [worker.work()]
        for trained in (2, 3):
            self.breaks_after(worker, trained)
            outcomes.append(self.again(worker))
        assert outcomes == ["error", "error", "dead"]

    def test_a_retry_goes_on_from_what_was_trained(self, worker: Worker) -> None:
        database, store, jobs = worker.builder.database, worker.builder.store, worker.builder.settings.jobs_path
        self.breaks_after(worker, 1)
        assert [worker.work(), self.again(worker), self.again(worker)] == ["error", "error", "dead"]
        for adapter_id in store.ids():
            os.utime(store.path(adapter_id), (0, 0))
        assert (sweep_retired(database, store, grace_s=0), sweep_checkpoints(database, jobs)) == (0, 0)
        worker.trainer.before = None
        worker.builder.queue.retry(worker.rows(Job)[0].id)
        assert worker.settle() == "succeeded"
        assert len(worker.trainer.trained) == chunks_of(worker)
