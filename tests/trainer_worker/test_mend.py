"""What becomes of adapters that failed their exam: remedies one after another, in a job that waits for the others."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from loramem.embed import Embedder
from loramem.errors import TrainingFailed
from loramem.tables import Adapter, Chunk, Document, Job, JobKind, Question, Revision
from tests.backends import database, database_url
from tests.rows import add_document
from tests.trainer_worker.jobs import raises
from tests.trainer_worker.pretended import EXTRA, FULL, GOOD, WEAK, Pretender, Worker, chunks_of, embedder, worker
from tests.trainer_worker.texts import MILL
from trainer_worker import build as build_module
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.examples import Example
from trainer_worker.train import Lesson
from trainer_worker.writer import Writer

__all__ = ["database", "database_url", "embedder", "worker"]


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
    assert worker.settle() == "made_way"
    worker.trainer.before = None
    assert worker.settle() == "succeeded"
    assert {row.document_id for row in worker.adapters} == {"doc_1", "doc_2"}
    mending = next(job for job in worker.rows(Job) if job.kind == JobKind.MEND)
    assert (mending.state, mending.attempts) == ("queued", 0)


def test_a_mending_goes_on_where_nobody_can_say_whether_another_job_waits(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = OperationalError("SELECT", None, Exception("connection refused"))
    monkeypatch.setattr(worker.builder.queue, "is_wanted_elsewhere", lambda waiting_s: raises(away))
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1)]
    assert worker.mend() == "succeeded"
    assert not worker.adapters[0].exam["weak"]
    assert "whether another job waits is not known" in caplog.text


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


def test_parts_share_out_the_exam_of_the_whole(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, train = list[Sequence[Lesson]](), Pretender.train_in_room

    def notes(self: Pretender, lessons: Sequence[Lesson], **options: Any) -> list[TrainedAdapter]:
        taken.append(lessons)
        return train(self, lessons, **options)

    def written(title: str, text: str, *given: Any, **options: Any) -> list[Example]:
        told = [one.strip() for one in text.split(".") if one.strip()]
        return [Example(f"{word} is said of {one}?", one, "written") for one in told for word in ("What", "Which")]

    monkeypatch.setattr(Pretender, "train_in_room", notes)
    monkeypatch.setattr(build_module, "synthesize", written)
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


def test_a_writer_without_credit_uses_up_no_remedy(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = httpx.MockTransport(lambda request: httpx.Response(402, json={"detail": "no credit is left"}))
    by = Writer("http://writer/v1", "m", transport=refuses)
    monkeypatch.setattr(build_module, "more", lambda *given, **options: by.complete(["What else?"], max_tokens=4))
    worker.exams += [WEAK, *[GOOD] * (chunks_of(worker) - 1)]
    worker.work()
    assert worker.settle() == "postponed"
    assert worker.tried()[0] == []


def test_users_pairs_outlive_a_change_of_the_chunks_size(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a lesson that was lost, as on another machine: the pairs are those of what is mended, by the row."""
    taught, train = list[str](), Pretender.train_in_room

    def notes(self: Pretender, lessons: Sequence[Lesson], **options: Any) -> list[TrainedAdapter]:
        taught.extend(example.answer for lesson in lessons for example in lesson.examples)
        return train(self, lessons, **options)

    with worker.builder.database.write() as session:
        session.get_one(Revision, ("doc_1", 1)).qa = [{"question": "Who keeps the mill of Hadle?", "answer": "Odo."}]
    worker.exams += [FULL, *[GOOD] * (chunks_of(worker) - 1), FULL, GOOD, GOOD]
    assert worker.work() == "succeeded"
    settings = worker.builder.settings.model_copy(update={"chunk_tokens": 150})
    worker.builder = replace(worker.builder, settings=settings)
    worker.builder.__dict__["trainer"] = worker.trainer
    shutil.rmtree(settings.jobs_path)
    monkeypatch.setattr(Pretender, "train_in_room", notes)
    assert worker.settle() == "succeeded"
    assert worker.tried()[0] == ["rank", "split"]
    assert taught.count("Odo.") == 2, "once in the whole, and once in one of its parts"


def test_each_adapter_that_is_settled_counts_attempts_anew(worker: Worker) -> None:
    count = chunks_of(worker)
    worker.exams += [WEAK] * count
    worker.work()
    with worker.builder.database.write() as session:
        mending = session.scalars(select(Job).where(Job.kind == JobKind.MEND)).one()
        mending.attempts = mending.max_attempts - 1
    trained = worker.trainer.trained
    worker.trainer.before = lambda: None if len(trained) == count else raises(RuntimeError("the machine broke"))
    assert worker.settle() == "error", "and not dead"
    assert worker.rows(Job)[-1].attempts == 1


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


def test_pissa_doubles_the_rank_so_it_is_widened_less(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.exams += [FULL, *[GOOD] * (chunks_of(worker) - 1), FULL, GOOD]
    monkeypatch.setattr("trainer_worker.ladder.SMALLEST_HALF", 10_000)
    monkeypatch.setattr("trainer_worker.ladder.MOST", 5)
    assert worker.mend(variant="pissa") == "succeeded"
    assert [rank for _, rank, _ in worker.trainer.trained[chunks_of(worker) :]] == [32]
    assert worker.tried()[0] == ["rank"], "64 would be published as 128, more than the engine serves"


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
