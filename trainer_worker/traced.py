"""A job's trace: one span for the attempt and one for each of its phases, with a link to the upload."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span

from loramem import tracing
from loramem.queue import Claim
from loramem.records import Progress
from trainer_worker.lease import Observer


@contextmanager
def traced(claim: Claim) -> Iterator[Observer]:
    """Around one attempt; gives what is told of its progress."""
    about: dict[str, tracing.Value] = {
        "loramem.job.id": claim.job_id,
        "loramem.job.attempt": claim.attempts,
        "loramem.document.id": claim.document_id,
        "loramem.document.revision": claim.revision,
    }
    phases = _Phases()
    with tracing.span(f"job {claim.kind}", about, links=tracing.links_to(claim.traceparent), root=True):
        try:
            yield phases.tell
        finally:
            phases.end()


class _Phases:
    def __init__(self) -> None:
        self._phase = ""
        self._span: Span | None = None

    def tell(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self.end()
            self._phase, self._span = progress.phase, tracing.begin(progress.phase)

    def end(self) -> None:
        if self._span is not None:
            self._span.end()
            self._phase, self._span = "", None
