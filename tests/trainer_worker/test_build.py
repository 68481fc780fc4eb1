"""The write flow around steps whose results are scripted: what is tried on a weak adapter, and what goes live."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from sqlalchemy import select

from loramem.errors import SettingsError
from loramem.settings import Settings
from loramem.tables import Chunk, Job, JobKind, Window
from tests.backends import database, database_url
from tests.trainer_worker.jobs import raises
from tests.trainer_worker.pretended import FULL, GOOD, LONG, Pretender, Worker, chunks_of, embedder, worker
from trainer_worker import build as build_module
from trainer_worker.adapter import TrainedAdapter
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
