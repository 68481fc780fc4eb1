"""Which chunks may answer a question: found by meaning or by words, in their text or in what was asked about it.

Each kind of search misses what the others find. A window's cosine is blind to rare names, words are blind to other
words for the same; the text does not sound like a question, and the questions that an adapter learnt do not ask for
everything. So whatever any search finds is scored by all of them.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, bindparam, or_, select

from loramem import served
from loramem.tables import Adapter, AdapterState, Chunk, Document, Revision, Window
from loramem.vectors import Hit, View
from server.ask import RoutedAdapter

FOUND = 64
"""Questions, and chunks and windows by words, looked at in the whole namespace."""
KEPT = 24
"""Candidates scored by everything, for each adapter wanted at least three; as many that have one, where others have
none."""
WINDOWS = 64
"""Windows by words for each candidate."""
BEST = 3
"""Questions that count: one alone may be near by chance."""
QUESTIONS = 8
"""Looked at by words for each adapter, though some have thousands; at least `BEST`, so that one of them has as many."""


# Built once: putting a statement together takes longer than running it.
_LIVE = and_(Adapter.state == AdapterState.LIVE, Adapter.fingerprint == bindparam("fingerprint"))
_OURS = select(Adapter.id).where(Adapter.namespace == bindparam("namespace"), _LIVE)
_OURS_OF = _OURS.where(Adapter.document_id.in_(bindparam("keys", expanding=True)))
_FOREIGN = (
    select(Adapter.id)
    .where(
        Adapter.namespace == bindparam("namespace"),
        Adapter.state == AdapterState.LIVE,
        # not `!=`, for which the index would be read from end to end
        or_(Adapter.fingerprint < bindparam("fingerprint"), Adapter.fingerprint > bindparam("fingerprint")),
    )
    .limit(1)
)
_WINDOWS = select(Window.chunk_id, Window.embedding).where(
    Window.chunk_id.in_(bindparam("chunk_ids", expanding=True)), Window.embedder == bindparam("embedder")
)
_CHUNKS_OF = select(Adapter.id, Adapter.chunk_id).where(Adapter.id.in_(bindparam("adapter_ids", expanding=True)))
_CANDIDATES = (
    select(Chunk.id, Chunk.document_id, Chunk.revision, Chunk.ordinal, Revision.title)
    .add_columns(Adapter.id, Adapter.sha256, Adapter.rank, Adapter.exam["weak"].as_boolean())
    .join(Document, and_(Document.id == Chunk.document_id, Document.serving_revision == Chunk.revision))
    .join(Revision, and_(Revision.document_id == Chunk.document_id, Revision.number == Chunk.revision))
    # without the namespace, which is the chunk's: SQLite would look it up in the namespace for each chunk
    .outerjoin(Adapter, and_(Adapter.chunk_id == Chunk.id, _LIVE))
    .where(Chunk.id.in_(bindparam("chunk_ids", expanding=True)))
)


@dataclass(frozen=True)
class Evidence:
    """What speaks for a chunk; each from 0 (cosines: -1) to 1."""

    window: float = 0.0  # cosine of the nearest window
    question: float = 0.0  # mean cosine of the nearest questions that its adapter learnt, up to three
    words: float = 0.0  # share of what the question's words could score, in the chunk
    together: float = 0.0  # the same in its best window
    asked: float = 0.0  # the same in the best learnt questions with their answers, mean of up to three

    @property
    def score(self) -> float:
        """A third each for what is near by meaning, shares words, and has them together (`benchmarks/LOG.md`)."""
        meaning = max(self.window, self.question)
        return (meaning + max(self.words, self.asked) + max(self.together, self.asked)) / 3


@dataclass(frozen=True)
class Candidate:
    """A chunk that is served, with its live adapter if it has one; weights are given when some are chosen."""

    chunk_id: str
    document_id: str
    revision: int
    evidence: Evidence = field(default_factory=Evidence)
    adapter: RoutedAdapter | None = None

    @property
    def score(self) -> float:
        return self.evidence.score

    def given(self, evidence: Evidence) -> "Candidate":
        adapter = replace(self.adapter, score=evidence.score) if self.adapter else None
        return replace(self, evidence=evidence, adapter=adapter)


@dataclass(frozen=True)
class Search:
    """One question in one view. `vector` is its unit vector, shape (dim,); without `document_ids` all are
    searched."""

    view: View
    namespace: str
    question: str
    vector: NDArray[np.float32]
    embedder: str
    fingerprint: str
    document_ids: Collection[str] | None = None

    def candidates(self, hits: Sequence[Hit], most: int) -> list[Candidate]:
        """Best first: those of `hits`, which are the nearest windows, and what the other searches find."""
        scores = self._found(hits)
        chunks = scores.windows.keys() | scores.words.keys() | scores.together.keys()
        found = self._read(chunks, scores.questions.keys() | scores.asked.keys())
        best = sorted(found, key=lambda one: (-scores.of(one).score, one.chunk_id))
        count = max(KEPT, 3 * most)
        trained = [one.chunk_id for one in best if one.adapter][:count]  # what is yet to be learnt pushes none out
        kept = [one for place, one in enumerate(best) if place < count or one.chunk_id in trained]
        return sorted(self._completed(kept, scores), key=_order)

    def _found(self, hits: Sequence[Hit]) -> "_Scores":
        adapters = self._named_adapters()
        words = self.view.match(self.question, FOUND, self.document_ids)
        together = self.view.match_windows(self.question, FOUND, self.document_ids)
        asked = self.view.match_questions(self.question, FOUND, adapters)
        by_words = {"words": words, "together": together, "asked": asked}
        return _Scores(
            windows=_best((hit.chunk_id, hit.score) for hit in hits),
            words=_best(words),
            together=_best(together),
            questions=_best_of(self.view.search_questions(self.vector, FOUND, adapters)),
            asked=_best_of(asked),
            limited={name for name, found in by_words.items() if len(found) >= FOUND},
        )

    def _completed(self, kept: Sequence[Candidate], scores: "_Scores") -> list[Candidate]:
        chunks = {one.chunk_id for one in kept}
        documents = {one.document_id for one in kept}
        adapters = {one.adapter.adapter_id for one in kept if one.adapter}
        words, together, asked = scores.words, scores.together, scores.asked
        if "words" in scores.limited:
            words = {**words, **self._words(chunks - words.keys())}
        if "together" in scores.limited:
            together = _best(self.view.match_windows(self.question, WINDOWS * len(kept), documents))
        if "asked" in scores.limited:
            asked = _best_of_each(partial(self.view.match_questions, self.question), adapters)
        windows = {**scores.windows, **self._windows(chunks - scores.windows.keys())}
        questions = self.view.nearest_questions(self.vector, BEST, adapters)
        complete = _Scores(windows, words, together, questions, asked)
        return [one.given(complete.of(one)) for one in kept]

    def _words(self, chunk_ids: Collection[str]) -> dict[str, float]:
        return _best(self.view.match(self.question, len(chunk_ids), chunk_ids=chunk_ids))

    def _windows(self, chunk_ids: Collection[str]) -> dict[str, float]:
        """Cosine of each chunk's nearest window, of chunks that no near window led to."""
        best: dict[str, float] = {}
        wanted = {"chunk_ids": list(chunk_ids), "embedder": self.embedder}
        for chunk_id, embedding in self.view.session.execute(_WINDOWS, wanted) if chunk_ids else ():
            cosine = float(np.frombuffer(embedding, dtype="<f4") @ self.vector)
            best[chunk_id] = max(cosine, best.get(chunk_id, -1.0))
        return best

    def _named_adapters(self) -> list[str] | None:
        """None for all. Those of another base model would take the places of ours among what is found."""
        session, ours = self.view.session, {"namespace": self.namespace, "fingerprint": self.fingerprint}
        if self.document_ids is None:
            foreign = self.view.rows.of("foreign", [self.fingerprint], self._foreign)
            return list(session.scalars(_OURS, ours)) if foreign else None
        batches = served.batches(self.document_ids)
        return [one for keys in batches for one in session.scalars(_OURS_OF, {**ours, "keys": keys})]

    def _foreign(self, fingerprints: list[str]) -> dict[str, str | None]:
        """By the fingerprint of a base model, a live adapter that is of another."""
        foreign = partial(self.view.session.scalar, _FOREIGN)
        return {one: foreign({"namespace": self.namespace, "fingerprint": one}) for one in fingerprints}

    def _read(self, chunk_ids: Collection[str], adapter_ids: Collection[str]) -> list[Candidate]:
        """Of chunks, and of adapters: what this transaction knows of them."""
        asked = self.view.rows.of("chunks", adapter_ids, self._chunks).values()
        kind = "candidates", self.fingerprint
        return list(self.view.rows.of(kind, {*chunk_ids, *asked}, self._candidates).values())

    def _chunks(self, adapter_ids: list[str]) -> dict[str, str]:
        return dict(self.view.session.execute(_CHUNKS_OF, {"adapter_ids": adapter_ids}).all())

    def _candidates(self, chunk_ids: list[str]) -> dict[str, Candidate]:
        """Kept for a generation, in which an exam may be told what was tried, but no adapter turns weak or sound."""
        wanted = {"chunk_ids": chunk_ids, "fingerprint": self.fingerprint}
        found = map(_candidate, self.view.session.execute(_CANDIDATES, wanted))
        return {one.chunk_id: one for one in found}


def _candidate(row: Sequence[Any]) -> Candidate:
    chunk_id, document_id, revision, ordinal, title, adapter_id, sha256, rank, weak = row
    if adapter_id is None:
        return Candidate(chunk_id, document_id, revision)
    routed = RoutedAdapter(
        adapter_id, sha256, rank, document_id, title=title, chunk=ordinal, score=0.0, weight=0.0, weak=bool(weak)
    )
    return Candidate(chunk_id, document_id, revision, adapter=routed)


@dataclass(frozen=True)
class _Scores:
    """What each search found, by chunk id, and by adapter id for what was asked."""

    windows: Mapping[str, float]
    words: Mapping[str, float]
    together: Mapping[str, float]
    questions: Mapping[str, float]
    asked: Mapping[str, float]
    limited: Collection[str] = ()
    """Searches by words that found as many as they may; each other one has found everything."""

    def of(self, one: Candidate) -> Evidence:
        adapter_id = one.adapter.adapter_id if one.adapter else ""
        return Evidence(
            window=self.windows.get(one.chunk_id, 0.0),
            question=self.questions.get(adapter_id, 0.0),
            words=self.words.get(one.chunk_id, 0.0),
            together=self.together.get(one.chunk_id, 0.0),
            asked=self.asked.get(adapter_id, 0.0),
        )


def _best(found: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Of each chunk, from hits that come best first."""
    best: dict[str, float] = {}
    for chunk_id, score in found:
        best.setdefault(chunk_id, score)
    return best


def _best_of(found: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean of each adapter's best three, from questions that come best first."""
    return {adapter_id: fmean(best) for adapter_id, best in _best_three(found).items()}


def _best_three(found: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = defaultdict(list)
    for adapter_id, score in found:
        if len(scores[adapter_id]) < BEST:
            scores[adapter_id].append(score)
    return scores


def _best_of_each(
    search: Callable[[int, Collection[str]], list[tuple[str, float]]], adapter_ids: Collection[str]
) -> dict[str, float]:
    """As `_best_of`, of all these adapters, whatever the number of their questions: one may have so many that match
    that they leave no place for another's, which is asked for again then."""
    means: dict[str, float] = {}
    left = set(adapter_ids)
    while left:
        limit = QUESTIONS * len(left)
        found = search(limit, left)
        best = _best_three(found)
        known = left if len(found) < limit else {key for key, scores in best.items() if len(scores) == BEST}
        means |= {key: fmean(best[key]) for key in known & best.keys()}
        left = left - known
    return means


def _order(one: Candidate) -> tuple[float, str]:
    return -one.score, one.chunk_id
