"""What a job leaves on disk while it runs, so that after an interruption the next attempt goes on where it was.

It goes with a job that succeeds or is cancelled, and a day after one that failed or died, which may be retried.

HOME/jobs/<job id>/lesson-<start>-<end>.json     a chunk's examples: the writer is not asked again
HOME/jobs/<job id>/adapter-<start>-<end>.json    a chunk that is done: its adapter is in the store
HOME/jobs/<job id>/training.safetensors          the training under way, of a job that has run for five minutes

Every file appears whole or not at all, and says what it is of. One that is damaged or of something else is as if it
were not there; one that cannot be written costs time after an interruption, and nothing else.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sqlalchemy import select
from torch import Tensor

from loramem.database import Database
from loramem.durable import replace_durably, replacing
from loramem.errors import NotFound, StoredDataDamaged
from loramem.records import AdapterManifest, Record
from loramem.store import AdapterStore, Stored
from loramem.tables import Job
from loramem.transitions import is_resumable
from trainer_worker.examples import Asked, Example
from trainer_worker.loop import TrainingState

log = logging.getLogger(__name__)

FIRST_SAVE_S = 300.0
"""A job that has run for less is sooner done again than its training is worth saving."""
SAVE_EVERY_S = 60.0
TRAINING = "training.safetensors"


class KeptRecord(Record):
    about: str


class KeptLesson(KeptRecord):
    examples: list[Example]
    held_out: list[Example]


class KeptAdapter(KeptRecord):
    manifest: AdapterManifest
    stored: Stored
    asked: tuple[Asked, ...]


Kept = TypeVar("Kept", bound=KeptRecord)


def digest_of(*subjects: object) -> str:
    """sha256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(subjects, sort_keys=True).encode()).hexdigest()


class Checkpoint:
    """One job's, and the `Keeper` of its trainings, which follow one another.

    `about` is a digest of what lessons and adapters follow from beside the job's text (base model, options, settings):
    what was kept under another is ignored. `elapsed_s` gives the seconds that this attempt has run.
    """

    def __init__(self, folder: Path, store: AdapterStore, about: str, elapsed_s: Callable[[], float]) -> None:
        self.folder = folder
        self._store = store
        self._about = about
        self._elapsed_s = elapsed_s
        self._next_save_s = FIRST_SAVE_S

    # chunks, by where they begin and end in the text

    def lesson(self, start: int, end: int) -> tuple[list[Example], list[Example]] | None:
        """The chunk's examples and those held out, in their order; None when they are still to be made."""
        kept = self._record(f"lesson-{start}-{end}.json", KeptLesson)
        return (kept.examples, kept.held_out) if kept else None

    def keep_lesson(self, start: int, end: int, examples: Sequence[Example], held_out: Sequence[Example]) -> None:
        lesson = KeptLesson(about=self._about, examples=list(examples), held_out=list(held_out))
        self._keep_record(f"lesson-{start}-{end}.json", lesson)

    def adapter(self, start: int, end: int) -> tuple[AdapterManifest, Stored, tuple[Asked, ...]] | None:
        """The chunk's finished adapter, whose files the store has found intact, and what it was asked; None when it is
        still to be trained."""
        name = f"adapter-{start}-{end}.json"
        kept = self._record(name, KeptAdapter)
        if kept is None:
            return None
        try:
            self._store.verify(kept.manifest.adapter_id)
        except (OSError, NotFound, StoredDataDamaged) as error:
            log.warning("%s: %s; the adapter is trained again", self.folder / name, error)
            return None
        return kept.manifest, kept.stored, kept.asked

    def keep_adapter(
        self, start: int, end: int, manifest: AdapterManifest, stored: Stored, asked: tuple[Asked, ...]
    ) -> None:
        kept = KeptAdapter(about=self._about, manifest=manifest, stored=stored, asked=asked)
        self._keep_record(f"adapter-{start}-{end}.json", kept)

    def hand_on(self, job_id: str) -> None:
        """Leave everything to another job of the same revision; it has to make anew what cannot be moved."""
        try:
            (self.folder / TRAINING).unlink(missing_ok=True)  # of a training that has ended
            self.folder.rename(self.folder.with_name(job_id))
        except OSError as error:
            log.warning("%s cannot be handed on to %s: %s", self.folder, job_id, error)

    # the training under way

    def load(self) -> TrainingState | None:
        """The training that was under way, if it can be read; the next save is due a while after it."""
        path = self.folder / TRAINING
        if not path.exists():
            return None
        try:
            state, about = _read_state(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged and ignored: %s", path, error)
            return None
        if about != self._about:
            log.info("%s is of another base model or other options and ignored", path)
            return None
        self._next_save_s = self._elapsed_s() + SAVE_EVERY_S  # the job has run for long, if not in this attempt
        return state

    def due(self) -> bool:
        return self._elapsed_s() >= self._next_save_s

    def save(self, state: TrainingState) -> None:
        path = self.folder / TRAINING
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_state(path, state, self._about)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be written, the training goes on without: %s", path, error)
        self._next_save_s = self._elapsed_s() + SAVE_EVERY_S

    # files

    def _record(self, name: str, kind: type[Kept]) -> Kept | None:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            kept = kind.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("%s is damaged and ignored: %s", path, error)
            return None
        if kept.about != self._about:
            log.info("%s is of another base model or other options and ignored", path)
            return None
        return kept

    def _keep_record(self, name: str, record: KeptRecord) -> None:
        path = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_durably(path, record.model_dump_json().encode())
        except OSError as error:
            log.warning("%s cannot be written, the job goes on without: %s", path, error)


def remove_checkpoint(jobs: Path, job_id: str) -> None:
    """Remove what the job kept; no error when that is nothing."""
    folder = jobs / job_id
    if folder.is_dir():
        shutil.rmtree(folder)


def sweep_checkpoints(database: Database, jobs: Path) -> int:
    """Remove what was kept of jobs that nobody takes up again or knows; returns of how many."""
    kept = [entry.name for entry in jobs.iterdir() if entry.is_dir()] if jobs.is_dir() else []
    if not kept:
        return 0
    with database.read() as session:  # after listing: a job is in the table before it keeps anything
        resumable = set(session.scalars(select(Job.id).where(Job.id.in_(kept), is_resumable())))
    over = [job_id for job_id in kept if job_id not in resumable]
    for job_id in over:
        remove_checkpoint(jobs, job_id)
    return len(over)


def _write_state(path: Path, state: TrainingState, about: str) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
    text = {"about": about, "of": state.of, "scalars": json.dumps(state.scalars)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=text | {"sha256": _digest(tensors, text)})


def _read_state(path: Path) -> tuple[TrainingState, str]:
    """With what it is about. Raises `ValueError` for a digest that does not match, and what reading raises."""
    with safe_open(path, framework="pt") as file:
        text: dict[str, str] = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it has keys alone
    if text.pop("sha256", "") != _digest(tensors, text):
        raise ValueError("its sha256 is not that of its content")
    return TrainingState(text["of"], tensors, json.loads(text["scalars"])), text["about"]


def _digest(tensors: dict[str, Tensor], text: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(text, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().numpy().tobytes())
    return digest.hexdigest()
