"""What the parts of `benchmarks.q15` hand to each other; `ReferencePlan` and `Measured` cross a process as JSON."""

from typing import Literal

from loramem.records import Record

BASE = "base"
ICL = "icl"
RAG = "rag"
SINGLE = "single"
PRELOADED = "multi_preloaded"
PER_QUESTION = "multi_per_question"
METHODS = (BASE, ICL, RAG, SINGLE, PRELOADED, PER_QUESTION)
TOP_K = 3
"""Adapters that are merged, and chunks that the reference reads as context."""

Device = Literal["cpu", "cuda"]
ReferencePrecision = Literal["auto", "float32", "bfloat16"]


class Document(Record):
    """One document and the questions about it."""

    title: str
    text: str
    questions: tuple[str, ...]


class Asked(Record):
    """One answer. `stages_ms` add up to `wall_ms`, which for a server is the time that its client sees."""

    stages_ms: dict[str, float]
    wall_ms: float
    prompt_tokens: int
    output_tokens: int


class Measured(Record):
    """One method: what it costs once, in seconds by stage, and each question, in the order of the document's."""

    setup_s: dict[str, float]
    asked: tuple[Asked, ...]


class ReferenceQuestion(Record):
    """`mark` is the system message of the ICL prompt, `read` how many characters of the document are in it.

    `tokens`: how many are to be generated, by method.
    """

    question: str
    mark: str
    read: int
    tokens: dict[str, int]


class ReferencePlan(Record):
    """`adapters` are PEFT folders, one for each of `chunks`; `whole` is the folder of the document's one adapter.

    `warm_up` is asked first, by every method, and not counted.
    """

    device: Device
    precision: ReferencePrecision
    title: str
    text: str
    chunks: tuple[str, ...]
    adapters: tuple[str, ...]
    whole: str
    warm_up: ReferenceQuestion
    questions: tuple[ReferenceQuestion, ...]


class ReferenceResult(Record):
    """`rag_chunks` is the mean number of chunks that fitted into the model's window."""

    dtype: str
    rag_chunks: float
    methods: dict[str, Measured]
