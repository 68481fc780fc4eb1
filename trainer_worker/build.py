"""The write flow, in order: chunk, index, then for some chunks at a time synthesize, train, examine; then publish.

When a step fails, `consume` has the job tried again, postponed or failed; no adapter is visible before `publish`, whose
one transaction makes all of the revision live. A first revision's text answers `rag` and `icl` from `index` on. A
preview ends after the first chunk's synthesize. Adapters that failed their exam serve all the same, and are mended by a
job of its own, when nobody waits for another.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from loramem.base_model import BaseModel
from loramem.chunk import Span, chunk_text
from loramem.database import Database, new_id
from loramem.embed import Embedder
from loramem.errors import JobCancelled, MakesWay, SettingsError
from loramem.queue import Claim, JobQueue
from loramem.records import AdapterManifest, ExamResult, Progress, QAPair, Remedy, TrainingOptions
from loramem.settings import Settings
from loramem.store import AdapterStore
from loramem.tables import Chunk, JobKind, Revision
from trainer_worker.adapter import Facts, TrainedAdapter
from trainer_worker.assign import assign_pairs, pairs_of
from trainer_worker.base import give_back, take_at_most
from trainer_worker.capacity import bits, least_rank, statements_of
from trainer_worker.checkpoint import Checkpoint, digest_of
from trainer_worker.examine import examine
from trainer_worker.examples import Example, asked_of
from trainer_worker.index import index_questions, index_text
from trainer_worker.ladder import next_remedy, possible_remedies
from trainer_worker.lease import Lease
from trainer_worker.mend import improved
from trainer_worker.preview import requested, store_examples
from trainer_worker.progress import INDEXED_PERCENT, PUBLISHED_PERCENT, ChunkProgress, OnPhase
from trainer_worker.publish import NewAdapter, live_adapters, note_exam, publish, republish
from trainer_worker.study import Assignment, Attempt, Memory, Pairs, Published, Study
from trainer_worker.synthesize import more, split_exam, synthesize
from trainer_worker.train import Lesson, Trainer
from trainer_worker.writer import Writer

log = logging.getLogger(__name__)

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
    observe: Callable[[Facts, ExamResult], None] = lambda facts, exam: None
    """Told of every adapter that was trained and examined; for metrics."""

    @cached_property
    def trainer(self) -> Trainer:
        share = self.settings.trainer_gpu_share
        take_at_most(share)
        try:
            return Trainer(
                str(self.base.path),
                seed=self.settings.seed,
                base_name=self.base.name,
                cache=self.settings.cache_path / f"anchors-{self.base.fingerprint[:16]}",
            )
        except torch.OutOfMemoryError as error:
            raise SettingsError(
                f"loramem: {self.base.name} does not fit into {share:.0%} of the GPU: raise "
                "LORAMEM_TRAINER_GPU_MEMORY_FRACTION, or lower LORAMEM_GPU_MEMORY_FRACTION"
            ) from error

    def work(self, claim: Claim, lease: Lease) -> None:
        """Do the claim's job, by its kind. Raises what its steps raise; the job is then not ended."""
        try:
            {JobKind.BUILD: self.build, JobKind.MEND: self.mend, JobKind.PREVIEW: self.preview}[JobKind(claim.kind)](
                claim, lease
            )
        finally:
            give_back()

    def build(self, claim: Claim, lease: Lease) -> None:
        """Turn the claim's revision into live adapters."""
        job = self._assignment(claim, lease)
        lease.progress(Progress(phase="chunk"))
        spans = self._spans(job)
        chunks = self._index(
            job,
            spans,
            lambda done, total: lease.progress(
                Progress(phase="index", step=done, total_steps=total, percent=INDEXED_PERCENT * done / total)
            ),
        )
        kept = len(job.done(spans))
        pairs = job.pairs_over(spans)
        memories: list[Memory] = []
        for first in range(0, len(spans), SIDE_BY_SIDE):
            some = spans[first : first + SIDE_BY_SIDE]
            progress = ChunkProgress(lease, first, len(some), len(spans), kept)
            memories += self._remember(job, {span: pairs[span] for span in some}, len(memories), progress)
        adapters = list[NewAdapter]()
        for memory, chunk in zip(memories, chunks, strict=True):
            done = {"step": len(adapters), "total_steps": len(memories), "percent": PUBLISHED_PERCENT}
            lease.progress(Progress(phase="publish", **done))
            adapters.append(self._new_adapter(memory, chunk.id))
        mend = job.options.mend and any(
            self.remedy(job, memory.span, memory.manifest.rank, memory.manifest.exam) for memory in memories
        )
        mending = publish(self.database, self.queue, claim, adapters, mend=mend)
        if mending is not None:
            job.checkpoint.hand_on(mending)
            self.queue.announce(mending)

    def mend(self, claim: Claim, lease: Lease) -> None:
        """Train the weak adapters of a live revision again, and put what is better in their place, one by one."""
        job = self._assignment(claim, lease)
        live = live_adapters(self.database, claim)
        if any(one.fingerprint != self.base.fingerprint for one in live):
            raise JobCancelled(f"document {claim.document_id} has adapters of another base model")
        weak = [one for one in live if self.remedy(job, one.span, one.rank, one.exam)]
        pairs = job.pairs_over([one.span for one in live]) if weak else {}
        for done, one in enumerate(weak):
            place = next(place for place, other in enumerate(live) if other.adapter_id == one.adapter_id)
            progress = ChunkProgress(lease, done, 1, len(weak), before_step=self._make_way)
            mended = self._mended(job, one, pairs[one.span], place, progress)
            if isinstance(mended, Published):
                note_exam(self.database, claim, mended)
            else:
                self._replace(job, live, place, mended, progress)
                live = live_adapters(self.database, claim)
            lease.kept()
        with self.database.write() as session:
            self.queue.succeed(session, claim)

    def preview(self, claim: Claim, lease: Lease) -> None:
        """Write the examples that the first chunk would be trained on, and go no further."""
        lease.progress(Progress(phase="chunk"))
        wanted = requested(self.database, claim)
        texts = [wanted.text[span.start : span.end] for span in self._chunk(wanted.text)]
        examples = self._examples(
            wanted.title,
            texts[:1],
            assign_pairs(pairs_of(wanted.qa), texts)[0],
            TrainingOptions.model_validate(wanted.training),
            lambda phase, done, total, loss: lease.progress(
                Progress(phase=phase, step=done, total_steps=total, percent=round(100 * done / total, 1))
            ),
        )
        store_examples(self.database, self.queue, claim, examples)

    # the text

    def _assignment(self, claim: Claim, lease: Lease) -> Assignment:
        with self.database.read() as session:
            revision = session.get(Revision, (claim.document_id, claim.revision))
        if revision is None:
            raise JobCancelled(f"document {claim.document_id} was deleted")
        options = TrainingOptions.model_validate(revision.training)
        settings = self.settings
        about = digest_of(
            self.base.fingerprint, options.model_dump(), settings.rank, settings.seed, settings.writer_model
        )
        folder = settings.jobs_path / claim.job_id
        return Assignment(claim, revision, options, Checkpoint(folder, self.store, about, lambda: lease.elapsed_s))

    def _chunk(self, text: str) -> list[Span]:
        return chunk_text(
            text,
            str(self.base.path / "tokenizer.json"),
            max_tokens=self.settings.chunk_tokens,
            overlap_tokens=self.settings.chunk_overlap_tokens,
        )

    def _spans(self, job: Assignment) -> list[Span]:
        """What each adapter is of: chunks, or the whole text."""
        spans = self._chunk(job.revision.text)
        if job.options.per == "chunk":
            return spans
        return [Span(0, len(job.revision.text), sum(span.tokens for span in spans))]

    def _index(
        self,
        job: Assignment,
        spans: Sequence[Span],
        step: Callable[[int, int], None],
        also: Callable[[Session, Sequence[Chunk]], None] = lambda session, chunks: None,
    ) -> list[Chunk]:
        return index_text(
            self.database,
            job.claim,
            self.embedder,
            job.revision,
            spans,
            window_tokens=self.settings.window_tokens,
            step=step,
            also=also,
        )

    # some chunks

    def _remember(self, job: Assignment, pairs: Pairs, ordinal: int, progress: ChunkProgress) -> list[Memory]:
        """Synthesize one by one, train side by side, examine, store; in the order of the text, as `pairs` are.

        What an earlier attempt of the job did is not done again, but for chunks that stand beside one not yet done:
        these are trained again, as they were, because the state of a training is of all of them together.
        """
        done = job.done(pairs)
        if len(done) == len(pairs):
            return done
        studies = [self.study(job, span, pairs[span], progress.part(place)) for place, span in enumerate(pairs)]
        if job.options.rank == "auto":
            rank = max(study.rank for study in studies)
            studies = [replace(study, rank=rank) for study in studies]
        memories = self._stored(job, self.attempts(job, studies, progress), ordinal)
        if len(job.done(pairs)) == len(pairs):  # what could not be kept is done again, and is no way to get further
            progress.kept()
        return memories

    def _stored(self, job: Assignment, attempts: Sequence[Attempt], ordinal: int) -> list[Memory]:
        return [
            self._store(job, attempt.study, attempt.adapter, attempt.result, ordinal + place)
            for place, attempt in enumerate(attempts)
            if attempt.adapter is not None
        ]

    def study(
        self, job: Assignment, span: Span, pairs: Sequence[QAPair], on_phase: OnPhase, tried: tuple[Remedy, ...] = ()
    ) -> Study:
        kept = job.checkpoint.lesson(span.start, span.end)
        if kept is None:
            examples = self._examples(job.revision.title, self._pieces(job, span), pairs, job.options, on_phase)
            kept = split_exam(examples, seed=self.settings.seed)
            job.checkpoint.keep_lesson(span.start, span.end, *kept)
        return Study(span, pairs, *kept, self._rank(job, kept[0]), tried)

    def _examples(
        self, title: str, texts: Sequence[str], pairs: Sequence[QAPair], options: TrainingOptions, on_phase: OnPhase
    ) -> list[Example]:
        examples: list[Example] = []
        for number, text in enumerate(texts):
            written = synthesize(
                title,
                text,
                self.writer,
                formats=options.formats,
                seed=self.settings.seed,
                on_progress=partial(_part, on_phase, number, len(texts)),
            )
            examples += [replace(one, source=(text,)) for one in written] if options.distil else written
        return [*examples, *(Example(pair.question, pair.answer, "user") for pair in pairs)]

    def _rank(self, job: Assignment, examples: Sequence[Example]) -> int:
        wanted = job.options.rank or self.settings.rank
        if wanted != "auto":
            return wanted
        most = self.settings.max_lora_rank // job.options.published_rank(1)
        return min(most, least_rank(bits(self.trainer, statements_of(self.trainer, examples))))

    # training, and training again what failed its exam

    def _mended(
        self, job: Assignment, one: Published, pairs: Sequence[QAPair], place: int, progress: ChunkProgress
    ) -> Published | list[Memory]:
        """What comes in the place of a weak adapter: a better one or those of its parts, or itself."""
        study = self.study(job, one.span, pairs, progress.part(0))
        study = replace(study, rank=one.rank // job.options.published_rank(1), tried=one.exam.tried)
        found = improved(self, job, Attempt(study, None, one.exam), progress)
        if found[0].adapter is None:
            return replace(one, exam=found[0].result)
        return self._stored(job, found, place)

    def _replace(
        self, job: Assignment, live: Sequence[Published], place: int, by: Sequence[Memory], progress: ChunkProgress
    ) -> None:
        spans = [
            *(one.span for one in live[:place]),
            *(new.span for new in by),
            *(one.span for one in live[place + 1 :]),
        ]
        new = [self._new_adapter(memory) for memory in by]
        adapters: list[Published | NewAdapter] = [*live[:place], *new, *live[place + 1 :]]
        self._index(
            job,
            spans,
            progress.publishing,
            also=lambda session, chunks: republish(session, job.claim, chunks, adapters),
        )

    def _make_way(self) -> None:
        try:
            wanted = self.queue.is_wanted_elsewhere(waiting_s=2 * self.settings.poll_s)
        except SQLAlchemyError as error:  # the database is away for a while: asked again at the next step
            log.warning("whether another job waits is not known: %s", error)
            return
        if wanted:
            raise MakesWay("another job is waiting; the mending begins again when there is none")

    def attempts(self, job: Assignment, studies: Sequence[Study], progress: ChunkProgress) -> list[Attempt]:
        """Train studies of one rank side by side, then examine each."""
        trainer = self.trainer
        trainer.hyperparameters = job.hyperparameters
        adapters = trainer.train_in_room(
            [Lesson(study.examples, study.held_out) for study in studies],
            rank=studies[0].rank,
            max_seconds=sum(self._seconds(job, study) for study in studies),
            on_step=lambda done, total, loss: progress.step("train", done, total, loss),
            on_taught=lambda done, total: progress.step("synthesize", done, total),
            keep=job.checkpoint,
        )
        attempts = []
        for place, (study, adapter) in enumerate(zip(studies, adapters, strict=True)):
            exam = examine(
                trainer,
                adapter,
                study.held_out,
                learnt=study.examples,
                unrelated=trainer.unrelated,
                on_progress=partial(_examining, progress, place, len(studies)),
            )
            self.observe(adapter.facts, exam)
            attempts.append(Attempt(study, adapter, exam))
        return attempts

    def remedy(self, job: Assignment, span: Span, rank: int, exam: ExamResult) -> Remedy | None:
        """What to try next on an adapter of this published rank; None when it passed or nothing is left."""
        possible = possible_remedies(job.options, span.tokens, rank, most_rank=self.settings.max_lora_rank)
        return next_remedy(exam, exam.tried, possible=possible)

    def with_more(self, job: Assignment, study: Study, progress: ChunkProgress) -> Study:
        """With questions in other words than those that it has."""
        known, added = [*study.examples, *study.held_out], list[Example]()
        for text in self._pieces(job, study.span):
            found = more(
                job.revision.title,
                text,
                self.writer,
                [*known, *added],
                seed=self.settings.seed,
                on_progress=lambda done, total: progress.step("synthesize", done, total),
            )
            added += [replace(one, source=(text,)) for one in found] if job.options.distil else found
        return replace(study, examples=[*study.examples, *added])

    def _pieces(self, job: Assignment, span: Span) -> list[str]:
        """Texts short enough to be written about at once: the chunk, or those of a document that gets one adapter."""
        if job.options.per == "chunk":
            return [job.text(span)]
        return [job.text(piece) for piece in self._chunk(job.revision.text)]

    def _seconds(self, job: Assignment, study: Study) -> float:
        return job.options.max_seconds or len(self._pieces(job, study.span)) * self.settings.train_max_s

    def _store(self, job: Assignment, study: Study, adapter: TrainedAdapter, exam: ExamResult, ordinal: int) -> Memory:
        adapter_id, span = new_id("ada"), study.span
        manifest = AdapterManifest(
            adapter_id=adapter_id,
            document_id=job.claim.document_id,
            revision=job.claim.revision,
            chunk=ordinal,
            base_model=self.base.name,
            fingerprint=self.base.fingerprint,
            rank=adapter.rank,
            alpha=adapter.alpha,
            sha256={},
            exam=exam,
            training=adapter.facts,
        )
        sealed = partial(_sealed, manifest)
        asked = asked_of(study.examples, study.held_out)
        memory = Memory(span, sealed({}), self.store.publish(adapter_id, adapter.save, sealed), asked)
        job.checkpoint.keep_adapter(span.start, span.end, memory.manifest, memory.stored, asked)
        return memory

    def _new_adapter(self, memory: Memory, chunk_id: str = "") -> NewAdapter:
        questions = index_questions(self.embedder, memory.manifest.adapter_id, memory.asked)
        return NewAdapter(memory.manifest, chunk_id, memory.stored, questions)


def _sealed(manifest: AdapterManifest, digests: dict[str, str]) -> AdapterManifest:
    return manifest.model_copy(update={"sha256": digests})


def _examining(progress: ChunkProgress, place: int, of: int, done: int, total: int) -> None:
    progress.step("examine", place * total + done, of * total)


def _part(on_phase: OnPhase, number: int, of: int, done: int, total: int) -> None:
    """Writing for one text of several, as if each took as long."""
    on_phase("synthesize", number * total + done, of * total, None)
