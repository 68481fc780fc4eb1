"""One namespace's vectors at one generation, and how they are kept on disk.

    <folder>/windows.main-<sha256>.faiss     and .delta-, and questions. alike: FAISS indexes, see `vector_set`
    <folder>/manifest.json                   `SnapshotManifest`
    asked.json                               when each namespace was last asked

FAISS loads a file with a flipped bit without a word, so each has its sha256 (half of it in its name), and the manifest
its own. A crash leaves the files that the old manifest names; a main that did not change is not written again.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import TypeAdapter, ValidationError

from loramem.durable import removed_on_failure, replace_durably, sha256_of, sync_file, sync_folder
from loramem.records import Record
from loramem.vector_set import Block, Group, VectorSet

log = logging.getLogger(__name__)

NEVER = -1
"""Generation of a state that has to be compared with the database before it is used."""
MANIFEST_FILE = "manifest.json"
ASKED_FILE = "asked.json"


@dataclass(frozen=True)
class IndexState:
    """Never changes, so any number of threads may search it while the next one is made.

    Windows are grouped by document id, with the id of its first chunk as the version; questions by adapter id.
    """

    generation: int
    windows: VectorSet
    questions: VectorSet

    @classmethod
    def empty(cls, dim: int) -> "IndexState":
        return cls(NEVER, VectorSet.empty(dim), VectorSet.empty(dim))


class SnapshotBlock(Record):
    """A `Block`: its file, and the key, version and ids of each group in the order of their rows."""

    file: str
    sha256: str
    groups: tuple[tuple[str, str, tuple[int, ...]], ...]


class SnapshotSet(Record):
    """A `VectorSet`."""

    count: int
    main: SnapshotBlock
    delta: SnapshotBlock
    dead: tuple[str, ...]


class SnapshotManifest(Record):
    """What a snapshot claims to be; `sha256` is of all the rest."""

    generation: int
    dim: int
    embedder: str
    windows: SnapshotSet
    questions: SnapshotSet
    sha256: str = ""

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


class Snapshots:
    """Of all namespaces, one folder each; one thread at a time may use a namespace's."""

    def __init__(self, folder: Path, *, dim: int, embedder: str) -> None:
        self._root = folder
        self._dim = dim
        self._embedder = embedder
        self._on_disk: WeakKeyDictionary[Block, SnapshotBlock] = WeakKeyDictionary()

    def folder(self, namespace: str) -> Path:
        return self._root / hashlib.sha256(namespace.encode()).hexdigest()[:32]  # users choose the names

    def save(self, namespace: str, state: IndexState) -> None:
        """Write what is new, put the manifest in place, drop what it does not name."""
        folder = self.folder(namespace)
        folder.mkdir(parents=True, exist_ok=True)
        windows = self._save_set(folder, "windows", state.windows)
        questions = self._save_set(folder, "questions", state.questions)
        manifest = SnapshotManifest(
            generation=state.generation, dim=self._dim, embedder=self._embedder, windows=windows, questions=questions
        )
        signed = manifest.model_copy(update={"sha256": manifest.digest()})
        replace_durably(folder / MANIFEST_FILE, signed.model_dump_json().encode())
        named = {MANIFEST_FILE, *(block.file for block in _blocks(manifest))}
        for path in folder.iterdir():
            if path.name not in named:
                path.unlink()

    def save_asked_at(self, asked_at: Mapping[str, float]) -> None:
        """When each namespace was last asked, in seconds since 1970."""
        self._root.mkdir(parents=True, exist_ok=True)
        replace_durably(self._root / ASKED_FILE, json.dumps(dict(asked_at)).encode())

    def asked_at(self) -> dict[str, float]:
        """As `save_asked_at` was told, or nothing where that is not to be had."""
        try:
            return TypeAdapter(dict[str, float]).validate_json((self._root / ASKED_FILE).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be read: %s", self._root / ASKED_FILE, error)
            return {}

    def load(self, namespace: str) -> IndexState | None:
        """A state to compare with the database, or None when there is none that can be believed."""
        folder = self.folder(namespace)
        if not (folder / MANIFEST_FILE).exists():
            return None
        try:
            manifest = SnapshotManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
            problem = self._problem(folder, manifest)
            if not problem:
                windows = self._load_set(folder, manifest.windows)
                return IndexState(NEVER, windows, self._load_set(folder, manifest.questions))
        except (OSError, ValidationError, RuntimeError) as error:  # FAISS's own is a RuntimeError
            problem = f"cannot be read: {error}"
        log.warning("vector snapshot %s %s; it is rebuilt", folder, problem)
        return None

    def _problem(self, folder: Path, manifest: SnapshotManifest) -> str:
        """Why the snapshot is not to be believed, or nothing; raises `OSError` for a file that is not there."""
        if manifest.digest() != manifest.sha256:
            return "has a manifest that does not match its sha256"
        if (manifest.dim, manifest.embedder) != (self._dim, self._embedder):
            return f"is of the embedder {manifest.embedder}, dimension {manifest.dim}"
        wrong = [block.file for block in _blocks(manifest) if sha256_of(folder / block.file) != block.sha256]
        return f"has files that do not match their sha256: {', '.join(wrong)}" if wrong else ""

    def _save_set(self, folder: Path, name: str, vectors: VectorSet) -> SnapshotSet:
        return SnapshotSet(
            count=len(vectors),
            main=self._save_block(folder, f"{name}.main", vectors.main),
            delta=self._save_block(folder, f"{name}.delta", vectors.delta),
            dead=tuple(sorted(vectors.dead)),
        )

    def _save_block(self, folder: Path, name: str, block: Block) -> SnapshotBlock:
        import faiss

        known = self._on_disk.get(block)
        if known is not None and known.file.startswith(f"{name}-") and (folder / known.file).exists():
            return known
        temporary = folder / f"{name}.tmp"
        with removed_on_failure(temporary):
            faiss.write_index(block.index, str(temporary))
            sync_file(temporary)
            digest = sha256_of(temporary)
            saved = SnapshotBlock(file=f"{name}-{digest[:32]}.faiss", sha256=digest, groups=_table(block.groups))
            temporary.replace(folder / saved.file)
        sync_folder(folder)
        self._on_disk[block] = saved
        return saved

    def _load_set(self, folder: Path, saved: SnapshotSet) -> VectorSet:
        main, delta = self._load_block(folder, saved.main), self._load_block(folder, saved.delta)
        return VectorSet(main, delta, frozenset(saved.dead))

    def _load_block(self, folder: Path, saved: SnapshotBlock) -> Block:
        import faiss

        groups = {key: Group(version, np.array(ids, dtype=np.int64)) for key, version, ids in saved.groups}
        block = Block(faiss.read_index(str(folder / saved.file)), groups)
        self._on_disk[block] = saved
        return block


def _blocks(manifest: SnapshotManifest) -> Iterable[SnapshotBlock]:
    return (manifest.windows.main, manifest.windows.delta, manifest.questions.main, manifest.questions.delta)


def _table(groups: Mapping[str, Group]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    return tuple((key, group.version, tuple(group.ids.tolist())) for key, group in groups.items())
