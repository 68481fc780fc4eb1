"""The HTTP surface as types: what a request may hold and what a reply does. Unknown keys are refused, not ignored."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from loramem.records import (
    MERGE_OPTIONS,
    MIN_DENSITY,
    AskedMode,
    Compose,
    ExamResult,
    MergeMethod,
    Mode,
    PreviewExample,
    Progress,
    QAPair,
    Recipe,
    SignMethod,
    TrainingOptions,
    Weighting,
)
from server.api.fields import (
    ExternalId,
    FilledMessage,
    FilledText,
    Filter,
    MessageText,
    Metadata,
    NamespaceName,
    PairText,
    Text,
    Title,
    TopK,
    few_keys,
    not_blank,
)
from server.ask import Confidence


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RequestSchema(Schema):
    """What comes from outside."""

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, data: Any) -> Any:
        return few_keys(data)


# documents


class CleanQAPair(QAPair):
    question: PairText = Field(max_length=2000)
    answer: PairText = Field(max_length=2000)


class DocumentFields(RequestSchema):
    """What may be said about a document, whatever carries its text."""

    title: Title = Field("", description="default: the file's own title, or the text's first line")
    external_id: ExternalId | None = Field(None, description="your key, unique in the namespace")
    namespace: NamespaceName = Field("default", description="documents are searched within one namespace")
    metadata: Metadata = Field(default_factory=dict, description="yours, kept as it is")
    qa: tuple[Annotated[CleanQAPair, BeforeValidator(few_keys)], ...] = Field(
        (), max_length=2000, fail_fast=True, description="questions and answers to train on as well"
    )
    training: Annotated[TrainingOptions, BeforeValidator(few_keys)] = Field(default_factory=lambda: TrainingOptions())


class DocumentIn(DocumentFields):
    text: FilledText = Field(description="the document")


class JobOut(Schema):
    """A preview is of no document and no revision."""

    id: str
    kind: Literal["build", "preview", "mend"]
    document_id: str | None
    revision: int | None
    state: Literal["queued", "running", "succeeded", "failed", "cancelled", "dead"]
    progress: Progress | None
    attempts: int
    max_attempts: int
    cancel_requested: bool
    error: dict[str, Any] | None
    created_at: float
    started_at: float | None
    finished_at: float | None


class JobDetail(JobOut):
    preview: list[PreviewExample] | None = Field(description="of a preview that succeeded: the first chunk's examples")
    preview_counts: dict[str, int] | None = Field(description="how many of each kind")


class DocumentOut(Schema):
    """`revision` is the newest; `serving_revision` the one that answers (null: none yet)."""

    id: str
    namespace: str
    external_id: str | None
    title: str
    metadata: dict[str, Any]
    state: Literal["pending", "indexed", "live"]
    revision: int
    serving_revision: int | None
    job_id: str | None
    mending_job_id: str | None = Field(
        None, description="of the job that trains weak adapters again; told by GET, not in the reply to an upload"
    )
    created_at: float
    updated_at: float


class AcceptedOut(Schema):
    """`created` is false when the same content was there already; `job` is then its latest one. A preview has no
    document and creates none."""

    document: DocumentOut | None
    job: JobOut | None
    created: bool


class DocumentPage(Schema):
    data: list[DocumentOut]
    has_more: bool
    next_cursor: str | None = Field(description="pass as `after` for the next page")


class AdapterOut(Schema):
    id: str
    document_id: str
    namespace: str
    revision: int
    chunk: int
    rank: int
    alpha: int
    size_bytes: int
    sha256: str
    base_fingerprint: str
    exam: ExamResult
    state: Literal["live", "retired"]
    created_at: float


class AdapterPage(Schema):
    data: list[AdapterOut]
    has_more: bool
    next_cursor: str | None


# queries


class MessageIn(RequestSchema):
    role: Literal["system", "user", "assistant"]
    content: MessageText = Field(description="blank only of an answer that was broken off; it is left out")

    @field_validator("content")
    @classmethod
    def _filled(cls, content: str, info: ValidationInfo) -> str:
        return content if info.data.get("role") == "assistant" else not_blank(content)


class MergeIn(RequestSchema):
    """How several adapters become one; see the paper's Q10 and PEFT's `add_weighted_adapter`."""

    method: MergeMethod | None = Field(
        None, description="default: `cat`, or `ties` where the ranks together are more than a slot takes"
    )
    density: float = Field(
        0.5, ge=MIN_DENSITY, le=1, description="share of each adapter's entries that TIES and DARE keep"
    )
    sign_method: SignMethod = Field("total", description="how TIES elects signs")
    weights: Weighting = Field("uniform", description="equal, or by the router's scores")
    strength: float | None = Field(
        None, gt=0, le=4, description="scale of the adapters' update; default: 1, and 0.25 where text is in the prompt"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the entries that DARE drops")

    @field_validator(*MERGE_OPTIONS)
    @classmethod
    def _of_its_methods(cls, value: Any, info: ValidationInfo) -> Any:
        method, methods = info.data.get("method", ""), MERGE_OPTIONS[str(info.field_name)]
        if method != "" and method not in methods:
            raise ValueError(f"is for the methods {', '.join(sorted(methods))}: say one in `method`, or leave it out")
        return value


class QueryIn(RequestSchema):
    question: FilledMessage | None = None
    messages: list[MessageIn] | None = Field(
        None, min_length=1, max_length=200, fail_fast=True, description="the last one is asked"
    )
    mode: AskedMode = Field(
        "lora",
        description="`auto` decides by how sure the router is: one adapter, the best of several, weights and text, or "
        "saying that nothing stored is about the question",
    )
    namespace: NamespaceName = "default"
    document_ids: list[Text] | None = Field(None, min_length=1, max_length=64, description="ask only these")
    metadata: Filter = Field(
        default_factory=dict, description="ask only documents whose metadata has these values, compared as text"
    )
    top_k: TopK = Field("auto", description="adapters to answer from; auto: one to three, by the router's lead")
    compose: Compose | None = Field(
        None,
        description="of several adapters: `select` has each begin its answer and goes on with the one that most likely "
        "knows, by its words and the router; `merge` makes one of them. Default: select, or merge if `merge` is given",
    )
    merge: MergeIn = Field(default_factory=lambda: MergeIn())
    context: Literal["rag", "icl"] = Field("rag", description="the text that hybrid adds to the weights")
    max_tokens: int = Field(64, ge=1, le=1 << 20)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**31)
    stream: bool = False
    truncate: bool = Field(False, description="cut a document that does not fit the window, instead of refusing")

    @property
    def merges(self) -> bool:
        """Whether `merge` says more than at which strength: that a selection takes too."""
        return bool(self.merge.model_fields_set - {"strength"})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.question is None) == (self.messages is None):
            raise ValueError("give either question or messages")
        if self.compose == "select" and self.merges:
            raise ValueError("`merge` says how to merge, and compose is `select`: leave one of them out")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("the last of messages must have the role user")
        return self


class RoutedOut(Schema):
    adapter_id: str
    document_id: str
    title: str
    chunk: int
    score: float
    weight: float
    logprob: float | None = Field(
        None, description="of a candidate that began to answer: mean log-probability of its first tokens, in nats"
    )


class MergeOut(Schema):
    method: MergeMethod
    recipe: Recipe
    cache: Literal["hit", "miss"]


class SpanOut(Schema):
    document_id: str
    chunk: int | None
    start: int
    end: int


class Usage(Schema):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    dropped_tokens: int = Field(0, description="of candidates that were not selected; not in the total")


class Timings(Schema):
    """Milliseconds. `route` is what routing takes besides `embed` and `search`, `merge` what it takes to get the
    adapters ready, `select` how long the first of several waits for others when it has said its first words, `queue`
    the wait for a slot and then for the engine; `prefill` and `decode` are the engine's; `ttft` and `total` run from
    the request to the first and the last token."""

    embed: float = 0.0
    search: float = 0.0
    route: float = 0.0
    merge: float = 0.0
    select: float = 0.0
    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    ttft: float = 0.0
    total: float = 0.0


class ChoiceOut(Schema):
    """How sure the router is. `confident`: one adapter leads; `unsure`: several may know; `weak`: little speaks for
    the best, or one of those called for failed its exam; `untrained`: what matches best has no adapter yet; `none`:
    nothing is."""

    confidence: Confidence
    count: int = Field(description="adapters that this calls for")
    margin: float = Field(description="lead of the best over the next, as a share of its score")
    reason: str


class AnswerHead(Schema):
    """The `route` event: known before the first token. With `compose: select` it comes after the choice."""

    id: str
    mode: Mode = Field(description="what answers; where `auto` was asked for, what it decided on")
    choice: ChoiceOut | None = Field(description="how sure the router is; null in mode base")
    refused: bool = Field(description="mode auto found nothing about the question, and no model was asked")
    compose: Compose | None = Field(None, description="how the adapters became one answer; null: no adapter")
    selected: str | None = Field(None, description="with compose select: the id of the adapter that answers")
    routed: list[RoutedOut]
    merge: MergeOut | None
    context: list[SpanOut]


class AnswerOut(AnswerHead):
    answer: str
    usage: Usage
    timings_ms: Timings
    finish_reason: str


class TokenOut(Schema):
    text: str


# health and errors


class Health(Schema):
    status: Literal["ok"]


class Ready(Schema):
    status: Literal["ready", "starting", "failed"]
    detail: str = ""


class Problem(BaseModel):
    """RFC 9457. `key`, `value` and `allowed` say what was wrong, where that applies."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    key: str | None = None
    value: Any = None
    allowed: str | None = None
