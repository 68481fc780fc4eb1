"""Taking in documents: what is the same document, what is a revision, what a deletion leaves behind."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from loramem.database import Database, new_id
from loramem.doorbell import PollingDoorbell
from loramem.errors import Conflict, JobCancelled, NotFound, TrainingFailed
from loramem.queue import Claim, JobQueue
from loramem.records import AdapterManifest, QAPair, TrainingOptions
from loramem.settings import Settings
from loramem.store import Stored
from loramem.tables import (
    Adapter,
    AdapterState,
    Base,
    Chunk,
    Document,
    Job,
    JobState,
    Namespace,
    Revision,
    Window,
)
from server.upload import Accepted, Upload, create_document, delete_document, replace_document
from tests.backends import database, database_url
from tests.rows import EXAM
from trainer_worker import publish as publication
from trainer_worker.publish import NewAdapter

__all__ = ["database", "database_url"]

FIRST = Upload("default", "", "The lamp of Zorv.\nIt burns.", "text/plain", None, None, (), TrainingOptions())
OTHER = replace(FIRST, text="The lamp of Zorv is out.")
NAMED = replace(FIRST, external_id="lamp")


class Bell(PollingDoorbell):
    """Remembers which jobs it rang for, and whether their rows could be seen by others at that moment."""

    def __init__(self, database: Database) -> None:
        super().__init__(0.05)
        self.rung: list[tuple[str, bool]] = []
        self._database = database

    def ring(self, job_id: str) -> bool:
        with self._database.read() as session:
            self.rung.append((job_id, session.get(Job, job_id) is not None))
        return super().ring(job_id)


@pytest.fixture
def bell(database: Database) -> Bell:
    return Bell(database)


@pytest.fixture
def queue(database: Database, bell: Bell) -> JobQueue:
    return JobQueue(database, bell, Settings(max_attempts=1))


@pytest.fixture
def create(database: Database, queue: JobQueue) -> Callable[[Upload], Accepted]:
    return lambda upload: create_document(database, queue, upload)


def rows(database: Database, table: type[Base], *where: Any) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table).where(*where)) or 0


def revision_states(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Revision.state).order_by(Revision.number)))


def generation(database: Database, namespace: str = "default") -> int:
    with database.read() as session:
        return session.get_one(Namespace, namespace).generation


def job_of(accepted: Accepted) -> Job:
    assert accepted.job is not None
    return accepted.job


def end(queue: JobQueue, how: JobState) -> None:
    """Brings the one job that waits to an end."""
    claim = queue.claim("worker")
    assert claim is not None
    if how == JobState.CANCELLED:
        queue.cancel(claim.job_id)
        queue.release_cancelled(claim)
    elif how == JobState.SUCCEEDED:
        with queue.database.write() as session:
            queue.succeed(session, claim)
    else:
        queue.fail(claim, TrainingFailed("loss is not finite"), retryable=how == JobState.DEAD)


Create = Callable[[Upload], Accepted]


class TestCreate:
    def test_the_text_and_its_job_are_stored_before_the_doorbell_rings(
        self, database: Database, bell: Bell, create: Create
    ) -> None:
        pair, options = QAPair(question="Who?", answer="Zorv"), TrainingOptions(rank=8)
        accepted = create(replace(FIRST, metadata={"year": 9}, qa=(pair,), training=options))
        document, job = accepted.document, job_of(accepted)
        assert accepted.created
        assert (document.title, document.meta, document.state) == ("The lamp of Zorv.", {"year": 9}, "pending")
        assert (job.document_id, job.revision, job.state) == (document.id, 1, JobState.QUEUED)
        assert bell.rung == [(job.id, True)]
        with database.read() as session:
            stored = session.get_one(Revision, (document.id, 1))
            assert (stored.text, stored.media_type) == (FIRST.text, "text/plain")
            assert [QAPair(**row) for row in stored.qa] == [pair]
            assert TrainingOptions(**stored.training) == options

    def test_the_worker_can_claim_the_job(self, queue: JobQueue, create: Create) -> None:
        accepted = create(FIRST)
        claim = queue.claim("worker")
        assert claim is not None
        assert (claim.job_id, claim.document_id, claim.revision) == (job_of(accepted).id, accepted.document.id, 1)

    @pytest.mark.parametrize(
        ("title", "text", "expected"),
        [
            ("  Given ", "text", "Given"),
            ("", "\n\n ## The  Lamp\ntext", "The Lamp"),
            ("", "word " * 50, ("word " * 16).strip()),
            (" ", "# #\n", "untitled"),
        ],
    )
    def test_the_title_defaults_to_the_first_line(self, create: Create, title: str, text: str, expected: str) -> None:
        assert create(replace(FIRST, title=title, text=text)).document.title == expected


class TestSameContent:
    def test_it_is_the_same_document_with_its_latest_job(self, database: Database, create: Create) -> None:
        first, again = create(FIRST), create(FIRST)
        assert not again.created
        assert (again.document.id, job_of(again).id) == (first.document.id, job_of(first).id)
        assert rows(database, Job) == rows(database, Revision) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"text": "Another."},
            {"title": "Another"},
            {"qa": (QAPair(question="Who?", answer="Zorv"),)},
            {"training": TrainingOptions(rank=8)},
            {"namespace": "another"},
        ],
    )
    def test_what_is_learned_makes_the_difference(self, create: Create, change: dict[str, Any]) -> None:
        assert create(FIRST).document.id != create(replace(FIRST, **change)).document.id

    def test_metadata_is_updated_without_a_job_and_kept_when_none_is_given(
        self, database: Database, create: Create
    ) -> None:
        create(FIRST)
        assert create(replace(FIRST, metadata={"year": 9})).document.meta == {"year": 9}
        assert create(FIRST).document.meta == {"year": 9}
        assert create(replace(FIRST, metadata={})).document.meta == {}
        assert rows(database, Job) == 1

    @pytest.mark.parametrize("how", [JobState.FAILED, JobState.DEAD, JobState.CANCELLED])
    def test_a_job_that_ended_without_a_result_is_done_again(
        self, database: Database, queue: JobQueue, create: Create, how: JobState
    ) -> None:
        first = create(FIRST)
        end(queue, how)
        again = create(FIRST)
        assert (again.document.id, again.created) == (first.document.id, False)
        assert (job_of(again).state, job_of(again).revision) == (JobState.QUEUED, 1)
        assert job_of(again).id != job_of(first).id
        assert revision_states(database) == ["pending"]

    def test_a_job_that_is_being_cancelled_is_done_again(self, queue: JobQueue, create: Create) -> None:
        first = create(FIRST)
        queue.claim("worker")
        queue.cancel(job_of(first).id)
        assert job_of(create(FIRST)).id != job_of(first).id

    def test_a_job_that_succeeded_is_not(self, queue: JobQueue, create: Create) -> None:
        create(FIRST)
        end(queue, JobState.SUCCEEDED)
        assert job_of(create(FIRST)).state == JobState.SUCCEEDED

    def test_eight_at_the_same_time_end_in_one_document(self, database: Database, create: Create) -> None:
        with ThreadPoolExecutor(8) as pool:
            accepted = list(pool.map(create, [FIRST] * 8))
        assert len({item.document.id for item in accepted}) == 1
        assert [item.created for item in accepted].count(True) == 1
        assert rows(database, Document) == rows(database, Job) == 1


class TestExternalId:
    def test_other_content_under_it_is_a_new_revision(
        self, database: Database, queue: JobQueue, create: Create
    ) -> None:
        first = create(NAMED)
        second = create(replace(NAMED, text=OTHER.text))
        assert second.created
        assert second.document.id == first.document.id
        assert (second.document.newest_revision, job_of(second).revision) == (2, 2)
        assert queue.get(job_of(first).id).state == JobState.CANCELLED
        assert revision_states(database) == ["superseded", "pending"]

    def test_the_same_content_under_it_is_the_same_document(self, create: Create) -> None:
        first = create(NAMED)
        assert create(NAMED).document.id == create(FIRST).document.id == first.document.id

    def test_the_same_content_under_another_one_is_another_document(self, create: Create) -> None:
        assert create(NAMED).document.id != create(replace(NAMED, external_id="another")).document.id

    def test_a_document_without_one_can_be_given_one(self, create: Create) -> None:
        first = create(FIRST)
        named = create(NAMED)
        assert (named.document.id, named.document.external_id) == (first.document.id, "lamp")
        assert create(replace(NAMED, text=OTHER.text)).document.id == first.document.id

    def test_two_revisions_at_the_same_time_both_count(self, database: Database, create: Create) -> None:
        create(NAMED)
        texts = [replace(NAMED, text=f"Revision {number}.") for number in range(6)]
        with ThreadPoolExecutor(6) as pool:
            newest = sorted(job_of(item).revision or 0 for item in pool.map(create, texts))
        assert newest == [2, 3, 4, 5, 6, 7]
        assert rows(database, Job, Job.state == JobState.QUEUED) == 1


class TestReplace:
    def test_the_old_revision_serves_on(self, database: Database, queue: JobQueue, create: Create) -> None:
        first = create(FIRST)
        publish(database, queue)
        before = generation(database)
        second = replace_document(database, queue, first.document.id, OTHER)
        assert second.created
        assert (second.document.serving_revision, second.document.newest_revision) == (1, 2)
        assert second.document.state == "live"
        assert revision_states(database) == ["live", "pending"]
        assert rows(database, Adapter, Adapter.state == AdapterState.LIVE) == 1
        assert generation(database) == before

    def test_an_unfinished_job_can_no_longer_publish(self, database: Database, queue: JobQueue, create: Create) -> None:
        first = create(FIRST)
        claim = queue.claim("worker")
        assert claim is not None
        replace_document(database, queue, first.document.id, OTHER)
        with pytest.raises(JobCancelled), database.write() as session:
            queue.succeed(session, claim)

    def test_the_same_content_is_no_revision(self, database: Database, queue: JobQueue, create: Create) -> None:
        first = create(FIRST)
        again = replace_document(database, queue, first.document.id, FIRST)
        assert (again.created, again.document.newest_revision) == (False, 1)
        assert job_of(again).id == job_of(first).id

    def test_the_external_id_of_another_document_is_refused_and_nothing_changes(
        self, database: Database, queue: JobQueue, create: Create
    ) -> None:
        create(NAMED)
        other = create(OTHER)
        with pytest.raises(Conflict, match="'lamp'"):
            replace_document(database, queue, other.document.id, replace(NAMED, text="Third."))
        assert rows(database, Revision) == 2
        assert queue.get(job_of(other).id).state == JobState.QUEUED

    def test_an_unknown_document_is_not_found(self, database: Database, queue: JobQueue) -> None:
        with pytest.raises(NotFound, match="doc_none"):
            replace_document(database, queue, "doc_none", FIRST)
        assert rows(database, Namespace) == 0


class TestDelete:
    def test_nothing_of_it_can_be_found_at_once(self, database: Database, queue: JobQueue, create: Create) -> None:
        document = create(FIRST).document
        publish(database, queue)
        pending = job_of(replace_document(database, queue, document.id, OTHER))
        before = generation(database)
        delete_document(database, queue, document.id)
        assert [rows(database, table) for table in (Document, Revision, Chunk, Window)] == [0, 0, 0, 0]
        assert queue.get(pending.id).state == JobState.CANCELLED
        assert generation(database) == before + 1
        with database.read() as session:
            adapter = session.scalars(select(Adapter)).one()
            assert adapter.state == AdapterState.RETIRED
            assert (adapter.retired_at or 0) >= document.created_at

    def test_other_documents_stay(self, database: Database, queue: JobQueue, create: Create) -> None:
        kept, gone = create(FIRST), create(OTHER)
        delete_document(database, queue, gone.document.id)
        assert rows(database, Document, Document.id == kept.document.id) == 1
        assert queue.get(job_of(kept).id).state == JobState.QUEUED

    def test_an_adapter_retired_before_keeps_its_time(
        self, database: Database, queue: JobQueue, create: Create
    ) -> None:
        document = create(FIRST).document
        publish(database, queue)
        with database.write() as session:
            session.execute(update(Adapter).values(state=AdapterState.RETIRED, retired_at=1.0))
        delete_document(database, queue, document.id)
        assert rows(database, Adapter, Adapter.retired_at == 1.0) == 1

    def test_the_same_content_can_come_again(self, database: Database, queue: JobQueue, create: Create) -> None:
        first = create(NAMED)
        delete_document(database, queue, first.document.id)
        again = create(NAMED)
        assert again.created
        assert again.document.id != first.document.id

    def test_deleting_twice_is_not_found(self, database: Database, queue: JobQueue, create: Create) -> None:
        document = create(FIRST).document
        delete_document(database, queue, document.id)
        with pytest.raises(NotFound):
            delete_document(database, queue, document.id)

    def test_a_deletion_and_a_publication_at_the_same_time_do_not_wait_for_each_other(
        self, database: Database, queue: JobQueue, create: Create
    ) -> None:
        for number in range(5):
            document = create(replace(FIRST, text=f"Lamp {number}.")).document
            claim, adapters = trained(database, queue)
            with ThreadPoolExecutor(2) as pool:
                published = pool.submit(publish_or_lose, database, queue, claim, adapters)
                pool.submit(delete_document, database, queue, document.id).result(10)
                published.result(10)
        assert rows(database, Document) == rows(database, Adapter, Adapter.state == AdapterState.LIVE) == 0


def publish(database: Database, queue: JobQueue) -> None:
    publication.publish(database, queue, *trained(database, queue))


def publish_or_lose(database: Database, queue: JobQueue, claim: Claim, adapters: Sequence[NewAdapter]) -> None:
    """The same, when the document may be deleted meanwhile."""
    try:
        publication.publish(database, queue, claim, adapters)
    except JobCancelled:
        queue.release_cancelled(claim)


def trained(database: Database, queue: JobQueue) -> tuple[Claim, list[NewAdapter]]:
    """The one job that waits, done but for its publication: the text is indexed, and there is an adapter."""
    claim = queue.claim("worker")
    assert claim is not None
    chunk_id = new_id("chunk")
    with database.write() as session:
        index_chunk(session, claim, chunk_id)
    adapter_id = new_id("ada")
    manifest = AdapterManifest(
        adapter_id=adapter_id,
        document_id=claim.document_id,
        revision=claim.revision,
        chunk=0,
        base_model="base",
        fingerprint="0",
        rank=8,
        alpha=16,
        sha256={},
        exam=EXAM,
        training={},
    )
    return claim, [NewAdapter(manifest, chunk_id, Stored(adapter_id, "0", 1))]


def index_chunk(session: Session, claim: Claim, chunk_id: str) -> None:
    place = {"document_id": claim.document_id, "revision": claim.revision, "start": 0, "end": 4}
    session.add(Chunk(id=chunk_id, ordinal=0, tokens=1, **place))
    session.flush()
    session.add(Window(chunk_id=chunk_id, embedder="test", embedding=b"", **place))
