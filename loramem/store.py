"""Adapters on disk: immutable folders that appear whole or not at all.

root/<adapter id>/adapter_config.json, adapter_model.safetensors    a plain PEFT folder
root/<adapter id>/ties_mask.safetensors                             see `loramem.trim`; older adapters have none
root/<adapter id>/loramem.json                                      `AdapterManifest` with the sha256 of each file
root/.database                                                      which database they are of
root/.models/<base model>/commit                                    see `loramem.base_model`
root/.tmp/<adapter id>/                                             being written or being removed; nobody reads it
"""

import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from loramem.durable import replace_durably, sha256_of, sync_file, sync_folder
from loramem.errors import AdapterRejected, NotFound, StoredDataDamaged
from loramem.records import AdapterManifest
from loramem.weights import check_weights

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "loramem.json"
OWNER = ".database"
ALLOWED_SUFFIXES = (".json", ".safetensors", ".md")  # nothing that a reader would have to unpickle
BLOCK = 1 << 20
_ID = re.compile(r"[a-z0-9_]{1,32}")


@dataclass(frozen=True)
class Stored:
    """What the adapter's row keeps: `path` is relative to the store's root, `sha256` is of the weights."""

    path: str
    sha256: str
    size_bytes: int


class AdapterStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary = root / ".tmp"

    def publish(
        self,
        adapter_id: str,
        write: Callable[[Path], None],
        manifest_of: Callable[[dict[str, str]], AdapterManifest],
    ) -> Stored:
        """Store what `write` leaves in the folder it is given; `manifest_of` gets the sha256 of each file by name.

        Raises `AdapterRejected` for anything but a readable safetensors adapter of finite numbers, and
        `FileExistsError` for an id that is taken: a new revision is a new id.
        """
        final = self.path(adapter_id)
        if final.exists():
            raise FileExistsError(f"adapter {adapter_id} is stored already and immutable")
        folder = self._empty_temporary(adapter_id)
        try:
            write(folder)
            stored = _complete(folder, adapter_id, manifest_of)
            os.rename(folder, final)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the room now
            raise
        sync_folder(self.root)
        return stored

    def verify(self, adapter_id: str) -> AdapterManifest:
        """The manifest, after recomputing every hash in it; raises `StoredDataDamaged`."""
        folder = self.path(adapter_id)
        manifest = self.manifest(adapter_id)
        present = {file.name for file in folder.iterdir()} - {MANIFEST}
        if present != set(manifest.sha256) or manifest.adapter_id != adapter_id:
            raise StoredDataDamaged(f"adapter {adapter_id}: its files are not those of its manifest")
        for name, digest in manifest.sha256.items():
            if sha256_of(folder / name) != digest:
                raise StoredDataDamaged(f"adapter {adapter_id}: the sha256 of {name} is not that of its manifest")
        return manifest

    def manifest(self, adapter_id: str) -> AdapterManifest:
        """The manifest as it stands, hashes not recomputed; raises `StoredDataDamaged`."""
        try:
            return AdapterManifest.model_validate_json((self.path(adapter_id) / MANIFEST).read_bytes())
        except (OSError, ValidationError) as error:
            raise StoredDataDamaged(f"adapter {adapter_id}: {MANIFEST} is missing or unreadable") from error

    def path(self, adapter_id: str) -> Path:
        """Where the adapter is or would be; raises `NotFound` for what cannot be an id, such as a path."""
        if not _ID.fullmatch(adapter_id):
            raise NotFound("adapter", adapter_id)
        return self.root / adapter_id

    @property
    def owner(self) -> str:
        """Id of the database that this folder's adapters are of; empty where none has said so yet."""
        try:
            return (self.root / OWNER).read_text().strip()
        except FileNotFoundError:
            return ""

    def own(self, database_id: str) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        replace_durably(self.root / OWNER, database_id.encode())

    def ids(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and _ID.fullmatch(entry.name))

    def age_s(self, adapter_id: str) -> float:
        """Seconds since the adapter was stored."""
        return time.time() - self.path(adapter_id).stat().st_mtime

    def remove(self, adapter_id: str) -> None:
        """Remove the folder, in one step for whoever looks; no error when it is gone already."""
        folder = self.path(adapter_id)
        if not folder.exists():
            return
        grave = self._temporary / adapter_id
        if grave.exists():
            shutil.rmtree(grave)
        self._temporary.mkdir(exist_ok=True)
        os.rename(folder, grave)  # a new name alone takes no room, which a full disk does not have
        sync_folder(self.root)
        shutil.rmtree(grave)

    def archive(self, adapter_id: str) -> Iterator[bytes]:
        """The folder as an uncompressed tar in blocks; the same adapter always gives the same bytes.

        Raises `NotFound` at once, not at the first block.
        """
        folder = self.path(adapter_id)
        if not folder.is_dir():
            raise NotFound("adapter", adapter_id)
        return _tar(folder, sorted(folder.iterdir()))

    def sweep_temporary(self, older_than_s: float) -> int:
        """Remove what crashed writers left behind; returns how many folders."""
        if not self._temporary.is_dir():
            return 0
        oldest = time.time() - older_than_s
        left = [entry for entry in os.scandir(self._temporary) if entry.stat().st_mtime < oldest]
        for entry in left:
            shutil.rmtree(entry.path)
        return len(left)

    def _empty_temporary(self, adapter_id: str) -> Path:
        folder = self._temporary / adapter_id
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder


def _complete(folder: Path, adapter_id: str, manifest_of: Callable[[dict[str, str]], AdapterManifest]) -> Stored:
    """Check what was written, add its manifest, and have all of it on the disk."""
    _check_folder(folder)
    digests = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    replace_durably(folder / MANIFEST, manifest_of(digests).model_dump_json(indent=2).encode())
    for file in folder.iterdir():
        sync_file(file)
    sync_folder(folder)
    return Stored(adapter_id, digests[WEIGHTS], sum(file.stat().st_size for file in folder.iterdir()))


def _check_folder(folder: Path) -> None:
    files = {file.name: file for file in folder.iterdir()}
    for name, file in files.items():
        if file.is_symlink() or not file.is_file() or file.suffix not in ALLOWED_SUFFIXES:
            raise AdapterRejected(f"{name} may not be in an adapter: allowed are files ending in {ALLOWED_SUFFIXES}")
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise AdapterRejected(f"the adapter has no {name}")
    check_weights(files[WEIGHTS])


def _tar(folder: Path, files: list[Path]) -> Iterator[bytes]:
    for file in files:
        entry = tarfile.TarInfo(f"{folder.name}/{file.name}")  # owner, times and mode stay at their fixed defaults
        entry.size = file.stat().st_size
        yield entry.tobuf()
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                yield block
        yield b"\0" * (-entry.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)
