"""Asking for a preview: a job and what it needs, and nothing that a document would leave."""

from dataclasses import replace

from loramem.database import Database
from loramem.queue import JobQueue
from loramem.records import QAPair, TrainingOptions
from loramem.tables import Base, Installation, JobState, Preview
from server.upload import create_preview, delete_document
from tests.backends import database, database_url
from tests.server.test_upload import FIRST, NAMED, Bell, Create, bell, create, job_of, queue, rows

__all__ = ["bell", "create", "database", "database_url", "queue"]

PAIR = QAPair(question="Who?", answer="Zorv")
ASKED = replace(NAMED, namespace="elsewhere", qa=(PAIR,), training=TrainingOptions(formats=("qa",)))


def test_it_is_a_job_and_no_document(database: Database, queue: JobQueue, bell: Bell) -> None:
    job = create_preview(database, queue, ASKED)
    assert (job.kind, job.document_id, job.state) == ("preview", None, JobState.QUEUED)
    assert bell.rung == [(job.id, True)]
    tables = [mapper.class_ for mapper in Base.registry.mappers if mapper.class_ is not Installation]
    assert {table.__tablename__ for table in tables if rows(database, table)} == {"job", "job_event", "preview"}
    with database.read() as session:
        preview = session.get_one(Preview, job.id)
    assert (preview.title, preview.text, preview.examples) == ("The lamp of Zorv.", FIRST.text, None)
    assert [QAPair(**row) for row in preview.qa] == [PAIR]
    assert TrainingOptions(**preview.training) == ASKED.training


def test_the_same_content_is_uploaded_as_if_there_were_none(
    database: Database, queue: JobQueue, create: Create
) -> None:
    before = create_preview(database, queue, NAMED)
    accepted = create(NAMED)
    after = create_preview(database, queue, NAMED)
    assert accepted.created
    assert len({before.id, job_of(accepted).id, after.id}) == 3
    again = create(NAMED)
    assert (again.created, job_of(again).id) == (False, job_of(accepted).id)
    delete_document(database, queue, accepted.document.id)
    assert [queue.get(job.id).state for job in (before, after)] == ["queued", "queued"]
