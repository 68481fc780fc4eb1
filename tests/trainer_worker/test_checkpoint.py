"""What survives an interruption: lessons, finished adapters, and a training under way."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loramem.database import Database, new_id
from loramem.doorbell import PollingDoorbell
from loramem.errors import LoramemError
from loramem.queue import Claim, JobQueue
from loramem.records import AdapterManifest
from loramem.settings import Settings
from loramem.store import CONFIG, WEIGHTS, AdapterStore, Stored
from loramem.tables import Job
from tests.backends import database, database_url
from tests.manifests import manifest
from tests.rows import EXAM, FINGERPRINT, add_document, delete_document
from tests.trainer_worker.tiny import LESSONS
from trainer_worker.checkpoint import (
    FIRST_SAVE_S,
    SAVE_EVERY_S,
    TRAINING,
    Checkpoint,
    digest_of,
    remove_checkpoint,
    sweep_checkpoints,
)
from trainer_worker.examples import Asked
from trainer_worker.loop import TrainingState

__all__ = ["database", "database_url"]

ABOUT = digest_of(FINGERPRINT, {"rank": 8})
LESSON = (LESSONS[1:], LESSONS[:1])


class Clock:
    """Seconds of an attempt, as a test sets them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_again(tmp_path: Path, store: AdapterStore, clock: Clock) -> Callable[..., Checkpoint]:
    def checkpoint(about: str = ABOUT) -> Checkpoint:
        return Checkpoint(tmp_path / "jobs" / "job_1", store, about, clock)

    return checkpoint


@pytest.fixture
def checkpoint(open_again: Callable[..., Checkpoint]) -> Checkpoint:
    return open_again()


def state(value: float = 1.0) -> TrainingState:
    tensors = {"master.0": torch.full((2, 3), value), "optimizer.0.step": torch.tensor(4.0)}
    return TrainingState("these lessons", tensors, {"step": 4, "best": [float("inf"), 0.1], "rng": [3, [1, 2], None]})


def stored(store: AdapterStore) -> tuple[AdapterManifest, Stored]:
    unsealed = manifest(new_id("ada"), FINGERPRINT, rank=8, exam=EXAM, training={"loss": 0.1})

    def write(folder: Path) -> None:
        (folder / CONFIG).write_text("{}")
        save_file({"a": torch.ones(3)}, folder / WEIGHTS)

    sealed = store.publish(unsealed.adapter_id, write, lambda sha256: unsealed.model_copy(update={"sha256": sha256}))
    return unsealed, sealed


class TestLessons:
    def test_come_back_as_they_were(self, checkpoint: Checkpoint, open_again: Callable[..., Checkpoint]) -> None:
        assert checkpoint.lesson(0, 90) is None
        checkpoint.keep_lesson(0, 90, *LESSON)
        assert open_again().lesson(0, 90) == LESSON
        assert open_again().lesson(0, 80) is None

    def test_made_under_other_options_are_ignored(
        self, checkpoint: Checkpoint, open_again: Callable[..., Checkpoint]
    ) -> None:
        checkpoint.keep_lesson(0, 90, *LESSON)
        assert open_again(digest_of(FINGERPRINT, {"rank": 16})).lesson(0, 90) is None

    def test_a_half_written_file_is_ignored(self, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
        checkpoint.keep_lesson(0, 90, *LESSON)
        [file] = checkpoint.folder.iterdir()
        file.write_bytes(file.read_bytes()[:-9])
        assert checkpoint.lesson(0, 90) is None
        assert "damaged" in caplog.text

    def test_a_full_disk_does_not_fail_the_job(self, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
        checkpoint.folder.parent.write_text("a file where the folder should be")
        checkpoint.keep_lesson(0, 90, *LESSON)
        checkpoint.save(state())
        assert checkpoint.lesson(0, 90) is None
        assert caplog.text.count("cannot be written") == 2


class TestAdapters:
    def test_come_back_as_they_were(
        self, store: AdapterStore, checkpoint: Checkpoint, open_again: Callable[..., Checkpoint]
    ) -> None:
        asked = (Asked("Who mends the mill?", "The smith."), Asked("Who keeps it?", "The smith.", held_out=True))
        finished = (*stored(store), asked)
        assert checkpoint.adapter(0, 90) is None
        checkpoint.keep_adapter(0, 90, *finished)
        assert open_again().adapter(0, 90) == finished
        assert open_again(digest_of("another base")).adapter(0, 90) is None

    @pytest.mark.parametrize("harm", ["gone", "damaged"])
    def test_whose_files_are_not_intact_are_trained_again(
        self, store: AdapterStore, checkpoint: Checkpoint, harm: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        manifest, files = stored(store)
        checkpoint.keep_adapter(0, 90, manifest, files, ())
        if harm == "gone":
            store.remove(manifest.adapter_id)
        else:
            (store.path(manifest.adapter_id) / WEIGHTS).write_bytes(b"something else")
        assert checkpoint.adapter(0, 90) is None
        assert "trained again" in caplog.text


class TestTraining:
    def test_comes_back_as_it_was(self, checkpoint: Checkpoint, open_again: Callable[..., Checkpoint]) -> None:
        assert checkpoint.load() is None
        checkpoint.save(state(1.0))
        checkpoint.save(state(2.0))
        found, wanted = open_again().load(), state(2.0)
        assert found is not None
        assert (found.of, found.scalars) == (wanted.of, wanted.scalars)
        assert found.tensors.keys() == wanted.tensors.keys()
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in wanted.tensors.items())
        assert [file.name for file in checkpoint.folder.iterdir()] == [TRAINING]

    def test_is_due_after_five_minutes_and_then_every_minute(self, checkpoint: Checkpoint, clock: Clock) -> None:
        clock.now_s = FIRST_SAVE_S - 1
        assert not checkpoint.due()
        clock.now_s = FIRST_SAVE_S
        assert checkpoint.due()
        checkpoint.save(state())
        clock.now_s += SAVE_EVERY_S - 1
        assert not checkpoint.due()
        clock.now_s += 1
        assert checkpoint.due()

    def test_of_a_resumed_job_is_due_every_minute_at_once(
        self, checkpoint: Checkpoint, open_again: Callable[..., Checkpoint], clock: Clock
    ) -> None:
        checkpoint.save(state())
        resumed = open_again()
        resumed.load()
        assert not resumed.due()
        clock.now_s = SAVE_EVERY_S
        assert resumed.due()

    @pytest.mark.parametrize("left", [0, 4, 100, -1])
    def test_a_half_written_file_is_ignored(
        self, checkpoint: Checkpoint, left: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        checkpoint.save(state())
        file = checkpoint.folder / TRAINING
        file.write_bytes(file.read_bytes()[:left])
        assert checkpoint.load() is None
        assert "damaged" in caplog.text

    def test_a_number_that_changed_on_disk_is_found(self, checkpoint: Checkpoint) -> None:
        checkpoint.save(state())
        file = checkpoint.folder / TRAINING
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        assert checkpoint.load() is None

    def test_a_crash_while_writing_leaves_the_one_before(
        self, checkpoint: Checkpoint, open_again: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Crash(BaseException):
            pass

        def crash(*arguments: object) -> None:
            raise Crash

        checkpoint.save(state(1.0))
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", crash)
            with pytest.raises(Crash):
                checkpoint.save(state(2.0))
        found = open_again().load()
        assert found is not None
        assert torch.equal(found.tensors["master.0"], state(1.0).tensors["master.0"])

    def test_a_disk_that_gets_full_while_writing_keeps_no_part(
        self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fills_the_disk(tensors: object, path: Path, **options: object) -> None:
            path.write_bytes(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device")

        checkpoint.save(state(1.0))
        monkeypatch.setattr("trainer_worker.checkpoint.save_file", fills_the_disk)
        checkpoint.save(state(2.0))
        assert [file.name for file in checkpoint.folder.iterdir()] == [TRAINING]
        assert checkpoint.load() is not None
        assert "No space left on device" in caplog.text

    def test_of_another_base_is_ignored(self, checkpoint: Checkpoint, open_again: Callable[..., Checkpoint]) -> None:
        checkpoint.save(state())
        assert open_again(digest_of("another base")).load() is None


class TestSweeping:
    def test_takes_what_is_over_or_unknown(self, database: Database, tmp_path: Path) -> None:
        queue = JobQueue(database, PollingDoorbell(0.05), Settings())
        add_document(database, "doc_1")
        cancelled = add(queue)
        queue.cancel(cancelled)
        failed, old, handed_back, running, waiting = (add(queue) for _ in range(5))
        for job_id in (failed, old):
            queue.fail(claimed(queue, job_id), LoramemError("bad"), retryable=False)
        with database.write() as session:
            session.get_one(Job, old).finished_at = 0
        queue.postpone(claimed(queue, handed_back), 60, "the worker is stopping")
        claimed(queue, running)
        jobs = tmp_path / "jobs"
        for name in (cancelled, failed, old, handed_back, running, waiting, "job_unknown"):
            (jobs / name).mkdir(parents=True)
            (jobs / name / TRAINING).touch()
        assert sweep_checkpoints(database, jobs) == 3
        assert {entry.name for entry in jobs.iterdir()} == {failed, handed_back, running, waiting}
        delete_document(database, "doc_1")
        assert sweep_checkpoints(database, jobs) == 1, "what can be retried no more"

    def test_is_content_without_a_folder(self, database: Database, tmp_path: Path) -> None:
        assert sweep_checkpoints(database, tmp_path / "jobs") == 0

    def test_a_job_that_kept_nothing_is_removed_in_peace(self, checkpoint: Checkpoint) -> None:
        jobs = checkpoint.folder.parent
        remove_checkpoint(jobs, "job_1")
        checkpoint.keep_lesson(0, 90, *LESSON)
        remove_checkpoint(jobs, "job_1")
        assert not list(jobs.iterdir())


def add(queue: JobQueue) -> str:
    with queue.database.write() as session:
        return queue.enqueue(session, "doc_1", 1).id


def claimed(queue: JobQueue, job_id: str) -> Claim:
    claim = queue.claim("w")
    assert claim is not None
    assert claim.job_id == job_id
    return claim
