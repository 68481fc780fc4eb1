"""What a claimed job may still change, asked inside the transaction that changes it."""

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from loramem.database import epoch_now
from loramem.errors import JobCancelled
from loramem.tables import Document, Namespace
from loramem.transitions import Claim


def document_of(session: Session, claim: Claim) -> Document:
    """The claim's document, locked.

    Raises `JobCancelled` when it was deleted meanwhile, or already serves a revision newer than the claim's.
    """
    document = session.scalar(select(Document).where(Document.id == claim.document_id).with_for_update())
    if document is None:
        raise JobCancelled(f"document {claim.document_id} was deleted")
    if document.serving_revision is not None and document.serving_revision > claim.revision:
        raise JobCancelled(f"document {document.id} serves revision {document.serving_revision} already")
    return document


def show(session: Session, document: Document) -> None:
    """Let queries see the change: the namespace's generation grows, and every cache of it is out of date."""
    session.execute(Namespace.changed(document.namespace))
    session.execute(update(Document).where(Document.id == document.id).values(updated_at=epoch_now()))
