"""Weak adapters trained again, up the ladder of remedies. A result is kept if it does better in the same exam."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from loramem.chunk import Span, chunk_text
from loramem.errors import TrainingFailed
from loramem.records import QAPair, Remedy
from trainer_worker.assign import assign_pairs
from trainer_worker.examples import MAX_QUESTIONS, Example
from trainer_worker.ladder import NOTES, SMALLEST_HALF, better, pooled
from trainer_worker.progress import ChunkProgress
from trainer_worker.study import Assignment, Attempt, Retrainer, Study

log = logging.getLogger(__name__)


def improved(retrainer: Retrainer, job: Assignment, attempt: Attempt, progress: ChunkProgress) -> list[Attempt]:
    """The attempt itself if it passed, or else the best of it and of what the remedies give."""
    study = attempt.study
    remedy = retrainer.remedy(job, study.span, job.options.published_rank(study.rank), attempt.result)
    if remedy is None:
        return [attempt]
    progress.note = f"recall {attempt.exam.recall:.2f}: {NOTES[remedy]}"
    failed = replace(attempt, study=study.after(remedy))
    try:
        studies = _remedied(retrainer, job, study, remedy, progress)
        again = retrainer.attempts(job, studies, progress) if studies else []
    except TrainingFailed as error:
        log.info("job %s: %s did not help: %s", job.claim.job_id, NOTES[remedy], error)
        again = []
    won = again and better(pooled([one.exam for one in again]), attempt.exam)
    return [best for one in (again if won else [failed]) for best in improved(retrainer, job, one, progress)]


def _remedied(
    retrainer: Retrainer, job: Assignment, study: Study, remedy: Remedy, progress: ChunkProgress
) -> list[Study]:
    """What to train in place of the study; nothing where the remedy leaves it as it was."""
    match remedy:
        case "data":
            richer = retrainer.with_more(job, study.after(remedy), progress)
            return [richer] if richer.examples != study.examples else []
        case "rank":
            return [replace(study.after(remedy), rank=2 * study.rank)]
        case "split":
            return _halves(retrainer, job, study, progress)


def _halves(retrainer: Retrainer, job: Assignment, study: Study, progress: ChunkProgress) -> list[Study]:
    """Two studies or more, each of a part of the text; they share out the questions that the whole was asked."""
    text, begin = job.text(study.span), study.span.start
    most = study.span.tokens // 2 + SMALLEST_HALF // 2
    cut = chunk_text(text, str(retrainer.base.path / "tokenizer.json"), max_tokens=most, overlap_tokens=0)
    parts = [text[part.start : part.end] for part in cut]
    pairs, asked = assign_pairs(study.pairs, parts), assign_pairs(list(map(_pair, study.held_out)), parts)
    tried = study.after("split").tried
    own = [
        retrainer.study(job, Span(begin + part.start, begin + part.end, part.tokens), mine, progress.part(0), tried)
        for part, mine in zip(cut, pairs, strict=True)
    ]
    return [
        replace(_examined_with(half, study.held_out, mine), rank=study.rank)
        for half, mine in zip(own, asked, strict=True)
    ]


def _examined_with(half: Study, held_out: Sequence[Example], mine: Sequence[QAPair]) -> Study:
    """In place of an exam of its own: those `mine` of what the whole was examined with, none of which it is taught."""
    held_out = held_out[:MAX_QUESTIONS]
    out, exam = set(map(_told, held_out)), set(map(_told, mine))
    return replace(
        half,
        examples=[one for one in (*half.examples, *half.held_out) if _told(one) not in out],
        held_out=[one for one in held_out if _told(one) in exam],
    )


def _pair(example: Example) -> QAPair:
    return QAPair(question=example.question, answer=example.answer)


def _told(one: Example | QAPair) -> tuple[str, str]:
    return one.question, one.answer
