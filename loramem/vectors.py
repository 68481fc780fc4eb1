"""What is near a question in a namespace, by meaning and by words: a cache of the rows that are served now.

A view is one database transaction and the vectors that fit it exactly, of the windows that are served and of the
questions that live adapters learnt, so everything that one answer reads is of one generation. When the namespace has
moved on, the next state is made beside the old one, and a search never meets half of it. States are compared group by
group: documents by the id of the served revision's first chunk, which is new whenever a text is indexed (window ids
may be used again after a deletion), adapters by their id alone. Rows that a query read are kept beside the state that
it searched, and go with it.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from loramem import served
from loramem.database import Database
from loramem.errors import NamespaceBusy
from loramem.lexical import Words
from loramem.row_cache import RowCache
from loramem.served_words import NamespaceWords, ServedWords
from loramem.vector_set import Group, VectorSet
from loramem.vector_state import NEVER, IndexState, Snapshots

log = logging.getLogger(__name__)

RECENT_S = 7 * 24 * 3600.0
"""Namespaces asked since then are read into memory after a start."""
NOTE_EVERY_S = 60.0
WAIT_S = 5.0
"""For a namespace that somebody else reads into memory; a large one takes minutes, and who waits holds a thread."""

Made = tuple[IndexState, NamespaceWords, RowCache]


@dataclass(frozen=True)
class Hit:
    """A window near the question. `score` is the cosine; `start` and `end` are offsets into the revision's text."""

    window_id: int
    document_id: str
    revision: int
    chunk_id: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class View:
    """What is served at one moment; `session`, the vectors, the words and the rows show the same generation."""

    session: Session
    state: IndexState
    words: NamespaceWords
    rows: RowCache

    def search(self, vector: NDArray[np.float32], limit: int, document_ids: Collection[str] | None = None) -> list[Hit]:
        """The `limit` windows with the greatest inner product, best first, of all documents or of those named."""
        nearest = self.state.windows.nearest(vector, limit, document_ids)
        spans = self.rows.of("spans", [near.id for near in nearest], partial(served.spans_of, self.session))
        return [Hit(near.id, *spans[near.id], score=near.score) for near in nearest]

    def search_questions(
        self, vector: NDArray[np.float32], limit: int, adapter_ids: Collection[str] | None = None
    ) -> list[tuple[str, float]]:
        """Adapter and cosine of the `limit` nearest questions that were learnt, best first; one entry a question."""
        nearest = self.state.questions.nearest(vector, limit, adapter_ids)
        return [(near.key, near.score) for near in nearest]

    def nearest_questions(
        self, vector: NDArray[np.float32], count: int, adapter_ids: Collection[str]
    ) -> dict[str, float]:
        """By adapter, of those that learnt any, the mean cosine of the `count` nearest questions that it learnt."""
        return self.state.questions.means_of_best(vector, count, adapter_ids)

    def match(
        self,
        question: str,
        limit: int,
        document_ids: Collection[str] | None = None,
        chunk_ids: Collection[str] | None = None,
    ) -> list[tuple[str, float]]:
        """Chunk id and share (see `lexical`) of up to `limit` chunks that have words of the question, best first."""
        return _matches(self.words.chunks, question, limit, document_ids, chunk_ids)

    def match_windows(
        self, question: str, limit: int, document_ids: Collection[str] | None = None
    ) -> list[tuple[str, float]]:
        """Chunk id and share, as `match`, of up to `limit` windows; one entry a window."""
        matches = _matches(self.words.windows, question, limit, document_ids, None)
        return [(served.owner_of(unit), share) for unit, share in matches]

    def match_questions(
        self, question: str, limit: int, adapter_ids: Collection[str] | None = None
    ) -> list[tuple[str, float]]:
        """Adapter id and share, as `match`, of learnt questions with their answers; one entry a question."""
        matches = _matches(self.words.questions, question, limit, adapter_ids, None)
        return [(served.owner_of(unit), share) for unit, share in matches]


class VectorIndex:
    """All namespaces' vectors and words, brought up to date by whoever looks; safe to use from several threads."""

    def __init__(self, database: Database, *, dim: int, embedder_name: str, snapshot_dir: Path) -> None:
        self._database = database
        self._dim = dim
        self._embedder_name = embedder_name
        self._snapshots = Snapshots(snapshot_dir, dim=dim, embedder=embedder_name)
        self._published: dict[str, Made] = {}
        self._words: dict[str, ServedWords] = {}
        self._saved: dict[str, IndexState] = {}
        self._changing: dict[str, threading.Lock] = {}
        self._saving = threading.Lock()
        self._listing: dict[str, threading.Thread] = {}
        self._asked_at = self._snapshots.asked_at()
        self._noted_at = time.time()

    @contextmanager
    def view(self, namespace: str, *, asked: bool = True) -> Iterator[View]:
        """Open a read transaction and the vectors that fit it. An unknown namespace is an empty one.

        What is `asked` is read into memory after the next start, too. Raises `NamespaceBusy` where somebody else has
        been reading the namespace for `WAIT_S`.
        """
        with ExitStack() as opened:
            session = opened.enter_context(self._database.read())
            made = self._made_for(session, namespace)
            if made is None:
                opened.close()  # nobody waits for another's reading with a transaction open
                with self._one_at_a_time(namespace, WAIT_S):
                    session = opened.enter_context(self._database.read())
                    made = self._made_for(session, namespace) or self._changed_to(session, namespace)
            if asked and made[0].generation != NEVER:
                self._asked_at[namespace] = time.time()
            yield View(session, *made)

    def search(
        self,
        namespace: str,
        vector: NDArray[np.float32],
        limit: int,
        document_ids: Collection[str] | None = None,
    ) -> list[Hit]:
        """One search in a view of its own; see `View.search`."""
        with self.view(namespace) as view:
            return view.search(vector, limit, document_ids)

    def held(self) -> dict[str, IndexState]:
        """What is in memory, by namespace; nothing of those that nobody asked yet."""
        return {namespace: made[0] for namespace, made in list(self._published.items())}

    def asked_before(self) -> list[str]:
        """Namespaces that were asked in the last `RECENT_S` and are not in memory, the last one first."""
        with self._database.read() as session:
            waiting = served.generations_of(session).keys() - self._published.keys()
        recent = self._recent()
        return sorted(waiting & recent.keys(), key=recent.__getitem__, reverse=True)

    def _note_asked(self) -> None:
        """A start without it reads nothing beforehand: no reason to follow or keep nothing, as on a full disk."""
        self._noted_at = time.time()
        try:
            self._snapshots.save_asked_at(self._recent())
        except OSError as error:
            log.warning("which namespaces were asked cannot be noted: %s", error)

    def _recent(self) -> dict[str, float]:
        return {name: at for name, at in list(self._asked_at.items()) if time.time() - at < RECENT_S}

    def follow(self) -> None:
        """Bring every namespace in memory up to date, so that no question has to."""
        with self._database.read() as session:
            newest = served.generations_of(session)
        for namespace, state in self.held().items():
            if newest.get(namespace, state.generation) != state.generation:
                self.open(namespace)
        if time.time() - self._noted_at > NOTE_EVERY_S:
            self._note_asked()

    def open(self, namespace: str) -> None:
        """Read into memory what the next question in this namespace would have to."""
        try:
            with self.view(namespace, asked=False):
                pass
        except NamespaceBusy:
            log.debug("namespace %s: somebody else is reading it", namespace)
        except Exception:  # the others are not kept waiting; its next question tries as well
            log.exception("namespace %s: the index could not follow the database", namespace)

    def snapshot(self) -> None:
        """Write every namespace that changed since the last time to disk, for the next start."""
        with self._saving:
            self._note_asked()
            for namespace, state in self.held().items():
                if self._saved.get(namespace) is not state:
                    self._snapshots.save(namespace, state)
                    self._saved[namespace] = state

    @contextmanager
    def _one_at_a_time(self, namespace: str, wait_s: float = -1) -> Iterator[None]:
        """Whoever changes what is kept of a namespace that exists; less than 0 waits for ever."""
        lock = self._changing.setdefault(namespace, threading.Lock())
        if not lock.acquire(timeout=wait_s):
            raise NamespaceBusy(f"namespace {namespace!r} is being read into memory; ask again")
        try:
            yield
        finally:
            lock.release()

    def _made_for(self, session: Session, namespace: str) -> Made | None:
        """What fits this transaction, as far as it is there."""
        generation = served.generation_of(session, namespace)
        if generation is None:
            return IndexState.empty(self._dim), NamespaceWords(), RowCache()
        published = self._published.get(namespace)
        return published if published is not None and published[0].generation == generation else None

    def _changed_to(self, session: Session, namespace: str) -> Made:
        """Make what fits this transaction, and publish it; by one thread at a time."""
        generation = served.generation_of(session, namespace)
        assert generation is not None
        published = self._published.get(namespace)
        base = published[0] if published else self._snapshots.load(namespace) or IndexState.empty(self._dim)
        documents, adapters = served.documents_of(session, namespace), served.adapters_of(session, namespace)
        windows = _follow(base.windows, documents, lambda wanted: self._windows(session, namespace, wanted))
        questions = _follow(base.questions, adapters, lambda wanted: self._questions(session, wanted))
        words = self._words.setdefault(namespace, ServedWords()).follow(session, documents, adapters)
        self._published[namespace] = made = IndexState(generation, windows, questions), words, RowCache()
        self._list_in_background(namespace)
        return made

    def _windows(
        self, session: Session, namespace: str, wanted: Mapping[str, str]
    ) -> tuple[dict[str, Group], NDArray[np.float32]]:
        groups, vectors = served.windows_of(session, wanted, self._embedder_name, self._dim)
        if stale := sum(1 for group in groups.values() if not len(group.ids)):
            log.error(
                "namespace %s: %d documents were indexed by another embedder than %s and cannot be found; "
                "set LORAMEM_EMBEDDER back, or delete them and upload them again",
                namespace,
                stale,
                self._embedder_name,
            )
        return groups, vectors

    def _questions(self, session: Session, wanted: Mapping[str, str]) -> tuple[dict[str, Group], NDArray[np.float32]]:
        return served.questions_of(session, wanted, self._embedder_name, self._dim)

    def _list_in_background(self, namespace: str) -> None:
        """Inverted lists take a minute per million; questions are answered from what there is meanwhile."""
        state = self._published[namespace][0]
        if (state.windows.needs_lists or state.questions.needs_lists) and namespace not in self._listing:
            thread = threading.Thread(target=self._list, args=(namespace, state), name="inverted-lists", daemon=True)
            self._listing[namespace] = thread
            thread.start()

    def _list(self, namespace: str, state: IndexState) -> None:
        try:
            windows, questions = _listed(state.windows), _listed(state.questions)
            with self._one_at_a_time(namespace):
                newest, words, rows = self._published[namespace]
                windows = windows.caught_up(newest.windows) if windows is not None else newest.windows
                questions = questions.caught_up(newest.questions) if questions is not None else newest.questions
                self._published[namespace] = IndexState(newest.generation, windows, questions), words, rows
        except Exception:  # out of memory, most likely; the vectors that there are go on being searched
            log.exception("namespace %s: making inverted lists failed; the next change tries again", namespace)
        finally:
            with self._one_at_a_time(namespace):
                del self._listing[namespace]


def _follow(
    base: VectorSet,
    served_now: Mapping[str, str],
    read: Callable[[Mapping[str, str]], tuple[dict[str, Group], NDArray[np.float32]]],
) -> VectorSet:
    """`base` with the groups that are served now, keys with their versions; reads those that it does not have."""
    gone = {key for key, group in base.groups.items() if served_now.get(key) != group.version}
    wanted = {key: version for key, version in served_now.items() if key not in base.groups or key in gone}
    new, vectors = read(wanted)
    return base.changed(gone, new, vectors)


def _listed(vectors: VectorSet) -> VectorSet | None:
    return vectors.in_lists() if vectors.needs_lists else None


def _matches(
    words: Words | None,
    question: str,
    limit: int,
    groups: Collection[str] | None,
    units: Collection[str] | None,
) -> list[tuple[str, float]]:
    return words.search(question, limit, groups=groups, units=units) if words else []
