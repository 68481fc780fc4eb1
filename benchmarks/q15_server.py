"""The six methods of the paper's latency experiment through loramem's HTTP server, one question after another."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.adapters import Adapters, Archive
from benchmarks.passages import follow
from benchmarks.q15_plan import (
    BASE,
    ICL,
    PER_QUESTION,
    PRELOADED,
    RAG,
    SINGLE,
    TOP_K,
    Asked,
    Document,
    Measured,
)
from benchmarks.recall_ask import bar
from loramem.client import Client
from loramem.tables import FINAL_JOB_STATES

Json = dict[str, Any]

ICL_CACHED = "icl_cached"
"""ICL once more, with the beginning of the document still in the engine's prefix cache from the question before."""
FIRST = (BASE, ICL, ICL_CACHED, RAG, SINGLE, PRELOADED)
"""Asked of the server that keeps adapters in memory."""
SECOND = (BASE, PER_QUESTION)
"""Asked of the one that does not; `base` again, to see whether the machine was as fast."""
MERGING = (PRELOADED, PER_QUESTION)
RETRIEVING = (RAG, PRELOADED, PER_QUESTION)
CHUNKS, WHOLE = "q15-chunks", "q15-whole"
"""Namespaces: the document as an adapter for each chunk, and as one adapter."""
STAGES = ("embed", "search", "route", "merge", "select", "queue", "prefill", "decode")
OTHER = "other"
"""What the client waits for beyond the stages that the server tells, such as the way there and back."""
WARM_UP = "What is this text about?"
INDEXED_POLL_S = 0.05
MOST_AT_ONCE = 8
"""Adapters that one question can be routed to."""
PIECES = 32
"""Of the text, that adapters are asked for by, to have them brought into memory."""
PIECE_CHARS = 300


class NotAnswered(SystemExit):
    """The server refused a question or failed at it."""


@dataclass(frozen=True)
class Learnt:
    """What the server made of the document. `index_s` is from the upload until `rag` can answer, `learn_s` until all
    adapters are live."""

    documents: Mapping[str, str]
    index_s: float
    learn_s: Mapping[str, float]
    adapters: Sequence[Archive]
    whole: Archive
    adapter_bytes: int


@dataclass(frozen=True)
class Answered:
    """A reply; `read` is how many characters of the document were in the prompt, for ICL."""

    asked: Asked
    routed: frozenset[str]
    merge: str | None
    read: int


@dataclass(frozen=True)
class Served:
    """By method. `warmed`: adapters that were brought into memory before the first question."""

    measured: Mapping[str, Measured]
    answers: Mapping[str, Sequence[Answered]]
    warmed: int


def learn(url: str, document: Document, training: Json, transport: httpx.BaseTransport | None = None) -> Learnt:
    """Upload twice, each time with `training` and for as many adapters as it is to become, and fetch the adapters.
    Raises `NotLearnt`, and `SystemExit` where a document has not the adapters that it should have."""
    documents: dict[str, str] = {}
    index_s: dict[str, float] = {}
    learn_s: dict[str, float] = {}
    for namespace, per in ((CHUNKS, "chunk"), (WHOLE, "document")):
        started = time.perf_counter()
        with Client(url, namespace=namespace, transport=transport) as client:
            accepted = client.upload(
                document.text, title=document.title, training=training | {"per": per, "mend": False}
            )
            documents[namespace] = accepted["document"]["id"]
            _await_index(client)
            index_s[namespace] = time.perf_counter() - started
            follow(client, accepted["job"]["id"])
            learn_s[namespace] = time.perf_counter() - started
    with Adapters(url, transport=transport) as adapters:
        chunks, whole = (adapters.of(documents[namespace]) for namespace in (CHUNKS, WHOLE))
        if len(whole) != 1 or len(chunks) < TOP_K:
            raise SystemExit(
                f"benchmarks.q15: the document became {len(chunks)} adapters, {TOP_K} or more are needed, and "
                f"{len(whole)} in place of one for the whole: a shorter --chunk-tokens gives more"
            )
        archives = [adapters.archive(one["id"]) for one in chunks]
        size = sum(one["size_bytes"] for one in chunks)
        return Learnt(documents, index_s[CHUNKS], learn_s, archives, adapters.archive(whole[0]["id"]), size)


def _await_index(client: Client) -> None:
    """Ends when the namespace's one document can be read, or its job will have to say why not."""
    while True:
        document = next(iter(client.documents()))
        if document["state"] != "pending" or client.job(document["job_id"])["state"] in FINAL_JOB_STATES:
            return
        time.sleep(INDEXED_POLL_S)


class Questioner:
    """Asks one server about one document. The transport stands in for the network in tests."""

    def __init__(
        self, url: str, documents: Mapping[str, str], max_tokens: int, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._documents, self._max_tokens = documents, max_tokens
        self._http = httpx.Client(base_url=url, timeout=httpx.Timeout(600, connect=10), transport=transport)
        self._merges = 0

    def __enter__(self) -> "Questioner":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, method: str, question: str, number: int) -> Answered:
        """`number` tells the question apart from all others. Raises `NotAnswered`."""
        return self.post(self._body(method, question, number) | {"max_tokens": self._max_tokens})

    def post(self, body: Json) -> Answered:
        started = time.perf_counter()
        try:
            response = self._http.post("/query", json=body)
        except httpx.TransportError as error:
            raise NotAnswered(f"benchmarks.q15: no answer from the server: {error}") from error
        wall_ms = (time.perf_counter() - started) * 1000
        if response.is_error:
            raise NotAnswered(f"benchmarks.q15: HTTP status {response.status_code}: {response.text[:500]}")
        return _answered(response.json(), wall_ms)

    def merging(self, question: str, top_k: int = TOP_K) -> Json:
        """A question to a merge like no other before, by its strength."""
        self._merges += 1
        how = {"method": "ties", "density": 0.5, "weights": "uniform", "strength": 1.0 - self._merges / 10_000}
        return _lora(question, CHUNKS) | {"top_k": top_k, "compose": "merge", "merge": how}

    def _body(self, method: str, question: str, number: int) -> Json:
        if method in MERGING:
            return self.merging(question)
        if method == SINGLE:
            return _lora(question, WHOLE) | {"top_k": 1}
        if method in (ICL, ICL_CACHED):
            system = mark(number if method == ICL else None)
            turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            named = [self._documents[CHUNKS]]
            return {"messages": turns, "mode": "icl", "namespace": CHUNKS, "document_ids": named, "truncate": True}
        return {"question": question, "mode": method, "namespace": CHUNKS}


def mark(number: int | None) -> str:
    """The system message of an ICL prompt: with a number of its own the prompt begins like no other, so that nothing
    of it is in the prefix cache."""
    return "Read." if number is None else f"({number:03d}) Read."


def _lora(question: str, namespace: str) -> Json:
    return {"question": question, "mode": "lora", "namespace": namespace}


def _answered(reply: Json, wall_ms: float) -> Answered:
    timings, usage = reply["timings_ms"], reply["usage"]
    stages = {stage: float(timings[stage]) for stage in STAGES}
    stages[OTHER] = wall_ms - sum(stages.values())
    asked = Asked(
        stages_ms=stages,
        wall_ms=wall_ms,
        prompt_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
    )
    routed = frozenset(one["adapter_id"] for one in reply["routed"])
    merge = reply["merge"]["cache"] if reply["merge"] else None
    return Answered(asked, routed, merge, sum(span["end"] - span["start"] for span in reply["context"]))


def measure(
    questioner: Questioner, methods: Sequence[str], document: Document, start_s: float, index_s: float, seed: int
) -> Served:
    """Every method warmed by a question that is not counted, then all questions, each put to the methods in random
    order. `start_s` is the server's, `index_s` the document's share of what has to be done once.

    Raises `NotAnswered`, and `SystemExit` for a merge that was there already.
    """
    setups = {method: {"server_start": start_s} for method in methods}
    for method in (one for one in methods if one in RETRIEVING):
        setups[method]["upload_and_index"] = index_s
    warmed = 0
    if PRELOADED in methods:
        started = time.perf_counter()
        warmed = bring_into_memory(questioner, document.text)
        setups[PRELOADED]["all_adapters_loading"] = time.perf_counter() - started
    for method in methods:
        first = questioner.ask(method, WARM_UP, 0)
        if method == SINGLE:
            setups[method]["adapter_loading"] = first.asked.stages_ms["merge"] / 1000
    answers: dict[str, list[Answered]] = {method: [] for method in methods}
    for number, question, method in bar(list(turns(methods, document.questions, seed)), "asking"):
        answers[method].append(questioner.ask(method, question, number))
    for method in (one for one in methods if one in MERGING):
        _check_new(method, answers[method])
    asked = {method: tuple(one.asked for one in found) for method, found in answers.items()}
    measured = {method: Measured(setup_s=setups[method], asked=asked[method]) for method in methods}
    return Served(measured, answers, warmed)


def turns(methods: Sequence[str], questions: Sequence[str], seed: int) -> Iterator[tuple[int, str, str]]:
    """(number from 1, question, method)"""
    rng = random.Random(seed)
    for number, question in enumerate(questions, start=1):
        for method in rng.sample(list(methods), len(methods)):
            yield number, question, method


def bring_into_memory(questioner: Questioner, text: str) -> int:
    """Merge adapters by pieces of the text, from its beginning to its end, so that each is asked for; returns how many
    were."""
    seen: set[str] = set()
    step = max(PIECE_CHARS, len(text) // PIECES)
    for start in range(0, len(text), step):
        if piece := text[start : start + PIECE_CHARS].strip():
            seen |= questioner.post(questioner.merging(piece, MOST_AT_ONCE) | {"max_tokens": 1}).routed
    return len(seen)


def _check_new(method: str, answers: Sequence[Answered]) -> None:
    if any(one.merge != "miss" or len(one.routed) != TOP_K for one in answers):
        merges = sorted({(one.merge or "none", len(one.routed)) for one in answers})
        raise SystemExit(f"benchmarks.q15: {method} is to merge {TOP_K} adapters anew for each question, not {merges}")
