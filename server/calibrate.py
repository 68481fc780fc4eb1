"""The routing thresholds of each namespace, learnt from its held-out questions and kept until it changes."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Row, select

from loramem.embed import EMBEDDED_NAME, Embedder
from loramem.errors import NamespaceBusy
from loramem.tables import Adapter, AdapterState, Question
from loramem.vector_state import NEVER
from loramem.vectors import VectorIndex, View
from server.ask import RoutedAdapter
from server.candidates import Candidate, Search
from server.confidence import DEFAULTS, MOST, Observed, Thresholds, calibrated

log = logging.getLogger(__name__)

ASKED = 200
"""Held-out questions that a namespace is calibrated on at most."""
WINDOWS = 64


@dataclass(frozen=True)
class _Calibration:
    generation: int
    thresholds: Thresholds


class Calibrations:
    """Of all namespaces that were asked; safe to use from several threads."""

    def __init__(self, index: VectorIndex, embedder: Embedder, fingerprint: str) -> None:
        self._index = index
        self._embedder = embedder
        self._fingerprint = fingerprint
        self._known: dict[str, _Calibration] = {}

    def of(self, namespace: str) -> Thresholds:
        """As they were last learnt. A namespace that is new here has the defaults, and is from now on one that `renew`
        learns."""
        known = self._known.setdefault(namespace, _Calibration(-1, DEFAULTS))
        return known.thresholds

    def renew(self) -> int:
        """Learn anew for every namespace that was asked and has changed since; returns how many. Seconds each.

        Namespaces that do not exist are forgotten.
        """
        changed = 0
        for namespace in list(self._known):
            try:
                changed += self._renew(namespace)
            except NamespaceBusy:
                log.debug("namespace %s: it is being read, and calibrated when that is done", namespace)
            except Exception:  # its thresholds known so far go on being used, and the others are not kept waiting
                log.exception("namespace %s: calibrating the router failed; it is tried again", namespace)
        return changed

    def _renew(self, namespace: str) -> bool:
        with self._index.view(namespace, asked=False) as view:
            if view.state.generation == NEVER:
                self._known.pop(namespace, None)
                return False
            if view.state.generation == self._known[namespace].generation:
                return False
            self._known[namespace] = self._learnt(namespace, view)
            return True

    def _learnt(self, namespace: str, view: View) -> _Calibration:
        started = time.perf_counter()
        observed = [self._observe(namespace, view, row) for row in self._held_out(namespace, view)]
        thresholds = calibrated(observed, embedded=self._embedder.name == EMBEDDED_NAME)
        log.info(
            "namespace %s: one adapter with a lead of %.0f %%, relevant from %.2f, learnt from %d questions in %.1f s",
            namespace,
            100 * thresholds.margin,
            thresholds.relevant,
            thresholds.questions,
            time.perf_counter() - started,
        )
        return _Calibration(view.state.generation, thresholds)

    def _held_out(self, namespace: str, view: View) -> Sequence[Row[str, bytes, str, str]]:
        """Question, embedding, adapter and document, spread evenly over the namespace."""
        live = (Adapter.namespace == namespace, Adapter.state == AdapterState.LIVE)
        asked = (Question.held_out, Question.embedder == self._embedder.name)
        usable = (*live, Adapter.fingerprint == self._fingerprint, *asked)
        ids = view.session.scalars(select(Question.id).join(Adapter).where(*usable).order_by(Question.id)).all()
        wanted = select(Question.question, Question.embedding, Adapter.id, Adapter.document_id).join(Adapter)
        count = min(ASKED, len(ids))
        some = [ids[place * len(ids) // count] for place in range(count)]
        return view.session.execute(wanted.where(Question.id.in_(some)).order_by(Question.id)).all()

    def _observe(self, namespace: str, view: View, row: Row[str, bytes, str, str]) -> Observed:
        question, embedding, adapter_id, document_id = row
        vector = np.frombuffer(embedding, dtype="<f4").astype(np.float32)
        search = Search(view, namespace, question, vector, self._embedder.name, self._fingerprint)
        found = _adapters(search.candidates(view.search(vector, WINDOWS), MOST))
        ids = [one.adapter_id for one in found]
        elsewhere = [one.score for one in found if one.document_id != document_id]
        return Observed(
            scores=tuple(one.score for one in found),
            right=ids.index(adapter_id) if adapter_id in ids else None,
            elsewhere=max(elsewhere, default=None),
        )


def _adapters(found: Sequence[Candidate]) -> list[RoutedAdapter]:
    return [one.adapter for one in found if one.adapter is not None]
