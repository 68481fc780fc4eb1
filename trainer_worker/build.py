"""The write flow, in order: chunk, index, then for some chunks at a time synthesize, train, examine; then publish.

What happens when a step fails is `consume`'s: nothing that a step leaves behind is visible before `publish`, whose one
transaction makes all adapters of the revision live. A preview ends after the first chunk's synthesize.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from loramem.base_model import BaseModel
from loramem.chunk import Span, chunk_text
from loramem.database import Database, new_id
from loramem.embed import Embedder
from loramem.errors import JobCancelled
from loramem.queue import Claim, JobQueue
from loramem.records import AdapterManifest, ExamResult, Phase, Progress, QAPair, TrainingOptions
from loramem.settings import Settings
from loramem.store import AdapterStore
from loramem.tables import Chunk, JobKind, Revision
from trainer_worker.assign import assign_pairs
from trainer_worker.examine import examine
from trainer_worker.index import index_text
from trainer_worker.lease import Lease
from trainer_worker.preview import requested, store_examples
from trainer_worker.publish import NewAdapter, publish
from trainer_worker.synthesize import Example, split_exam, synthesize
from trainer_worker.train import Lesson, TrainedAdapter, Trainer
from trainer_worker.writer import Writer

Step = Callable[[Phase, int, int, float | None], None]
"""(phase, step, total steps, loss): says where the job is, and raises when it must stop."""

SHARES: dict[Phase, tuple[float, float]] = {
    "synthesize": (0.0, 0.35),
    "train": (0.35, 0.90),
    "examine": (0.90, 1.0),
}
"""From where to where each phase brings one chunk."""
INDEXED_PERCENT = 3.0
PUBLISHED_PERCENT = 99.0
SIDE_BY_SIDE = 4
"""Chunks whose adapters are trained at once."""


@dataclass(frozen=True)
class Builder:
    """The steps of the write flow, wired once per worker; the base model stays warm between jobs."""

    settings: Settings
    base: BaseModel
    database: Database
    queue: JobQueue
    store: AdapterStore
    embedder: Embedder
    writer: Writer

    @cached_property
    def trainer(self) -> Trainer:
        return Trainer(str(self.base.path), seed=self.settings.seed, base_name=self.base.name)

    def work(self, claim: Claim, lease: Lease) -> None:
        """Do the claim's job, by its kind. Raises what its steps raise; the job is then not ended."""
        (self.preview if claim.kind == JobKind.PREVIEW else self.build)(claim, lease)

    def build(self, claim: Claim, lease: Lease) -> None:
        """Turn the claim's revision into live adapters."""
        revision = self._revision(claim)
        lease.progress(Progress(phase="chunk"))
        spans = self._chunk(revision.text)
        chunks = index_text(
            self.database,
            claim,
            self.embedder,
            revision,
            spans,
            window_tokens=self.settings.window_tokens,
            step=lambda done, total: lease.progress(
                Progress(phase="index", step=done, total_steps=total, percent=INDEXED_PERCENT * done / total)
            ),
        )
        pairs = assign_pairs(_pairs(revision.qa), [revision.text[chunk.start : chunk.end] for chunk in chunks])
        adapters = [
            adapter
            for some in _batched(chunks, SIDE_BY_SIDE)
            for adapter in self._remember(claim, revision, some, pairs, _steps(lease, some, len(chunks)))
        ]
        lease.progress(Progress(phase="publish", percent=PUBLISHED_PERCENT))
        publish(self.database, self.queue, claim, adapters)

    def preview(self, claim: Claim, lease: Lease) -> None:
        """Write the examples that the first chunk would be trained on, and go no further."""
        lease.progress(Progress(phase="chunk"))
        wanted = requested(self.database, claim)
        texts = [wanted.text[span.start : span.end] for span in self._chunk(wanted.text)]
        examples = self._examples(
            wanted.title,
            texts[0],
            assign_pairs(_pairs(wanted.qa), texts)[0],
            TrainingOptions.model_validate(wanted.training),
            lambda phase, done, total, loss: lease.progress(
                Progress(phase=phase, step=done, total_steps=total, percent=round(100 * done / total, 1))
            ),
        )
        store_examples(self.database, self.queue, claim, examples)

    def _revision(self, claim: Claim) -> Revision:
        with self.database.read() as session:
            revision = session.get(Revision, (claim.document_id, claim.revision))
        if revision is None:
            raise JobCancelled(f"document {claim.document_id} was deleted")
        return revision

    def _chunk(self, text: str) -> list[Span]:
        return chunk_text(
            text,
            str(self.base.path / "tokenizer.json"),
            max_tokens=self.settings.chunk_tokens,
            overlap_tokens=self.settings.chunk_overlap_tokens,
        )

    def _remember(
        self, claim: Claim, revision: Revision, chunks: Sequence[Chunk], pairs: Sequence[Sequence[QAPair]], step: Step
    ) -> list[NewAdapter]:
        """Some chunks: synthesize one by one, train side by side, examine, store."""
        options = TrainingOptions.model_validate(revision.training)
        lessons = [
            self._lesson(revision, chunk, pairs[chunk.ordinal], options, _part(step, index, len(chunks)))
            for index, chunk in enumerate(chunks)
        ]
        adapters = self.trainer.train_all(
            lessons,
            rank=options.rank or self.settings.rank,
            max_seconds=len(chunks) * (options.max_seconds or self.settings.train_max_s),
            on_step=lambda done, total, loss: step("train", done, total, loss),
        )
        stored = []
        for index, (chunk, lesson, adapter) in enumerate(zip(chunks, lessons, adapters, strict=True)):
            step("examine", index, len(chunks), None)
            stored.append(self._store(claim, chunk, adapter, examine(self.trainer, adapter, lesson.held_out)))
        return stored

    def _lesson(
        self, revision: Revision, chunk: Chunk, pairs: Sequence[QAPair], options: TrainingOptions, step: Step
    ) -> Lesson:
        text = revision.text[chunk.start : chunk.end]
        examples = self._examples(revision.title, text, pairs, options, step)
        return Lesson(*split_exam(examples, seed=self.settings.seed))

    def _examples(
        self, title: str, text: str, pairs: Sequence[QAPair], options: TrainingOptions, step: Step
    ) -> list[Example]:
        written = synthesize(
            title,
            text,
            self.writer,
            formats=options.formats,
            seed=self.settings.seed,
            on_progress=lambda done, total: step("synthesize", done, total, None),
        )
        return [*written, *(Example(pair.question, pair.answer, "user") for pair in pairs)]

    def _store(self, claim: Claim, chunk: Chunk, adapter: TrainedAdapter, exam: ExamResult) -> NewAdapter:
        adapter_id = new_id("ada")
        manifest = AdapterManifest(
            adapter_id=adapter_id,
            document_id=claim.document_id,
            revision=claim.revision,
            chunk=chunk.ordinal,
            base_model=self.base.name,
            fingerprint=self.base.fingerprint,
            rank=adapter.rank,
            alpha=adapter.alpha,
            sha256={},
            exam=exam,
            training=adapter.facts,
        )
        sealed = partial(_sealed, manifest)
        stored = self.store.publish(adapter_id, adapter.save, sealed)
        return NewAdapter(sealed({}), chunk.id, stored)


def _sealed(manifest: AdapterManifest, digests: dict[str, str]) -> AdapterManifest:
    return manifest.model_copy(update={"sha256": digests})


def _batched(chunks: Sequence[Chunk], most: int) -> list[Sequence[Chunk]]:
    return [chunks[start : start + most] for start in range(0, len(chunks), most)]


def _pairs(rows: Sequence[object]) -> list[QAPair]:
    return [QAPair.model_validate(row) for row in rows]


def _steps(lease: Lease, chunks: Sequence[Chunk], of: int) -> Step:
    """Progress of some chunks as percent of the whole job."""
    share = (PUBLISHED_PERCENT - INDEXED_PERCENT) / of
    first, last = chunks[0].ordinal + 1, chunks[-1].ordinal + 1

    def step(phase: Phase, done: int, total: int, loss: float | None) -> None:
        begin, end = SHARES[phase]
        within = begin + (end - begin) * (done / total if total else 0.0)
        percent = INDEXED_PERCENT + share * (first - 1 + len(chunks) * within)
        lease.progress(
            Progress(
                phase=phase,
                step=done,
                total_steps=total,
                percent=round(percent, 1),
                loss=loss,
                eta_s=round(lease.elapsed_s * (100 - percent) / percent, 1),
                message=f"chunk {first} of {of}" if first == last else f"chunks {first} to {last} of {of}",
            )
        )

    return step


def _part(step: Step, index: int, count: int) -> Step:
    """Progress of the chunk at `index` within that of all `count`, as if each took as long."""
    return lambda phase, done, total, loss: step(phase, index * total + done, count * total, loss)
