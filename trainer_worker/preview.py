"""What a preview's job reads and what it leaves."""

from collections.abc import Sequence

from loramem.database import Database
from loramem.queue import JobQueue
from loramem.records import PreviewExample
from loramem.tables import Preview
from loramem.transitions import Claim
from trainer_worker.examples import Example


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


def _shown(example: Example) -> PreviewExample:
    return PreviewExample(question=example.question, answer=example.answer, kind=example.kind)
