"""Adapters on disk: whole or not there, checked, never a pickle."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loramem.errors import AdapterRejected, NotFound, StoredDataDamaged
from loramem.records import AdapterManifest
from loramem.store import CONFIG, MANIFEST, WEIGHTS, AdapterStore
from tests.disk import fill_the_disk
from tests.rows import EXAM

TENSORS = {"a.lora_A.weight": torch.ones(4, 8), "a.lora_B.weight": torch.zeros(8, 4, dtype=torch.bfloat16)}


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def write(folder: Path) -> None:
    (folder / CONFIG).write_text('{"r": 4}')
    save_file(TENSORS, folder / WEIGHTS)


def manifest_of(adapter_id: str) -> Callable[[dict[str, str]], AdapterManifest]:
    return lambda sha256: AdapterManifest(
        adapter_id=adapter_id,
        document_id="doc_1",
        revision=1,
        chunk=0,
        base_model="base",
        fingerprint="f",
        rank=4,
        alpha=8,
        sha256=sha256,
        exam=EXAM,
        training={"steps": 3},
    )


def test_a_stored_adapter_is_a_peft_folder_with_its_hashes(store: AdapterStore) -> None:
    stored = store.publish("adapter_1", write, manifest_of("adapter_1"))
    folder = store.path("adapter_1")
    assert {file.name for file in folder.iterdir()} == {CONFIG, WEIGHTS, MANIFEST}
    assert torch.equal(load_file(folder / WEIGHTS)["a.lora_A.weight"], torch.ones(4, 8))
    manifest = store.verify("adapter_1")
    assert manifest.sha256[WEIGHTS] == stored.sha256
    assert set(manifest.sha256) == {CONFIG, WEIGHTS}
    assert stored.path == "adapter_1"
    assert stored.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert store.ids() == ["adapter_1"]


def test_an_adapter_is_immutable(store: AdapterStore) -> None:
    store.publish("adapter_1", write, manifest_of("adapter_1"))
    with pytest.raises(FileExistsError):
        store.publish("adapter_1", write, manifest_of("adapter_1"))
    store.verify("adapter_1")


# what may not be stored


def write_bad_weights(tensors: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    def write_them(folder: Path) -> None:
        write(folder)
        save_file(tensors, folder / WEIGHTS)

    return write_them


def bad_value(dtype: torch.dtype, value: float) -> Callable[[Path], None]:
    tensor = torch.ones(5, 7, dtype=dtype)
    tensor[4, 6] = value
    return write_bad_weights({**TENSORS, "z": tensor})


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    def write_it(folder: Path) -> None:
        write(folder)
        (folder / name).write_bytes(content)

    return write_it


def linked(folder: Path) -> None:
    write(folder)
    (folder / "other.json").symlink_to("/etc/hostname")


def nested(folder: Path) -> None:
    write(folder)
    (folder / "more.json").mkdir()


def truncated(folder: Path) -> None:
    write(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-3])


REFUSED = {
    "bin": replaced("adapter_model.bin", pickle.dumps({"a": 1})),
    "pt": replaced("optimizer.pt", b""),
    "pkl": replaced("state.pkl", pickle.dumps(1)),
    "pickle under the right name": replaced(WEIGHTS, pickle.dumps({"a": 1})),
    "empty weights": replaced(WEIGHTS, b""),
    "truncated weights": truncated,
    "header longer than the file": replaced(WEIGHTS, (1 << 40).to_bytes(8, "little") + b"{}"),
    "no tensor": write_bad_weights({}),
    "integers": write_bad_weights({"a": torch.ones(3, dtype=torch.int8)}),
    "link": linked,
    "folder": nested,
    "no config": lambda folder: save_file(TENSORS, folder / WEIGHTS),
    "no weights": lambda folder: (folder / CONFIG).write_text("{}"),
    **{
        f"{value} in {dtype}": bad_value(dtype, value)
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
        for value in (float("nan"), float("inf"), float("-inf"))
    },
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_may_not_be_served_is_refused_and_stays_invisible(store: AdapterStore, reason: str) -> None:
    with pytest.raises(AdapterRejected):
        store.publish("adapter_1", REFUSED[reason], manifest_of("adapter_1"))
    assert store.ids() == []
    assert not store.path("adapter_1").exists()
    assert list((store.root / ".tmp").iterdir()) == []


@pytest.mark.parametrize("step", ["tests.loramem.test_store.save_file", "loramem.store.sync_file", "os.rename"])
def test_a_full_disk_is_told_and_gets_its_room_back(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(step, fill_the_disk)
        with pytest.raises(OSError, match="No space left"):
            store.publish("adapter_1", write, manifest_of("adapter_1"))
    assert list((store.root / ".tmp").iterdir()) == []
    store.publish("adapter_1", write, manifest_of("adapter_1"))
    store.verify("adapter_1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_greatest_finite_numbers_are_fine(store: AdapterStore, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    tensor = torch.tensor([limits.max, limits.min, limits.tiny, 0.0, -0.0], dtype=dtype)
    store.publish("adapter_1", write_bad_weights({"a": tensor}), manifest_of("adapter_1"))


@pytest.mark.parametrize("adapter_id", ["", "..", "a/b", "../secret", "A", "a" * 33, ".tmp", "a\n", "ä"])
def test_an_id_is_never_a_path(store: AdapterStore, adapter_id: str) -> None:
    with pytest.raises(NotFound):
        store.path(adapter_id)


# crashes


CRASH = """
import os, sys
from pathlib import Path
from loramem.store import AdapterStore
from tests.loramem.test_store import manifest_of, write
os.rename = lambda *paths: os._exit(9)
AdapterStore(Path(sys.argv[1])).publish("adapter_1", write, manifest_of("adapter_1"))
"""


def test_a_crash_before_the_rename_leaves_nothing_to_see(store: AdapterStore) -> None:
    crashed = subprocess.run([sys.executable, "-c", CRASH, str(store.root)], check=False)
    assert crashed.returncode == 9
    assert store.ids() == []
    assert (store.root / ".tmp" / "adapter_1" / MANIFEST).is_file(), "it was written as far as the rename"
    store.publish("adapter_1", write, manifest_of("adapter_1"))
    store.verify("adapter_1")


def test_left_overs_are_swept_once_they_are_old(store: AdapterStore) -> None:
    for name, age_s in (("old", 7200), ("new", 10)):
        (store.root / ".tmp" / name).mkdir(parents=True)
        then = time.time() - age_s
        os.utime(store.root / ".tmp" / name, (then, then))
    assert store.sweep_temporary(3600) == 1
    assert [entry.name for entry in (store.root / ".tmp").iterdir()] == ["new"]
    assert AdapterStore(store.root / "nowhere").sweep_temporary(0) == 0


# damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_found(store: AdapterStore) -> None:
    for number, name in enumerate((WEIGHTS, CONFIG)):
        store.publish(f"adapter_{number}", write, manifest_of(f"adapter_{number}"))
        flip(store.path(f"adapter_{number}") / name)
        with pytest.raises(StoredDataDamaged, match=name):
            store.verify(f"adapter_{number}")


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "foreign file", "file gone", "moved"])
def test_a_folder_that_is_not_its_manifest_is_damaged(store: AdapterStore, damage: str) -> None:
    store.publish("adapter_1", write, manifest_of("adapter_1"))
    folder = store.path("adapter_1")
    if damage == "no manifest":
        (folder / MANIFEST).unlink()
    elif damage == "half a manifest":
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:50])
    elif damage == "foreign file":
        (folder / "adapter_model.bin").write_bytes(b"")
    elif damage == "file gone":
        (folder / WEIGHTS).unlink()
    else:
        folder.rename(store.path("adapter_2"))
    with pytest.raises(StoredDataDamaged):
        store.verify("adapter_2" if damage == "moved" else "adapter_1")


# removal and download


def test_a_removed_adapter_is_gone_and_removing_it_again_is_fine(store: AdapterStore) -> None:
    store.publish("adapter_1", write, manifest_of("adapter_1"))
    store.remove("adapter_1")
    store.remove("adapter_1")
    assert store.ids() == []
    assert list((store.root / ".tmp").iterdir()) == []


def test_a_full_disk_does_not_keep_an_adapter_from_being_removed(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("adapter_1", write, manifest_of("adapter_1"))
    monkeypatch.setattr("os.mkdir", fill_the_disk)
    store.remove("adapter_1")
    assert store.ids() == []
    assert list((store.root / ".tmp").iterdir()) == []


def test_what_a_crash_left_of_a_removal_is_in_nobodys_way(store: AdapterStore) -> None:
    store.publish("adapter_1", write, manifest_of("adapter_1"))
    left = store.root / ".tmp" / "adapter_1"
    left.mkdir()
    write(left)
    store.remove("adapter_1")
    assert list((store.root / ".tmp").iterdir()) == []


def test_a_store_says_which_database_it_is_of(store: AdapterStore) -> None:
    assert store.owner == ""
    store.own("a" * 32)
    store.publish("adapter_1", write, manifest_of("adapter_1"))
    again = AdapterStore(store.root)
    assert (again.owner, again.ids()) == ("a" * 32, ["adapter_1"])
    again.own("b" * 32)
    assert store.owner == "b" * 32


def test_the_archive_is_the_folder_and_always_the_same_bytes(store: AdapterStore) -> None:
    store.publish("adapter_1", write, manifest_of("adapter_1"))
    first = b"".join(store.archive("adapter_1"))
    os.utime(store.path("adapter_1") / CONFIG, (1, 1))
    assert b"".join(store.archive("adapter_1")) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert archive.getnames() == [f"adapter_1/{name}" for name in (CONFIG, WEIGHTS, MANIFEST)]
        for name in (CONFIG, WEIGHTS, MANIFEST):
            member = archive.extractfile(f"adapter_1/{name}")
            assert member is not None
            assert member.read() == (store.path("adapter_1") / name).read_bytes()


def test_an_unknown_adapter_has_no_archive(store: AdapterStore) -> None:
    with pytest.raises(NotFound):
        store.archive("adapter_1")
