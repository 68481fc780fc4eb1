"""One namespace's vectors at one generation, and how they are kept on disk.

    <folder>/index.faiss      FAISS `IDMap2,Flat`, inner product, ids = window ids
    <folder>/manifest.json    `SnapshotManifest`

FAISS loads a file with a flipped bit without a word, so the manifest's sha256 covers everything that is believed.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loramem.durable import replace_durably
from loramem.records import Record

log = logging.getLogger(__name__)

NEVER = -1
"""Generation of a state that has to be compared with the database before it is used."""
INDEX_FILE = "index.faiss"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Served:
    """One document in a state. `first_chunk` tells which indexing of its text; the ids have shape (windows,)."""

    first_chunk: str
    window_ids: NDArray[np.int64]


@dataclass(frozen=True)
class State:
    """Never changes, so any number of threads may search it while the next one is made."""

    generation: int
    index: Any  # faiss.IndexIDMap2 of an IndexFlatIP; searching it is thread-safe, changing it is not
    documents: Mapping[str, Served]

    @classmethod
    def empty(cls, dim: int) -> "State":
        import faiss

        return cls(NEVER, faiss.index_factory(dim, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT), {})

    def changed(
        self, generation: int, gone: Collection[str], new: Mapping[str, Served], vectors: NDArray[np.float32]
    ) -> "State":
        """The next state: without the documents `gone`, with `new`; `vectors` are theirs in order, shape (n, dim)."""
        import faiss

        if not gone and not new:
            return State(generation, self.index, self.documents)
        index: Any = faiss.clone_index(self.index)
        if len(removed := _window_ids(self.documents[document_id] for document_id in gone)):
            index.remove_ids(removed)
        if len(vectors):
            index.add_with_ids(vectors, _window_ids(new.values()))
        kept = {document_id: served for document_id, served in self.documents.items() if document_id not in gone}
        return State(generation, index, {**kept, **new})

    def nearest(
        self, vector: NDArray[np.float32], limit: int, document_ids: Collection[str] | None = None
    ) -> list[tuple[int, float]]:
        """Up to `limit` window ids with their inner products, best first; exact, also among chosen documents."""
        import faiss

        faiss.omp_set_num_threads(1)  # one question does not pay for more: 1 ms turns into 30 ms on busy cores
        parameters, count = None, self.index.ntotal
        if document_ids is not None:
            chosen = [self.documents[document_id] for document_id in set(document_ids) if document_id in self.documents]
            wanted = _window_ids(chosen)
            selector = faiss.IDSelectorBatch(wanted)
            parameters, count = faiss.SearchParameters(sel=selector), len(wanted)  # type: ignore[call-arg]
        if count == 0 or limit < 1:
            return []
        scores, ids = self.index.search(vector[None].astype(np.float32), min(limit, count), params=parameters)
        return list(zip(ids[0].tolist(), scores[0].tolist(), strict=True))


def _window_ids(entries: Any) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, dtype=np.int64), *(entry.window_ids for entry in entries)])


class SnapshotManifest(Record):
    """What a snapshot claims to be; `documents` gives each one's first chunk and window ids."""

    generation: int
    count: int
    dim: int
    embedder: str
    documents: dict[str, tuple[str, tuple[int, ...]]]
    sha256: str


def save(folder: Path, state: State, embedder: str) -> None:
    """Index first, manifest last: a crash in between leaves a pair that does not verify, and costs a rebuild."""
    import faiss

    folder.mkdir(parents=True, exist_ok=True)
    blob = faiss.serialize_index(state.index).data
    documents = {
        document_id: (served.first_chunk, tuple(served.window_ids.tolist()))
        for document_id, served in state.documents.items()
    }
    manifest = SnapshotManifest(
        generation=state.generation,
        count=state.index.ntotal,
        dim=state.index.d,
        embedder=embedder,
        documents=documents,
        sha256=_digest(blob, documents),
    )
    replace_durably(folder / INDEX_FILE, blob)
    replace_durably(folder / MANIFEST_FILE, manifest.model_dump_json().encode())


def load(folder: Path, dim: int, embedder: str) -> State | None:
    """The snapshot as a state to compare with the database, or None when there is none that can be believed."""
    import faiss

    if not (folder / MANIFEST_FILE).exists():
        return None
    try:
        manifest = SnapshotManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
        blob = (folder / INDEX_FILE).read_bytes()
    except (OSError, ValueError) as error:
        log.warning("vector snapshot %s cannot be read and is rebuilt: %s", folder, error)
        return None
    if (manifest.dim, manifest.embedder) != (dim, embedder):
        log.warning("vector snapshot %s is of the embedder %s and is rebuilt", folder, manifest.embedder)
        return None
    if _digest(blob, manifest.documents) != manifest.sha256:
        log.warning("vector snapshot %s does not match its sha256 and is rebuilt", folder)
        return None
    index = faiss.deserialize_index(np.frombuffer(blob, dtype=np.uint8))
    entries = manifest.documents.items()
    served = {key: Served(first_chunk, np.array(ids, dtype=np.int64)) for key, (first_chunk, ids) in entries}
    return State(NEVER, index, served)


def _digest(blob: bytes | memoryview, documents: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    digest = hashlib.sha256(blob)
    digest.update(json.dumps(documents, sort_keys=True).encode())
    return digest.hexdigest()
