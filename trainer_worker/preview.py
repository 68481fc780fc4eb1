"""What a preview's job reads, what it leaves, and when that goes."""

from collections.abc import Sequence

from sqlalchemy import delete, select

from loramem.database import Database, epoch_now
from loramem.queue import JobQueue
from loramem.records import PreviewExample
from loramem.tables import Job, JobKind, Preview
from loramem.transitions import Claim
from trainer_worker.examples import Example

KEEP_S = 86_400.0
"""A day to look at it."""


def requested(database: Database, claim: Claim) -> Preview:
    """The text to preview, its title, pairs and options."""
    with database.read() as session:
        return session.get_one(Preview, claim.job_id)


def store_examples(database: Database, queue: JobQueue, claim: Claim, examples: Sequence[Example]) -> None:
    """End the job with these, in one transaction; nobody needs the text any more, so it goes.

    Raises `LeaseLost`, and `JobCancelled` when a user asked to cancel; nothing is stored then.
    """
    with database.write() as session:
        queue.succeed(session, claim)
        preview = session.get_one(Preview, claim.job_id)
        preview.examples = [_shown(example).model_dump() for example in examples]
        preview.text = ""


def sweep_previews(database: Database, keep_s: float = KEEP_S) -> int:
    """Remove previews that ended more than `keep_s` seconds ago, job, events and all. Returns how many."""
    ended = (Job.kind == JobKind.PREVIEW, Job.finished_at < epoch_now() - keep_s)
    with database.read() as session:  # an idle worker does not take SQLite's write lock
        if session.scalar(select(Job.id).where(*ended).limit(1)) is None:
            return 0
    with database.write() as session:
        return len(session.scalars(delete(Job).where(*ended).returning(Job.id)).all())


def _shown(example: Example) -> PreviewExample:
    return PreviewExample(question=example.question, answer=example.answer, kind=example.kind)
