"""From a question to what answers it: the adapters most likely to know, with their weights, and the passages."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, String, and_, bindparam, cast, func, or_, select
from sqlalchemy.orm import Session

from loramem.embed import Embedder
from loramem.errors import NotFound
from loramem.tables import Chunk, Document, Revision, Window
from loramem.vectors import Hit, VectorIndex, View
from server.ask import Passage, Route, RoutedAdapter, Scalar
from server.calibrate import Calibrations
from server.candidates import Candidate, Search
from server.confidence import MOST, choose

TEMPERATURE = 0.05
"""Of the softmax over scores: a lead of 0.05 is worth a factor of e."""
PARTS = 16
"""Weights are multiples of 1/16, so that recipes repeat and merged adapters are found in the cache."""
PASSAGES = 64
"""Found at least, however few a prompt has room for."""
WINDOWS_PER_CHUNK = 24
"""Windows looked at for each chunk wanted; a chunk of the default length has about twenty."""
WINDOWS_AT_MOST = 8192

_SERVING = select(Document.id, Document.serving_revision).where(
    Document.namespace == bindparam("namespace"), Document.id.in_(bindparam("ids", expanding=True))
)


class Router:
    """Routes to live adapters of the base model with this fingerprint; safe to use from several threads."""

    def __init__(self, index: VectorIndex, embedder: Embedder, fingerprint: str, *, passages: int = PASSAGES) -> None:
        self._index = index
        self._embedder = embedder
        self._fingerprint = fingerprint
        self._passages = passages
        self.calibrations = Calibrations(index, embedder, fingerprint)

    def route(
        self,
        question: str,
        *,
        namespace: str,
        document_ids: Sequence[str] | None,
        metadata: Mapping[str, Scalar] | None = None,
        top_k: int | Literal["auto"],
        at_most: int = MOST,
        with_passages: bool = True,
    ) -> Route:
        """Up to `top_k` adapters, and passages, of all documents, those named, or those with this metadata.

        `auto` takes as many adapters as the namespace's thresholds call for, of `at_most`. Everything is read in one
        transaction, so a route never mixes two revisions. Nothing indexed: an empty route. Raises `NotFound` for a
        document that is not in the namespace, and where none has the metadata.
        """
        started = time.perf_counter()
        vector = self._embedder.embed_query(question)
        embedded = time.perf_counter()
        with self._index.view(namespace) as view:
            named = _named(view.session, namespace, document_ids) if document_ids else {}
            if metadata:
                document_ids = _with_metadata(view.session, namespace, document_ids, metadata)
            search = self._search(view, namespace, question, vector, document_ids)
            hits, found = _nearest(search, MOST if top_k == "auto" else top_k, self._passages)
            passages = _passages(view.session, _distinct(hits, self._passages)) if with_passages else ()
        usable = [one.adapter for one in found if one.adapter is not None]
        untrained = max((one.score for one in found if one.adapter is None), default=0.0)
        choice = choose([one.score for one in usable], self.calibrations.of(namespace), untrained=untrained)
        adapters = _weighted(usable[: min(choice.count, at_most) if top_k == "auto" else top_k])
        timings = {"embed": _ms(started, embedded), "search": _ms(embedded, time.perf_counter())}
        revisions = named | {hit.document_id: hit.revision for hit in hits}
        revisions |= {one.document_id: one.revision for one in found}
        chosen = None if document_ids is None else tuple(document_ids)
        return Route(adapters, passages, _best_by_document(found), revisions, timings, choice, chosen)

    def candidates(self, question: str, *, namespace: str) -> list[Candidate]:
        """All that a route would choose from, best first, with the evidence for each."""
        vector = self._embedder.embed_query(question)
        with self._index.view(namespace) as view:
            return _nearest(self._search(view, namespace, question, vector), MOST, self._passages)[1]

    def _search(
        self,
        view: View,
        namespace: str,
        question: str,
        vector: NDArray[np.float32],
        document_ids: Sequence[str] | None = None,
    ) -> Search:
        return Search(view, namespace, question, vector, self._embedder.name, self._fingerprint, document_ids)


def passages_for(rag_tokens: int, window_tokens: int) -> int:
    """Enough to fill so many tokens of the base model, of passages half as long as they may be."""
    return min(WINDOWS_AT_MOST, max(PASSAGES, 2 * rag_tokens // window_tokens))


def _nearest(search: Search, top_k: int, least: int) -> tuple[list[Hit], list[Candidate]]:
    """At least so many windows, and more until `top_k` different chunks are among them."""
    limit = max(least, WINDOWS_PER_CHUNK * top_k)
    while True:
        hits = search.view.search(search.vector, limit, search.document_ids)
        enough = len({hit.chunk_id for hit in hits}) >= top_k
        if enough or len(hits) < limit or limit >= WINDOWS_AT_MOST:
            return hits, search.candidates(hits, top_k)
        limit = min(8 * limit, WINDOWS_AT_MOST)


def weights_of(scores: Sequence[float]) -> list[float]:
    """Softmax of scores in sixteenths, at least one each, that add up to 1; for up to 16 scores, best first."""
    best = max(scores)
    powers = [math.exp((score - best) / TEMPERATURE) for score in scores]
    shares = [PARTS * power / sum(powers) for power in powers]
    parts = [max(1, math.floor(share)) for share in shares]
    while sum(parts) < PARTS:  # by largest remainder
        parts[max(range(len(parts)), key=lambda i: shares[i] - parts[i])] += 1
    while sum(parts) > PARTS:  # the least share costs a part that a greater one pays
        payers = [i for i in range(len(parts)) if parts[i] > 1]
        parts[max(payers, key=lambda i: (parts[i] - shares[i], i))] -= 1
    return [part / PARTS for part in parts]


def priors(route: Route) -> list[float]:
    """Log of what the weights are in proportion to, before they are rounded."""
    return [adapter.score / TEMPERATURE for adapter in route.adapters]


def _weighted(adapters: Sequence[RoutedAdapter]) -> tuple[RoutedAdapter, ...]:
    weights = weights_of([adapter.score for adapter in adapters]) if adapters else []
    return tuple(replace(adapter, weight=weight) for adapter, weight in zip(adapters, weights, strict=True))


def _distinct(hits: Sequence[Hit], most: int) -> list[Hit]:
    """The first `most` that do not share more than half their text with a better one: chunks overlap."""
    kept: list[Hit] = []
    spans: dict[str, list[tuple[int, int]]] = {}
    for hit in hits:
        if len(kept) == most:
            break
        better = spans.setdefault(hit.document_id, [])
        least = (hit.end - hit.start) / 2
        if not any(min(hit.end, end) - max(hit.start, start) > least for start, end in better):
            kept.append(hit)
            better.append((hit.start, hit.end))
    return kept


def _passages(session: Session, hits: Sequence[Hit]) -> tuple[Passage, ...]:
    """Cut the windows out of their revisions' text, in the database: a text may be megabytes long."""
    of_window = and_(Revision.document_id == Window.document_id, Revision.number == Window.revision)
    text = func.substr(Revision.text, Window.start + 1, Window.end - Window.start)
    wanted = select(Window.id, Chunk.ordinal, Revision.title, text).join(Chunk, Chunk.id == Window.chunk_id)
    wanted = wanted.join(Revision, of_window).where(Window.id.in_([hit.window_id for hit in hits]))
    found = {row[0]: row[1:] for row in session.execute(wanted)}
    return tuple(_passage(hit, *found[hit.window_id]) for hit in hits)


def _passage(hit: Hit, ordinal: int, title: str, text: str) -> Passage:
    return Passage(hit.document_id, hit.revision, ordinal, hit.start, hit.end, text, title, hit.score)


def _named(session: Session, namespace: str, document_ids: Sequence[str]) -> dict[str, int]:
    """The revisions that serve of documents named: one may be far from the question, and is read all the same."""
    found = dict(session.execute(_SERVING, {"namespace": namespace, "ids": list(document_ids)}).all())
    for document_id in document_ids:
        if document_id not in found:
            raise NotFound("document", document_id, "document_ids")
    return {document_id: revision for document_id, revision in found.items() if revision is not None}


def _with_metadata(
    session: Session, namespace: str, document_ids: Sequence[str] | None, metadata: Mapping[str, Scalar]
) -> list[str]:
    """Of the documents named, or of all."""
    wanted = select(Document.id).where(Document.namespace == namespace)
    has = _has_in_sqlite if session.get_bind().dialect.name == "sqlite" else _has
    wanted = wanted.where(*(has(key, value) for key, value in metadata.items()))
    if document_ids is not None:
        wanted = wanted.where(Document.id.in_(document_ids))
    found = list(session.scalars(wanted))
    if not found:
        raise NotFound("document with metadata", json.dumps(dict(metadata), ensure_ascii=False), "metadata")
    return found


TRUTHS = ("true", "false")


def _has(key: str, value: Scalar) -> ColumnElement[bool]:
    """A value as text, as JSON writes it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return cast(Document.meta[key].as_string(), String) == text


def _has_in_sqlite(key: str, value: Scalar) -> ColumnElement[bool]:
    """Its paths are compared with JSON's text as it is. A truth taken out is 1 or 0, so it goes by its type; a number
    taken out alone loses digits, and of two it keeps them."""
    key = json.dumps(key)[1:-1]
    path, text = f'$."{key}"', value if isinstance(value, str) else json.dumps(value)
    kind = func.coalesce(func.json_type(Document.meta, path), "")
    found = [and_(_has(key, value), kind.not_in(TRUTHS)), and_(kind == text, kind.in_(TRUTHS))]
    if not isinstance(value, bool | str):
        found.append(func.json_extract(Document.meta, path, path) == f"[{text},{text}]")
    return or_(*found)


def _best_by_document(found: Sequence[Candidate]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for one in found:
        scores.setdefault(one.document_id, one.score)
    return scores


def _ms(started: float, ended: float) -> float:
    return (ended - started) * 1000
