"""The types of the read flow: what is asked, what each step hands to the next, and the events of an answer."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from loramem.prompts import Message
from loramem.records import AskedMode, Compose, MergeMethod, Mode, Recipe, SignMethod, Weighting
from server.engine.engine import EngineAdapter, Sampling, Tiers, TokenLogprob

Scalar = str | int | float | bool
ADAPTER_MODES = frozenset({"lora", "hybrid"})
"""Modes that answer from weights."""
STRENGTHS: Mapping[str, float] = {"hybrid": 0.25}
"""Of the adapters' update, where it is not 1: beside text in the prompt a quarter helps, the whole drowns the text
(`benchmarks/LOG.md`)."""


@dataclass(frozen=True)
class MergeOptions:
    method: MergeMethod | None = None
    """None takes `cat`, the mean of the updates, or `ties` where a slot has no room for that."""
    density: float = 0.5
    sign_method: SignMethod = "total"
    weights: Weighting = "uniform"
    strength: float | None = None
    """None takes the mode's."""
    seed: int = 0


@dataclass(frozen=True)
class Ask:
    """One question with everything that decides its answer. `history` holds the turns before it."""

    question: str
    mode: AskedMode
    namespace: str
    sampling: Sampling
    history: tuple[Message, ...] = ()
    document_ids: tuple[str, ...] | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    """Only documents that have these values are looked at."""
    top_k: int | Literal["auto"] = "auto"
    compose: Compose = "select"
    merge: MergeOptions = field(default_factory=MergeOptions)
    context: Literal["rag", "icl"] = "rag"
    truncate: bool = False
    key: Literal["question", "messages", "prompt"] = "question"
    """Of the request, that the question came by."""

    @property
    def context_kind(self) -> Literal["rag", "icl"] | None:
        """Which text goes into the prompt; None: closed book."""
        if self.mode == "hybrid":
            return self.context
        return self.mode if self.mode in ("rag", "icl") else None

    @property
    def merging(self) -> MergeOptions:
        """`merge` with its strength."""
        if self.merge.strength is not None:
            return self.merge
        return replace(self.merge, strength=STRENGTHS.get(self.mode, 1.0))


Confidence = Literal["confident", "unsure", "weak", "untrained", "none"]


@dataclass(frozen=True)
class Choice:
    """How sure the router is, and so how many adapters it takes; `margin` is the lead of the best over the next, as a
    share of its score, `best`. None: there is no adapter."""

    confidence: Confidence
    count: int
    margin: float
    reason: str
    best: float | None = None


NO_CHOICE = Choice("none", 0, 1.0, "nothing is stored")


@dataclass(frozen=True)
class Decision:
    """The mode that answers, and why; `refuses`: nothing stored is about the question, so nothing answers it.
    `unread`: of the namespace's documents, how many are still to be read then."""

    mode: Mode
    choice: Choice | None = None
    refuses: bool = False
    unread: int = 0


@dataclass(frozen=True)
class RoutedAdapter:
    """`chunk` is the ordinal in its document; `score` is from 0 to 1, of meaning and words; weights add up to 1.
    `weak`: it failed its exam."""

    adapter_id: str
    sha256: str
    rank: int
    document_id: str
    title: str
    chunk: int
    score: float
    weight: float
    weak: bool = False


@dataclass(frozen=True)
class Passage:
    """Text near the question; `start` and `end` are offsets into the revision's text."""

    document_id: str
    revision: int
    chunk: int
    start: int
    end: int
    text: str
    title: str
    score: float


@dataclass(frozen=True)
class Route:
    """All best first. `documents` gives the best score of each document, `revisions` the one that serves, of documents
    found or named; `timings_ms` has `embed` and `search`; `choice` is of the adapters. `chosen`: the documents that
    were looked at, where they were named or chosen by metadata."""

    adapters: tuple[RoutedAdapter, ...]
    passages: tuple[Passage, ...]
    documents: Mapping[str, float]
    revisions: Mapping[str, int]
    timings_ms: Mapping[str, float]
    choice: Choice = NO_CHOICE
    chosen: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Prepared:
    """An adapter that has a slot in the engine. `merged` is false for a single one at its own strength.

    `seconds` it took to load or merge, `waited` those before, until there was a slot.
    """

    adapter: EngineAdapter
    recipe: Recipe
    merged: bool
    cache_hit: bool
    seconds: float
    tiers: Tiers = field(default_factory=dict)
    waited: float = 0.0


@dataclass(frozen=True)
class Opened:
    """An adapter, made of those with these ids, that may be used though it is only being prepared; awaiting `prepared`
    raises what goes wrong with that."""

    adapter: EngineAdapter
    prepared: Awaitable[Prepared]
    adapter_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which of several adapters answers. `winner` counts among `logprobs`, which are in the order of the route.

    Each is the mean log-probability of the first tokens of an adapter's answer, in nats; minus infinity where it said
    nothing, and None where it had no chance left and did not begin. `dropped_tokens` is what the others had said by
    then, `seconds` how long the first waited for them when it had said its own.
    """

    winner: int
    logprobs: tuple[float | None, ...]
    dropped_tokens: int
    seconds: float


@dataclass(frozen=True)
class Span:
    """Text that went into the prompt: character offsets into the document's revision."""

    document_id: str
    chunk: int | None
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """`drafts`: by adapter id, what an answer from it may repeat (`speculate.packed`)."""

    token_ids: list[int]
    spans: tuple[Span, ...]
    drafts: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Routed:
    """First event: what will answer. `prepared` has the merge or adapter that does, then those that began beside it."""

    decision: Decision
    adapters: tuple[RoutedAdapter, ...] = ()
    prepared: tuple[Prepared, ...] = ()
    spans: tuple[Span, ...] = ()
    selection: Selection | None = None

    @property
    def winner(self) -> int:
        """Place in `adapters` of what answers; of a merge, of the first."""
        return self.selection.winner if self.selection else 0


@dataclass(frozen=True)
class Token:
    """What one engine step added."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Done:
    """Last event."""

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    timings_ms: Mapping[str, float]
    dropped_tokens: int = 0


Event = Routed | Token | Done
