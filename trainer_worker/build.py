"""The write flow, in order: chunk, index, then for some chunks at a time synthesize, train, examine; then publish.

What happens when a step fails is `consume`'s: nothing that a step leaves behind is visible before `publish`, whose one
transaction makes all adapters of the revision live. A preview ends after the first chunk's synthesize. Adapters that
failed their exam serve all the same, and are mended by a job of its own, when nobody waits for another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count

from sqlalchemy.orm import Session

from loramem.base_model import BaseModel
from loramem.chunk import Span, chunk_text
from loramem.database import Database, new_id
from loramem.embed import Embedder
from loramem.errors import JobCancelled, MakesWay
from loramem.queue import Claim, JobQueue
from loramem.records import AdapterManifest, ExamResult, Progress, QAPair, Remedy, TrainingOptions
from loramem.settings import Settings
from loramem.store import AdapterStore
from loramem.tables import Chunk, JobKind, Revision
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.assign import assign_pairs
from trainer_worker.capacity import bits, least_rank, next_rank, statements_of
from trainer_worker.checkpoint import Checkpoint, digest_of
from trainer_worker.examine import examine
from trainer_worker.index import index_text
from trainer_worker.ladder import better, next_remedy
from trainer_worker.lease import Lease
from trainer_worker.preview import requested, store_examples
from trainer_worker.progress import INDEXED_PERCENT, PUBLISHED_PERCENT, Batch, Step
from trainer_worker.publish import NewAdapter, live_adapters, note_exams, publish, republish
from trainer_worker.study import Assignment, Attempt, Memory, Published, Study
from trainer_worker.synthesize import Example, more, split_exam, synthesize
from trainer_worker.train import Lesson, Recipe, Trainer
from trainer_worker.writer import Writer

SIDE_BY_SIDE = 4
"""Chunks whose adapters are trained at once."""
SMALLEST_HALF = 64
"""Tokens; a chunk that would be cut into less stays whole."""


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
        {JobKind.BUILD: self.build, JobKind.MEND: self.mend, JobKind.PREVIEW: self.preview}[JobKind(claim.kind)](
            claim, lease
        )

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
        kept = sum(job.kept.adapter(span.start, span.end) is not None for span in spans)
        memories: list[Memory] = []
        for first in range(0, len(spans), SIDE_BY_SIDE):
            some = spans[first : first + SIDE_BY_SIDE]
            batch = Batch(lease, first, len(some), len(spans), kept)
            memories += self._remember(job, some, len(memories), batch)
        lease.progress(Progress(phase="publish", percent=PUBLISHED_PERCENT))
        adapters = [
            NewAdapter(memory.manifest, chunk.id, memory.stored) for memory, chunk in zip(memories, chunks, strict=True)
        ]
        weak = any(self._remedy(job, memory.span, memory.manifest.rank, memory.manifest.exam) for memory in memories)
        mending = publish(self.database, self.queue, claim, adapters, mend=weak)
        if mending is not None:
            job.kept.hand_on(mending)
            self.queue.announce(mending)

    def mend(self, claim: Claim, lease: Lease) -> None:
        """Train the weak adapters of a live revision again, and put what is better in their place."""
        job = self._assignment(claim, lease)
        live = live_adapters(self.database, claim)
        weak = [one for one in live if self._remedy(job, one.span, one.rank, one.exam)]
        spans, adapters = list[Span](), list[Published | NewAdapter]()
        for one in live:
            mended: Sequence[Published | Memory] = [one]
            if one in weak:
                batch = Batch(lease, weak.index(one), 1, len(weak), before_step=self._make_way)
                mended = self._mended(job, one, len(spans), batch)
            spans += [part.span for part in mended]
            adapters += [_new(part) if isinstance(part, Memory) else part for part in mended]
        lease.progress(Progress(phase="publish", percent=PUBLISHED_PERCENT))
        kept = [adapter for adapter in adapters if isinstance(adapter, Published)]
        if len(kept) == len(adapters):
            note_exams(self.database, self.queue, claim, kept)
            return
        self._index(
            job,
            spans,
            lambda done, total: lease.check(),
            also=lambda session, chunks: republish(session, self.queue, claim, chunks, adapters),
        )

    def preview(self, claim: Claim, lease: Lease) -> None:
        """Write the examples that the first chunk would be trained on, and go no further."""
        lease.progress(Progress(phase="chunk"))
        wanted = requested(self.database, claim)
        texts = [wanted.text[span.start : span.end] for span in self._chunk(wanted.text)]
        examples = self._examples(
            wanted.title,
            texts[:1],
            assign_pairs(_pairs(wanted.qa), texts)[0],
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

    def _remember(self, job: Assignment, spans: Sequence[Span], ordinal: int, batch: Batch) -> list[Memory]:
        """Synthesize one by one, train side by side, examine, store; in the order of the text.

        What an earlier attempt of the job did is not done again, but for chunks that stand beside one not yet done:
        these are trained again, as they were, because the state of a training is of all of them together.
        """
        kept = [job.kept.adapter(span.start, span.end) for span in spans]
        done = [Memory(span, *found) for span, found in zip(spans, kept, strict=True) if found is not None]
        if len(done) == len(spans):
            return done
        pairs = self._pairs_of(job)
        studies = [self._study(job, span, pairs[span], batch.part(place)) for place, span in enumerate(spans)]
        if job.options.rank == "auto":
            rank = max(study.rank for study in studies)
            studies = [replace(study, rank=rank) for study in studies]
        numbers = count(ordinal)
        return [
            self._store(job, attempt.study.span, attempt.adapter, attempt.result, next(numbers))
            for attempt in self._attempts(job, studies, batch)
            if attempt.adapter is not None
        ]

    def _pairs_of(self, job: Assignment) -> dict[Span, list[QAPair]]:
        spans = self._spans(job)
        found = assign_pairs(_pairs(job.revision.qa), [job.text(span) for span in spans])
        return dict(zip(spans, found, strict=True))

    def _study(
        self, job: Assignment, span: Span, pairs: Sequence[QAPair], step: Step, tried: tuple[Remedy, ...] = ()
    ) -> Study:
        kept = job.kept.lesson(span.start, span.end)
        if kept is None:
            pieces = [job.text(span)]
            if job.options.per == "document":
                pieces = [job.text(piece) for piece in self._chunk(job.revision.text)]
            examples = self._examples(job.revision.title, pieces, pairs, job.options, step)
            kept = split_exam(examples, seed=self.settings.seed)
            job.kept.keep_lesson(span.start, span.end, *kept)
        return Study(span, pairs, *kept, self._rank(job, kept[0]), tried)

    def _examples(
        self, title: str, texts: Sequence[str], pairs: Sequence[QAPair], options: TrainingOptions, step: Step
    ) -> list[Example]:
        examples: list[Example] = []
        for number, text in enumerate(texts):
            written = synthesize(
                title,
                text,
                self.writer,
                formats=options.formats,
                seed=self.settings.seed,
                on_progress=partial(_part, step, number, len(texts)),
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

    def _mended(self, job: Assignment, one: Published, ordinal: int, batch: Batch) -> Sequence[Published | Memory]:
        """What comes in the place of a weak adapter: itself, a better one, or two of its parts."""
        study = replace(self._study(job, one.span, self._pairs_of(job).get(one.span, []), batch.part(0)), rank=one.rank)
        study = replace(study, rank=one.rank // job.options.published_rank(1), tried=one.exam.tried)
        numbers = count(ordinal)
        found: list[Published | Memory] = []
        for attempt in self._improved(job, Attempt(study, None, one.exam), batch):
            if attempt.adapter is None:
                found.append(replace(one, exam=attempt.result))
            else:
                found.append(self._store(job, attempt.study.span, attempt.adapter, attempt.result, next(numbers)))
        return found

    def _make_way(self) -> None:
        if self.queue.is_wanted_elsewhere():
            raise MakesWay("another job is waiting; the mending begins again when there is none")

    def _learnt(self, job: Assignment, studies: Sequence[Study], batch: Batch) -> list[Attempt]:
        """Each as good as the remedies make it; what was split comes back as its parts."""
        return [best for attempt in self._attempts(job, studies, batch) for best in self._improved(job, attempt, batch)]

    def _attempts(self, job: Assignment, studies: Sequence[Study], batch: Batch) -> list[Attempt]:
        """Train studies of one rank side by side, then examine each."""
        trainer = self.trainer
        trainer.recipe = self._recipe(job)
        adapters = trainer.train_all(
            [Lesson(study.examples, study.held_out) for study in studies],
            rank=studies[0].rank,
            max_seconds=sum(self._seconds(job, study) for study in studies),
            on_step=lambda done, total, loss: batch.step("train", done, total, loss),
            keep=job.kept,
        )
        attempts = []
        for place, (study, adapter) in enumerate(zip(studies, adapters, strict=True)):
            batch.step("examine", place, len(studies))
            exam = examine(trainer, adapter, study.held_out, learnt=study.examples, unrelated=trainer.unrelated)
            attempts.append(Attempt(study, adapter, exam))
        return attempts

    def _improved(self, job: Assignment, attempt: Attempt, batch: Batch) -> list[Attempt]:
        """The attempt itself if it passed, or else the best of it and of what the remedies give."""
        study = attempt.study
        remedy = self._remedy(job, study.span, job.options.published_rank(study.rank), attempt.result)
        if remedy is None:
            return [attempt]
        batch.note = f"recall {attempt.exam.recall:.2f}: {NOTES[remedy]}"
        if remedy == "split":
            return self._learnt(job, self._halves(job, attempt.study, batch), batch)
        study = self._changed(job, attempt.study, remedy, batch)
        failed = replace(attempt, study=replace(attempt.study, tried=study.tried))
        if replace(study, tried=()) == replace(attempt.study, tried=()):  # the writer had nothing to add
            return self._improved(job, failed, batch)
        (again,) = self._attempts(job, [study], batch)
        return self._improved(job, again if better(again.exam, attempt.exam) else failed, batch)

    def _remedy(self, job: Assignment, span: Span, rank: int, exam: ExamResult) -> Remedy | None:
        """What to try next on an adapter of this published rank; None when it passed or nothing is left."""
        asked = {item.rstrip("0123456789") for item in job.options.formats}
        possible: dict[Remedy, bool] = {
            "data": "qa" in asked,
            "rank": job.options.rank in (None, "auto") and next_rank(rank, self.settings.max_lora_rank) is not None,
            "split": job.options.per == "chunk" and span.tokens >= 2 * SMALLEST_HALF,
        }
        return next_remedy(exam, exam.tried, possible=[remedy for remedy, can in possible.items() if can])

    def _changed(self, job: Assignment, study: Study, remedy: Remedy, batch: Batch) -> Study:
        if remedy == "rank":
            return replace(study.after(remedy), rank=2 * study.rank)
        known = [*study.examples, *study.held_out]
        text = job.text(study.span)
        added = more(
            job.revision.title,
            text,
            self.writer,
            known,
            seed=self.settings.seed,
            on_progress=lambda done, total: batch.step("synthesize", done, total),
        )
        if job.options.distil:
            added = [replace(one, source=(text,)) for one in added]
        return replace(study.after(remedy), examples=[*study.examples, *added])

    def _halves(self, job: Assignment, study: Study, batch: Batch) -> list[Study]:
        text, begin = job.text(study.span), study.span.start
        most = study.span.tokens // 2 + SMALLEST_HALF // 2
        cut = chunk_text(text, str(self.base.path / "tokenizer.json"), max_tokens=most, overlap_tokens=0)
        pairs = assign_pairs(study.pairs, [text[part.start : part.end] for part in cut])
        tried = study.after("split").tried
        return [
            replace(
                self._study(job, Span(begin + part.start, begin + part.end, part.tokens), own, batch.part(0), tried),
                rank=study.rank,
            )
            for part, own in zip(cut, pairs, strict=True)
        ]

    def _recipe(self, job: Assignment) -> Recipe:
        options = job.options
        return Recipe(
            placement=options.placement, variant=options.variant, freeze_a=options.freeze_a, distil=options.distil
        )

    def _seconds(self, job: Assignment, study: Study) -> float:
        pieces = 1 if job.options.per == "chunk" else len(self._chunk(job.revision.text))
        return job.options.max_seconds or pieces * self.settings.train_max_s

    def _store(self, job: Assignment, span: Span, adapter: TrainedAdapter, exam: ExamResult, ordinal: int) -> Memory:
        adapter_id = new_id("ada")
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
        memory = Memory(span, sealed({}), self.store.publish(adapter_id, adapter.save, sealed))
        job.kept.keep_adapter(span.start, span.end, memory.manifest, memory.stored)
        return memory


NOTES: dict[Remedy, str] = {"data": "more questions", "rank": "a greater rank", "split": "in two parts"}
"""What a job says while it mends an adapter."""


def _new(memory: Memory) -> NewAdapter:
    return NewAdapter(memory.manifest, "", memory.stored)  # its chunk is found when all are known


def _sealed(manifest: AdapterManifest, digests: dict[str, str]) -> AdapterManifest:
    return manifest.model_copy(update={"sha256": digests})


def _pairs(rows: Sequence[object]) -> list[QAPair]:
    return [QAPair.model_validate(row) for row in rows]


def _part(step: Step, number: int, of: int, done: int, total: int) -> None:
    """Writing for one text of several, as if each took as long."""
    step("synthesize", number * total + done, of * total, None)
