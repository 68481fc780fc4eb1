"""What is learnt of a stretch of text, and what came of it: the values that the steps of a build hand on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from loramem.base_model import BaseModel
from loramem.chunk import Span
from loramem.queue import Claim
from loramem.records import AdapterManifest, ExamResult, QAPair, Remedy, TrainingOptions
from loramem.store import Stored
from loramem.tables import Revision
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.assign import assign_pairs, pairs_of
from trainer_worker.checkpoint import Checkpoint
from trainer_worker.examples import Asked, Example
from trainer_worker.loop import Hyperparameters
from trainer_worker.progress import ChunkProgress, OnPhase

Pairs = Mapping[Span, Sequence[QAPair]]
"""The user's own questions, by the stretch of the text that each is about."""


@dataclass(frozen=True)
class Assignment:
    """A claimed job: its text, what was asked for, and what an earlier attempt left."""

    claim: Claim
    revision: Revision
    options: TrainingOptions
    checkpoint: Checkpoint

    def text(self, span: Span) -> str:
        return self.revision.text[span.start : span.end]

    def pairs_over(self, spans: Sequence[Span]) -> Pairs:
        """Each pair goes to one of `spans`. Reads all of the text: call it once."""
        found = assign_pairs(pairs_of(self.revision.qa), [self.text(span) for span in spans])
        return dict(zip(spans, found, strict=True))

    def done(self, spans: Iterable[Span]) -> list["Memory"]:
        """What the checkpoint has of these, in their order."""
        kept = [(span, self.checkpoint.adapter(span.start, span.end)) for span in spans]
        return [Memory(span, *found) for span, found in kept if found is not None]

    @property
    def hyperparameters(self) -> Hyperparameters:
        asked = self.options
        return Hyperparameters(
            placement=asked.placement, variant=asked.variant, freeze_a=asked.freeze_a, distil=asked.distil
        )


@dataclass(frozen=True)
class Study:
    """A stretch of the text, to become one adapter of this rank; `pairs` are the user's own questions about it."""

    span: Span
    pairs: Sequence[QAPair]
    examples: Sequence[Example]
    held_out: Sequence[Example]
    rank: int
    tried: tuple[Remedy, ...] = ()

    def after(self, remedy: Remedy) -> "Study":
        return replace(self, tried=(*self.tried, remedy))


@dataclass(frozen=True)
class Attempt:
    """A study, and the adapter that came of it; None for one that is published already."""

    study: Study
    adapter: TrainedAdapter | None
    exam: ExamResult

    @property
    def result(self) -> ExamResult:
        return self.exam.model_copy(update={"tried": self.study.tried})


@dataclass(frozen=True)
class Published:
    """A live adapter, and the stretch of text that it is of."""

    adapter_id: str
    span: Span
    rank: int
    fingerprint: str
    exam: ExamResult


@dataclass(frozen=True)
class Memory:
    """An adapter in the store, of a stretch of the text, and what it was asked."""

    span: Span
    manifest: AdapterManifest
    stored: Stored
    asked: tuple[Asked, ...]


class Retrainer(Protocol):
    """The steps of a build that a weak adapter goes through again; see `build.Builder`."""

    @property
    def base(self) -> BaseModel: ...

    def remedy(self, job: Assignment, span: Span, rank: int, exam: ExamResult) -> Remedy | None: ...

    def study(
        self, job: Assignment, span: Span, pairs: Sequence[QAPair], on_phase: OnPhase, tried: tuple[Remedy, ...] = ()
    ) -> Study: ...

    def with_more(self, job: Assignment, study: Study, progress: ChunkProgress) -> Study: ...

    def attempts(self, job: Assignment, studies: Sequence[Study], progress: ChunkProgress) -> list[Attempt]: ...
