"""Publishing: all of a revision at once, by the one who holds the job, or nothing."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from loramem.database import Database, epoch_now, new_id
from loramem.doorbell import PollingDoorbell
from loramem.errors import JobCancelled, LeaseLost
from loramem.migrate import migrate
from loramem.queue import Claim, JobQueue
from loramem.records import AdapterManifest
from loramem.settings import Settings
from loramem.store import CONFIG, OWNER, WEIGHTS, AdapterStore
from loramem.tables import Adapter, Chunk, Document, Job, Namespace, Revision, Window
from loramem.vectors import VectorIndex
from tests.backends import database, database_url
from tests.rows import EXAM, FINGERPRINT, add_document, add_revision, delete_document
from trainer_worker import publish as publish_module
from trainer_worker import sweep
from trainer_worker.publish import NewAdapter, publish
from trainer_worker.sweep import sweep_retired, sweep_superseded

__all__ = ["database", "database_url"]

DIM = 4


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, PollingDoorbell(0.05), Settings())


@pytest.fixture
def store(tmp_path: Path, database: Database) -> AdapterStore:
    """As after the first upkeep of a worker."""
    store = AdapterStore(tmp_path / "adapters")
    assert sweep_retired(database, store, grace_s=0) == 0
    return store


Build = Callable[[int], tuple[Claim, list[NewAdapter]]]


@pytest.fixture
def build(queue: JobQueue, store: AdapterStore) -> Build:
    """A job of doc_1 as it is just before it publishes: text indexed, two adapters stored."""

    def up_to_publish(revision: int) -> tuple[Claim, list[NewAdapter]]:
        with queue.database.write() as session:
            queue.enqueue(session, "doc_1", revision)
        claim = queue.claim("worker")
        assert claim is not None
        with queue.database.write() as session:
            chunks = [add_chunk(session, revision, ordinal) for ordinal in range(2)]
        return claim, [stored(store, revision, ordinal, chunk) for ordinal, chunk in enumerate(chunks)]

    return up_to_publish


def add_chunk(session: Session, revision: int, ordinal: int) -> str:
    chunk_id = new_id("chunk")
    place = {"document_id": "doc_1", "revision": revision, "start": 0, "end": 4}
    session.add(Chunk(id=chunk_id, ordinal=ordinal, tokens=1, **place))
    session.flush()
    vector = np.eye(DIM, dtype="<f4")[ordinal].tobytes()
    session.add(Window(chunk_id=chunk_id, embedder="test", embedding=vector, **place))
    return chunk_id


def stored(store: AdapterStore, revision: int, ordinal: int, chunk_id: str) -> NewAdapter:
    adapter_id, manifests = new_id("ada"), []

    def write(folder: Path) -> None:
        (folder / CONFIG).write_text("{}")
        save_file({"a": torch.full((3,), float(revision))}, folder / WEIGHTS)

    def manifest_of(sha256: dict[str, str]) -> AdapterManifest:
        manifests.append(
            AdapterManifest(
                adapter_id=adapter_id,
                document_id="doc_1",
                revision=revision,
                chunk=ordinal,
                base_model="base",
                fingerprint=FINGERPRINT,
                rank=16,
                alpha=32,
                sha256=sha256,
                exam=EXAM,
                training={},
            )
        )
        return manifests[0]

    files = store.publish(adapter_id, write, manifest_of)
    return NewAdapter(manifests[0], chunk_id, files)


def seen(database: Database) -> dict[str, object]:
    """All that publishing changes."""
    with database.read() as session:
        document = session.scalars(select(Document)).one_or_none()
        adapters = session.scalars(select(Adapter).order_by(Adapter.id)).all()
        return {
            "document": document and (document.serving_revision, document.state),
            "adapters": sorted((adapter.revision, adapter.ordinal, adapter.state) for adapter in adapters),
            "revisions": session.scalars(select(Revision.state).order_by(Revision.number)).all(),
            "windows": set(session.scalars(select(Window.revision))),
            "chunks": set(session.scalars(select(Chunk.revision))),
            "generation": session.scalars(select(Namespace.generation)).one(),
            "jobs": session.scalars(select(Job.state).order_by(Job.revision)).all(),
        }


FIRST_LIVE = {
    "document": (1, "live"),
    "adapters": [(1, 0, "live"), (1, 1, "live")],
    "revisions": ["live"],
    "windows": {1},
    "chunks": {1},
    "generation": 1,
    "jobs": ["succeeded"],
}


def test_the_first_revision_goes_live(database: Database, queue: JobQueue, build: Build, store: AdapterStore) -> None:
    add_document(database, "doc_1", "text")
    claim, adapters = build(1)
    publish(database, queue, claim, adapters)
    assert seen(database) == FIRST_LIVE
    with database.read() as session:
        row = session.scalars(select(Adapter).where(Adapter.ordinal == 1)).one()
    assert (row.id, row.chunk_id) == (adapters[1].manifest.adapter_id, adapters[1].chunk_id)
    assert row.sha256 == store.verify(row.path).sha256[WEIGHTS]
    assert (row.namespace, row.rank, row.alpha, row.fingerprint) == ("default", 16, 32, FINGERPRINT)
    assert row.exam["recall"] == 0.75


def test_a_new_revision_replaces_the_old_in_one_step(
    database: Database, queue: JobQueue, build: Build, tmp_path: Path
) -> None:
    add_document(database, "doc_1", "text")
    publish(database, queue, *build(1))
    index = VectorIndex(database, dim=DIM, embedder_name="test", snapshot_dir=tmp_path)
    add_revision(database, "doc_1", "more")
    claim, adapters = build(2)
    question = np.eye(DIM, dtype=np.float32)[0]
    with index.view("default") as before:
        publish(database, queue, claim, adapters)
        assert {hit.revision for hit in before.search(question, 9)} == {1}
        assert set(before.session.scalars(select(Adapter.revision))) == {1}
    assert {hit.revision for hit in index.search("default", question, 9)} == {2}
    assert seen(database) == {
        "document": (2, "live"),
        "adapters": [(1, 0, "retired"), (1, 1, "retired"), (2, 0, "live"), (2, 1, "live")],
        "revisions": ["superseded", "live"],
        "windows": {2},
        "chunks": {2},
        "generation": 2,
        "jobs": ["succeeded", "succeeded"],
    }


def test_a_worker_that_lost_its_lease_publishes_nothing(database: Database, queue: JobQueue, build: Build) -> None:
    add_document(database, "doc_1", "text")
    claim, adapters = build(1)
    queue.postpone(claim, 0, "handed on")
    newer = queue.claim("another")
    before = seen(database)
    with pytest.raises(LeaseLost):
        publish(database, queue, claim, adapters)
    assert seen(database) == before
    assert newer is not None
    publish(database, queue, newer, adapters)
    assert seen(database) == FIRST_LIVE


def test_a_failure_at_the_last_step_leaves_everything_as_it_was(
    database: Database, queue: JobQueue, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_document(database, "doc_1", "text")
    publish(database, queue, *build(1))
    add_revision(database, "doc_1", "more")
    claim, adapters = build(2)
    before = seen(database)

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "show", fail)
        with pytest.raises(OSError, match="disk full"):
            publish(database, queue, claim, adapters)
    assert seen(database) == before
    publish(database, queue, claim, adapters)
    assert seen(database)["document"] == (2, "live")


@pytest.mark.parametrize("how", ["cancelled", "deleted", "overtaken"])
def test_a_job_that_nobody_wants_any_more_publishes_nothing(
    database: Database, queue: JobQueue, build: Build, how: str
) -> None:
    add_document(database, "doc_1", "text")
    claim, adapters = build(1)
    if how == "cancelled":
        queue.cancel(claim.job_id)
    elif how == "deleted":
        delete_document(database, "doc_1")
    else:
        add_revision(database, "doc_1", "more")
        publish(database, queue, *build(2))
    before = seen(database)
    with pytest.raises(JobCancelled):
        publish(database, queue, claim, adapters)
    assert seen(database) == before


# sweeping


def age(store: AdapterStore, adapters: list[NewAdapter], seconds: float) -> None:
    then = time.time() - seconds
    for adapter in adapters:
        os.utime(store.path(adapter.stored.path), (then, then))


def retire(database: Database, seconds_ago: float) -> None:
    with database.write() as session:
        session.execute(update(Adapter).values(state="retired", retired_at=epoch_now() - seconds_ago))


def test_retired_adapters_go_after_their_grace(
    database: Database, queue: JobQueue, build: Build, store: AdapterStore
) -> None:
    add_document(database, "doc_1", "text")
    claim, adapters = build(1)
    publish(database, queue, claim, adapters)
    assert sweep_retired(database, store, grace_s=600) == 0
    retire(database, seconds_ago=500)
    assert sweep_retired(database, store, grace_s=600) == 0
    assert len(store.ids()) == 2
    retire(database, seconds_ago=700)
    assert sweep_retired(database, store, grace_s=600) == 2
    assert store.ids() == []
    assert seen(database)["adapters"] == []


def publish_again(database: Database, queue: JobQueue, build: Build, seconds_ago: float) -> None:
    """doc_1 serves its revision 3; 2 was replaced before it was built."""
    add_document(database, "doc_1", "a secret")
    publish(database, queue, *build(1))
    for text in ("another secret", "more"):
        revision = add_revision(database, "doc_1", text)
    publish(database, queue, *build(revision))
    with database.write() as session:
        session.execute(update(Job).values(finished_at=epoch_now() - seconds_ago))


def texts(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Revision.text).order_by(Revision.number)))


def test_replaced_texts_go_after_their_grace(database: Database, queue: JobQueue, build: Build) -> None:
    publish_again(database, queue, build, seconds_ago=500)
    assert sweep_superseded(database, grace_s=600) == 0
    assert texts(database) == ["a secret", "another secret", "more"]
    assert sweep_superseded(database, grace_s=400) == 2
    assert texts(database) == ["more"]
    assert sweep_superseded(database, grace_s=400) == 0


def test_many_replaced_texts_go_some_at_a_time(
    database: Database, queue: JobQueue, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SUPERSEDED_AT_ONCE", 1)
    publish_again(database, queue, build, seconds_ago=500)
    assert [sweep_superseded(database, grace_s=0) for _ in range(3)] == [1, 1, 0]


def test_a_text_stays_as_long_as_the_one_to_replace_it_is_not_live(
    database: Database, queue: JobQueue, build: Build
) -> None:
    add_document(database, "doc_1", "text")
    publish(database, queue, *build(1))
    add_revision(database, "doc_1", "more")
    claim, _ = build(2)
    queue.cancel(claim.job_id)
    queue.release_cancelled(claim)
    assert sweep_superseded(database, grace_s=-60) == 0
    assert texts(database) == ["text", "more"]


def test_orphans_go_when_they_are_old_and_nobody_will_publish_them(
    database: Database, queue: JobQueue, build: Build, store: AdapterStore
) -> None:
    add_document(database, "doc_1", "text")
    claim, adapters = build(1)
    age(store, adapters, 7200)
    assert sweep_retired(database, store, grace_s=0) == 0, "a long job publishes its first adapter hours later"
    queue.cancel(claim.job_id)
    queue.release_cancelled(claim)
    age(store, adapters[:1], 60)
    assert sweep_retired(database, store, grace_s=0) == 1
    assert store.ids() == [adapters[0].stored.path]


def test_adapters_of_another_database_are_left_alone(
    database: Database,
    queue: JobQueue,
    build: Build,
    store: AdapterStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_document(database, "doc_1", "text")
    publish(database, queue, *(built := build(1)))
    age(store, built[1], 7200)
    another = Database(f"sqlite:///{tmp_path / 'another.db'}")
    migrate(another)
    assert sweep_retired(another, store, grace_s=0) == 0, "the worker was started with another LORAMEM_DATABASE_URL"
    (store.root / OWNER).unlink()
    assert sweep_retired(another, store, grace_s=0) == 0, "as a version left it that wrote no owner"
    assert caplog.text.count("adapters of another database") == 1
    another.close()
    assert len(store.ids()) == 2
    assert sweep_retired(database, store, grace_s=0) == 0
    assert store.owner, "whose rows name what is stored owns it"


def test_live_adapters_are_never_swept_and_damaged_orphans_are(
    database: Database, queue: JobQueue, build: Build, store: AdapterStore
) -> None:
    add_document(database, "doc_1", "text")
    claim, adapters = build(1)
    publish(database, queue, claim, adapters)
    age(store, adapters, 7200)
    damaged = store.path("damaged")
    damaged.mkdir()
    os.utime(damaged, (0, 0))
    assert sweep_retired(database, store, grace_s=0) == 1
    assert len(store.ids()) == 2


def test_what_cannot_be_removed_keeps_nothing_else_from_going(
    database: Database,
    queue: JobQueue,
    build: Build,
    store: AdapterStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_document(database, "doc_1", "text")
    claim, adapters = build(1)
    publish(database, queue, claim, adapters)
    retire(database, seconds_ago=700)
    orphans = [store.path(name) for name in ("lost_1", "lost_2")]
    for folder in orphans:
        folder.mkdir()
        os.utime(folder, (0, 0))
    stuck = {adapters[0].stored.path, "lost_1"}

    def remove(adapter_id: str) -> None:
        if adapter_id in stuck:
            raise PermissionError(f"{adapter_id} is not ours")
        AdapterStore.remove(store, adapter_id)

    with monkeypatch.context() as patch:
        patch.setattr(store, "remove", remove)
        assert sweep_retired(database, store, grace_s=600) == 2
    assert set(store.ids()) == stuck
    assert seen(database)["adapters"] == [(1, 0, "retired")], "whose files are there keeps its row"
    assert all(f"adapter {name} cannot be removed: {name} is not ours" in caplog.text for name in stuck)
    assert sweep_retired(database, store, grace_s=600) == 2
    assert (store.ids(), seen(database)["adapters"]) == ([], [])
